"""vLLM 0.6 to 0.33, from its Prometheus page and `/v1/models`, `/version`.

Names and meanings were read in vLLM's sources (`v1/metrics/loggers.py`, `engine/metrics.py` before V1) and checked on a
running 0.32. What the figures mean differs by version; the rules stand beside the code that applies them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.samples import Sample

from kvgauge.observe.engines.contract import Engine, Json, Marks, Pages, names_start_with, sample_names_of
from kvgauge.observe.exposition import MAX_LABEL_CHARACTERS, Page, label
from kvgauge.observe.records import EngineReading, Histogram, RankReading

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
_SINGLE = ("num_requests_running", "num_requests_waiting", "num_requests_swapped", "engine_sleep_state")
# Counts engine steps; the token counters stand still while a long prompt is computed in parts.
_STEPS = "iteration_tokens_total_count"
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
    *_SINGLE,
    _STEPS,
    _CONFIG,
)
_WANTED = sample_names_of(_BASE_NAMES, *_PREFIXES) | {_START.encode()}

# vLLM states fractions; a little above 1 is rounding, more is another unit and is refused rather than guessed.
_MAX_USAGE_RATIO = 1.05


def _read(pages: Pages) -> EngineReading:
    return read_page_of(pages, pages.metrics("/metrics", _WANTED))


def read_page_of(pages: Pages, page: Page) -> EngineReading:
    """A reading of vLLM's series on `page`, wherever that was served, and of vLLM's own JSON pages."""
    rows = _Rows(page)
    ranks = rows.ranks()
    configs = {_rank(sample): sample for sample in rows.of(_CONFIG)}
    any_config = next(iter(configs.values()), None)
    version = _text(_field(pages.seldom("/version"), "version"))
    served = _served_model(pages.seldom("/v1/models"), rows.model)
    pool = _PoolLabels.read(any_config, data_parallel=len(configs) or 1)
    max_model_len = _count(served.get("max_model_len")) or pool.max_model_len() or pages.hints.max_model_len
    readings = tuple(
        _read_rank(rows, rank, pool, version=version, max_model_len=max_model_len, asleep=rows.asleep(rank))
        for rank in ranks
    )
    facts = {
        "version": version,
        "model_path": _text(served.get("root")),
        "max_model_len": max_model_len,
        "kv_dtype": pool.text("cache_dtype") or pages.hints.kv_dtype,
    }
    reasons = {
        "version": pages.why("/version"),
        "model_path": pages.why("/v1/models"),
        "max_model_len": "neither /v1/models nor the labels of cache_config_info tell it",
        "kv_dtype": "the page has no cache_config_info",
    }
    start = page.rows(_START)
    return EngineReading(
        engine=ENGINE.name,
        version=version,
        model=rows.model,
        model_path=_text(served.get("root")),
        max_model_len=max_model_len,
        kv_dtype=facts["kv_dtype"],
        gpu_memory_utilization=pool.number("gpu_memory_utilization"),
        kv_cache_bytes=pool.count("kv_cache_memory_bytes"),
        num_blocks_override=pool.count("num_gpu_blocks_override"),
        prefix_caching={"True": True, "False": False}.get(pool.text("enable_prefix_caching") or ""),
        asleep=bool(readings) and all(rows.asleep(reading.rank) for reading in readings),
        started_seconds=start[0].value if start and math.isfinite(start[0].value) else None,
        ranks=readings,
        bad_lines=page.bad_lines,
        bad_values=rows.bad_values,
        missing={name: reasons[name] for name, value in facts.items() if value is None}
        | dict.fromkeys(("tp", "pp"), "vLLM's pages do not tell it; --tp and --pp do"),
    )


class _Rows:
    """The page's samples by vLLM's own names, cut down to one model and taken apart by data-parallel rank."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.bad_values = 0
        first = next((sample for name in (*_SINGLE, *_USAGE) for sample in self.of(name)), None)
        self.model = (label(first, "model_name") if first is not None else None) or ""

    def of(self, *bases: str) -> tuple[Sample, ...]:
        """Rows of the first of `bases` that stands on the page, under any of the prefixes."""
        return self._page.rows(*(prefix + base for base in bases for prefix in _PREFIXES))

    def ranks(self) -> tuple[str, ...]:
        """Data-parallel engines on the page, in numerical order. Versions before 0.8.5 do not name theirs: "0"."""
        named = {_rank(sample) for name in (*_USAGE, *_SINGLE) for sample in self._mine(self.of(name))}
        return tuple(sorted(named, key=lambda rank: (len(rank), rank)))

    def value(self, rank: str, missing: dict[str, str], field: str, *bases: str) -> float | None:
        """One gauge or counter; with several rows (one per API server process up to 0.11.0) the largest is the live
        one. Absent, NaN, infinite and negative values are None, and `missing[field]` says which."""
        values = [sample.value for sample in self._mine(self.of(*bases)) if _rank(sample) == rank]
        if not values:
            missing[field] = f"the page has no {bases[0]}"
            return None
        sound = [value for value in values if math.isfinite(value) and value >= 0]
        if not sound:
            self.bad_values += 1
            missing[field] = f"{bases[0]} is {values[0]:g}"
            return None
        return max(sound)

    def ratio(self, rank: str, missing: dict[str, str], field: str, *bases: str) -> float | None:
        """One fraction of 1."""
        value = self.value(rank, missing, field, *bases)
        if value is not None and value > _MAX_USAGE_RATIO:
            self.bad_values += 1
            missing[field] = f"a {bases[0]} of {value:g} is no fraction of 1"
            return None
        return None if value is None else min(value, 1.0)

    def histogram(self, rank: str, missing: dict[str, str], field: str, base: str) -> Histogram | None:
        """One histogram, its buckets in rising order."""
        buckets: dict[float, float] = {}
        for sample in self._mine(self.of(base + "_bucket")):
            bound = _number(sample.labels.get("le"), allow_infinity=True)
            if _rank(sample) == rank and bound is not None and math.isfinite(sample.value):
                buckets[bound] = max(sample.value, buckets.get(bound, 0.0))
        total = self.value(rank, missing, field, base + "_sum")
        bounds = tuple(sorted(buckets))
        if total is None or not bounds or bounds[-1] != math.inf:
            missing[field] = f"the page has no complete histogram {base}"
            return None
        return Histogram(bounds, tuple(buckets[bound] for bound in bounds), total)

    def asleep(self, rank: str) -> bool:
        """True while the engine has given its KV pool back (sleep mode): occupancy then means nothing."""
        return any(
            sample.value == 0
            for sample in self._mine(self.of("engine_sleep_state"))
            if _rank(sample) == rank and sample.labels.get("sleep_state") == "awake"
        )

    def _mine(self, rows: Sequence[Sample]) -> list[Sample]:
        return [sample for sample in rows if (label(sample, "model_name") or "") == self.model]


