"""The records that `observe` hands to the right: frozen, typed, units in the names.

A fact that nobody told is `None`, and `missing` says why, by field name. No fact is ever replaced by zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvmodel import Architecture, Weights


class SourceError(Exception):
    """A source could not be read.

    `reason` is one of a small fixed set of words (it becomes a metric label); `message` is one line for people and
    never carries what the other side sent.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU, or one MIG instance, as the driver sees it. Byte counts follow NVML: used = total - free."""

    gpu: int
    uuid: str
    name: str
    driver: str
    mig: str
    """MIG profile such as ``1g.10gb``; empty when the device is a whole GPU."""
    total_bytes: int | None
    used_bytes: int | None
    free_bytes: int | None
    reserved_bytes: int | None
    engine_bytes: int | None
    """Memory of the engine's processes, only where the driver tells it and they can be told from others."""
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Histogram:
    """A Prometheus histogram at one moment: cumulative counts at rising upper bounds, the last bound +Inf."""

    bounds: tuple[float, ...]
    cumulative: tuple[float, ...]
    total: float
    """Sum of the observed values, in the unit of the bounds."""

    @property
    def count(self) -> float:
        """Number of observations."""
        return self.cumulative[-1] if self.cumulative else 0.0


@dataclass(frozen=True, slots=True)
class RankReading:
    """One data-parallel engine: its KV pool, its queue and its counters, in the engine's own terms made equal."""

    rank: str
    model: str
    capacity_tokens: int | None = None
    """KV slots of the pool as the engine states them; for hybrid models the engine's token equivalent."""
    block_tokens: int | None = None
    num_blocks: int | None = None
    """Blocks of the pool, a reserved null block included."""
    used_blocks: int | None = None
    """Blocks referenced by live sequences."""
    active_tokens: int | None = None
    """Slots that live sequences hold."""
    reclaimable_tokens: int | None = None
    """Slots that hold only reusable prefix cache: free for the asking."""
    free_tokens: int | None = None
    """The other slots; where `reclaimable_tokens` is None they are among these."""
    live_tokens: int | None = None
    """Slots that hold a token of a live sequence, where the engine measures it."""
    reserved_tokens: int | None = None
    """Slots set aside for running requests, their tokens to come included, where the engine reserves ahead."""
    usage_ratio: float | None = None
    """The engine's own occupancy figure, 0..1."""
    running: int | None = None
    waiting: int | None = None
    swapped: int | None = None
    """Requests that were started and now wait outside the pool: swapped, paused or retracted."""
    preemptions_total: float | None = None
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    prefix_queries_tokens_total: float | None = None
    prefix_hits_tokens_total: float | None = None
    prompt_lengths: Histogram | None = None
    output_lengths: Histogram | None = None
    progress: tuple[float, ...] | None = None
    """Figures of which at least one moves with every few steps while requests run; None: the engine has none."""
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineReading:
    """One engine endpoint, all its data-parallel ranks."""

    engine: str
    model: str
    ranks: tuple[RankReading, ...]
    version: str | None = None
    model_path: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    """Requests that one rank runs at a time at most."""
    kv_dtype: str | None = None
    """As the engine names it; ``auto`` means the model's own dtype."""
    tp: int | None = None
    pp: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_bytes: int | None = None
    """A fixed pool size that was asked for by flag."""
    num_blocks_override: int | None = None
    prefix_caching: bool | None = None
    asleep: bool = False
    started_seconds: float | None = None
    """Start of the engine's process, Unix time."""
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    """Parts of a GPU's memory that the engine itself states, by component (weights, kv_pool, graphs, ...)."""
    standing_seconds: float = 0.0
    """For how long nothing has moved although requests run."""
    bad_lines: int = 0
    """Lines of the page that were asked for and could not be read."""
    bad_values: int = 0
    """Figures that cannot be what they claim: NaN, infinite, negative."""
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelReading:
    """The model's own files: what it should cost."""

    path: str
    architecture: Architecture
    weights: Weights | None
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceState:
    """How one source is doing. `up` is the outcome of the last read; `age_seconds` counts from the last good one."""

    source: str
    up: bool
    age_seconds: float | None
    read_seconds: float | None
    reason: str | None
    """Why it is down; while up, what the last reading complains of."""
    message: str | None
    errors_total: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything seen at one tick. Facts older than their source's stated age are already gone from it."""

    wall_seconds: float
    """Unix time of the tick."""
    monotonic_seconds: float
    gpus: tuple[GpuReading, ...]
    engine: EngineReading | None
    model: ModelReading | None
    sources: tuple[SourceState, ...]
