"""TensorRT-LLM's trtllm-serve 1.0 to main of autumn 2026, from `/prometheus/metrics`, or from its JSON records.

Names, labels and meanings were read in TensorRT-LLM's sources (`metrics/collector.py`, `serve/openai_server.py`,
`_torch/pyexecutor/py_executor.py`). Three things shape this file:

- Its collector takes over an iteration's figures only when a request finishes, so the page ages during long answers and
  still shows the last request when all is at rest: nothing here may say that the engine stands still.
- Up to 1.1 the page has no KV series, and up to 1.3 only a fraction. The records at `/metrics` have them all, but each
  read takes them away from every other reader, the engine's own collector among them.
- Blocks that can be reused count as free; used + free = max.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from prometheus_client.samples import Sample

from kvgauge.observe.engines.contract import Engine, Hints, Json, Marks, Pages, sample_names_of
from kvgauge.observe.engines.rows import (
    MAX_RANKS,
    MAX_USAGE_RATIO,
    Figures,
    Rows,
    field_of,
    number,
    objects_of,
    ranks_in_order,
    reasons_for,
    served_model,
    size,
    text,
)
from kvgauge.observe.exposition import Page
from kvgauge.observe.records import EngineReading, RankReading, SourceError

_PAGE = "/prometheus/metrics"
_RECORDS = "/metrics"
# Bare names up to spring 2026, told by their label engine_type; Dynamo 0.7 put a prefix of its own before them.
_PREFIXES = ("trtllm_", "trtllm:", "")
_KV = ("kv_cache_max_blocks", "kv_cache_utilization")
_CONFIGS = ("model_config_info", "parallel_config_info", "kv_cache_config_info")
_NAMES = (
    *_KV,
    *_CONFIGS,
    "kv_cache_used_blocks",
    "kv_cache_tokens_per_block",
    "num_requests_running",
    "num_requests_waiting",
    "num_paused_requests",
    "max_num_active_requests",
    "prompt_tokens_total",
    "generation_tokens_total",
    "prompt_cached_tokens_total",
    "request_success_total",
    "e2e_request_latency_seconds_count",
)
_TTFT, _QUEUE, _PREFILL = "time_to_first_token_seconds", "request_queue_time_seconds", "request_prefill_time_seconds"
_LATENCIES = tuple(name + suffix for name in (_TTFT, _QUEUE, _PREFILL) for suffix in ("_bucket", "_sum"))
_WANTED = sample_names_of((*_NAMES, *_LATENCIES), *_PREFIXES)
_UNPREFIXED = re.compile(
    rb"^(?:request_success_total|e2e_request_latency_seconds|time_to_first_token_seconds|request_queue_time_seconds)"
    rb'\w*\{[^\n]*engine_type="',
    re.MULTILINE,
)
# What the page calls the model before it is told (releases up to spring 2026).
_NO_MODEL = "undefined"

_NEVER = {
    "reclaimable_tokens": "TensorRT-LLM counts reusable blocks as free",
    "live_tokens": "TensorRT-LLM counts blocks, not tokens",
    "reserved_tokens": "TensorRT-LLM does not tell what it reserves",
    "preemptions_total": "TensorRT-LLM counts paused requests, not how often they were paused",
    "prompt_lengths": "TensorRT-LLM has no histogram of lengths",
    "output_lengths": "TensorRT-LLM has no histogram of lengths",
    "inter_token_seconds": "TensorRT-LLM tells the mean of each request, not each token's time",
    "step_tokens": "TensorRT-LLM does not tell the tokens of its steps",
}
_UNTOLD = {
    "model_path": "the page has no model_config_info",
    "max_model_len": "model_config_info does not tell it: an older release, or no --max_seq_len",
    "kv_dtype": "the page has no kv_cache_config_info that tells it",
    "tp": "the page has no parallel_config_info",
    "pp": "the page has no parallel_config_info",
}
_NO_POOL = {
    "used_blocks": "the blocks in use are not told",
    "usage_ratio": "neither the blocks in use nor a fraction is told",
    "capacity_tokens": "the number of blocks or their size is not told",
    "active_tokens": "occupancy or the size of a block is not told",
    "free_tokens": "capacity or occupancy is not told",
}


@dataclass(frozen=True, slots=True)
class BlockPool:
    """A paged pool told in blocks, and in tokens where the size of a block, or the pool's capacity, is known."""

    num_blocks: int | None
    used_blocks: int | None
    block_tokens: int | None
    capacity_tokens: int | None
    active_tokens: int | None
    free_tokens: int | None
    usage_ratio: float | None

    @classmethod
    def of(
        cls,
        figures: Figures,
        hints: Hints,
        *,
        num_blocks: int | None,
        used_blocks: int | None,
        block_tokens: int | None,
        usage_ratio: float | None = None,
    ) -> "BlockPool":
        """Completes what is told; `figures.missing` has a reason for each figure that may stay unknown."""
        if num_blocks is not None and used_blocks is not None and used_blocks > num_blocks * MAX_USAGE_RATIO:
            figures.bad_values += 1
            figures.missing["used_blocks"] = f"{used_blocks} blocks in use of {num_blocks} cannot be"
            used_blocks = None
        if num_blocks is not None and used_blocks is not None:
            used_blocks = min(used_blocks, num_blocks)
            usage_ratio = used_blocks / num_blocks
        elif num_blocks is not None and usage_ratio is not None:
            used_blocks = round(usage_ratio * num_blocks)
        capacity_tokens = hints.capacity_tokens
        if num_blocks is not None and block_tokens is not None:
            capacity_tokens = num_blocks * block_tokens
        active_tokens = None
        if used_blocks is not None and block_tokens is not None:
            active_tokens = used_blocks * block_tokens
        elif usage_ratio is not None and capacity_tokens is not None:
            active_tokens = round(usage_ratio * capacity_tokens)
        if active_tokens is not None and capacity_tokens is not None:
            active_tokens = min(active_tokens, capacity_tokens)
        free_tokens = None if active_tokens is None or capacity_tokens is None else capacity_tokens - active_tokens
        pool = cls(num_blocks, used_blocks, block_tokens, capacity_tokens, active_tokens, free_tokens, usage_ratio)
        figures.missing.update({field: why for field, why in _NO_POOL.items() if field not in figures.missing})
        return pool


