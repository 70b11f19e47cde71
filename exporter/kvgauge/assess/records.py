"""What `assess` hands to the right. Bytes are bytes on each GPU."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvgauge.observe.records import Observation
from kvmodel.latency import StepCost


@dataclass(frozen=True, slots=True)
class Waste:
    """Bytes on each GPU that are taken and hold nothing, or a copy. `method` is ``measured`` or ``estimated``; the
    kinds are those of `kvgauge.assess.waste`."""

    kind: str
    method: str
    waste_bytes: int


@dataclass(frozen=True, slots=True)
class PoolAssessment:
    """The KV pool of one data-parallel rank: the engine's figures beside ours. Tokens are slots."""

    rank: str
    model: str
    kv_bytes_per_token: int | None
    """Bytes on each GPU that one more token of one sequence adds."""
    state_bytes_per_request: int | None
    """Bytes on each GPU that a sequence holds whatever its length: state, and windows once full."""
    block_tokens: int | None
    capacity_tokens: int | None
    predicted_capacity_tokens: int | None
    active_tokens: int | None
    reclaimable_tokens: int | None
    free_tokens: int | None
    live_tokens: int | None
    live_tokens_method: str | None
    usage_ratio: float | None
    waste: tuple[Waste, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ComponentPrediction:
    """One part of a GPU's memory. `actual_bytes` only where something told it."""

    component: str
    low_bytes: int
    expected_bytes: int
    high_bytes: int
    actual_bytes: int | None
    source: str
    calibrated_bytes: int | None = None
    """What it should be by the same rules, corrected by what was measured of this engine, GPU and model before; None
    before anything was."""

    @property
    def error_ratio(self) -> float | None:
        """(actual - predicted) / actual, signed; None without an actual figure."""
        if not self.actual_bytes:
            return None
        return (self.actual_bytes - self.expected_bytes) / self.actual_bytes


@dataclass(frozen=True, slots=True)
class Drift:
    """One way in which memory moves away from where it had settled: `leak`, `foreign_process` or `flags`."""

    kind: str
    drift_bytes: int | None
    """0 where nothing drifts; None where it does, by bytes that are not known. Of flags, what the pool gained."""
    warning: str | None = None
    """A sentence, where it drifts."""


@dataclass(frozen=True, slots=True)
class GpuAssessment:
    """One GPU: the parts that were predicted and their total against the driver's figure."""

    gpu: int
    uuid: str
    components: tuple[ComponentPrediction, ...]
    total: ComponentPrediction | None
    missing: Mapping[str, str] = field(default_factory=dict)
    measured_bytes: Mapping[str, int] = field(default_factory=dict)
    """Parts that the engine measured or stated, predicted or not, by component."""
    drifts: tuple[Drift, ...] = ()
    """The kinds that could be looked for; `missing` says why not of the others, under ``drift.<kind>``."""


@dataclass(frozen=True, slots=True)
class Knob:
    """A flag of the engine that would free memory for its cache, by forecast."""

    change: str
    """As the engine takes it."""
    frees_bytes: int
    """On each GPU: what the pool gains, and what the same tokens take less of it."""
    capacity_tokens: int
    """The pool's slots then."""
    most_requests: int | None
    """Where it caps a rank's batch: the requests that may then run at once."""
    why: str


@dataclass(frozen=True, slots=True)
class AllocatorAssessment:
    """torch's caching allocators on one GPU, of all processes with an agent. None where one of them does not tell."""

    gpu: int | None
    """As the driver counts; None where the GPU is not among the driver's."""
    uuid: str
    processes: int
    allocated_bytes: int | None
    reserved_bytes: int | None
    inactive_split_bytes: int | None
    requested_bytes: int | None
    largest_free_bytes: int | None
    """The largest free piece that any of the processes has."""
    fragmentation_ratio: float | None
    """Share of the free memory that lies outside its process' largest free piece; None where nothing is free."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """One tick's facts with what they should be."""

    observation: Observation
    tp: int | None
    pp: int
    dp: int
    pools: tuple[PoolAssessment, ...]
    gpus: tuple[GpuAssessment, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    allocators: tuple[AllocatorAssessment, ...] = ()
    max_num_seqs: int | None = None
    """Requests that one rank runs at a time at most: by flag, or as the engine tells."""
    max_num_batched_tokens: int | None = None
    """Tokens that one rank computes at a time at most, likewise."""
    kind: str = ""
    """The engine whose rules hold: of one that wraps another, the other, where that is told."""
    warnings: tuple[str, ...] = ()
    """What drifts, each in a sentence."""
    step_cost: StepCost | None = None
    """What the engine's steps should take, by its model and its GPU alone; `missing` says why it is not known."""
    knobs: tuple[Knob, ...] = ()
    """Flags that would free memory for the cache, the most first; `missing` says under ``knobs`` why they are not
    known."""
