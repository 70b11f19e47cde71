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
    ttft_seconds: Histogram | None = None
    """From a request's arrival to its first token, of requests that got one."""
    queue_seconds: Histogram | None = None
    """From a request's arrival to its first being scheduled; most engines count it when the request finishes."""
    prefill_seconds: Histogram | None = None
    """From a request's first being scheduled to its first token; most engines count it when the request finishes."""
    inter_token_seconds: Histogram | None = None
    """From one output token of a request to its next, each counted when it comes: the count is that of the tokens
    which decoding computed."""
    request_token_seconds: Histogram | None = None
    """Mean time per output token after the first, one for each request that finished with more than one."""
    step_tokens: Histogram | None = None
    """By engine step, the tokens that it finished: count is steps, sum is tokens. Prompts that are computed in parts
    may count with their last part, and parts that yield no token not as steps."""
    prompt_computed_tokens_total: float | None = None
    """Prompt tokens that were computed and not found in a cache. May fall a little where it is a difference of
    counters that do not move together."""
    finished_total: float | None = None
    """Requests that ended, whatever the reason, as far as the engine counts them."""
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
    max_num_batched_tokens: int | None = None
    kv_dtype: str | None = None
    """As the engine names it; ``auto`` means the model's own dtype."""
    tp: int | None = None
    pp: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_bytes: int | None = None
    """A fixed pool size that was asked for by flag."""
    num_blocks_override: int | None = None
    prefix_caching: bool | None = None
    asleep: bool | None = None
    """Whether it has given its KV pool back on purpose (sleep mode); None where it does not tell."""
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
    active_parameters: int | None = None
    """Parameters that one token passes through, counted from the config: all, but of experts those it is sent to."""


@dataclass(frozen=True, slots=True)
class AllocatorReading:
    """torch's caching allocator on one GPU, as one process has it. Bytes; None: not told."""

    device: int | None
    """Index in that process, which may see other GPUs than this one."""
    uuid: str
    """As torch prints it; empty where it does not tell."""
    allocated_bytes: int | None = None
    """Held by tensors."""
    reserved_bytes: int | None = None
    """Obtained from the driver."""
    requested_bytes: int | None = None
    """Asked for by tensors, before rounding up."""
    active_bytes: int | None = None
    """Held by tensors, or given back and still waited for by a stream."""
    inactive_split_bytes: int | None = None
    """Free pieces of segments that are in use elsewhere: they can't go back to the driver."""
    alloc_retries: int | None = None
    ooms: int | None = None
    largest_free_bytes: int | None = None
    free_bytes: int | None = None
    snapshot_age_seconds: float | None = None
    """Age of the two figures before this one."""


@dataclass(frozen=True, slots=True)
class BlockGroupReading:
    """Layers that share a block table. Bytes are bytes on one GPU."""

    kind: str
    """`full`, `mla`, `sliding_window`, `chunked`, `state`, `cross` or `other`."""
    block_tokens: int | None = None
    layers: int | None = None
    layer_bytes_per_block: int | None = None
    """Bytes that the group's layers use of one block."""
    used_blocks: int | None = None
    live_tokens: int | None = None
    """Slots that hold a token of a live sequence; None for states."""
    tail_tokens: int | None = None
    """Slots of held blocks that hold none."""


@dataclass(frozen=True, slots=True)
class SchedulerReading:
    """A scheduler's own books of its KV pool, all of one moment. Bytes are bytes on one GPU."""

    steps: int | None = None
    running: int | None = None
    waiting: int | None = None
    preemptions: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    kv_dtype: str | None = None
    prefix_caching: bool | None = None
    num_blocks: int | None = None
    null_blocks: int | None = None
    used_blocks: int | None = None
    """Held by at least one live sequence, each counted once."""
    cached_blocks: int | None = None
    """Held by none, contents still reusable."""
    free_blocks: int | None = None
    live_tokens: int | None = None
    tail_tokens: int | None = None
    kv_pool_bytes: int | None = None
    bytes_per_block: int | None = None
    reading_age_seconds: float | None = None
    """How old the figures were when the file was written, where the engine has stepped since."""
    groups: tuple[BlockGroupReading, ...] = ()
    running_tokens: tuple[tuple[int, int], ...] = ()
    """(prompt tokens, tokens held now) of running requests, in no order; not of all, where they are many."""


@dataclass(frozen=True, slots=True)
class CacheReading:
    """Caches of one kind that a program holds outside a paged pool, or its paged pool as a whole."""

    kind: str
    """`dynamic`, `static`, `sliding`, `quantized`, `state` or `paged`."""
    layers: int | None = None
    sequences: int | None = None
    allocated_bytes: int | None = None
    live_bytes: int | None = None
    capacity_tokens: int | None = None
    """Slots of a cache that is made at its full size."""
    live_tokens: int | None = None
    block_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """One process with an agent: its file in the spool, as far as it could be believed (docs/spool.md)."""

    pid: int
    instance: str
    """What the files of one engine have in common: host and process id of its head."""
    role: str
    engine: str
    """`vllm`, `transformers`, or `torch` for any other program."""
    monotonic_seconds: float
    """When it was written, by the machine's clock."""
    engine_version: str | None = None
    model: str | None = None
    dp_rank: int | None = None
    tp_rank: int | None = None
    pp_rank: int | None = None
    dp: int | None = None
    tp: int | None = None
    pp: int | None = None
    sequence: int | None = None
    tick_seconds: float | None = None
    """Processor time of the agent's last turn."""
    allocators: tuple[AllocatorReading, ...] = ()
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    """What the engine itself measured at its start on this process' GPU, by component."""
    scheduler: SchedulerReading | None = None
    caches: tuple[CacheReading, ...] = ()
    standing_seconds: float = 0.0
    """For how long its scheduler has not stepped although it has requests."""
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AgentReading:
    """What the agents wrote lately."""

    processes: tuple[ProcessReading, ...]
    """All that were fresh, by instance and process id."""
    instance: str | None = None
    """Whose processes are the observed engine's; None where that can't be told, and `missing` says why."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Files that were left out, by reason."""
    newly_skipped: Mapping[str, int] = field(default_factory=dict)
    """Those among them that had not been left out before as they are."""
    file_age_seconds: float = 0.0
    """Age of the oldest file when it was read."""
    notes: tuple[str, ...] = ()
    """What does not fit together."""
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def engine_processes(self) -> tuple[ProcessReading, ...]:
        """The processes of the observed engine."""
        return tuple(process for process in self.processes if process.instance == self.instance)


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
    agent: AgentReading | None = None
    """What the agents told; `engine` already holds what of it is better than the engine's own page."""