def _read(pages: Pages) -> EngineReading:
    records_are_ours = pages.hints.read_iteration_stats
    try:
        page = pages.metrics(_PAGE, _WANTED)
    except SourceError:
        if not records_are_ours:
            raise
        # Without return_perf_metrics there is no such page, only the records.
        page = Page({}, 0)
    rows = _rows(page)
    # A release that tells its configuration has a collector, which needs the records itself.
    if records_are_ours and not rows.has(*_KV, *_CONFIGS):
        return _reading(pages, page, rows, _ranks_of_records(pages, rows))
    return read_page_of(pages, page)


def read_page_of(pages: Pages, page: Page) -> EngineReading:
    """A reading of TensorRT-LLM's series on `page`, wherever that was served, and of its own JSON pages."""
    rows = _rows(page)
    return _reading(pages, page, rows, [_rank_of_page(pages, rows)] if rows.has(*_NAMES) else [])


@dataclass(frozen=True, slots=True)
class _Rank:
    """A rank with what belongs to the engine as a whole."""

    reading: RankReading
    max_num_seqs: int | None
    bad_values: int


def _rows(page: Page) -> Rows:
    """The rows under the prefix that the page uses."""
    for prefix in _PREFIXES:
        rows = Rows(page, prefix) if prefix else Rows(page, prefix, keep=_is_unprefixed)
        if rows.has(*_NAMES):
            break
    return rows


def _is_unprefixed(sample: Sample) -> bool:
    return "engine_type" in sample.labels


def _reading(pages: Pages, page: Page, rows: Rows, ranks: list[_Rank]) -> EngineReading:
    served = served_model(pages.seldom("/v1/models"))
    configs = {name: sample.labels for name in _CONFIGS for sample in rows.of(name)}
    model, parallel, cache = (configs.get(name, {}) for name in _CONFIGS)
    reading = EngineReading(
        engine=ENGINE.name,
        version=text(field_of(pages.seldom("/version"), "version")),
        model=ranks[0].reading.model if ranks else text(served.get("id")) or "",
        model_path=text(model.get("model")),
        max_model_len=size(model.get("max_model_len")) or pages.hints.max_model_len,
        max_num_seqs=next((rank.max_num_seqs for rank in ranks if rank.max_num_seqs), None),
        kv_dtype=text(cache.get("cache_dtype")) or pages.hints.kv_dtype,
        tp=size(parallel.get("tensor_parallel_size")),
        pp=size(parallel.get("pipeline_parallel_size")),
        prefix_caching={"True": True, "False": False}.get(cache.get("enable_block_reuse", "")),
        ranks=tuple(rank.reading for rank in ranks),
        bad_lines=page.bad_lines,
        bad_values=sum(rank.bad_values for rank in ranks),
    )
    return replace(reading, missing=reasons_for(reading, _UNTOLD, {"version": pages.why("/version")}))


