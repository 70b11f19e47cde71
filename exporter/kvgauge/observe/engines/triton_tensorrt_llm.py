"""Triton's TensorRT-LLM backend, from the gauges that it adds to Triton's own page.

Names and formulas were read in the backend's sources (`all_models/inflight_batcher_llm/tensorrt_llm/1/model.py` of
triton-inference-server/tensorrtllm_backend) and its README. The page is on Triton's metrics port, where no other page
tells a version or a model's length. The gauges hold the figures of the last iteration.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from prometheus_client.samples import Sample

from kvgauge.observe.engines.contract import Engine, Hints, Marks, Pages, names_start_with, sample_names_of
from kvgauge.observe.engines.rows import Rows, ranks_in_order, reasons_for
from kvgauge.observe.engines.tensorrt_llm import BlockPool
from kvgauge.observe.exposition import label
from kvgauge.observe.records import EngineReading, RankReading

# Each family is a gauge whose kinds are values of one label.
_KIND_LABELS = {
    "nv_trt_llm_kv_cache_block_metrics": "kv_cache_block_type",
    "nv_trt_llm_request_metrics": "request_type",
    "nv_trt_llm_inflight_batcher_metrics": "inflight_batcher_specific_metric",
    "nv_trt_llm_general_metrics": "general_type",
}
_BLOCKS, _REQUESTS, _BATCHER, _GENERAL = _KIND_LABELS
_PROMPT_LENGTHS = "nv_llm_input_token_len"
_OUTPUT_LENGTHS = "nv_llm_output_token_len"
_WANTED = sample_names_of(
    (
        *_KIND_LABELS,
        *(base + suffix for base in (_PROMPT_LENGTHS, _OUTPUT_LENGTHS) for suffix in ("_bucket", "_sum", "_count")),
    )
)

_NEVER = {
    "reclaimable_tokens": "TensorRT-LLM counts reusable blocks as free",
    "live_tokens": "TensorRT-LLM counts blocks, not tokens",
    "reserved_tokens": "the backend does not tell what it reserves",
    "preemptions_total": "the backend counts paused requests, not how often they were paused",
    "prompt_tokens_total": "the backend counts no tokens",
    "generation_tokens_total": "the backend counts no tokens",
    "prefix_queries_tokens_total": "the backend does not tell hits of the prefix cache",
    "prefix_hits_tokens_total": "the backend does not tell hits of the prefix cache",
} | dict.fromkeys(
    (
        "ttft_seconds",
        "queue_seconds",
        "prefill_seconds",
        "inter_token_seconds",
        "step_tokens",
        "prompt_computed_tokens_total",
        "finished_total",
    ),
    "the backend's gauges do not tell it",
)
_UNTOLD = dict.fromkeys(
    ("version", "model_path", "tp", "pp"), "Triton's metrics port does not tell it"
) | dict.fromkeys(("max_model_len", "kv_dtype"), "config.pbtxt tells it, Triton's metrics port does not")

_Served = tuple[str, str]


def _read(pages: Pages) -> EngineReading:
    page = pages.metrics("/metrics", _WANTED)
    everything = Rows(page)
    served = sorted({_served(sample) for family in (_BLOCKS, _REQUESTS) for sample in everything.of(family)})
    models = [Rows(page, keep=_of(each)) for each in served]
    names = ["0"] if len(served) == 1 else [f"{model}:{version}" for model, version in served]
    ranks_in_order(names)
    ranks = tuple(
        _read_rank(rows, pages.hints, model, name) for rows, (model, _), name in zip(models, served, names, strict=True)
    )
    limits = {rows.size("max_num_seqs", 'request_type="max"', _kinds(rows, _REQUESTS).get("max")) for rows in models}
    reading = EngineReading(
        engine=ENGINE.name,
        model=ranks[0].model if ranks else "",
        max_model_len=pages.hints.max_model_len,
        max_num_seqs=limits.pop() if len(limits) == 1 else None,
        kv_dtype=pages.hints.kv_dtype,
        ranks=ranks,
        bad_lines=page.bad_lines,
        bad_values=sum(rows.bad_values for rows in models),
    )
    return replace(reading, missing=reasons_for(reading, _UNTOLD))


def _served(sample: Sample) -> _Served:
    return label(sample, "model") or "", label(sample, "version") or ""


def _of(served: _Served) -> Callable[[Sample], bool]:
    return lambda sample: _served(sample) == served


def _kinds(rows: Rows, family: str) -> dict[str, float]:
    return {sample.labels.get(_KIND_LABELS[family], ""): sample.value for sample in rows.of(family)}


def _read_rank(rows: Rows, hints: Hints, model: str, rank: str) -> RankReading:
    blocks, requests, batcher = (_kinds(rows, family) for family in (_BLOCKS, _REQUESTS, _BATCHER))
    pool = BlockPool.of(
        rows,
        hints,
        num_blocks=rows.size("num_blocks", 'kv_cache_block_type="max"', blocks.get("max")),
        used_blocks=rows.count("used_blocks", 'kv_cache_block_type="used"', blocks.get("used")),
        block_tokens=rows.size("block_tokens", 'kv_cache_block_type="tokens_per"', blocks.get("tokens_per")),
    )
    running, waiting = _requests(rows, requests)
    reading = RankReading(
        rank=rank,
        model=model,
        capacity_tokens=pool.capacity_tokens,
        block_tokens=pool.block_tokens,
        num_blocks=pool.num_blocks,
        used_blocks=pool.used_blocks,
        active_tokens=pool.active_tokens,
        free_tokens=pool.free_tokens,
        usage_ratio=pool.usage_ratio,
        running=running,
        waiting=waiting,
        swapped=rows.count("swapped", "paused_requests", batcher.get("paused_requests")),
        prompt_lengths=rows.histogram("prompt_lengths", _PROMPT_LENGTHS),
        output_lengths=rows.histogram("output_lengths", _OUTPUT_LENGTHS),
        progress=_progress(rows),
    )
    return replace(reading, missing=reasons_for(reading, rows.missing, _NEVER))


def _requests(rows: Rows, requests: dict[str, float]) -> tuple[int | None, int | None]:
    """(running, waiting). Active are those that were admitted, scheduled those of them that the last iteration ran;
    the rest waits for blocks. The last batch stays on the page at rest, when none is active any more."""
    active = rows.count("waiting", 'request_type="active"', requests.get("active"))
    scheduled = rows.count("running", 'request_type="scheduled"', requests.get("scheduled"))
    if active is None or scheduled is None:
        reason = rows.missing.get("waiting") or rows.missing["running"]
        rows.missing.update(running=reason, waiting=reason)
        return None, None
    running = min(active, scheduled)
    return running, active - running


def _progress(rows: Rows) -> tuple[float, ...] | None:
    general = _kinds(rows, _GENERAL)
    known = tuple(
        general[kind] for kind in ("iteration_counter", "timestamp") if math.isfinite(general.get(kind, math.nan))
    )
    if not known:
        rows.missing["progress"] = "neither iteration_counter nor timestamp is told"
    return known or None


ENGINE = Engine(
    name="triton-tensorrt-llm",
    title="TensorRT-LLM behind Triton",
    marks=Marks(page=names_start_with(b"nv_trt_llm_")),
    read=_read,
    versions="the backend of 2024 to 2026 (README and model.py)",
    facts={
        "capacity": "derived: max blocks x tokens per block",
        "active": "derived: used blocks x tokens per block",
        "reclaimable": "unavailable: counted as free",
        "free": "derived: capacity - active",
        "live tokens": "unavailable: counts blocks, not tokens",
        "reserved": "unavailable: not published",
        "block size": "exact",
        "running": "derived: scheduled, but no more than active; with pipeline parallelism one micro-batch",
        "waiting": "derived: active - running; the queue before admission is not published",
        "swapped": "exact: paused in the last iteration",
        "preemptions": "unavailable: not counted",
        "prefix hits": "unavailable: not published",
        "length histograms": "exact where the release has nv_llm_input_token_len and nv_llm_output_token_len; "
        "otherwise unavailable: not published",
        "latency histograms": "unavailable: not published",
        "steps": "unavailable: not published",
        "computed prompts": "unavailable: not published",
        "finished requests": "unavailable: not published",
        "max length": "unavailable: in config.pbtxt, state it",
        "KV dtype": "unavailable: in config.pbtxt, state it",
        "parallelism": "unavailable: not on the metrics port",
        "version": "unavailable: not on the metrics port",
        "freshness": "exact: iteration counter and timestamp",
    },
)
