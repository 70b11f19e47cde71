"""NVIDIA Dynamo 0.4 to 1.6: a worker's page with its engine's own series, or the frontend's.

Names and labels were read in Dynamo's sources (`lib/runtime/src/metrics/prometheus_names.rs`) and in the pages recorded
in its docs. A worker passes the series of vLLM, SGLang or TensorRT-LLM through. Those say more than Dynamo's own, which
are 0 where the engine is not wired to them, so they are read by the engines' files and only completed here. The reading
carries the engine's name then, because the engine's rules hold for its memory.
"""

from collections.abc import Callable
from dataclasses import fields, replace

from prometheus_client.samples import Sample

from kvgauge.observe.engines import sglang, tensorrt_llm, vllm
from kvgauge.observe.engines.contract import Engine, Hints, Json, Marks, Pages, names_start_with, sample_names_of
from kvgauge.observe.engines.rows import Rows, ranks_in_order, reasons_for
from kvgauge.observe.engines.tensorrt_llm import BlockPool
from kvgauge.observe.exposition import Page, label
from kvgauge.observe.records import EngineReading, RankReading

_WORKER = "dynamo_component_"
# Up to 0.8 the names have a middle part.
_TOTAL_BLOCKS = ("total_blocks", "kvstats_total_blocks")
_ACTIVE_BLOCKS = ("active_blocks", "kvstats_active_blocks")
_USAGE = ("gpu_cache_usage_percent", "kvstats_gpu_cache_usage_percent")
_INFLIGHT = "inflight_requests"

_FRONTEND = "dynamo_frontend_"
_CONTEXT_LENGTH = "model_context_length"
_BLOCK_TOKENS = "model_kv_cache_block_size"
_MODEL_BLOCKS = "model_total_kv_blocks"
_MAX_NUM_SEQS = "model_max_num_seqs"
_HISTOGRAMS = ("input_sequence_tokens", "output_sequence_tokens")
_TTFT, _INTER_TOKEN = "time_to_first_token_seconds", "inter_token_latency_seconds"

_WANTED = sample_names_of((*_TOTAL_BLOCKS, *_ACTIVE_BLOCKS, *_USAGE, _INFLIGHT), _WORKER) | sample_names_of(
    (
        *(_CONTEXT_LENGTH, _BLOCK_TOKENS, _MODEL_BLOCKS, _MAX_NUM_SEQS),
        *(name + suffix for name in (*_HISTOGRAMS, _TTFT, _INTER_TOKEN) for suffix in ("_bucket", "_sum", "_count")),
    ),
    _FRONTEND,
)

_UNTOLD = "Dynamo's pages do not tell it"
_POOL_FIELDS = (
    "capacity_tokens",
    "num_blocks",
    "used_blocks",
    "block_tokens",
    "active_tokens",
    "free_tokens",
    "usage_ratio",
)


class PassedThrough:
    """`Pages` of an engine whose series stand on a wrapper's page at `path`, beside the wrapper's own (`also`).

    Wherever the engine looks for its metrics, it gets that page."""

    def __init__(self, pages: Pages, path: str, also: frozenset[bytes]) -> None:
        # What a wrapper serves as /metrics is never trtllm-serve's list of records.
        self.hints: Hints = replace(pages.hints, read_iteration_stats=False)
        self.page = Page({}, 0)
        self._pages = pages
        self._path = path
        self._also = also

    def metrics(self, path: str, wanted: frozenset[bytes]) -> Page:  # noqa: ARG002
        self.page = self._pages.metrics(self._path, wanted | self._also)
        return self.page

    def json(self, path: str) -> Json:
        return self._pages.json(path)

    def seldom(self, path: str) -> Json:
        return self._pages.seldom(path)

    def why(self, path: str) -> str:
        return self._pages.why(path)


def read_passed_through(pages: Pages, path: str, also: frozenset[bytes]) -> tuple[EngineReading | None, Page]:
    """The reading of the engine whose series stand on the page at `path`, if there is one, and the page."""
    for engine in (vllm.ENGINE, tensorrt_llm.ENGINE, sglang.ENGINE):
        through = PassedThrough(pages, path, also)
        reading = engine.read(through)
        if reading.ranks:
            return reading, through.page
    return None, through.page


