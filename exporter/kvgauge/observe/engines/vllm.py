"""vLLM 0.6 to 0.33, from its Prometheus page and `/v1/models`, `/version`.

Names and meanings were read in vLLM's sources (`v1/metrics/loggers.py`, `engine/metrics.py` before V1) and checked on a
running 0.32. What the figures mean differs by version; the rules stand beside the code that applies them.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from prometheus_client.samples import Sample

from kvgauge.observe.engines.contract import Engine, Marks, Pages, names_start_with, sample_names_of
from kvgauge.observe.engines.rows import (
    Rows,
    field_of,
    number,
    ranks_in_order,
    reasons_for,
    served_model,
    size,
    text,
)
from kvgauge.observe.exposition import Page, label
from kvgauge.observe.records import EngineReading, RankReading

# Ray publishes the same metrics with ":" replaced, behind a prefix of its own.
_PREFIXES = ("vllm:", "vllm_", "ray_vllm_", "ray_vllm:")
_USAGE = ("kv_cache_usage_perc", "gpu_cache_usage_perc")
_TOKEN_USAGE = ("kv_cache_token_usage_perc",)
_PREEMPTIONS = ("num_preemptions_total", "num_preemptions")
_PROMPT_TOKENS = ("prompt_tokens_total", "prompt_tokens")
_GENERATION_TOKENS = ("generation_tokens_total", "generation_tokens")
# Before 0.9.2 these counted blocks, under names of their own, and are left unread.
_PREFIX_QUERIES = ("prefix_cache_queries_total", "prefix_cache_queries")
_PREFIX_HITS = ("prefix_cache_hits_total", "prefix_cache_hits")
_HISTOGRAMS = ("request_prompt_tokens", "request_generation_tokens")
_TTFT, _QUEUE, _PREFILL = "time_to_first_token_seconds", "request_queue_time_seconds", "request_prefill_time_seconds"
# The second name is that of releases before 0.11; in those between, both stand on the page.
_INTER_TOKEN = ("inter_token_latency_seconds", "time_per_output_token_seconds")
_REQUEST_TOKEN = "request_time_per_output_token_seconds"
_STEP_TOKENS = "iteration_tokens_total"
_LATENCIES = (_TTFT, _QUEUE, _PREFILL, *_INTER_TOKEN, _REQUEST_TOKEN, _STEP_TOKENS)
_PROMPTS_BY_SOURCE = ("prompt_tokens_by_source_total",)
_FINISHED = ("request_success_total", "request_success")
_SINGLE = ("num_requests_running", "num_requests_waiting", "num_requests_swapped", "engine_sleep_state")
# Counts engine steps; the token counters stand still while a long prompt is computed in parts.
_STEPS = f"{_STEP_TOKENS}_count"
_CONFIG = "cache_config_info"
_START = "process_start_time_seconds"

_BASE_NAMES = (
    *_USAGE,
    *_TOKEN_USAGE,
    *_PREEMPTIONS,
    *_PROMPT_TOKENS,
    *_GENERATION_TOKENS,
    *_PREFIX_QUERIES,
    *_PREFIX_HITS,
    *(name + suffix for name in _HISTOGRAMS for suffix in ("_bucket", "_sum", "_count")),
    *(name + suffix for name in _LATENCIES for suffix in ("_bucket", "_sum")),
    *_PROMPTS_BY_SOURCE,
    *_FINISHED,
    *_SINGLE,
    _STEPS,
    _CONFIG,
)
_WANTED = sample_names_of(_BASE_NAMES, *_PREFIXES) | {_START.encode()}


def _read(pages: Pages) -> EngineReading:
    return read_page_of(pages, pages.metrics("/metrics", _WANTED))


def read_page_of(pages: Pages, page: Page) -> EngineReading:
    """A reading of vLLM's series on `page`, wherever that was served, and of vLLM's own JSON pages."""
    page_rows = Rows(page, *_PREFIXES)
    model = _model(page_rows)
    rows = page_rows.where(lambda sample: (label(sample, "model_name") or "") == model)
    configs = {_rank(sample): sample for sample in page_rows.of(_CONFIG)}
    any_config = next(iter(configs.values()), None)
    version = text(field_of(pages.seldom("/version"), "version"))
    served = served_model(pages.seldom("/v1/models"), model)
    pool = _PoolLabels.read(any_config, data_parallel=len(configs) or 1)
    max_model_len = size(served.get("max_model_len")) or pool.max_model_len() or pages.hints.max_model_len
    # Versions before 0.8.5 do not name their data-parallel ranks.
    ranks = ranks_in_order(_rank(sample) for name in (*_USAGE, *_SINGLE) for sample in rows.of(name))
    own_rows = {rank: rows.where(_belongs_to(rank)) for rank in ranks}
    start = page.rows(_START)
    reading = EngineReading(
        engine=ENGINE.name,
        version=version,
        model=model,
        model_path=text(served.get("root")),
        max_model_len=max_model_len,
        kv_dtype=pool.text("cache_dtype") or pages.hints.kv_dtype,
        gpu_memory_utilization=pool.number("gpu_memory_utilization"),
        kv_cache_bytes=pool.count("kv_cache_memory_bytes"),
        num_blocks_override=pool.count("num_gpu_blocks_override"),
        prefix_caching={"True": True, "False": False}.get(pool.text("enable_prefix_caching") or ""),
        asleep=_all_asleep([_asleep(own) for own in own_rows.values()]),
        started_seconds=start[0].value if start and math.isfinite(start[0].value) else None,
        ranks=tuple(
            _read_rank(own, rank, model, pool, version=version, max_model_len=max_model_len)
            for rank, own in own_rows.items()
        ),
        bad_lines=page.bad_lines,
    )
    reasons = {
        "version": pages.why("/version"),
        "model_path": pages.why("/v1/models"),
        "max_model_len": "neither /v1/models nor the labels of cache_config_info tell it",
        "kv_dtype": "the page has no cache_config_info",
        "tp": "vLLM's pages do not tell it; --tp and --pp do",
        "pp": "vLLM's pages do not tell it; --tp and --pp do",
    }
    return replace(
        reading,
        bad_values=sum(own.bad_values for own in own_rows.values()),
        missing=reasons_for(reading, reasons),
    )


def _model(rows: Rows) -> str:
    first = next((sample for name in (*_SINGLE, *_USAGE) for sample in rows.of(name)), None)
    return (label(first, "model_name") if first is not None else None) or ""


def _all_asleep(ranks: Sequence[bool | None]) -> bool | None:
    """Of the engine as a whole: one rank that is awake, or does not tell, still serves."""
    return all(ranks) if any(told is not None for told in ranks) else None


def _asleep(rows: Rows) -> bool | None:
    """True while the engine has given its KV pool back (sleep mode): occupancy then means nothing."""
    awake = [sample.value for sample in rows.of("engine_sleep_state") if sample.labels.get("sleep_state") == "awake"]
    return any(value == 0 for value in awake) if awake else None


@dataclass(frozen=True, slots=True)
class _PoolLabels:
    """The labels of cache_config_info: strings, Python's `None` among them, that come and go with releases."""

    labels: Mapping[str, str]
    data_parallel: int

    @classmethod
    def read(cls, sample: Sample | None, data_parallel: int) -> "_PoolLabels":
        return cls(sample.labels if sample is not None else {}, data_parallel)

    def text(self, name: str) -> str | None:
        return text(self.labels.get(name))

    def number(self, name: str) -> float | None:
        return number(self.labels.get(name))

    def count(self, name: str) -> int | None:
        return size(self.labels.get(name))

    def num_blocks(self) -> int | None:
        """Blocks of one rank. The label holds the sum over data-parallel engines, repeated on each row."""
        total = self.count("num_gpu_blocks")
        return None if total is None else total // self.data_parallel

    def block_tokens(self) -> int | None:
        return self.count("effective_attention_block_size") or self.count("block_size")

    def max_model_len(self) -> int | None:
        """From 0.24 on: size = int(concurrency x max_model_len), so the length is the one integer in
        [size / concurrency, (size + 1) / concurrency), when that holds just one."""
        size, concurrency = self.count("kv_cache_size_tokens"), self.number("kv_cache_max_concurrency")
        if size is None or not concurrency:
            return None
        # The label's last printed digit must not push an exact quotient over its integer.
        lowest = math.ceil(size / concurrency - 1e-6)
        return lowest if lowest + 1 >= (size + 1) / concurrency else None

    def slots(self, max_model_len: int | None) -> tuple[int | None, float | None]:
        """(KV slots of one rank, slots per block).

        `kv_cache_size_tokens` is right for every model from 0.24 on. Where a longest request takes more blocks than
        its tokens fill, the model has several cache groups, and a block stands for its share of the stated capacity.
        Before 0.24 only blocks x block_size can be known.
        """
        blocks, block_tokens = self.num_blocks(), self.block_tokens()
        size, concurrency = self.count("kv_cache_size_tokens"), self.number("kv_cache_max_concurrency")
        if blocks is None or block_tokens is None:
            return size, None
        if size is None:
            return blocks * block_tokens, float(block_tokens)
        if concurrency and max_model_len:
            one_group = round(blocks / concurrency) <= math.ceil(max_model_len / block_tokens)
        else:
            one_group = size == blocks * block_tokens
        return size, float(block_tokens) if one_group else size / blocks


