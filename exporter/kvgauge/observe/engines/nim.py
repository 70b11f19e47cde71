"""NVIDIA NIM for LLMs: the bare names of 1.x, and the backend's own series from 2.0 on.

Names were read in NIM's docs (24.05, 1.5, 2.0, 2.1, 3.0) and in a page recorded from 1.x. That page shows a running
request while all its counters of tokens equal those of the finished ones, so that an engine that hangs cannot be told
from one at rest. From 2.0 on the page passes vLLM's or SGLang's series through, which their own files read.
"""

from dataclasses import replace

from kvgauge.observe.engines.contract import Engine, Json, Marks, Pages, sample_names_of
from kvgauge.observe.engines.dynamo import read_passed_through
from kvgauge.observe.engines.rows import Rows, field_of, reasons_for, served_model, size, text
from kvgauge.observe.engines.tensorrt_llm import BlockPool
from kvgauge.observe.exposition import Page, label
from kvgauge.observe.records import EngineReading, RankReading, SourceError

# The first releases, and some for vision models, have the page at /metrics.
_PATHS = ("/v1/metrics", "/metrics")
# No other engine counts what it may run at most under this name.
_TELL = "num_request_max"
_USAGE = "gpu_cache_usage_perc"
_HISTOGRAMS = ("request_prompt_tokens", "request_generation_tokens")
_TTFT, _INTER_TOKEN = "time_to_first_token_seconds", "time_per_output_token_seconds"
_FINISHED = "request_finish_total"
_START = "process_start_time_seconds"
_WANTED = sample_names_of(
    (
        _TELL,
        _USAGE,
        "num_requests_running",
        "num_requests_waiting",
        "prompt_tokens_total",
        "generation_tokens_total",
        _START,
        _FINISHED,
        *(name + suffix for name in (*_HISTOGRAMS, _TTFT, _INTER_TOKEN) for suffix in ("_bucket", "_sum", "_count")),
    )
)

_UNTOLD = "NIM 1.x does not tell it"
_NEVER = dict.fromkeys(
    (
        "reclaimable_tokens",
        "live_tokens",
        "reserved_tokens",
        "num_blocks",
        "used_blocks",
        "block_tokens",
        "swapped",
        "preemptions_total",
        "prefix_queries_tokens_total",
        "prefix_hits_tokens_total",
        "queue_seconds",
        "prefill_seconds",
        "step_tokens",
        "prompt_computed_tokens_total",
    ),
    _UNTOLD,
) | {"progress": "NIM 1.x may show a running request at rest"}


def _read(pages: Pages) -> EngineReading:
    path, page = _page(pages)
    rows = Rows(page)
    if rows.has(_TELL):
        return _read_1x(pages, page, rows)
    reading, _ = read_passed_through(pages, path, frozenset())
    return EngineReading(engine=ENGINE.name, model="", ranks=()) if reading is None else reading


def _page(pages: Pages) -> tuple[str, Page]:
    """The page and where it is. Raises what the usual path raised when it is nowhere."""
    first, second = _PATHS
    try:
        return first, pages.metrics(first, _WANTED)
    except SourceError as error:
        try:
            return second, pages.metrics(second, _WANTED)
        except SourceError:
            raise error from None