@dataclass(frozen=True, slots=True)
class _PoolLabels:
    """The labels of cache_config_info: strings, Python's `None` among them, that come and go with releases."""

    labels: Mapping[str, str]
    data_parallel: int

    @classmethod
    def read(cls, sample: Sample | None, data_parallel: int) -> "_PoolLabels":
        return cls(sample.labels if sample is not None else {}, data_parallel)

    def text(self, name: str) -> str | None:
        return _text(self.labels.get(name))

    def number(self, name: str) -> float | None:
        return _number(self.labels.get(name))

    def count(self, name: str) -> int | None:
        return _count(self.labels.get(name))

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
    rows: _Rows, rank: str, pool: _PoolLabels, *, version: str | None, max_model_len: int | None, asleep: bool
) -> RankReading:
    missing: dict[str, str] = {"reclaimable_tokens": "vLLM counts reusable prefix blocks as free"}

    def value(field: str, *bases: str) -> float | None:
        return rows.value(rank, missing, field, *bases)

    capacity_tokens, tokens_per_block = pool.slots(max_model_len)
    if capacity_tokens is None:
        missing["capacity_tokens"] = "cache_config_info is absent or does not tell num_gpu_blocks"
    usage = rows.ratio(rank, missing, "usage_ratio", *_USAGE)
    token_usage = rows.ratio(rank, missing, "live_tokens", *_TOKEN_USAGE)
    if asleep:
        usage = token_usage = None
        missing["usage_ratio"] = "the engine is asleep and its KV pool is given back"
    used_blocks = _used_blocks(usage, pool.num_blocks(), version, rows)
    active_tokens = None
    if used_blocks is not None and tokens_per_block is not None and capacity_tokens is not None:
        # A length that is no multiple of the block size makes the stated capacity a little less than the slots.
        active_tokens = min(round(used_blocks * tokens_per_block), capacity_tokens)
    else:
        missing["active_tokens"] = "occupancy or the number of blocks is not known"
    live_tokens = None
    if token_usage is not None and capacity_tokens is not None:
        live_tokens = round(token_usage * capacity_tokens)
    else:
        missing["live_tokens"] = "this version of vLLM counts blocks, not tokens"
    prompt_tokens = value("prompt_tokens_total", *_PROMPT_TOKENS)
    generation_tokens = value("generation_tokens_total", *_GENERATION_TOKENS)
    return RankReading(
        rank=rank,
        model=rows.model,
        capacity_tokens=capacity_tokens,
        block_tokens=pool.block_tokens(),
        num_blocks=pool.num_blocks(),
        used_blocks=used_blocks,
        active_tokens=active_tokens,
        reclaimable_tokens=None,
        free_tokens=None if active_tokens is None or capacity_tokens is None else capacity_tokens - active_tokens,
        live_tokens=live_tokens,
        usage_ratio=usage,
        running=_whole(value("running", "num_requests_running")),
        waiting=_whole(value("waiting", "num_requests_waiting")),
        swapped=_whole(value("swapped", "num_requests_swapped")),
        preemptions_total=value("preemptions_total", *_PREEMPTIONS),
        prompt_tokens_total=prompt_tokens,
        generation_tokens_total=generation_tokens,
        prefix_queries_tokens_total=value("prefix_queries_tokens_total", *_PREFIX_QUERIES),
        prefix_hits_tokens_total=value("prefix_hits_tokens_total", *_PREFIX_HITS),
        prompt_lengths=rows.histogram(rank, missing, "prompt_lengths", "request_prompt_tokens"),
        output_lengths=rows.histogram(rank, missing, "output_lengths", "request_generation_tokens"),
        progress=_progress(rows.value(rank, {}, _STEPS, _STEPS), prompt_tokens, generation_tokens, usage),
        missing=missing,
    )


