"""The pool of each data-parallel rank as requests see it: how many slots there are, and what a request holds of them.

A slot is the unit of the capacity that the engine states. Of models whose layers all keep every token it is a token's
place. Where vLLM splits a model into groups that draw on the same blocks, a block is so many slots as the capacity has
for each block, and a request holds blocks of every group. SGLang gives windows and states pools of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvgauge.advise.residing import Footprint, Window, footprint_from_groups
from kvgauge.assess import Assessment, Memo, PoolAssessment
from kvgauge.assess.forecasting import PoolQuestion, forecast_pool
from kvgauge.observe.records import EngineReading, RankReading
from kvmodel import EnginePlan
from kvmodel.engines.contract import PlanGroup

_KEEPS_A_BLOCK = frozenset({"vllm"})
"""Engines whose stated capacity holds a block that no request gets: vLLM's null block."""
_WINDOWED = frozenset({"window", "chunk"})


@dataclass(frozen=True, slots=True)
class Pool:
    """One rank's pool."""

    slots: float
    """That sequences may hold: a null block is not among them."""
    capacity_slots: int
    footprint: Footprint
    beside: tuple[tuple[Footprint, float], ...] = ()
    """Pools of their own for windows: what a request holds of each, and its slots."""
    state_requests: int | None = None
    """Requests whose states there is room for; None for models without, and where it is not known."""
    windows: int = 0
    """Groups of layers that keep only the last tokens."""


def pools_of(assessment: Assessment, memo: Memo) -> tuple[Pool, ...]:
    """The pools of all ranks; empty where one of them has no known capacity."""
    engine = assessment.observation.engine
    if engine is None:
        return ()
    found = [
        _pool(assessment, engine, pool, rank, memo) for pool, rank in zip(assessment.pools, engine.ranks, strict=True)
    ]
    known = [pool for pool in found if pool is not None]
    return tuple(known) if len(known) == len(found) else ()


def _pool(
    assessment: Assessment, engine: EngineReading, pool: PoolAssessment, rank: RankReading, memo: Memo
) -> Pool | None:
    capacity, block_tokens = pool.capacity_tokens, pool.block_tokens or 1
    if not capacity:
        return None
    plan = _plan(assessment, rank, memo)
    unit = capacity / rank.num_blocks if rank.num_blocks else float(block_tokens)
    kind = assessment.kind or engine.engine
    # Where no block size is told there are no blocks.
    kept = unit if kind in _KEEPS_A_BLOCK and pool.block_tokens else 0.0
    slots = max(capacity - kept, 0.0)
    whole, longest = (rank.num_blocks or 0) * block_tokens, engine.max_model_len
    if kept and longest and _keeps_every_token(assessment):
        # The stated capacity is a number of longest requests: less than all slots where those fill no whole blocks.
        filled = longest / (-(-longest // block_tokens) * block_tokens)
        if abs(capacity - whole * filled) <= 1:
            slots = float(whole - block_tokens)
    if plan is None or not plan.groups:
        return Pool(slots, capacity, Footprint(block_tokens))
    if any(group.num_blocks is not None for group in plan.groups):
        return _apart(slots, capacity, block_tokens, plan.groups)
    return _shared(slots, capacity, unit, plan.groups)


def _keeps_every_token(assessment: Assessment) -> bool:
    model = assessment.observation.model
    return model is not None and model.architecture.is_uniform_full_attention


def _plan(assessment: Assessment, rank: RankReading, memo: Memo) -> EnginePlan | None:
    """The engine's own arithmetic for its own number of blocks, where not all layers keep every token."""
    observation = assessment.observation
    engine, model = observation.engine, observation.model
    if engine is None or model is None or _keeps_every_token(assessment):
        return None
    gpu = next(iter(observation.gpus), None)
    predicted = [
        part.expected_bytes for each in assessment.gpus for part in each.components if part.component == "kv_pool"
    ]
    question = PoolQuestion(
        kind=assessment.kind,
        version=engine.version,
        model=model,
        tp=assessment.tp,
        gpu_total_bytes=gpu.total_bytes if gpu is not None else None,
        gpu_name=gpu.name if gpu is not None else "",
        kv_bytes=engine.kv_cache_bytes or (predicted[0] if predicted else None),
        num_blocks_override=rank.num_blocks,
        max_model_len=engine.max_model_len,
        max_num_seqs=assessment.max_num_seqs,
        max_num_batched_tokens=assessment.max_num_batched_tokens,
        kv_dtype=engine.kv_dtype,
        prefix_caching=engine.prefix_caching,
        capacity_tokens=rank.capacity_tokens,
        block_tokens=rank.block_tokens,
        num_blocks=rank.num_blocks,
    )
    return memo.answer(forecast_pool, question).plan


def _shared(slots: float, capacity: int, unit: float, groups: Sequence[PlanGroup]) -> Pool:
    """Groups that draw on the same blocks, each block `unit` slots."""
    states = sum(group.blocks_per_request or 1 for group in groups if group.kind == "state")
    # Where no group counts tokens, all that a request holds is its state.
    footprint = footprint_from_groups(groups, unit) or Footprint(slots_per_token=0.0, state_slots=states * unit)
    return Pool(
        slots,
        capacity,
        footprint,
        state_requests=int(slots / (states * unit)) if states else None,
        windows=sum(group.kind in _WINDOWED for group in groups),
    )


def _apart(slots: float, capacity: int, block_tokens: int, groups: Sequence[PlanGroup]) -> Pool:
    """Groups with pools of their own; the stated capacity is that of the layers that keep every token."""
    beside = tuple(
        (
            Footprint(group.block_tokens, 0.0, (Window(group.window_tokens),)),
            float(group.num_blocks * group.block_tokens),
        )
        for group in groups
        if group.kind in _WINDOWED and group.num_blocks and group.block_tokens and group.window_tokens
    )
    states = [group for group in groups if group.kind == "state" and group.num_blocks]
    rooms = [(group.num_blocks or 0) // (group.blocks_per_request or 1) for group in states]
    return Pool(
        slots,
        capacity,
        Footprint(block_tokens),
        beside,
        state_requests=min(rooms, default=None),
        windows=len(beside),
    )
