"""Text Generation Inference 1.4 to 3.3, from `/metrics` and `/info`.

Names and meanings were read in TGI's sources (`router/src/infer`, `backends/v3/src`: `backend.rs`, `queue.rs`,
`block_allocator.rs`; `docs/source/reference/metrics.md`). TGI reserves: a request is admitted when its prompt and all
tokens that it may yet generate fit beside those of the running ones, and it keeps those slots until it ends. Nothing
tells how many of them hold a token. No series exists before its first use, so an idle server's page may be empty.
"""

from dataclasses import replace

from kvgauge.observe.engines.contract import Engine, Json, Marks, Pages, names_start_with, sample_names_of
from kvgauge.observe.engines.rows import MAX_USAGE_RATIO, Figures, Rows, field_of, reasons_for, size, text
from kvgauge.observe.records import EngineReading, RankReading

_PREFIX = "tgi_"
# Of the running batch: blocks x block size; 0 when nothing runs.
_RESERVED = "batch_current_max_tokens"
# The 3.x router sets it before anything records it, so it is seldom there.
_CAPACITY = "batch_max_total_tokens"
_RUNNING, _WAITING = "batch_current_size", "queue_size"
# Prompts when they are accepted, outputs when they are finished.
_PROMPTS, _OUTPUTS = "request_input_length", "request_generated_tokens"
_QUEUE, _SUCCESS = "request_queue_duration", "request_success"
# One each for every prefill and every decode step.
_STEPS = ("batch_inference_count", "batch_inference_success")
_WANTED = sample_names_of(
    (
        _RESERVED,
        _CAPACITY,
        _RUNNING,
        _WAITING,
        _SUCCESS,
        *_STEPS,
        *(name + suffix for name in (_PROMPTS, _OUTPUTS, _QUEUE) for suffix in ("_bucket", "_sum", "_count")),
    ),
    _PREFIX,
)


def _read(pages: Pages) -> EngineReading:
    page = pages.metrics("/metrics", _WANTED)
    info = pages.seldom("/info")
    rows, settings = Rows(page, _PREFIX), Figures()
    rows.unstated = _NOT_YET
    model = text(field_of(info, "model_id")) or ""
    # Up to 2.2, which name the weights' dtype, no other dtype could be chosen for the cache.
    kv_dtype = pages.hints.kv_dtype or ("auto" if text(field_of(info, "model_dtype")) else None)
    reading = EngineReading(
        engine=ENGINE.name,
        version=text(field_of(info, "version")),
        model=model,
        model_path=model or None,
        max_model_len=size(field_of(info, "max_total_tokens")) or pages.hints.max_model_len,
        max_num_seqs=size(field_of(info, "max_batch_size")),
        kv_dtype=kv_dtype,
        ranks=(_read_rank(rows, settings, model, info, pages.hints.capacity_tokens),) if model or page.samples else (),
        bad_lines=page.bad_lines,
    )
    unread = pages.why("/info")
    return replace(
        reading,
        bad_values=rows.bad_values + settings.bad_values,
        missing=reasons_for(
            reading,
            dict.fromkeys(("version", "model_path", "max_model_len"), unread),
            dict.fromkeys(("tp", "pp"), "TGI's pages do not tell it (--num-shard does)"),
            {"kv_dtype": "from 2.3 on TGI does not tell it (--kv-cache-dtype does)"},
            {"max_num_seqs": "TGI limits the tokens of a batch, and its requests only with --max-batch-size"},
        ),
    )


