"""LMDeploy 0.9.2 to 0.16, from its Prometheus page and `/v1/models`.

Names and meanings were read in LMDeploy's sources (0.9.2, 0.11.0: `lmdeploy/metrics`, `pytorch/paging/scheduler.py`,
`turbomind.py`). The scheduler's gauges are renewed every 10 s (0.9.2: with each output); the counters move with each
output. Usage is 1 - free / all blocks, and a block that only the prefix cache holds is not free. TurboMind with several
data-parallel ranks tells only of the first.
"""

from collections.abc import Callable
from dataclasses import replace

from prometheus_client.samples import Sample

from kvgauge.observe.engines.contract import Engine, Marks, Pages, names_start_with, sample_names_of
from kvgauge.observe.engines.rows import Rows, ranks_in_order, reasons_for, served_model, size, text
from kvgauge.observe.exposition import label
from kvgauge.observe.records import EngineReading, RankReading

# An exporter in between may have replaced the ":".
_PREFIXES = ("lmdeploy:", "lmdeploy_")
_GAUGES = ("num_requests_running", "num_requests_waiting", "gpu_cache_usage_perc")
_PROMPT_TOKENS = ("prompt_tokens_total", "prompt_tokens")
_GENERATION_TOKENS = ("generation_tokens_total", "generation_tokens")
_CACHED_TOKENS = ("cached_tokens_total", "cached_tokens")
_HISTOGRAMS = ("request_prompt_tokens", "request_generation_tokens")
_TTFT, _QUEUE, _PREFILL = "time_to_first_token_seconds", "request_queue_time_seconds", "request_prefill_time_seconds"
_INTER_TOKEN = "iter_token_latency"
_LATENCIES = (_TTFT, _QUEUE, _PREFILL, _INTER_TOKEN)
_FINISHED = ("request_success_total", "request_success")
# One for each output of a request, which may hold several tokens.
_OUTPUTS = "iteration_tokens_total_count"
_WANTED = sample_names_of(
    (
        *_GAUGES,
        *_PROMPT_TOKENS,
        *_GENERATION_TOKENS,
        *_CACHED_TOKENS,
        _OUTPUTS,
        *_FINISHED,
        *(name + suffix for name in (*_HISTOGRAMS, *_LATENCIES) for suffix in ("_bucket", "_sum", "_count")),
    ),
    *_PREFIXES,
)


def _read(pages: Pages) -> EngineReading:
    page = pages.metrics("/metrics", _WANTED)
    rows = Rows(page, *_PREFIXES)
    gauges = [sample for name in _GAUGES for sample in rows.of(name)]
    models, hints = pages.seldom("/v1/models"), pages.hints
    model = next((label(sample, "model_name") for sample in gauges), None) or text(served_model(models).get("id")) or ""
    own_rows = {rank: rows.where(_belongs_to(rank)) for rank in ranks_in_order(map(_rank, gauges))}
    reading = EngineReading(
        engine=ENGINE.name,
        model=model,
        max_model_len=size(served_model(models, model).get("max_model_len")) or hints.max_model_len,
        kv_dtype=hints.kv_dtype,
        ranks=tuple(_read_rank(own, rank, model, hints.capacity_tokens) for rank, own in own_rows.items()),
        bad_lines=page.bad_lines,
        bad_values=sum(own.bad_values for own in own_rows.values()),
    )
    untold = ("version", "model_path", "max_model_len", "max_num_seqs", "kv_dtype", "tp", "pp")
    return replace(reading, missing=reasons_for(reading, dict.fromkeys(untold, "LMDeploy's pages do not tell it")))


