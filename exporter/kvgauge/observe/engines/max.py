"""Modular MAX 25 and 26, from the page of its own metrics port (8001 by default), where `--engine-url` has to point.

Names and meanings were read in MAX's sources (`max/serve/telemetry/metrics.py`, the scheduler's `BatchMetrics`, the
block pool), the spelling in what OpenTelemetry's Prometheus exporter (0.66b2) makes of them: `maxserve.cache.hits` in
`tokens` becomes `maxserve_cache_hits_tokens_total`. Which endings it appends depends on its version and on the unit, so
names are read with and without them. The pool's figures are those of all data-parallel replicas together. Older
versions tell them only with `MAX_SERVE_METRIC_LEVEL=DETAILED`.
"""

from dataclasses import replace

from kvgauge.observe.engines.contract import Engine, Marks, Pages, names_start_with, sample_names_of
from kvgauge.observe.engines.rows import MAX_USAGE_RATIO, Rows, reasons_for, served_model, text
from kvgauge.observe.records import EngineReading, Histogram, RankReading

_PREFIXES = ("maxserve_", "maxserve:", "maxserve.")
_UNITS = ("", "_blocks", "_tokens", "_milliseconds")
_USED_BLOCKS, _TOTAL_BLOCKS = "cache_num_used_blocks", "cache_num_total_blocks"
# Requests that the HTTP server has taken and not yet answered: those that wait are among them.
_IN_FLIGHT = "num_requests_running"
_QUEUED = ("num_requests_queued", "num_requests_awaiting_admission")
_COUNTERS = (
    "cache_preemption_count",
    "cache_hits",
    "cache_misses",
    "num_input_tokens",
    "num_output_tokens",
)
_HISTOGRAMS = ("input_tokens_per_request", "output_tokens_per_request")
# In milliseconds; the second only with MAX_SERVE_METRIC_LEVEL=DETAILED.
_TTFT, _INTER_TOKEN = "time_to_first_token", "itl"
# One for each batch, of prefill or decode.
_BATCHES = "batch_size_count"


def _spelled(name: str, *endings: str) -> tuple[str, ...]:
    return tuple(name + unit + ending for ending in endings or ("",) for unit in _UNITS)


_LEVELS = (_USED_BLOCKS, _TOTAL_BLOCKS, _IN_FLIGHT, *_QUEUED)
_WANTED = sample_names_of(
    (
        _BATCHES,
        *(spelling for name in (*_LEVELS, *_COUNTERS) for spelling in _spelled(name, "", "_total")),
        *(
            spelling
            for name in (*_HISTOGRAMS, _TTFT, _INTER_TOKEN)
            for spelling in _spelled(name, "_bucket", "_sum", "_count")
        ),
    ),
    *_PREFIXES,
)


def _read(pages: Pages) -> EngineReading:
    page = pages.metrics("/metrics", _WANTED)
    rows = Rows(page, *_PREFIXES)
    # The metrics port serves no models; a proxy that joins both ports does.
    model = text(served_model(pages.seldom("/v1/models")).get("id")) or ""
    reading = EngineReading(
        engine=ENGINE.name,
        model=model,
        max_model_len=pages.hints.max_model_len,
        kv_dtype=pages.hints.kv_dtype,
        ranks=(_read_rank(rows, model, pages.hints.capacity_tokens),) if page.samples else (),
        bad_lines=page.bad_lines,
    )
    untold = ("version", "model_path", "max_model_len", "max_num_seqs", "kv_dtype", "tp", "pp")
    return replace(reading, bad_values=rows.bad_values, missing=reasons_for(reading, dict.fromkeys(untold, _UNTOLD)))