def _read_rank(rows: Rows, settings: Figures, model: str, info: Json, capacity_hint: int | None) -> RankReading:
    stated = settings.size("capacity_tokens", "max_batch_total_tokens", field_of(info, "max_batch_total_tokens"))
    capacity = stated or rows.positive("capacity_tokens", _CAPACITY) or capacity_hint
    reserved = rows.whole("reserved_tokens", _RESERVED)
    if reserved is not None and stated is not None and reserved > stated * MAX_USAGE_RATIO:
        rows.refuse("reserved_tokens", f"{reserved} tokens reserved are more than the capacity")
        reserved = None
    # Who has reserved slots holds them: by this sum, and by no other, the next request is admitted. From 2.3 on, where
    # /info no longer states the capacity, requests that share a prefix count its slots once each.
    active = reserved if reserved is None or capacity is None else min(reserved, capacity)
    prompts = rows.histogram("prompt_lengths", _PROMPTS)
    outputs = rows.histogram("output_lengths", _OUTPUTS)
    steps = [rows.value("progress", name, pick=sum) for name in _STEPS]
    reading = RankReading(
        rank="0",
        model=model,
        capacity_tokens=capacity,
        active_tokens=active,
        free_tokens=None if active is None or capacity is None else capacity - active,
        reserved_tokens=reserved,
        usage_ratio=None if active is None or capacity is None else active / capacity,
        running=rows.whole("running", _RUNNING),
        waiting=rows.whole("waiting", _WAITING),
        prompt_tokens_total=prompts.total if prompts is not None else None,
        generation_tokens_total=outputs.total if outputs is not None else None,
        prompt_lengths=prompts,
        output_lengths=outputs,
        queue_seconds=rows.histogram("queue_seconds", _QUEUE),
        finished_total=rows.value("finished_total", _SUCCESS, pick=sum),
        progress=tuple(figure for figure in steps if figure is not None) or None,
    )
    return replace(reading, missing=reasons_for(reading, _WHY, rows.missing, _WHY_NO_CAPACITY))


_NOT_YET = "not on the page: TGI shows each series from its first use on"
_UNTOLD = "TGI's pages do not tell it"
_WHY = {
    "active_tokens": _NOT_YET,
    "reclaimable_tokens": "TGI counts reusable prefix blocks as free",
    "free_tokens": "the capacity or the reservation is not known",
    "usage_ratio": "the capacity or the reservation is not known",
    "live_tokens": "TGI tells what is reserved, not what holds a token",
    "swapped": "TGI reserves, and so never swaps",
    "preemptions_total": "TGI reserves, and so never preempts",
    "prompt_tokens_total": _NOT_YET,
    "generation_tokens_total": _NOT_YET,
    "inter_token_seconds": "TGI tells the mean of each request, not each token's time",
} | dict.fromkeys(
    (
        "block_tokens",
        "num_blocks",
        "used_blocks",
        "prefix_queries_tokens_total",
        "prefix_hits_tokens_total",
        "ttft_seconds",
        "prefill_seconds",
        "step_tokens",
        "prompt_computed_tokens_total",
    ),
    _UNTOLD,
)
_WHY_NO_CAPACITY = {
    "capacity_tokens": "from 2.3 on TGI tells it only in its log; --max-batch-total-tokens sets it",
}


def _is_info(answer: Json) -> bool:
    """Text Embeddings Inference answers /info too, but has neither."""
    return all(field_of(answer, name) is not None for name in ("model_id", "max_concurrent_requests", "max_best_of"))


ENGINE = Engine(
    name="tgi",
    title="Text Generation Inference",
    marks=Marks(page=names_start_with(_PREFIX.encode()), json=(("/info", _is_info),)),
    read=_read,
    versions="1.4 to 3.3",
    facts={
        "capacity": "exact up to 2.2 (/info); from 2.3 unavailable: only in TGI's log and its flag",
        "active": "exact, as TGI admits: what running requests have reserved, their tokens to come included",
        "reclaimable": "unavailable: counted as free",
        "free": "derived: capacity - active",
        "live tokens": "unavailable: only reservations are told",
        "reserved": "exact",
        "block size": "unavailable: 1, 16 or 256 by attention kernel",
        "running": "exact, from the first request on",
        "waiting": "exact, from the first request on",
        "swapped": "unavailable: TGI reserves, and so never swaps",
        "preemptions": "unavailable: TGI reserves, and so never preempts",
        "prefix hits": "unavailable",
        "length histograms": "exact: prompts that were accepted, outputs that were finished",
        "latency histograms": "exact for the queue; first tokens are not published, of single tokens only means",
        "steps": "unavailable: counted without their tokens",
        "computed prompts": "unavailable",
        "finished requests": "exact",
        "max length": "exact (/info)",
        "KV dtype": "derived up to 2.2: the model's; from 2.3 unavailable",
        "parallelism": "unavailable; --tp tells it",
        "version": "exact (/info)",
        "freshness": "exact: prefills and decode steps counted",
    },
)
