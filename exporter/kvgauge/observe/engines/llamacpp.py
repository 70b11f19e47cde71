"""llama.cpp's server, from `/props`, `/metrics` and `/slots`. Builds are numbered: `b11434`.

Names and meanings were read in `tools/server` of build 11434 and checked on that server running; older shapes are
those of its documentation and of public recordings. What of it is not obvious:

`/props` is asked first and each time. It tells which of the other two are served and whether the server sleeps, and
neither wakes a sleeping server nor keeps an idle one from falling asleep.

`/slots` tells of every slot, as it is now, how many tokens it holds. It wakes a server that sleeps, and it starts anew
the clock by which an idle one falls asleep. So builds that can sleep are only asked for it while requests run, and
what their idle slots hold stays unknown meanwhile. A server without `--metrics` has nothing else to tell whether
requests run: it is asked each time, and does not fall asleep while it is watched.

`/metrics` alone tells of requests that wait, counts decoding steps, and from August 2026 on leaves that clock alone.
Each read starts `prompt_tokens_seconds` and `predicted_tokens_seconds` anew, which are means since anybody's last
read: they are not used here, and beside a sidecar they are of no use to others. The counters they are made of
(`*_tokens_total`, `*_seconds_total`) are not disturbed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvgauge.observe.engines.contract import Engine, Hints, Json, Marks, Pages, names_start_with, sample_names_of
from kvgauge.observe.engines.rows import Figures, Rows, field_of, objects_of, reasons_for, size, text
from kvgauge.observe.exposition import Page
from kvgauge.observe.records import EngineReading, RankReading, SourceError

_PREFIX = "llamacpp:"
_PROPS, _METRICS, _SLOTS = "/props", "/metrics", "/slots"
_PROCESSING, _DEFERRED, _DECODES = "requests_processing", "requests_deferred", "n_decode_total"
_PROMPT_TOKENS, _PREDICTED_TOKENS = "prompt_tokens_total", "tokens_predicted_total"
_CACHED_TOKENS = "prompt_tokens_cached_total"
# Up to May 2025, before slots could share a pool; the cells in use, those of idle slots included.
_USAGE, _USED_CELLS = "kv_cache_usage_ratio", "kv_cache_tokens"
_WANTED = sample_names_of(
    (_PROCESSING, _DEFERRED, _DECODES, _PROMPT_TOKENS, _PREDICTED_TOKENS, _CACHED_TOKENS, _USAGE, _USED_CELLS), _PREFIX
)
# A page that is switched off answers 501, in old builds 404. Other failures are the server's.
_SWITCHED_OFF = frozenset({"http_status", "not_json", "not_metrics"})
_MAX_SLOTS = 4096
_ASLEEP = "the server sleeps: its model is unloaded"
_NO_PAGE = Page({}, 0)


def _read(pages: Pages) -> EngineReading:
    props = pages.json(_PROPS)
    if field_of(props, "role") == "router":
        raise SourceError("no_engine_series", "this llama-server is a router: read the servers that it started")
    sleeping = field_of(props, "is_sleeping")
    # Builds without it cannot sleep.
    can_sleep = isinstance(sleeping, bool)
    asleep = sleeping is True
    rows = _metrics(pages, props, asleep)
    running, waiting = rows.whole("running", _PROCESSING), rows.whole("waiting", _DEFERRED)
    slots = _slots(pages, props, asleep, can_sleep=can_sleep, at_rest=running == 0 and waiting == 0)
    server = _Server.of(props, slots, pages.hints)
    if slots.processing is not None:
        # Of the same moment as the tokens.
        running = slots.processing
    rank = _read_rank(rows, slots, server, running, waiting)
    reading = EngineReading(
        engine=ENGINE.name,
        version=text(field_of(props, "build_info")),
        model=server.model,
        model_path=text(field_of(props, "model_path")),
        max_model_len=server.slot_tokens or pages.hints.max_model_len,
        max_num_seqs=server.slots,
        kv_dtype=pages.hints.kv_dtype,
        asleep=asleep if can_sleep else None,
        ranks=(rank,),
        bad_lines=rows.bad_lines,
        bad_values=rows.bad_values + slots.figures.bad_values,
    )
    reasons = dict.fromkeys(("version", "model_path", "max_model_len", "max_num_seqs"), f"{_PROPS} does not tell it")
    reasons |= dict.fromkeys(("tp", "pp"), "llama.cpp does not tell how it spreads a model over GPUs")
    reasons["kv_dtype"] = "llama.cpp does not tell --cache-type-k and --cache-type-v"
    return replace(reading, missing=reasons_for(reading, reasons))


class _Metrics(Rows):
    """The metrics page, or none and why."""

    def __init__(self, page: Page = _NO_PAGE, why_none: str | None = None) -> None:
        super().__init__(page, _PREFIX)
        self.unstated = why_none
        self.bad_lines = page.bad_lines


def _metrics(pages: Pages, props: Json, asleep: bool) -> _Metrics:
    if asleep:
        return _Metrics(why_none=_ASLEEP)
    if field_of(props, "endpoint_metrics") is False:
        return _Metrics(why_none="the server was started without --metrics")
    try:
        return _Metrics(pages.metrics(_METRICS, _WANTED))
    except SourceError as error:
        if error.reason not in _SWITCHED_OFF:
            raise
        return _Metrics(why_none=f"{_METRICS} is not served ({error.reason}): llama-server does so with --metrics")


@dataclass(frozen=True, slots=True)
class _Slots:
    """What is kept of `/slots`: counts. The bodies of old builds carry prompts, which are left where they are."""

    figures: Figures
    processing: int | None = None
    """Slots with a request."""
    active_tokens: int | None = None
    """Tokens in the slots with a request: its prompt as far as it is computed, and its output so far."""
    idle_tokens: int | None = None
    """Tokens in the other slots, left by their last requests and of use to a next one that begins alike."""
    slot_tokens: int | None = None
    """Tokens that one slot can hold."""
    steps: float | None = None
    """Moves while requests run."""


def _slots(pages: Pages, props: Json, asleep: bool, *, can_sleep: bool, at_rest: bool) -> _Slots:
    """The slots, unless that could wake the server or keep it awake."""
    figures = Figures()
    if asleep:
        figures.unstated = _ASLEEP
    elif field_of(props, "endpoint_slots") is False:
        figures.unstated = "the server was started with --no-slots"
    elif at_rest and can_sleep:
        figures.unstated = f"the server is idle, and asking for {_SLOTS} could keep it from falling asleep"
    else:
        try:
            return _slots_of(pages.json(_SLOTS), figures)
        except SourceError as error:
            if error.reason not in _SWITCHED_OFF:
                raise
            figures.unstated = f"{_SLOTS} is not served ({error.reason}): llama-server does so with --slots"
    return _Slots(figures)


def _slots_of(answer: Json, figures: Figures) -> _Slots:
    entries = objects_of(answer)
    if not entries or len(entries) > _MAX_SLOTS:
        figures.refuse("active_tokens", f"{_SLOTS} tells of {len(entries)} slots")
        return _Slots(figures)
    busy = [entry for entry in entries if _is_processing(entry)]
    idle = [entry for entry in entries if not _is_processing(entry)]
    active_tokens = _sum([_held_tokens(figures, "active_tokens", entry) for entry in busy])
    decoded = sum(size(_next_token(entry).get("n_decoded")) or 0 for entry in busy)
    return _Slots(
        figures=figures,
        processing=len(busy),
        active_tokens=active_tokens,
        idle_tokens=_sum([_held_tokens(figures, "reclaimable_tokens", entry) for entry in idle]),
        slot_tokens=max((size(entry.get("n_ctx")) or 0 for entry in entries), default=0) or None,
        # Output tokens alone stand still while a long prompt is computed.
        steps=None if active_tokens is None else float(active_tokens + decoded),
    )


def _is_processing(slot: Mapping[str, object]) -> bool:
    """Up to 2024 a slot had a `state`, 0 being idle."""
    told = slot.get("is_processing")
    return told if isinstance(told, bool) else size(slot.get("state")) is not None


def _held_tokens(figures: Figures, field: str, slot: Mapping[str, object]) -> int | None:
    """Tokens in the slot's cache. Generated ones are among them: `n_decoded` is not to be added."""
    name = next((name for name in ("n_prompt_tokens", "n_past") if name in slot), None)
    if name is None:
        if "id_task" not in slot:
            # Never used: a slot that was tells of its last request.
            return 0
        figures.missing[field] = f"this build's {_SLOTS} does not tell how many tokens a slot holds"
        return None
    tokens, room = figures.count(field, name, slot[name]), size(slot.get("n_ctx"))
    if tokens is not None and room is not None and tokens > room:
        figures.refuse(field, f"{name} is {tokens} in a slot of {room}")
        return None
    return tokens


