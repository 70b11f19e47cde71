"""Ollama, from `/api/ps` and `/api/version`: what is loaded, not what it does.

Fields were read in Ollama's sources (`api/types.go`, `server/routes.go`). It publishes no metrics; the two pages do not
load or wake a model. A server without a loaded model is at rest, not broken: it reads as one rank of which nothing is
known.
"""

from collections.abc import Mapping
from dataclasses import fields, replace

from kvgauge.observe.engines.contract import Engine, Hints, Json, Marks, Pages
from kvgauge.observe.engines.rows import Figures, field_of, objects_of, ranks_in_order, reasons_for, size, text
from kvgauge.observe.records import EngineReading, RankReading

_LOADED = "/api/ps"
_VERSION = "/api/version"
_UNTOLD = "Ollama publishes no metrics"


def _read(pages: Pages) -> EngineReading:
    listed = objects_of(field_of(pages.json(_LOADED), "models"))
    loaded = list({_name(model): model for model in listed if _name(model)}.values())
    hints = pages.hints
    figures = [Figures() for _ in loaded]
    names = ["0"] if len(loaded) == 1 else [_name(model) for model in loaded]
    ranks_in_order(names)
    ranks = [_read_rank(each, hints, model, name) for each, model, name in zip(figures, loaded, names, strict=True)]
    lengths = {size(model.get("context_length")) for model in loaded}
    max_model_len = lengths.pop() if len(lengths) == 1 else None
    reasons = dict.fromkeys(("model_path", "tp", "pp"), "Ollama does not tell it") | {
        "version": pages.why(_VERSION),
        "max_model_len": "no model is loaded, or the loaded ones differ, or Ollama is older than 0.10",
        "max_num_seqs": "OLLAMA_NUM_PARALLEL is not told",
        "kv_dtype": "OLLAMA_KV_CACHE_TYPE is not told",
    }
    reading = EngineReading(
        engine=ENGINE.name,
        version=text(field_of(pages.seldom(_VERSION), "version")),
        model=ranks[0].model if ranks else "",
        max_model_len=max_model_len or hints.max_model_len,
        max_num_seqs=hints.parallel,
        kv_dtype=hints.kv_dtype,
        ranks=tuple(ranks) or (_nothing_loaded(),),
        memory_bytes=_memory_bytes(figures, loaded),
        bad_values=sum(each.bad_values for each in figures),
    )
    return replace(reading, missing=reasons_for(reading, reasons))


def _name(model: Mapping[str, object]) -> str:
    return text(model.get("name")) or text(model.get("model")) or ""


def _read_rank(figures: Figures, hints: Hints, model: Mapping[str, object], rank: str) -> RankReading:
    """One loaded model, which has a KV pool of its own: `context_length` slots for each request it serves at a time."""
    context_tokens = figures.size("capacity_tokens", "context_length", model.get("context_length"))
    capacity_tokens = hints.capacity_tokens
    if context_tokens is not None and hints.parallel:
        capacity_tokens = context_tokens * hints.parallel
    reading = RankReading(rank=rank, model=_name(model), capacity_tokens=capacity_tokens)
    untold = dict.fromkeys(_optional_fields(), _UNTOLD) | {"capacity_tokens": "OLLAMA_NUM_PARALLEL is not told"}
    return replace(reading, missing=reasons_for(reading, untold, figures.missing))


def _nothing_loaded() -> RankReading:
    return RankReading(rank="0", model="", missing=dict.fromkeys(_optional_fields(), "no model is loaded"))


def _optional_fields() -> list[str]:
    return [field.name for field in fields(RankReading) if field.default is None]


def _memory_bytes(figures: list[Figures], loaded: list[Mapping[str, object]]) -> dict[str, int]:
    """What Ollama reckoned, when it loaded them, that the models take on GPUs: weights, KV and graph together."""
    sizes = [
        each.size("size_vram", "size_vram", model.get("size_vram")) for each, model in zip(figures, loaded, strict=True)
    ]
    total_bytes = sum(each for each in sizes if each is not None)
    return {"estimate_at_load": total_bytes} if total_bytes else {}


def _is_its_answer(answer: Json) -> bool:
    return isinstance(field_of(answer, "models"), list)


ENGINE = Engine(
    name="ollama",
    title="Ollama",
    marks=Marks(json=((_LOADED, _is_its_answer),)),
    read=_read,
    versions="0.1.33 to 0.33",
    facts={
        "capacity": "derived: context_length (from 0.10) x stated OLLAMA_NUM_PARALLEL",
        "active": "unavailable: no metrics",
        "reclaimable": "unavailable: no metrics",
        "free": "unavailable: no metrics",
        "live tokens": "unavailable: no metrics",
        "reserved": "unavailable: no metrics",
        "block size": "unavailable: no metrics",
        "running": "unavailable: no metrics",
        "waiting": "unavailable: no metrics",
        "swapped": "unavailable: no metrics",
        "preemptions": "unavailable: no metrics",
        "prefix hits": "unavailable: no metrics",
        "length histograms": "unavailable: no metrics",
        "latency histograms": "unavailable: no metrics",
        "steps": "unavailable: no metrics",
        "computed prompts": "unavailable: no metrics",
        "finished requests": "unavailable: no metrics",
        "max length": "exact from 0.10 (context_length, which a request may change); otherwise unavailable: untold",
        "KV dtype": "unavailable: OLLAMA_KV_CACHE_TYPE, state it",
        "parallelism": "unavailable: not published",
        "version": "exact (/api/version)",
        "freshness": "unavailable: nothing moves with its steps",
    },
)