def _read_rank(rows: Rows, rank: str, model: str, capacity_hint: int | None) -> RankReading:
    prompt_tokens = rows.value("prompt_tokens_total", *_PROMPT_TOKENS)
    generation_tokens = rows.value("generation_tokens_total", *_GENERATION_TOKENS)
    hits = rows.value("prefix_hits_tokens_total", *_CACHED_TOKENS)
    work = (prompt_tokens, generation_tokens, rows.value("progress", _OUTPUTS))
    reading = RankReading(
        rank=rank,
        model=model,
        capacity_tokens=capacity_hint,
        usage_ratio=rows.fraction("usage_ratio", "gpu_cache_usage_perc"),
        running=rows.whole("running", "num_requests_running"),
        waiting=rows.whole("waiting", "num_requests_waiting"),
        prompt_tokens_total=prompt_tokens,
        generation_tokens_total=generation_tokens,
        prefix_queries_tokens_total=prompt_tokens if hits is not None else None,
        prefix_hits_tokens_total=hits,
        prompt_lengths=rows.histogram("prompt_lengths", _HISTOGRAMS[0]),
        output_lengths=rows.histogram("output_lengths", _HISTOGRAMS[1]),
        ttft_seconds=rows.histogram("ttft_seconds", _TTFT),
        queue_seconds=rows.histogram("queue_seconds", _QUEUE),
        prefill_seconds=rows.histogram("prefill_seconds", _PREFILL),
        inter_token_seconds=rows.histogram("inter_token_seconds", _INTER_TOKEN),
        prompt_computed_tokens_total=None if prompt_tokens is None or hits is None else max(prompt_tokens - hits, 0.0),
        finished_total=rows.value("finished_total", *_FINISHED, pick=sum),
        # While the gauges still show the last request for up to 10 s nothing moves; that is no stall yet.
        progress=tuple(figure for figure in work if figure is not None) or None,
    )
    return replace(reading, missing=reasons_for(reading, _WHY, rows.missing))


_UNTOLD = "LMDeploy's pages do not tell it"
_MIXED = "LMDeploy counts blocks that only the prefix cache holds as used, and does not say how many they are"
_WHY = dict.fromkeys(
    ("capacity_tokens", "block_tokens", "num_blocks", "used_blocks", "swapped", "preemptions_total"), _UNTOLD
) | {
    "active_tokens": _MIXED,
    "reclaimable_tokens": _MIXED,
    "free_tokens": _MIXED,
    "live_tokens": _MIXED,
    "reserved_tokens": "LMDeploy does not reserve ahead",
    "prefix_queries_tokens_total": "this version of LMDeploy does not count tokens from the prefix cache",
    "prompt_computed_tokens_total": "this version of LMDeploy does not count tokens from the prefix cache",
    "step_tokens": "LMDeploy counts the outputs of requests, not its steps",
}


def _rank(sample: Sample) -> str:
    return label(sample, "engine") or "0"


def _belongs_to(rank: str) -> Callable[[Sample], bool]:
    return lambda sample: _rank(sample) == rank


ENGINE = Engine(
    name="lmdeploy",
    title="LMDeploy",
    marks=Marks(
        page=names_start_with(*(prefix.encode() for prefix in _PREFIXES)),
        owned_by=frozenset({"lmdeploy"}),
    ),
    read=_read,
    versions="0.9.2 to 0.16",
    facts={
        "capacity": "unavailable: only in LMDeploy's log",
        "active": "unavailable: the usage, a fraction, holds the reusable prefix blocks as well",
        "reclaimable": "unavailable: counted as used",
        "free": "unavailable: what the usage leaves is never less than free, but prefix blocks can be freed too",
        "live tokens": "unavailable",
        "reserved": "unavailable: LMDeploy does not reserve ahead",
        "block size": "unavailable",
        "running": "exact, up to 10 s old",
        "waiting": "exact, up to 10 s old",
        "swapped": "unavailable",
        "preemptions": "unavailable",
        "prefix hits": "exact in the newest versions; before, unavailable",
        "length histograms": "exact, of requests that have finished; no bound above 4096 tokens",
        "latency histograms": "exact: first token and each token; queue and prefill, of requests that have finished",
        "steps": "unavailable: outputs are counted instead",
        "computed prompts": "derived in the newest versions: prompt tokens - those found in the cache",
        "finished requests": "exact",
        "max length": "unavailable",
        "KV dtype": "unavailable",
        "parallelism": "exact for data parallelism; --tp tells the rest",
        "version": "unavailable",
        "freshness": "exact: outputs and tokens counted",
    },
)