def _next_token(slot: Mapping[str, object]) -> Mapping[str, object]:
    """An object in older builds, an array of one in newer ones."""
    told = slot.get("next_token")
    return told if isinstance(told, Mapping) else next(iter(objects_of(told)), {})


def _sum(values: list[int | None]) -> int | None:
    """None as soon as one part is unknown: a sum without it would be a smaller number, not an unknown one."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


@dataclass(frozen=True, slots=True)
class _Server:
    """How the server was started."""

    model: str
    slots: int | None
    slot_tokens: int | None
    """Tokens that one slot can hold."""
    one_pool: bool | None
    """Whether the slots share one pool, of as many cells as one of them can hold (`--kv-unified`, the default where
    `-np` is not given). Otherwise each has its own."""
    stated_capacity_tokens: int | None

    @classmethod
    def of(cls, props: Json, slots: _Slots, hints: Hints) -> "_Server":
        defaults = field_of(props, "default_generation_settings")
        total = size(field_of(props, "total_slots"))
        return cls(
            # Without an alias newer builds call the model by its path.
            model=text(field_of(props, "model_alias")) or text(field_of(props, "model_path")) or "",
            slots=total,
            slot_tokens=size(field_of(defaults, "n_ctx")) or slots.slot_tokens,
            one_pool=False if total == 1 else hints.kv_unified,
            stated_capacity_tokens=hints.capacity_tokens,
        )


def _read_rank(rows: _Metrics, slots: _Slots, server: _Server, running: int | None, waiting: int | None) -> RankReading:
    cells = _Cells.of(rows, slots, server, running)
    prompt_tokens = rows.value("prompt_tokens_total", _PROMPT_TOKENS)
    cached_tokens = rows.value("prefix_hits_tokens_total", _CACHED_TOKENS)
    reading = RankReading(
        rank="0",
        model=server.model,
        capacity_tokens=cells.capacity,
        active_tokens=cells.active,
        reclaimable_tokens=cells.reclaimable,
        free_tokens=cells.free,
        live_tokens=cells.active,
        reserved_tokens=cells.reserved,
        usage_ratio=rows.fraction("usage_ratio", _USAGE),
        running=running,
        waiting=waiting,
        prompt_tokens_total=prompt_tokens,
        generation_tokens_total=rows.value("generation_tokens_total", _PREDICTED_TOKENS),
        prefix_queries_tokens_total=None
        if prompt_tokens is None or cached_tokens is None
        else prompt_tokens + cached_tokens,
        prefix_hits_tokens_total=cached_tokens,
        # What a slot's cache had is not among them.
        prompt_computed_tokens_total=prompt_tokens,
        progress=tuple(
            figure for figure in (rows.value("progress", _DECODES), slots.steps, prompt_tokens) if figure is not None
        )
        or None,
    )
    return replace(reading, missing=reasons_for(reading, _reasons(rows, slots)))


@dataclass(frozen=True, slots=True)
class _Cells:
    """The cells of the pool, or of all the slots' pools, by what they are for. A cell holds one token."""

    capacity: int | None
    active: int | None
    reclaimable: int | None
    free: int | None
    reserved: int | None

    @classmethod
    def of(cls, rows: _Metrics, slots: _Slots, server: _Server, running: int | None) -> "_Cells":
        used = rows.whole("usage_ratio", _USED_CELLS)
        own_pools = server.one_pool is False or used is not None
        capacity = server.stated_capacity_tokens
        if capacity is None and server.slot_tokens is not None:
            if own_pools and server.slots is not None:
                capacity = server.slot_tokens * server.slots
            elif server.one_pool:
                capacity = server.slot_tokens
        # Slots that share a pool also share the cells of a prompt that is to have several answers; each counts them.
        active = _at_most(capacity, 0 if running == 0 else slots.active_tokens)
        reclaimable = slots.idle_tokens
        if reclaimable is None and used is not None and active is not None:
            reclaimable = max(used - active, 0)
        reserved = running * server.slot_tokens if own_pools and running is not None and server.slot_tokens else None
        if capacity is None or active is None:
            return cls(capacity, active, _at_most(capacity, reclaimable), None, _at_most(capacity, reserved))
        reclaimable = _at_most(capacity - active, reclaimable)
        return cls(capacity, active, reclaimable, capacity - active - (reclaimable or 0), _at_most(capacity, reserved))