def _model_of(pages: Pages, rows: Rows) -> str:
    stated = next((text(sample.labels.get("model_name")) for name in _NAMES for sample in rows.of(name)), None)
    if stated is None or stated == _NO_MODEL:
        return text(served_model(pages.seldom("/v1/models")).get("id")) or ""
    return stated


def _rank_of_page(pages: Pages, rows: Rows) -> _Rank:
    """The one rank of a page: it has no rows by attention-parallel rank."""
    pool = BlockPool.of(
        rows,
        pages.hints,
        num_blocks=rows.positive("num_blocks", "kv_cache_max_blocks"),
        used_blocks=rows.whole("used_blocks", "kv_cache_used_blocks"),
        block_tokens=rows.positive("block_tokens", "kv_cache_tokens_per_block"),
        usage_ratio=rows.fraction("usage_ratio", "kv_cache_utilization"),
    )
    prompt_tokens = rows.value("prompt_tokens_total", "prompt_tokens_total")
    hits = rows.value("prefix_hits_tokens_total", "prompt_cached_tokens_total")
    rows.missing["prefix_queries_tokens_total"] = "prompt_cached_tokens_total or prompt_tokens_total is not told"
    reading = RankReading(
        rank="0",
        model=_model_of(pages, rows),
        capacity_tokens=pool.capacity_tokens,
        block_tokens=pool.block_tokens,
        num_blocks=pool.num_blocks,
        used_blocks=pool.used_blocks,
        active_tokens=pool.active_tokens,
        free_tokens=pool.free_tokens,
        usage_ratio=pool.usage_ratio,
        running=rows.whole("running", "num_requests_running"),
        waiting=rows.whole("waiting", "num_requests_waiting"),
        swapped=rows.whole("swapped", "num_paused_requests"),
        prompt_tokens_total=prompt_tokens,
        generation_tokens_total=rows.value("generation_tokens_total", "generation_tokens_total"),
        prefix_queries_tokens_total=None if hits is None else prompt_tokens,
        prefix_hits_tokens_total=hits,
        ttft_seconds=rows.histogram("ttft_seconds", _TTFT),
        queue_seconds=rows.histogram("queue_seconds", _QUEUE),
        prefill_seconds=rows.histogram("prefill_seconds", _PREFILL),
        prompt_computed_tokens_total=None if prompt_tokens is None or hits is None else max(prompt_tokens - hits, 0.0),
        finished_total=rows.value("finished_total", "request_success_total", pick=sum),
    )
    rows.missing["prompt_computed_tokens_total"] = "prompt_cached_tokens_total or prompt_tokens_total is not told"
    missing = reasons_for(reading, rows.missing, _NEVER, {"progress": "the page changes only when a request finishes"})
    reading = replace(reading, missing=missing)
    return _Rank(reading, rows.positive("max_num_seqs", "max_num_active_requests"), rows.bad_values)


def _ranks_of_records(pages: Pages, rows: Rows) -> list[_Rank]:
    """The ranks of the JSON records that have gathered since the last read; the last one of each rank counts.

    No record means that the engine has not stepped since: it rests, or hangs, or something else reads its records. That
    is one rank of which nothing is known, and not zero requests.
    """
    answer: Json = pages.json(_RECORDS)
    if isinstance(answer, Mapping):
        raise SourceError("not_json", f"{_RECORDS} did not answer a list of records")
    last = {_rank_name(record): record for record in objects_of(answer)}
    model = _model_of(pages, rows)
    if not last:
        nothing = _rank_of_record(pages.hints, "0", model, {})
        missing = dict.fromkeys(nothing.reading.missing, "no step was recorded since the last read") | _NEVER
        return [replace(nothing, reading=replace(nothing.reading, missing=missing))]
    return [_rank_of_record(pages.hints, rank, model, last[rank]) for rank in ranks_in_order(last)]


def _rank_name(record: Mapping[str, object]) -> str:
    rank = number(record.get("attentionDpRank"))
    return str(int(rank)) if rank is not None and 0 <= rank < MAX_RANKS else "0"