def _read_1x(pages: Pages, page: Page, everything: Rows) -> EngineReading:
    model = label(everything.of(_TELL)[0], "model_name") or ""
    rows = everything.where(lambda sample: (label(sample, "model_name") or "") == model)
    hints = pages.hints
    served = served_model(pages.seldom("/v1/models"), model)
    usage_ratio = rows.fraction("usage_ratio", _USAGE)
    pool = BlockPool.of(rows, hints, num_blocks=None, used_blocks=None, block_tokens=None, usage_ratio=usage_ratio)
    prompt_lengths, output_lengths = (
        rows.histogram(field, name)
        for field, name in zip(("prompt_lengths", "output_lengths"), _HISTOGRAMS, strict=True)
    )
    rank = RankReading(
        rank="0",
        model=model,
        capacity_tokens=pool.capacity_tokens,
        active_tokens=pool.active_tokens,
        free_tokens=pool.free_tokens,
        usage_ratio=pool.usage_ratio,
        running=rows.whole("running", "num_requests_running"),
        waiting=rows.whole("waiting", "num_requests_waiting"),
        prompt_tokens_total=rows.value("prompt_tokens_total", "prompt_tokens_total"),
        generation_tokens_total=rows.value("generation_tokens_total", "generation_tokens_total"),
        prompt_lengths=prompt_lengths,
        output_lengths=output_lengths,
        ttft_seconds=rows.histogram("ttft_seconds", _TTFT),
        inter_token_seconds=rows.histogram("inter_token_seconds", _INTER_TOKEN),
        finished_total=rows.value("finished_total", _FINISHED, pick=sum),
    )
    rank = replace(rank, missing=reasons_for(rank, rows.missing, _NEVER))
    reading = EngineReading(
        engine=ENGINE.name,
        version=text(field_of(pages.seldom("/v1/version"), "release")),
        model=model,
        model_path=text(served.get("root")),
        max_model_len=size(served.get("max_model_len")) or hints.max_model_len,
        max_num_seqs=rows.positive("max_num_seqs", _TELL),
        kv_dtype=hints.kv_dtype,
        started_seconds=everything.value("started_seconds", _START),
        ranks=(rank,),
        bad_lines=page.bad_lines,
        bad_values=rows.bad_values,
    )
    models, version_page = pages.why("/v1/models"), pages.why("/v1/version")
    reasons = {
        "version": version_page,
        "model_path": models,
        "max_model_len": models,
        "max_num_seqs": f"{_TELL} is unsound",
    }
    return replace(reading, missing=reasons_for(reading, dict.fromkeys(("kv_dtype", "tp", "pp"), _UNTOLD), reasons))


def _is_its_version(answer: Json) -> bool:
    return text(field_of(answer, "release")) is not None and text(field_of(answer, "api")) is not None


_NOT_IN_1X = "unavailable: 1.x does not publish it"
_FROM_2 = "from 2.0 as the engine behind it tells"

ENGINE = Engine(
    name="nim",
    title="NVIDIA NIM",
    marks=Marks(
        page=lambda names, _body: _TELL.encode() in names,
        json=(("/v1/version", _is_its_version),),
        wraps=True,
    ),
    read=_read,
    versions="1.0 to 3.0, LLM and VLM",
    facts={
        "capacity": f"{_NOT_IN_1X}, state it; {_FROM_2}",
        "active": f"derived: usage x stated capacity; {_FROM_2}",
        "reclaimable": f"{_NOT_IN_1X}; {_FROM_2}",
        "free": f"derived: stated capacity - active; {_FROM_2}",
        "live tokens": f"{_NOT_IN_1X}; {_FROM_2}",
        "reserved": f"{_NOT_IN_1X}; {_FROM_2}",
        "block size": f"{_NOT_IN_1X}; {_FROM_2}",
        "running": f"exact; {_FROM_2}",
        "waiting": f"exact; {_FROM_2}",
        "swapped": f"{_NOT_IN_1X}; {_FROM_2}",
        "preemptions": f"{_NOT_IN_1X}; {_FROM_2}",
        "prefix hits": f"{_NOT_IN_1X}; {_FROM_2}",
        "length histograms": f"exact, of requests that have finished; {_FROM_2}",
        "latency histograms": f"exact: first token and each token; {_FROM_2}",
        "steps": f"{_NOT_IN_1X}; {_FROM_2}",
        "computed prompts": f"{_NOT_IN_1X}; {_FROM_2}",
        "finished requests": f"exact; {_FROM_2}",
        "max length": f"exact where /v1/models tells max_model_len; {_FROM_2}",
        "KV dtype": f"{_NOT_IN_1X}, state it; {_FROM_2}",
        "parallelism": f"{_NOT_IN_1X}; {_FROM_2}",
        "version": f"exact (/v1/version); {_FROM_2}",
        "freshness": f"unavailable: not known whether running falls to 0 at rest; {_FROM_2}",
    },
)
