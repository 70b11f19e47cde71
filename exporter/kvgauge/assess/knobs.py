"""Which flags of the engine would free most memory for its cache: the planner's list, tried on what is running."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from kvgauge.assess.forecasting import RULES, MemoryQuestion, PoolQuestion, forecast_memory, forecast_pool
from kvgauge.assess.records import Knob
from kvgauge.observe.records import ModelReading
from kvmodel.savings import Flags, Pool, changes, freed_bytes

_OF_MEMORY = frozenset({"max_model_len", "max_num_seqs", "max_num_batched_tokens", "enforce_eager"})
_OF_POOL = frozenset({"max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_dtype"})


@dataclass(frozen=True, slots=True)
class KnobQuestion:
    """All that the knobs of one rank follow from: how its memory and its pool are forecast."""

    memory: MemoryQuestion
    pool: PoolQuestion


@dataclass(frozen=True, slots=True)
class KnobForecast:
    """What would free memory, the most first, or why that is not known."""

    knobs: tuple[Knob, ...]
    why_not: str = ""


def forecast_knobs(question: KnobQuestion) -> KnobForecast:
    """The knobs. Nothing is raised."""
    if question.memory.kv_cache_bytes is not None:
        return KnobForecast((), "the engine was told the bytes of its pool: other flags free nothing for it")
    if question.pool.num_blocks_override is not None:
        return KnobForecast((), "the engine was told its number of blocks: other flags free nothing for them")
    before, why_not = _pool(question, {})
    if before.plan is None:
        return KnobForecast((), why_not)
    found = []
    for change in changes(_flags(question), question.memory.model.architecture):
        after, _ = _pool(question, change.values)
        freed = freed_bytes(before, after)
        if freed > 0 and after.plan is not None:
            cap = cast("int | None", change.values.get("max_num_seqs"))
            found.append(Knob(change.engine_flag, freed, after.plan.capacity_tokens, cap, change.why))
    return KnobForecast(tuple(sorted(found, key=lambda knob: -knob.frees_bytes)))


def _pool(question: KnobQuestion, values: Mapping[str, object]) -> tuple[Pool, str]:
    """The pool with some flags set otherwise, or why it is not known."""
    memory = forecast_memory(replace(question.memory, **_only(values, _OF_MEMORY)))
    kv_bytes = memory.kv_pool_bytes
    if kv_bytes is None:
        return Pool(None, None), memory.why_not or "the bytes left for the pool could not be predicted"
    pool = forecast_pool(replace(question.pool, kv_bytes=kv_bytes, **_only(values, _OF_POOL)))
    return Pool(kv_bytes, pool.plan), pool.missing.get("predicted_capacity_tokens", "")


def _only(values: Mapping[str, object], names: frozenset[str]) -> dict[str, Any]:
    return cast("dict[str, Any]", {name: value for name, value in values.items() if name in names})


def _flags(question: KnobQuestion) -> Flags:
    model: ModelReading = question.memory.model
    longest = question.memory.max_model_len
    return Flags(
        engine=RULES[question.memory.kind].plan if question.memory.kind in RULES else question.memory.kind,
        # The model's own limit is what an engine takes that was told none.
        max_model_len=None if longest == model.architecture.max_position_embeddings else longest,
        max_num_seqs=question.memory.max_num_seqs,
        max_num_batched_tokens=question.memory.max_num_batched_tokens,
        kv_dtype=question.pool.kv_dtype,
        hybrid_kv_cache=None,
        enforce_eager=question.memory.enforce_eager,
    )