def _read_rank(
    rows: Rows, rank: str, model: str, pool: _PoolLabels, *, version: str | None, max_model_len: int | None
) -> RankReading:
    capacity_tokens, tokens_per_block = pool.slots(max_model_len)
    # Up to 0.11.0 there is a row for each API server process: the largest is the live one.
    usage = rows.fraction("usage_ratio", *_USAGE)
    token_usage = rows.fraction("live_tokens", *_TOKEN_USAGE)
    if _asleep(rows):
        usage = token_usage = None
        rows.missing["usage_ratio"] = "the engine is asleep and its KV pool is given back"
    used_blocks = _used_blocks(usage, pool.num_blocks(), version, rows)
    active_tokens = None
    if used_blocks is not None and tokens_per_block is not None and capacity_tokens is not None:
        # A length that is no multiple of the block size makes the stated capacity a little less than the slots.
        active_tokens = min(round(used_blocks * tokens_per_block), capacity_tokens)
    live_tokens = None
    if token_usage is not None and capacity_tokens is not None:
        live_tokens = round(token_usage * capacity_tokens)
    elif not rows.has(*_TOKEN_USAGE):
        rows.missing.pop("live_tokens", None)
    prompt_tokens = rows.value("prompt_tokens_total", *_PROMPT_TOKENS)
    generation_tokens = rows.value("generation_tokens_total", *_GENERATION_TOKENS)
    hits = rows.value("prefix_hits_tokens_total", *_PREFIX_HITS)
    reading = RankReading(
        rank=rank,
        model=model,
        capacity_tokens=capacity_tokens,
        block_tokens=pool.block_tokens(),
        num_blocks=pool.num_blocks(),
        used_blocks=used_blocks,
        active_tokens=active_tokens,
        reclaimable_tokens=None,
        free_tokens=None if active_tokens is None or capacity_tokens is None else capacity_tokens - active_tokens,
        live_tokens=live_tokens,
        usage_ratio=usage,
        running=rows.whole("running", "num_requests_running"),
        waiting=rows.whole("waiting", "num_requests_waiting"),
        swapped=rows.whole("swapped", "num_requests_swapped"),
        preemptions_total=rows.value("preemptions_total", *_PREEMPTIONS),
        prompt_tokens_total=prompt_tokens,
        generation_tokens_total=generation_tokens,
        prefix_queries_tokens_total=rows.value("prefix_queries_tokens_total", *_PREFIX_QUERIES),
        prefix_hits_tokens_total=hits,
        prompt_lengths=rows.histogram("prompt_lengths", "request_prompt_tokens"),
        output_lengths=rows.histogram("output_lengths", "request_generation_tokens"),
        ttft_seconds=rows.histogram("ttft_seconds", _TTFT),
        queue_seconds=rows.histogram("queue_seconds", _QUEUE),
        prefill_seconds=rows.histogram("prefill_seconds", _PREFILL),
        inter_token_seconds=rows.histogram("inter_token_seconds", *_INTER_TOKEN),
        request_token_seconds=rows.histogram("request_token_seconds", _REQUEST_TOKEN),
        step_tokens=rows.histogram("step_tokens", _STEP_TOKENS),
        prompt_computed_tokens_total=_computed(rows, prompt_tokens, hits),
        finished_total=rows.value("finished_total", *_FINISHED, pick=sum),
        progress=_progress(rows.value("progress", _STEPS), prompt_tokens, generation_tokens, usage),
    )
    return replace(reading, missing=reasons_for(reading, _WHY, rows.missing))


