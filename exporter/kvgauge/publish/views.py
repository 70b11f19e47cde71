"""The JSON answers: the records as they are, where they are fit to be seen, and a short form where they are not.

Keys carry the unit. Numbers that cannot be written in JSON (an infinite time to exhaustion) are null; the explanation
says which case it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from kvgauge.advise import Advice, LengthSummary
from kvgauge.advise.demand import PlainDemand, plain
from kvgauge.advise.served import Served
from kvgauge.assess import AllocatorAssessment, Assessment, GpuAssessment, Knob, PoolAssessment
from kvgauge.observe.records import (
    AgentReading,
    EngineReading,
    GpuReading,
    ModelReading,
    Observation,
    SourceState,
)
from kvmodel.latency import StepCost


@dataclass(frozen=True, slots=True)
class ModelView:
    """The model, as far as its files were understood."""

    path: str
    model_type: str
    dtype: str
    num_layers: int
    parameters: int | None
    active_parameters: int | None
    """Those that one token passes through."""
    weights_bytes: int | None
    missing: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ObservationView:
    """What the sidecar sees."""

    wall_seconds: float
    """Unix time of the tick."""
    gpus: tuple[GpuReading, ...]
    engine: EngineReading | None
    model: ModelView | None
    sources: tuple[SourceState, ...]
    agent: AgentReading | None


@dataclass(frozen=True, slots=True)
class AssessmentView:
    """What memory is against what it should be. Bytes are bytes on each GPU; pool tokens are KV slots."""

    wall_seconds: float
    tp: int | None
    pp: int
    dp: int
    pools: tuple[PoolAssessment, ...]
    gpus: tuple[GpuAssessment, ...]
    allocators: tuple[AllocatorAssessment, ...]
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    step_cost: StepCost | None
    """What a step of the engine should take, by what is in it, before anything is seen of it."""
    knobs: tuple[Knob, ...]
    """Flags that would free memory for the cache, the most first."""
    warnings: tuple[str, ...]
    """What drifts, each in a sentence."""
    missing: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AdviceView:
    """How many requests may run together, which limit says so, and how near the pod is to it: all data-parallel ranks
    together."""

    wall_seconds: float
    valid: bool
    safe_concurrency: int | None
    limits: Mapping[str, int]
    binding_limit: str | None
    load_ratio: float | None
    kv_usage_ratio: float | None
    """Slots that sequences hold, of the pool's."""
    kv_exhaustion_seconds: float | None
    """Null when not known and when not heading there."""
    running: int | None
    waiting: int | None
    age_seconds: float | None
    explanation: tuple[str, ...]
    terms: Mapping[str, int | float | str | None]
    """Every number that it stands on."""
    prompt_tokens: LengthSummary | None
    output_tokens: LengthSummary | None
    demand: PlainDemand | None
    served: Served | None
    """Counts that a fleet adds up."""


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """One tick of the past quarter of an hour."""

    wall_seconds: float
    load_ratio: float | None
    kv_usage_ratio: float | None
    running: int | None
    waiting: int | None
    capacity_tokens: int | None
    """Slots of all ranks together, like those below; None where a rank does not tell."""
    active_tokens: int | None
    live_tokens: int | None
    reclaimable_tokens: int | None
    free_tokens: int | None


def observation_view(observation: Observation) -> ObservationView:
    return ObservationView(
        wall_seconds=observation.wall_seconds,
        gpus=observation.gpus,
        engine=observation.engine,
        model=None if observation.model is None else _model_view(observation.model),
        sources=observation.sources,
        agent=observation.agent,
    )


def assessment_view(assessment: Assessment) -> AssessmentView:
    return AssessmentView(
        wall_seconds=assessment.observation.wall_seconds,
        **{
            field.name: getattr(assessment, field.name)
            for field in fields(AssessmentView)
            if field.name != "wall_seconds"
        },
    )


def advice_view(advice: Advice) -> AdviceView:
    return AdviceView(
        demand=None if advice.demand is None else plain(advice.demand),
        **{field.name: getattr(advice, field.name) for field in fields(AdviceView) if field.name != "demand"},
    )


def history_point(assessment: Assessment, advice: Advice) -> HistoryPoint:
    capacity = _together(pool.capacity_tokens for pool in assessment.pools)
    active = _together(pool.active_tokens for pool in assessment.pools)
    return HistoryPoint(
        wall_seconds=assessment.observation.wall_seconds,
        load_ratio=advice.load_ratio,
        kv_usage_ratio=active / capacity if active is not None and capacity else None,
        running=advice.running,
        waiting=advice.waiting,
        capacity_tokens=capacity,
        active_tokens=active,
        live_tokens=_together(pool.live_tokens for pool in assessment.pools),
        reclaimable_tokens=_together(pool.reclaimable_tokens for pool in assessment.pools),
        free_tokens=_together(pool.free_tokens for pool in assessment.pools),
    )


def _together(tokens: Iterable[int | None]) -> int | None:
    """Their sum; None where one of them is not known, or there is none."""
    known = list(tokens)
    return sum(count for count in known if count is not None) if known and None not in known else None


def _model_view(model: ModelReading) -> ModelView:
    return ModelView(
        path=model.path,
        model_type=model.architecture.model_type,
        dtype=model.architecture.dtype,
        num_layers=model.architecture.num_layers,
        parameters=model.weights.parameters if model.weights is not None else None,
        active_parameters=model.active_parameters,
        weights_bytes=model.weights.total_bytes if model.weights is not None else None,
        missing=model.missing,
    )