def _read(pages: Pages) -> EngineReading:
    reading, page = read_passed_through(pages, "/metrics", _WANTED)
    worker = Rows(page, _WORKER)
    if reading is not None:
        return _completed(reading, worker, pages.hints)
    frontend = Rows(page, _FRONTEND)
    if worker.has(*_TOTAL_BLOCKS, *_USAGE):
        return _read_worker(pages, page, worker)
    return _read_frontend(pages, page, frontend)


def _completed(reading: EngineReading, worker: Rows, hints: Hints) -> EngineReading:
    """`reading` with the figures of pools that its engine did not tell and Dynamo does."""
    of_ranks = [worker.where(_is_of_rank(rank.rank)) for rank in reading.ranks]
    ranks = tuple(_completed_rank(rank, rows, hints) for rank, rows in zip(reading.ranks, of_ranks, strict=True))
    bad_values = reading.bad_values + sum(rows.bad_values for rows in of_ranks)
    return replace(reading, ranks=ranks, bad_values=bad_values)


def _completed_rank(rank: RankReading, rows: Rows, hints: Hints) -> RankReading:
    if rank.capacity_tokens is not None and rank.active_tokens is not None:
        return rank
    num_blocks = rows.positive("num_blocks", *_TOTAL_BLOCKS)
    if num_blocks is None:
        # The engine is not wired to Dynamo's gauges; all of them are 0 then.
        return rank
    pool = BlockPool.of(
        rows,
        hints,
        num_blocks=rank.num_blocks or num_blocks,
        used_blocks=rows.whole("used_blocks", *_ACTIVE_BLOCKS) if rank.usage_ratio is None else None,
        block_tokens=rank.block_tokens,
        usage_ratio=rows.fraction("usage_ratio", *_USAGE) if rank.usage_ratio is None else rank.usage_ratio,
    )
    rank = replace(rank, **{name: getattr(pool, name) for name in _POOL_FIELDS if getattr(rank, name) is None})
    return replace(rank, missing=reasons_for(rank, rank.missing))


def _is_of_rank(rank: str) -> Callable[[Sample], bool]:
    # Up to 0.8 the gauges are the worker's, and name no rank.
    return lambda sample: (label(sample, "dp_rank") or "0") == rank


def _read_worker(pages: Pages, page: Page, worker: Rows) -> EngineReading:
    """A worker that passes nothing through: only the pool, in blocks."""
    rows = [*worker.of(*_TOTAL_BLOCKS), *worker.of(*_USAGE)]
    model = next((name for sample in (*rows, *worker.of(_INFLIGHT)) if (name := label(sample, "model"))), "")
    names = ranks_in_order({label(sample, "dp_rank") or "0" for sample in rows})
    reasons = dict.fromkeys(_optional_fields(), "the engine's own series are not on Dynamo's page")
    ranks = tuple(RankReading(rank=name, model=model, missing=reasons) for name in names)
    return _completed(_reading(pages, page, model, ranks), worker, pages.hints)


def _read_frontend(pages: Pages, page: Page, frontend: Rows) -> EngineReading:
    """The frontend: what each model's workers are like, not what they do.

    The blocks are those of one worker, the requests those of all together, so the requests are left out.
    """
    stated = [sample for name in (_CONTEXT_LENGTH, _BLOCK_TOKENS, _MODEL_BLOCKS) for sample in frontend.of(name)]
    models = sorted({label(sample, "model") or "" for sample in stated})
    of_models = [frontend.where(_is_of_model(model)) for model in models]
    lengths = {rows.positive("max_model_len", _CONTEXT_LENGTH) for rows in of_models}
    limits = {rows.positive("max_num_seqs", _MAX_NUM_SEQS) for rows in of_models}
    ranks = tuple(
        _model_rank(rows, pages.hints, model, "0" if len(models) == 1 else model)
        for rows, model in zip(of_models, models, strict=True)
    )
    reading = _reading(pages, page, models[0] if models else "", ranks)
    max_model_len = lengths.pop() if len(lengths) == 1 else None
    reading = replace(
        reading,
        max_model_len=max_model_len or reading.max_model_len,
        max_num_seqs=limits.pop() if len(limits) == 1 else None,
        bad_values=sum(rows.bad_values for rows in of_models),
    )
    return replace(reading, missing=reasons_for(reading, reading.missing))