def _progress(*figures: float | None) -> tuple[float, ...] | None:
    """What moves when the engine steps; None when the page has no counter of it."""
    known = tuple(figure for figure in figures if figure is not None)
    return known if any(figure is not None for figure in figures[:3]) else None


def _used_blocks(usage: float | None, num_blocks: int | None, version: str | None, rows: _Rows) -> int | None:
    """Blocks in use. V1 keeps one null block out of the pool, and from 0.10 on divides by the rest."""
    if usage is None or num_blocks is None or num_blocks < 2:
        return None
    null_block = _divides_without_null_block(version, rows)
    if null_block is None:
        # The page alone does not tell the version: the divisor is the one that gives a whole number of blocks.
        null_block = not _off_whole(usage * num_blocks) < 1e-6 * num_blocks < _off_whole(usage * (num_blocks - 1))
    return round(usage * (num_blocks - 1 if null_block else num_blocks))


def _divides_without_null_block(version: str | None, rows: _Rows) -> bool | None:
    release = re.match(r"v?(\d+)\.(\d+)", version or "")
    # A development build calls itself 0.1.dev, older than anything that is read here.
    if release and (int(release[1]), int(release[2])) >= (0, 6):
        return (int(release[1]), int(release[2])) >= (0, 10)
    if not rows.of(_USAGE[0]) and rows.of(_USAGE[1]):
        return False
    return None


def _off_whole(value: float) -> float:
    return abs(value - round(value))


def _field(answer: Json, name: str) -> object:
    return answer.get(name) if isinstance(answer, Mapping) else None


def _served_model(answer: Json, model: str) -> Mapping[str, object]:
    data = _field(answer, "data")
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    return next((entry for entry in entries if entry.get("id") == model), entries[0] if entries else {})


def _rank(sample: Sample) -> str:
    return label(sample, "engine") or "0"


def _text(value: object) -> str | None:
    return value[:MAX_LABEL_CHARACTERS] if isinstance(value, str) and value not in {"", "None"} else None


def _number(value: object, *, allow_infinity: bool = False) -> float | None:
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) or (math.isinf(number) and not allow_infinity) else number


def _count(value: object) -> int | None:
    """A number of things as vLLM prints it in a label; zero means that the engine has not said it yet."""
    number = _number(value)
    return int(number) if number is not None and number >= 1 else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


ENGINE = Engine(
    name="vllm",
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
        "max length": "exact (/v1/models), or derived from the labels from 0.24",
        "KV dtype": "exact",
        "parallelism": "data parallelism exact; --tp, --pp or the agent tell the rest",
        "version": "exact (/version)",
        "freshness": "exact: steps and tokens counted",
    },
)