_NO_POOL = "cache_config_info is absent or does not tell it"
_WHY = {
    "capacity_tokens": "cache_config_info is absent or does not tell num_gpu_blocks",
    "block_tokens": _NO_POOL,
    "num_blocks": _NO_POOL,
    "used_blocks": "occupancy or the number of blocks is not known",
    "active_tokens": "occupancy or the number of blocks is not known",
    "free_tokens": "occupancy or the number of blocks is not known",
    "reclaimable_tokens": "vLLM counts reusable prefix blocks as free",
    "live_tokens": "this version of vLLM counts blocks, not tokens",
    "reserved_tokens": "vLLM does not reserve ahead",
    "prompt_computed_tokens_total": "neither prompts by source nor hits of the prefix cache are counted in tokens",
}


def _computed(rows: Rows, prompt_tokens: float | None, hits: float | None) -> float | None:
    """Prompt tokens that were computed: counted in newer releases (0.32), before that what the prefix cache had not.

    The hits count when a request is admitted and the prompt when its first token comes, so that the difference lags
    and may fall. `request_prefill_kv_computed_tokens` would not fall, but counts only when requests finish.
    """
    local = rows.where(lambda sample: sample.labels.get("source") == "local_compute")
    computed = local.value("prompt_computed_tokens_total", *_PROMPTS_BY_SOURCE)
    rows.bad_values += local.bad_values
    if computed is not None or prompt_tokens is None or hits is None:
        return computed
    return max(prompt_tokens - hits, 0.0)