def _read_rank(rows: Rows, model: str, capacity_hint: int | None) -> RankReading:
    num_blocks = rows.positive("num_blocks", *_spelled(_TOTAL_BLOCKS), pick=sum)
    used_blocks = rows.whole("used_blocks", *_spelled(_USED_BLOCKS), pick=sum)
    if used_blocks is not None and num_blocks is not None and used_blocks > num_blocks * MAX_USAGE_RATIO:
        rows.refuse("used_blocks", f"{used_blocks} blocks in use are more than there are")
        used_blocks = None
    usage = None
    if used_blocks is not None and num_blocks is not None:
        used_blocks = min(used_blocks, num_blocks)
        usage = used_blocks / num_blocks
    active = None if usage is None or capacity_hint is None else round(usage * capacity_hint)
    waiting = _waiting(rows)
    in_flight = rows.whole("running", _IN_FLIGHT, pick=sum)
    hits = rows.value("prefix_hits_tokens_total", *_spelled("cache_hits", "_total", ""), pick=sum)
    misses = rows.value("prefix_queries_tokens_total", *_spelled("cache_misses", "_total", ""), pick=sum)
    batches = rows.value("progress", _BATCHES, pick=sum)
    added_up = {
        field: "this version of MAX exports the level as a counter, which adds it up"
        for field, name in (("num_blocks", _TOTAL_BLOCKS), ("used_blocks", _USED_BLOCKS))
        if rows.has(*_spelled(name, "_total"))
    }
    reading = RankReading(
        rank="0",
        model=model,
        capacity_tokens=capacity_hint,
        block_tokens=_whole_quotient(capacity_hint, num_blocks),
        num_blocks=num_blocks,
        used_blocks=used_blocks,
        active_tokens=active,
        free_tokens=None if active is None or capacity_hint is None else capacity_hint - active,
        usage_ratio=usage,
        # The parts are counted in different processes and can disagree for a moment.
        running=None if in_flight is None else max(in_flight - (waiting or 0), 0),
        waiting=waiting,
        preemptions_total=rows.value("preemptions_total", *_spelled("cache_preemption_count", "_total", ""), pick=sum),
        prompt_tokens_total=rows.value("prompt_tokens_total", *_spelled("num_input_tokens", "_total", ""), pick=sum),
        generation_tokens_total=rows.value(
            "generation_tokens_total", *_spelled("num_output_tokens", "_total", ""), pick=sum
        ),
        prefix_queries_tokens_total=None if hits is None or misses is None else hits + misses,
        prefix_hits_tokens_total=hits,
        prompt_lengths=rows.histogram("prompt_lengths", *_spelled(_HISTOGRAMS[0]), pick=sum),
        output_lengths=rows.histogram("output_lengths", *_spelled(_HISTOGRAMS[1]), pick=sum),
        ttft_seconds=_seconds(rows.histogram("ttft_seconds", *_spelled(_TTFT), pick=sum)),
        inter_token_seconds=_seconds(rows.histogram("inter_token_seconds", *_spelled(_INTER_TOKEN), pick=sum)),
        # Hits and misses are of the prefix cache, in tokens: what it lacks is computed.
        prompt_computed_tokens_total=misses,
        progress=None if batches is None else (batches,),
    )
    return replace(reading, missing=reasons_for(reading, _WHY, rows.missing, added_up))


def _seconds(milliseconds: Histogram | None) -> Histogram | None:
    if milliseconds is None:
        return None
    bounds = tuple(bound / 1000 for bound in milliseconds.bounds)
    return Histogram(bounds, milliseconds.cumulative, milliseconds.total / 1000)


def _waiting(rows: Rows) -> int | None:
    """Requests in the scheduler's queue, and those on their way to it where that is told."""
    queued = rows.whole("waiting", _QUEUED[0], pick=sum)
    if queued is None or not rows.has(_QUEUED[1]):
        return queued
    before = rows.whole("waiting", _QUEUED[1], pick=sum)
    return queued + (before or 0)


def _whole_quotient(capacity_tokens: int | None, num_blocks: int | None) -> int | None:
    if capacity_tokens is None or num_blocks is None or capacity_tokens % num_blocks:
        return None
    return capacity_tokens // num_blocks


_UNTOLD = "MAX's pages do not tell it"
_NO_CAPACITY = "MAX counts blocks and does not tell their size"
_WHY = {
    "capacity_tokens": _NO_CAPACITY,
    "block_tokens": _NO_CAPACITY,
    "active_tokens": _NO_CAPACITY,
    "free_tokens": _NO_CAPACITY,
    "usage_ratio": "the blocks in use or their number are not known",
    "reclaimable_tokens": "MAX counts reusable prefix blocks as free",
    "live_tokens": "MAX counts blocks, not tokens",
    "reserved_tokens": "MAX does not reserve ahead",
    "swapped": _UNTOLD,
    "queue_seconds": _UNTOLD,
    "prefill_seconds": _UNTOLD,
    "step_tokens": "MAX counts its batches, not their tokens",
    "prompt_computed_tokens_total": "the page has no count of cache misses",
    "finished_total": _UNTOLD,
    "prefix_queries_tokens_total": "the page has no counts of cache hits and misses",
}


ENGINE = Engine(
    name="max",
    title="MAX",
    marks=Marks(page=names_start_with(*(prefix.encode() for prefix in _PREFIXES))),
    read=_read,
    versions="25 and 26",
    facts={
        "capacity": "unavailable in tokens; the number of blocks is exact from 26.5",
        "active": "derived where the capacity in tokens is given: blocks in use / blocks x capacity",
        "reclaimable": "unavailable: counted as free",
        "free": "derived: capacity - active",
        "live tokens": "unavailable",
        "reserved": "unavailable: MAX does not reserve ahead",
        "block size": "derived where the capacity in tokens is given",
        "running": "derived: requests in flight - those that wait",
        "waiting": "exact",
        "swapped": "unavailable",
        "preemptions": "exact",
        "prefix hits": "exact, in tokens",
        "length histograms": "exact in the newest versions, of requests that have finished",
        "latency histograms": "exact for first tokens; for each token with MAX_SERVE_METRIC_LEVEL=DETAILED",
        "steps": "unavailable: batches are counted without their tokens",
        "computed prompts": "exact: misses of the prefix cache",
        "finished requests": "unavailable: not counted",
        "max length": "unavailable",
        "KV dtype": "unavailable",
        "parallelism": "unavailable; --tp tells it",
        "version": "unavailable",
        "freshness": "exact: batches counted",
    },
)