def _at_most(limit: int | None, value: int | None) -> int | None:
    return value if limit is None or value is None else min(value, limit)


def _reasons(rows: _Metrics, slots: _Slots) -> dict[str, str]:
    """Why a figure is None, by field."""
    untold_slots = slots.figures.unstated or "the slots do not tell it"
    reasons = dict.fromkeys(("block_tokens", "num_blocks", "used_blocks"), "llama.cpp has no blocks, only cells")
    histograms = ("prompt_lengths", "output_lengths", "ttft_seconds", "queue_seconds", "prefill_seconds")
    reasons |= dict.fromkeys((*histograms, "inter_token_seconds", "step_tokens"), "llama.cpp publishes no histograms")
    reasons["finished_total"] = "llama.cpp does not count its requests"
    reasons |= dict.fromkeys(("swapped", "preemptions_total"), "llama.cpp takes no cells from a running request")
    reasons |= dict.fromkeys(("active_tokens", "reclaimable_tokens"), untold_slots)
    reasons |= rows.missing | slots.figures.missing
    reasons["capacity_tokens"] = f"{_PROPS} does not tell whether the slots share one pool (--kv-unified); state it"
    reasons["free_tokens"] = "the capacity or the active tokens are not known"
    reasons["live_tokens"] = reasons["active_tokens"]
    reasons["reserved_tokens"] = "slots that share one pool reserve nothing of it; whether these do is not told"
    reasons["prompt_computed_tokens_total"] = rows.missing.get("prompt_tokens_total", "no prompt tokens are told")
    reasons["prefix_queries_tokens_total"] = rows.missing.get("prefix_hits_tokens_total", "no prompt tokens are told")
    return reasons