def _progress(*figures: float | None) -> tuple[float, ...] | None:
    """What moves when the engine steps; None when the page has no counter of it."""
    known = tuple(figure for figure in figures if figure is not None)
    return known if any(figure is not None for figure in figures[:3]) else None


def _used_blocks(usage: float | None, num_blocks: int | None, version: str | None, rows: Rows) -> int | None:
    """Blocks in use. V1 keeps one null block out of the pool, and from 0.10 on divides by the rest."""
    if usage is None or num_blocks is None or num_blocks < 2:
        return None
    null_block = _divides_without_null_block(version, rows)
    if null_block is None:
        # The page alone does not tell the version: the divisor is the one that gives a whole number of blocks.
        null_block = not _off_whole(usage * num_blocks) < 1e-6 * num_blocks < _off_whole(usage * (num_blocks - 1))
    return round(usage * (num_blocks - 1 if null_block else num_blocks))


def _divides_without_null_block(version: str | None, rows: Rows) -> bool | None:
    release = re.match(r"v?(\d+)\.(\d+)", version or "")
    # A development build calls itself 0.1.dev, older than anything that is read here.
    if release and (int(release[1]), int(release[2])) >= (0, 6):
        return (int(release[1]), int(release[2])) >= (0, 10)
    if not rows.of(_USAGE[0]) and rows.of(_USAGE[1]):
        return False
    return None


def _off_whole(value: float) -> float:
    return abs(value - round(value))


def _rank(sample: Sample) -> str:
    return label(sample, "engine") or "0"


def _belongs_to(rank: str) -> Callable[[Sample], bool]:
    return lambda sample: _rank(sample) == rank


ENGINE = Engine(
    name="vllm",
    title="vLLM",
    marks=Marks(
        page=names_start_with(*(prefix.encode() for prefix in _PREFIXES)),
        owned_by=frozenset({"vllm"}),
    ),
    read=_read,
    versions="0.6 to 0.33",
    facts={
        "capacity": "exact from 0.24 (kv_cache_size_tokens); before, derived: blocks x block size",
        "active": "derived: usage x blocks x block size",
        "reclaimable": "exact with the agent; otherwise unavailable: counted as free",
        "free": "derived: capacity - active",
        "live tokens": "exact with the agent; otherwise derived: half a block's tail for each running request",
        "reserved": "unavailable: vLLM does not reserve ahead",
        "block size": "exact",
        "running": "exact",
        "waiting": "exact",
        "swapped": "exact up to 0.9.0; V1 does not swap",
        "preemptions": "exact",
        "prefix hits": "exact from 0.9.2, in tokens",
        "length histograms": "exact, of requests that have finished",
        "latency histograms": "exact: first token and each token; queue and prefill, of requests that have finished",
        "steps": "exact, with their tokens (V1); those that yield no token are not counted",
        "computed prompts": "exact with prompt_tokens_by_source (0.32); before, derived: prompt tokens - prefix hits",
        "finished requests": "exact, whatever the reason",
        "max length": "exact (/v1/models), or derived from the labels from 0.24",
        "KV dtype": "exact",
        "parallelism": "exact for data parallelism; --tp, --pp or the agent tell the rest",
        "version": "exact (/version)",
        "freshness": "exact: steps and tokens counted",
    },
)