def _is_of_model(model: str) -> Callable[[Sample], bool]:
    # The frontend writes the names of models in requests in lower case, and as given in what it tells of them.
    return lambda sample: (label(sample, "model") or "").lower() == model.lower()


def _model_rank(rows: Rows, hints: Hints, model: str, rank: str) -> RankReading:
    pool = BlockPool.of(
        rows,
        hints,
        num_blocks=rows.positive("num_blocks", _MODEL_BLOCKS),
        used_blocks=None,
        block_tokens=rows.positive("block_tokens", _BLOCK_TOKENS),
    )
    prompt_lengths, output_lengths = (
        rows.histogram(field, name)
        for field, name in zip(("prompt_lengths", "output_lengths"), _HISTOGRAMS, strict=True)
    )
    reading = RankReading(
        rank=rank,
        model=model,
        capacity_tokens=pool.capacity_tokens,
        num_blocks=pool.num_blocks,
        block_tokens=pool.block_tokens,
        prompt_lengths=prompt_lengths,
        output_lengths=output_lengths,
        ttft_seconds=rows.histogram("ttft_seconds", _TTFT),
        inter_token_seconds=rows.histogram("inter_token_seconds", _INTER_TOKEN),
    )
    untold = dict.fromkeys(_optional_fields(), "the frontend tells it of all its workers together, or not at all")
    told = (
        *("num_blocks", "block_tokens", "capacity_tokens", "prompt_lengths", "output_lengths"),
        *("ttft_seconds", "inter_token_seconds"),
    )
    why = {name: reason for name, reason in rows.missing.items() if name in told}
    return replace(reading, missing=reasons_for(reading, untold, why))


def _reading(pages: Pages, page: Page, model: str, ranks: tuple[RankReading, ...]) -> EngineReading:
    reading = EngineReading(
        engine=ENGINE.name,
        model=model,
        max_model_len=pages.hints.max_model_len,
        kv_dtype=pages.hints.kv_dtype,
        ranks=ranks,
        bad_lines=page.bad_lines,
    )
    untold = dict.fromkeys(("version", "model_path", "max_model_len", "kv_dtype", "tp", "pp"), _UNTOLD)
    return replace(reading, missing=reasons_for(reading, untold))


def _optional_fields() -> list[str]:
    return [field.name for field in fields(RankReading) if field.default is None]


_AS_BEHIND = "derived: as the engine behind it tells"

ENGINE = Engine(
    name="dynamo",
    title="NVIDIA Dynamo",
    marks=Marks(page=names_start_with(b"dynamo_"), wraps=True),
    read=_read,
    versions="0.4 to 1.6",
    facts={
        "capacity": "derived: as the engine behind it tells, or blocks x block size; on the frontend of one worker",
        "active": "derived: as the engine behind it tells, or usage x total blocks where the block size is told",
        "reclaimable": _AS_BEHIND,
        "free": "derived: as the engine behind it tells, or capacity - active",
        "live tokens": _AS_BEHIND,
        "reserved": _AS_BEHIND,
        "block size": "derived: as the engine behind it tells; exact on the frontend",
        "running": f"{_AS_BEHIND}; the frontend counts all workers together",
        "waiting": f"{_AS_BEHIND}; the frontend counts all workers together",
        "swapped": _AS_BEHIND,
        "preemptions": _AS_BEHIND,
        "prefix hits": _AS_BEHIND,
        "length histograms": f"{_AS_BEHIND}; exact on the frontend, of all workers together",
        "latency histograms": f"{_AS_BEHIND}; exact on the frontend, of all workers together",
        "steps": _AS_BEHIND,
        "computed prompts": _AS_BEHIND,
        "finished requests": _AS_BEHIND,
        "max length": f"{_AS_BEHIND}; exact on the frontend",
        "KV dtype": _AS_BEHIND,
        "parallelism": _AS_BEHIND,
        "version": "unavailable: not on its pages",
        "freshness": f"{_AS_BEHIND}; unavailable without its series",
    },
)