def _is_its_answer(answer: Json) -> bool:
    """The router's answer is one, too: `_read` says what is wrong with it."""
    return text(field_of(answer, "build_info")) is not None and isinstance(
        field_of(answer, "default_generation_settings"), Mapping
    )


ENGINE = Engine(
    name="llama.cpp",
    title="llama.cpp",
    marks=Marks(
        page=names_start_with(_PREFIX.encode()),
        json=((_PROPS, _is_its_answer),),
        owned_by=frozenset({"llamacpp"}),
    ),
    read=_read,
    versions="2024 to b11434",
    facts={
        "capacity": "derived: n_ctx of a slot x slots; n_ctx where stated that they share one pool",
        "active": "exact with /slots in builds that tell n_prompt_tokens (2026) or n_past; 0 while nothing runs",
        "reclaimable": "exact with /slots, while requests run or in builds that cannot sleep; otherwise counted free",
        "free": "derived: capacity - active - reclaimable",
        "live tokens": "exact with /slots: a cell holds one token",
        "reserved": "derived: n_ctx x running; unavailable for slots that share one pool, which do not reserve",
        "block size": "unavailable: no blocks; a cell holds one token",
        "running": "exact",
        "waiting": "exact with --metrics; otherwise unavailable: only /metrics tells it",
        "swapped": "unavailable: nothing is swapped",
        "preemptions": "unavailable: no preemption; a shared pool that is full fails its requests",
        "prefix hits": "exact in builds with prompt_tokens_cached_total (2026), in tokens",
        "length histograms": "unavailable: not published",
        "latency histograms": "unavailable: not published",
        "steps": "unavailable: counted without their tokens",
        "computed prompts": "exact with --metrics, when a prompt has been computed",
        "finished requests": "unavailable: not counted",
        "max length": "exact (n_ctx of a slot)",
        "KV dtype": "unavailable: --cache-type-k and --cache-type-v, state it",
        "parallelism": "unavailable: not published",
        "version": "exact (build_info)",
        "freshness": "exact with --metrics (decoding steps), else with /slots (tokens held)",
    },
)