def _rank_of_record(hints: Hints, rank: str, model: str, record: Mapping[str, object]) -> _Rank:
    figures = Figures()
    cache = field_of(record, "kvCacheStats")
    batch = field_of(record, "inflightBatchingStats")

    def of_cache(name: str) -> tuple[str, object]:
        return f"kvCacheStats.{name}", field_of(cache, name)

    pool = BlockPool.of(
        figures,
        hints,
        num_blocks=figures.size("num_blocks", *of_cache("maxNumBlocks")),
        used_blocks=figures.count("used_blocks", *of_cache("usedNumBlocks")),
        block_tokens=figures.size("block_tokens", *of_cache("tokensPerBlock")),
    )
    block_tokens = pool.block_tokens
    reused = figures.count("prefix_hits_tokens_total", *of_cache("reusedBlocks"))
    missed = figures.count("prefix_queries_tokens_total", *of_cache("missedBlocks"))
    hits = None if reused is None or block_tokens is None else reused * block_tokens
    misses = None if missed is None or block_tokens is None else missed * block_tokens
    if hits is None or misses is None:
        reason = "reusedBlocks, missedBlocks or the size of a block is not told"
        figures.missing.update(prefix_hits_tokens_total=reason, prefix_queries_tokens_total=reason)
    iteration = figures.number("progress", "iter", record.get("iter"))
    reading = RankReading(
        rank=rank,
        model=model,
        capacity_tokens=pool.capacity_tokens,
        block_tokens=block_tokens,
        num_blocks=pool.num_blocks,
        used_blocks=pool.used_blocks,
        active_tokens=pool.active_tokens,
        free_tokens=pool.free_tokens,
        usage_ratio=pool.usage_ratio,
        running=_running(figures, record),
        waiting=figures.count("waiting", "numQueuedRequests", record.get("numQueuedRequests")),
        swapped=figures.count("swapped", "numPausedRequests", field_of(batch, "numPausedRequests")),
        prefix_queries_tokens_total=None if hits is None or misses is None else hits + misses,
        prefix_hits_tokens_total=None if misses is None else hits,
        progress=None if iteration is None else (iteration,),
    )
    no_tokens = dict.fromkeys(
        ("prompt_tokens_total", "generation_tokens_total", "prompt_computed_tokens_total"),
        "the records count no tokens",
    )
    no_tokens |= dict.fromkeys(
        ("ttft_seconds", "queue_seconds", "prefill_seconds", "finished_total"), "the records tell of no single requests"
    )
    reading = replace(reading, missing=reasons_for(reading, figures.missing, _NEVER, no_tokens))
    max_num_seqs = Figures().size("max_num_seqs", "maxNumActiveRequests", record.get("maxNumActiveRequests"))
    return _Rank(reading, max_num_seqs, figures.bad_values)


def _running(figures: Figures, record: Mapping[str, object]) -> int | None:
    """Requests after the iteration: a record counts them as it begins, and apart those that it completed."""
    active = figures.count("running", "numActiveRequests", record.get("numActiveRequests"))
    completed = Figures().count("completed", "numCompletedRequests", record.get("numCompletedRequests"))
    return None if active is None else max(active - (completed or 0), 0)


def _is_its_page(names: frozenset[bytes], body: bytes) -> bool:
    return any(name.startswith((b"trtllm_", b"trtllm:")) for name in names) or _UNPREFIXED.search(body) is not None


ENGINE = Engine(
    name="tensorrt-llm",
    title="TensorRT-LLM (trtllm-serve)",
    marks=Marks(page=_is_its_page, owned_by=frozenset({"tensorrt_llm"})),
    read=_read,
    versions="trtllm-serve 1.0 to main of autumn 2026",
    facts={
        "capacity": "derived: blocks x block size, on the page from main of 2026, in the JSON records of any release; "
        "otherwise unavailable: not published, state it",
        "active": "derived: blocks in use x block size; in 1.2 and 1.3 fraction x stated capacity",
        "reclaimable": "unavailable: counted as free",
        "free": "derived: capacity - active",
        "live tokens": "unavailable: counts blocks, not tokens",
        "reserved": "unavailable: not published",
        "block size": "exact, where capacity is",
        "running": "exact as of the last iteration in which a request finished, that request included; in the JSON "
        "records exact",
        "waiting": "exact as of the same iteration; requests that were admitted and wait for blocks count as running",
        "swapped": "exact as of the same iteration: the requests that it paused",
        "preemptions": "unavailable: not counted",
        "prefix hits": "exact on the page from main of 2026, in tokens of finished requests; in the JSON records "
        "derived: blocks x block size",
        "length histograms": "unavailable: not published",
        "latency histograms": "exact on the page, of requests that have finished: first token, queue, prefill",
        "steps": "unavailable: their tokens are not published",
        "computed prompts": "derived: prompt tokens - those found in the cache, on the page from main of 2026",
        "finished requests": "exact on the page",
        "max length": "exact from main of 2026 where --max_seq_len was given; otherwise unavailable: not published",
        "KV dtype": "exact from main of 2026; otherwise unavailable: not published",
        "parallelism": "exact from main of 2026 (TP, PP); attention-parallel ranks only in the JSON records",
        "version": "exact (/version)",
        "freshness": "unavailable on the page, which changes when a request finishes; exact in the records: iterations",
    },
)
