"""SGLang 0.4 to 0.5.23, from `/v1/loads`, its Prometheus page, `/get_load` and `/server_info`.

Names and meanings were read in SGLang's sources (0.4.6, 0.5.3, 0.5.9, 0.5.15, 0.5.23: `v1_loads.py`, the scheduler's
load and pool statistics, `metrics_collector.py`). `/v1/loads` (from 0.5.9) is the freshest and needs no
`--enable-metrics`; the page adds what only it has: counters, length histograms, the reusable prefix cache. The page
alone is up to 40 decode steps old. `cache_hit_rate` is that of the last prefill batch only, and is not used.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from prometheus_client.samples import Sample

from kvgauge.observe.engines.contract import Engine, Json, Marks, Pages, names_start_with, sample_names_of
from kvgauge.observe.engines.rows import (
    MAX_USAGE_RATIO,
    Figures,
    Rows,
    field_of,
    objects_of,
    ranks_in_order,
    reasons_for,
    served_model,
    size,
    text,
)
from kvgauge.observe.engines.sglang_answers import Answers, answers_of
from kvgauge.observe.engines.sglang_totals import COUNTERS, HISTOGRAMS, Totals
from kvgauge.observe.exposition import label
from kvgauge.observe.records import EngineReading, RankReading

_PREFIX = "sglang:"
# kv_* are the full-attention pool's own from 0.5.15; num_used_tokens is the larger of it and the window pool.
_USED = ("kv_used_tokens", "num_used_tokens")
_USAGES = ("token_usage", "swa_token_usage", "mamba_usage")
# On every version's page, once for each rank.
_TELLING = ("num_running_reqs", "token_usage", "num_used_tokens")
_SCHEDULER = (
    *_USED,
    *_USAGES,
    "kv_evictable_tokens",
    "max_total_num_tokens",
    "page_size",
    "num_pages",
    "context_len",
    "num_running_reqs",
    "num_queue_reqs",
    "num_grammar_queue_reqs",
    "num_retracted_requests_total",
    "decode_sum_seq_lens",
    "gen_throughput",
    "realtime_tokens_total",
    "cache_config_info",
)
# Of the scheduler, and so of each rank; older versions tell a mean only.
_QUEUE = "queue_time_seconds"
_WANTED = sample_names_of(
    (*_SCHEDULER, *COUNTERS, *(name + suffix for name in (*HISTOGRAMS, _QUEUE) for suffix in ("_bucket", "_sum"))),
    _PREFIX,
)

# The `_gb` of the sources is bytes / 2**30.
_GIB = 1 << 30
_MOST_GIB = 1 << 20
# The page rounds usages to two decimals.
_ROUNDING = 0.005


def _read(pages: Pages) -> EngineReading:
    answers = answers_of(pages, _WANTED)
    info, models = answers.info, pages.seldom("/v1/models")
    page = Rows(answers.page, _PREFIX)
    model = _model(page) or text(served_model(models).get("id")) or text(field_of(info, "served_model_name")) or ""
    ranks = ranks_in_order(_ranks(page) | set(answers.loads))
    load = answers.loads.get(ranks[0], {}) if ranks else {}
    state = next(iter(objects_of(field_of(info, "internal_states"))), {})
    engine = Figures()
    no_prefix_caching = field_of(info, "disable_radix_cache")
    rank_rows = [page.where(_belongs_to(rank)) for rank in ranks]
    reading = EngineReading(
        engine=ENGINE.name,
        version=text(answers.version) or text(field_of(info, "version")),
        model=model,
        model_path=text(field_of(info, "model_path")),
        max_model_len=size(served_model(models, model).get("max_model_len"))
        or page.positive("max_model_len", "context_len")
        or size(field_of(info, "context_length"))
        or pages.hints.max_model_len,
        # The `max_running_requests` of the settings was asked for; the pool may allow fewer.
        max_num_seqs=size(load.get("max_running_requests")) or size(state.get("effective_max_running_requests_per_dp")),
        # Prompts are computed in parts of this size; -1 means that they are not.
        max_num_batched_tokens=size(field_of(info, "chunked_prefill_size")),
        kv_dtype=text(field_of(info, "kv_cache_dtype")) or pages.hints.kv_dtype,
        tp=_attention_tp(info),
        pp=size(field_of(info, "pp_size")),
        gpu_memory_utilization=engine.ratio(
            "gpu_memory_utilization", "mem_fraction_static", field_of(info, "mem_fraction_static")
        ),
        prefix_caching=not no_prefix_caching if isinstance(no_prefix_caching, bool) else None,
        memory_bytes=_memory_bytes(engine, load.get("memory"), state.get("memory_usage")),
        ranks=tuple(
            _read_rank(rank, model, rows, answers, pages.hints.capacity_tokens, page if rank == ranks[0] else None)
            for rank, rows in zip(ranks, rank_rows, strict=True)
        ),
        bad_lines=answers.page.bad_lines,
    )
    unread = pages.why("/server_info")
    from_info = dict.fromkeys(("version", "model_path", "kv_dtype", "tp", "pp", "prefix_caching"), unread)
    return replace(
        reading,
        bad_values=sum(figures.bad_values for figures in (engine, page, *rank_rows)),
        missing=reasons_for(
            reading,
            from_info,
            {"max_num_seqs": "neither /v1/loads nor /server_info tells it", "max_model_len": pages.why("/v1/models")},
            {"gpu_memory_utilization": engine.missing.get("gpu_memory_utilization", unread)},
        ),
    )


def _read_rank(
    rank: str, model: str, rows: Rows, answers: Answers, capacity_hint: int | None, whole: Rows | None
) -> RankReading:
    """`whole` is the page with what is counted for the engine as a whole: on one rank only, so that sums over the ranks
    are right."""
    load, info = answers.loads.get(rank, {}), answers.info
    rows.unstated = answers.why_no_page
    capacity = (
        rows.size("capacity_tokens", "max_total_num_tokens", load.get("max_total_num_tokens"))
        or rows.positive("capacity_tokens", "max_total_num_tokens")
        or rows.size("capacity_tokens", "max_total_num_tokens", field_of(info, "max_total_num_tokens"))
        or capacity_hint
    )
    block_tokens = (
        rows.positive("block_tokens", "page_size")
        or next((size(sample.labels.get("page_size")) for sample in rows.of("cache_config_info")), None)
        or rows.size("block_tokens", "page_size", field_of(info, "page_size"))
    )
    active = _active(rows, load, capacity)
    reclaimable = _reclaimable(rows, capacity, active)
    running, waiting, swapped = _requests(rows, load)
    totals = Totals.read(whole, rows) if whole is not None else Totals()
    reading = RankReading(
        rank=rank,
        model=model,
        capacity_tokens=capacity,
        block_tokens=block_tokens,
        num_blocks=rows.positive("num_blocks", "num_pages") or _blocks_in(capacity, block_tokens),
        used_blocks=_blocks_in(active, block_tokens),
        active_tokens=active,
        reclaimable_tokens=reclaimable,
        free_tokens=None if active is None or capacity is None else capacity - active - (reclaimable or 0),
        live_tokens=_live(rows, active, block_tokens),
        usage_ratio=_usage(rows, load, capacity, active),
        running=running,
        waiting=waiting,
        swapped=swapped,
        preemptions_total=rows.value("preemptions_total", "num_retracted_requests_total"),
        prompt_tokens_total=totals.prompt_tokens,
        generation_tokens_total=totals.generation_tokens,
        prefix_queries_tokens_total=totals.prompt_tokens,
        prefix_hits_tokens_total=totals.cached_tokens,
        prompt_lengths=totals.prompt_lengths,
        output_lengths=totals.output_lengths,
        ttft_seconds=totals.ttft_seconds,
        queue_seconds=rows.histogram("queue_seconds", _QUEUE),
        inter_token_seconds=totals.inter_token_seconds,
        prompt_computed_tokens_total=_computed(rows),
        finished_total=totals.finished,
        progress=_progress(rows, load),
    )
    return replace(reading, missing=reasons_for(reading, _WHY, rows.missing))


_WHY = {
    "reserved_tokens": "SGLang does not reserve ahead",
    "swapped": "retracted requests wait in the queue again, and are counted there",
    "used_blocks": "the page size or the tokens in use are not known",
    "free_tokens": "the capacity or the tokens in use are not known",
    "live_tokens": "the tokens in use are not known",
    "progress": "neither /v1/loads nor /metrics can be read",
    "prefill_seconds": "SGLang tells it as one stage of many, which are not read",
    "step_tokens": "SGLang does not count its steps",
} | dict.fromkeys(
    (
        "prompt_tokens_total",
        "generation_tokens_total",
        "prefix_queries_tokens_total",
        "prefix_hits_tokens_total",
        "prompt_lengths",
        "output_lengths",
        "ttft_seconds",
        "inter_token_seconds",
        "finished_total",
    ),
    "SGLang counts it for all ranks together; it stands on the first",
)


def _computed(rows: Rows) -> float | None:
    """Prompt tokens that were computed, counted as they are."""
    computed = rows.where(lambda sample: sample.labels.get("mode") == "prefill_compute")
    computed.unstated = rows.unstated
    total = computed.value("prompt_computed_tokens_total", "realtime_tokens_total")
    rows.missing |= computed.missing
    rows.bad_values += computed.bad_values
    return total


def _active(rows: Rows, load: Mapping[str, object], capacity: int | None) -> int | None:
    """Slots of the full-attention pool that are neither free nor evictable."""
    used = rows.count("active_tokens", "num_used_tokens", load.get("num_used_tokens"))
    if used is None:
        used = rows.whole("active_tokens", "kv_used_tokens", "num_used_tokens")
    if used is None or capacity is None:
        return used
    if used > capacity * MAX_USAGE_RATIO:
        rows.refuse("active_tokens", f"{used} tokens in use are more than the capacity")
        return None
    return min(used, capacity)


def _reclaimable(rows: Rows, capacity: int | None, active: int | None) -> int | None:
    evictable = rows.whole("reclaimable_tokens", "kv_evictable_tokens")
    if evictable is None:
        rows.missing["reclaimable_tokens"] = rows.unstated or "before 0.5.15 it is not told, and counted as free"
        return None
    # The page is older than the loads; what has become active since is no longer evictable.
    return evictable if capacity is None or active is None else min(evictable, capacity - active)


def _requests(rows: Rows, load: Mapping[str, object]) -> tuple[int | None, int | None, int | None]:
    """(running, waiting, swapped). A request whose grammar is being compiled waits as well."""
    apart = Figures()
    queues, transfer = load.get("queues"), load.get("disaggregation")
    running = rows.count("running", "num_running_reqs", load.get("num_running_reqs"))
    if running is None:
        running = rows.whole("running", "num_running_reqs")
    waiting = rows.count("waiting", "num_waiting_reqs", load.get("num_waiting_reqs"))
    grammar = apart.count("grammar", "grammar", field_of(queues, "grammar"))
    if waiting is None:
        waiting = rows.whole("waiting", "num_queue_reqs")
        grammar = apart.count("grammar", "num_grammar_queue_reqs", _largest(rows, "num_grammar_queue_reqs"))
    swapped = None
    if field_of(transfer, "mode") == "decode":
        # Only a decode server keeps its retracted requests in a queue of their own, and counts that among the waiting.
        # The `retracted` of the queues is how many the last retraction hit, whether they still wait or not.
        swapped = apart.count("swapped", "retracted", field_of(transfer, "decode_retracted_queue_reqs"))
    if waiting is not None:
        waiting = max(waiting - (swapped or 0), 0) + (grammar or 0)
    return running, waiting, swapped


def _live(rows: Rows, active: int | None, block_tokens: int | None) -> int | None:
    """Slots that hold a token of a live sequence.

    With a page size of 1 each slot in use does. With larger pages `decode_sum_seq_lens` is believed only where it fits
    the pages in use at the same moment: it leaves out prompts that are being computed, counts a shared prefix once for
    each sequence, and stands still once nothing runs.
    """
    if active == 0 or block_tokens == 1:
        return active
    if active is None or block_tokens is None:
        rows.missing["live_tokens"] = "the page size or the tokens in use are not known"
        return None
    lengths = rows.whole("live_tokens", "decode_sum_seq_lens")
    used, running = _largest(rows, *_USED), _largest(rows, "num_running_reqs")
    if lengths is None:
        return None
    if used is None or running is None or not used - running * block_tokens <= lengths <= min(used, active):
        rows.missing["live_tokens"] = "decode_sum_seq_lens does not match the pages in use: prompts or shared prefixes"
        return None
    return lengths


def _usage(rows: Rows, load: Mapping[str, object], capacity: int | None, active: int | None) -> float | None:
    """Occupancy of the fullest pool: a window or a state pool can fill before the full-attention one."""
    stated = rows.ratio("usage_ratio", "token_usage", load.get("token_usage"))
    if stated is None:
        stated = rows.fraction("usage_ratio", "token_usage")
    others = [rows.fraction("usage_ratio", name) for name in ("swa_token_usage", "mamba_usage") if rows.has(name)]
    pools = [usage for usage in (stated, *others) if usage is not None]
    if active is None or not capacity:
        return max(pools, default=None)
    exact = active / capacity
    fullest = max(pools, default=exact)
    return fullest if fullest > exact + _ROUNDING else exact


def _progress(rows: Rows, load: Mapping[str, object]) -> tuple[float, ...] | None:
    """What moves with prefill batches and every few decode steps. The token totals move only when requests finish."""
    apart = Figures()
    names = ("num_used_tokens", "gen_throughput", "total_prefill_uncached_tokens")
    moments = load.get("decode_moments")
    told = [apart.number(name, name, load.get(name)) for name in names]
    told.append(apart.number("steps", "decode_moments", moments[0] if isinstance(moments, list) and moments else None))
    told += [_largest(rows, name) for name in ("num_used_tokens", "gen_throughput", "decode_sum_seq_lens")]
    told.append(rows.value("progress", "realtime_tokens_total", pick=sum))
    return tuple(figure for figure in told if figure is not None) or None


def _largest(rows: Rows, *names: str) -> float | None:
    """A figure of the page for a comparison, whatever becomes of it."""
    sound = [sample.value for sample in rows.of(*names) if math.isfinite(sample.value) and sample.value >= 0]
    return max(sound, default=None)


def _blocks_in(tokens: int | None, block_tokens: int | None) -> int | None:
    return None if tokens is None or block_tokens is None else tokens // block_tokens


def _attention_tp(info: Json) -> int | None:
    """GPUs that share one rank's KV heads: with data-parallel attention, `tp_size` spans all ranks."""
    tp, dp = size(field_of(info, "tp_size")), size(field_of(info, "dp_size"))
    if tp is None or dp is None or field_of(info, "enable_dp_attention") is not True:
        return tp
    return max(tp // dp, 1)


def _memory_bytes(engine: Figures, loads: object, state: object) -> dict[str, int]:
    """Parts of one GPU's memory: the `memory` of the loads, or else the coarser `memory_usage` of the settings."""
    graphs = field_of(state, "graph")
    stated = {
        # Zero weights or pool mean that this kind of pool does not say; without graphs zero is the truth.
        "weights": (field_of(loads, "weight_gb") or field_of(state, "weight") or None),
        "kv_pool": (field_of(loads, "kv_cache_gb") or field_of(state, "kvcache") or None),
        "graphs": field_of(loads, "graph_gb") if field_of(loads, "graph_gb") is not None else graphs,
    }
    gib = {name: engine.number(name, name, value) for name, value in stated.items() if not isinstance(value, Mapping)}
    return {name: round(value * _GIB) for name, value in gib.items() if value is not None and value < _MOST_GIB}


def _model(page: Rows) -> str | None:
    return next((label(sample, "model_name") for name in _TELLING for sample in page.of(name)), None)


def _ranks(page: Rows) -> set[str]:
    return {
        _rank(sample) for name in ("num_running_reqs", "token_usage", "num_used_tokens") for sample in page.of(name)
    }


def _rank(sample: Sample) -> str:
    return label(sample, "dp_rank") or "0"


def _belongs_to(rank: str) -> Callable[[Sample], bool]:
    """With priority scheduling the total stands under an empty priority, beside a row for each priority."""
    return lambda sample: _rank(sample) == rank and not sample.labels.get("priority")


def _is_model_info(answer: Json) -> bool:
    return all(field_of(answer, name) is not None for name in ("model_path", "tokenizer_path", "is_generation"))


ENGINE = Engine(
    name="sglang",
    title="SGLang",
    marks=Marks(
        page=names_start_with(_PREFIX.encode()),
        json=(("/model_info", _is_model_info), ("/get_model_info", _is_model_info)),
        owned_by=frozenset({"sglang"}),
    ),
    read=_read,
    versions="0.4 to 0.5.23",
    facts={
        "capacity": "exact (/v1/loads from 0.5.9, /metrics from 0.5.6, /server_info before)",
        "active": "exact; of the full-attention pool in hybrid models",
        "reclaimable": "exact from 0.5.15 with --enable-metrics; otherwise unavailable: counted as free",
        "free": "derived: capacity - active - reclaimable",
        "live tokens": "exact with a page size of 1; otherwise derived from decode_sum_seq_lens where that is complete",
        "reserved": "unavailable: SGLang does not reserve ahead",
        "block size": "exact",
        "running": "exact",
        "waiting": "exact; requests whose grammar is being compiled are among them",
        "swapped": "exact on decode servers; elsewhere unavailable: retracted requests wait in the queue again",
        "preemptions": "exact from 0.5.9 with --enable-metrics (retracted requests)",
        "prefix hits": "exact with --enable-metrics, of requests that have finished",
        "length histograms": "exact with --enable-metrics; up to 0.5.9 with --collect-tokens-histogram as well",
        "latency histograms": "exact with --enable-metrics: first token, each token, and the queue in newer versions",
        "steps": "unavailable: not counted",
        "computed prompts": "exact with --enable-metrics where realtime_tokens_total is told",
        "finished requests": "exact with --enable-metrics",
        "max length": "exact (/v1/models)",
        "KV dtype": "exact (/server_info)",
        "parallelism": "exact (/server_info)",
        "version": "exact (/v1/loads, /server_info)",
        "freshness": "exact: tokens in use, throughput and steps; the page alone moves every 40 decode steps",
    },
)
