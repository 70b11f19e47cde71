"""Every metric kvgauge exports, in one table: name, type, help, labels, and where its samples come from.

docs/metrics.md is generated from this table. A getter yields label values and a value, and yields nothing for what is
not known: no family ever carries an invented zero.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from kvgauge import __version__
from kvgauge.advise import Advice, LengthSummary
from kvgauge.assess import Assessment, PoolAssessment
from kvgauge.observe.records import GpuReading, RankReading

Row = tuple[tuple[str, ...], float | None]
GPU_LABELS = ("gpu", "uuid")
ENGINE_LABELS = ("model", "rank")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One tick, ready to be shown."""

    assessment: Assessment
    advice: Advice


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family. `rows` gives (label values, value); a value of None leaves the sample out."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    labels: tuple[str, ...]
    rows: Callable[[Snapshot], Iterable[Row]]


def _gpus(value: Callable[[GpuReading], int | None]) -> Callable[[Snapshot], Iterable[Row]]:
    return lambda snapshot: [((str(gpu.gpu), gpu.uuid), value(gpu)) for gpu in snapshot.assessment.observation.gpus]


def _pools(value: Callable[[PoolAssessment], float | None]) -> Callable[[Snapshot], Iterable[Row]]:
    return lambda snapshot: [((pool.model, pool.rank), value(pool)) for pool in snapshot.assessment.pools]


def _ranks(snapshot: Snapshot) -> tuple[RankReading, ...]:
    engine = snapshot.assessment.observation.engine
    return engine.ranks if engine is not None else ()


def _pod(value: Callable[[Advice], float | None]) -> Callable[[Snapshot], Iterable[Row]]:
    """Advice is the pod's: its rank is "all" where several engines answer together, else that of the one."""
    return lambda snapshot: [(_pod_labels(snapshot), value(snapshot.advice))]


def _pod_labels(snapshot: Snapshot) -> tuple[str, str]:
    ranks = _ranks(snapshot)
    if not ranks:
        return "", "0"
    return ranks[0].model, ranks[0].rank if len(ranks) == 1 else "all"


def _gpu_info(snapshot: Snapshot) -> Iterator[Row]:
    for gpu in snapshot.assessment.observation.gpus:
        yield (str(gpu.gpu), gpu.uuid, gpu.name, gpu.driver, gpu.mig), 1


def _engine_info(snapshot: Snapshot) -> Iterator[Row]:
    assessment, engine = snapshot.assessment, snapshot.assessment.observation.engine
    if engine is not None:
        facts = (engine.version, engine.kv_dtype, assessment.tp, assessment.pp, assessment.dp, engine.max_model_len)
        texts = ["" if fact is None else str(fact) for fact in facts]
        for rank in engine.ranks:
            yield (rank.model, rank.rank, engine.engine, *texts), 1


def _asleep(snapshot: Snapshot) -> Iterator[Row]:
    engine = snapshot.assessment.observation.engine
    if engine is not None and engine.asleep is not None:
        yield _pod_labels(snapshot), float(engine.asleep)


def _predicted(snapshot: Snapshot) -> Iterator[Row]:
    for gpu in snapshot.assessment.gpus:
        for part in gpu.components:
            yield (str(gpu.gpu), gpu.uuid, part.component), part.expected_bytes


def _predicted_total(snapshot: Snapshot) -> Iterator[Row]:
    for gpu in snapshot.assessment.gpus:
        if gpu.total is not None:
            yield (str(gpu.gpu), gpu.uuid, "low"), gpu.total.low_bytes
            yield (str(gpu.gpu), gpu.uuid, "expected"), gpu.total.expected_bytes
            yield (str(gpu.gpu), gpu.uuid, "high"), gpu.total.high_bytes


def _actual(snapshot: Snapshot) -> Iterator[Row]:
    for gpu in snapshot.assessment.gpus:
        for component, size in gpu.measured_bytes.items():
            yield (str(gpu.gpu), gpu.uuid, component), size


def _error_ratio(snapshot: Snapshot) -> Iterator[Row]:
    for gpu in snapshot.assessment.gpus:
        for part in (*gpu.components, *((gpu.total,) if gpu.total is not None else ())):
            yield (str(gpu.gpu), gpu.uuid, part.component), part.error_ratio


def _calibrated(snapshot: Snapshot) -> Iterator[Row]:
    for gpu in snapshot.assessment.gpus:
        for part in (*gpu.components, *((gpu.total,) if gpu.total is not None else ())):
            yield (str(gpu.gpu), gpu.uuid, part.component), part.calibrated_bytes


def _drift(snapshot: Snapshot) -> Iterator[Row]:
    for gpu in snapshot.assessment.gpus:
        for drift in gpu.drifts:
            yield (str(gpu.gpu), gpu.uuid, drift.kind), drift.drift_bytes


def _kv_tokens(snapshot: Snapshot) -> Iterator[Row]:
    for pool in snapshot.assessment.pools:
        yield (pool.model, pool.rank, "active"), pool.active_tokens
        yield (pool.model, pool.rank, "reclaimable"), pool.reclaimable_tokens
        yield (pool.model, pool.rank, "free"), pool.free_tokens


def _live_tokens(snapshot: Snapshot) -> Iterator[Row]:
    for pool in snapshot.assessment.pools:
        yield (pool.model, pool.rank, pool.live_tokens_method or ""), pool.live_tokens


def _waste(snapshot: Snapshot) -> Iterator[Row]:
    for pool in snapshot.assessment.pools:
        for waste in pool.waste:
            yield (pool.model, pool.rank, waste.kind, waste.method), waste.waste_bytes


def _allocators(snapshot: Snapshot) -> Iterator[Row]:
    for each in snapshot.assessment.allocators:
        place = ("" if each.gpu is None else str(each.gpu), each.uuid)
        yield (*place, "allocated"), each.allocated_bytes
        yield (*place, "reserved"), each.reserved_bytes
        yield (*place, "inactive_split"), each.inactive_split_bytes
        yield (*place, "requested"), each.requested_bytes
        yield (*place, "largest_free"), each.largest_free_bytes


def _fragmentation(snapshot: Snapshot) -> Iterator[Row]:
    for each in snapshot.assessment.allocators:
        yield ("" if each.gpu is None else str(each.gpu), each.uuid), each.fragmentation_ratio


def _requests(snapshot: Snapshot) -> Iterator[Row]:
    for rank in _ranks(snapshot):
        yield (rank.model, rank.rank, "running"), rank.running
        yield (rank.model, rank.rank, "waiting"), rank.waiting
        yield (rank.model, rank.rank, "swapped"), rank.swapped


def _preemptions(snapshot: Snapshot) -> Iterator[Row]:
    for rank in _ranks(snapshot):
        yield (rank.model, rank.rank), rank.preemptions_total


def _request_tokens(snapshot: Snapshot) -> Iterator[Row]:
    parts: tuple[tuple[str, LengthSummary | None], ...] = (
        ("prompt", snapshot.advice.prompt_tokens),
        ("output", snapshot.advice.output_tokens),
    )
    for part, lengths in parts:
        if lengths is not None:
            for stat in ("mean", "p50", "p95", "p99"):
                yield (*_pod_labels(snapshot), part, stat), getattr(lengths, stat)


def _limits(snapshot: Snapshot) -> Iterator[Row]:
    for limit, requests in snapshot.advice.limits.items():
        yield (*_pod_labels(snapshot), limit), requests


def _binding(snapshot: Snapshot) -> Iterator[Row]:
    for limit in snapshot.advice.limits:
        yield (*_pod_labels(snapshot), limit), float(limit == snapshot.advice.binding_limit)


def _source_up(snapshot: Snapshot) -> Iterator[Row]:
    for state in snapshot.assessment.observation.sources:
        yield (state.source,), float(state.up)


def _source_age(snapshot: Snapshot) -> Iterator[Row]:
    for state in snapshot.assessment.observation.sources:
        yield (state.source,), state.age_seconds


def _source_read(snapshot: Snapshot) -> Iterator[Row]:
    for state in snapshot.assessment.observation.sources:
        yield (state.source,), state.read_seconds


def _source_errors(snapshot: Snapshot) -> Iterator[Row]:
    for state in snapshot.assessment.observation.sources:
        for reason, number in state.errors_total.items():
            yield (state.source, reason), number


def _build_info(_: Snapshot) -> Iterator[Row]:
    yield (__version__, ""), 1


FAMILIES: tuple[Family, ...] = (
    Family(
        "kvgauge_gpu_info",
        "gauge",
        "A GPU or MIG instance that is visible.",
        (*GPU_LABELS, "name", "driver", "mig"),
        _gpu_info,
    ),
    Family(
        "kvgauge_gpu_memory_total_bytes",
        "gauge",
        "Memory of the GPU as the driver states it.",
        GPU_LABELS,
        _gpus(lambda gpu: gpu.total_bytes),
    ),
    Family(
        "kvgauge_gpu_memory_used_bytes",
        "gauge",
        "Memory taken, by whomever: total - free.",
        GPU_LABELS,
        _gpus(lambda gpu: gpu.used_bytes),
    ),
    Family(
        "kvgauge_gpu_memory_reserved_bytes",
        "gauge",
        "Memory the driver keeps for itself; part of used.",
        GPU_LABELS,
        _gpus(lambda gpu: gpu.reserved_bytes),
    ),
    Family(
        "kvgauge_gpu_memory_engine_bytes",
        "gauge",
        "Memory of the engine's processes, where the driver tells it.",
        GPU_LABELS,
        _gpus(lambda gpu: gpu.engine_bytes),
    ),
    Family(
        "kvgauge_engine_info",
        "gauge",
        "The engine that was found; an empty label is a fact nobody told.",
        (*ENGINE_LABELS, "engine", "version", "kv_dtype", "tp", "pp", "dp", "max_model_len"),
        _engine_info,
    ),
    Family(
        "kvgauge_engine_asleep",
        "gauge",
        "1 while the engine sleeps on purpose, its KV pool given back; absent where it does not tell.",
        ENGINE_LABELS,
        _asleep,
    ),
    Family(
        "kvgauge_memory_predicted_bytes",
        "gauge",
        "What each part of a GPU's memory should take.",
        (*GPU_LABELS, "component"),
        _predicted,
    ),
    Family(
        "kvgauge_memory_predicted_total_bytes",
        "gauge",
        "What the GPU's memory in use should be, with its bounds.",
        (*GPU_LABELS, "bound"),
        _predicted_total,
    ),
    Family(
        "kvgauge_memory_actual_bytes",
        "gauge",
        "What a part of a GPU's memory takes, where something measured it.",
        (*GPU_LABELS, "component"),
        _actual,
    ),
    Family(
        "kvgauge_memory_prediction_error_ratio",
        "gauge",
        "(actual - predicted) / actual, signed; component total is the driver's used bytes.",
        (*GPU_LABELS, "component"),
        _error_ratio,
    ),
    Family(
        "kvgauge_memory_calibrated_bytes",
        "gauge",
        "The prediction corrected by what was measured of this engine, GPU and model before; total likewise.",
        (*GPU_LABELS, "component"),
        _calibrated,
    ),
    Family(
        "kvgauge_memory_drift_bytes",
        "gauge",
        "By how much memory has moved from where it had settled: leak, foreign_process, flags. See below.",
        (*GPU_LABELS, "kind"),
        _drift,
    ),
    Family(
        "kvgauge_kv_bytes_per_token",
        "gauge",
        "Bytes on each GPU that one more token of a sequence adds.",
        ENGINE_LABELS,
        _pools(lambda pool: pool.kv_bytes_per_token),
    ),
    Family(
        "kvgauge_kv_state_bytes_per_request",
        "gauge",
        "Bytes on each GPU that a sequence holds whatever its length: state, and windows once full.",
        ENGINE_LABELS,
        _pools(lambda pool: pool.state_bytes_per_request),
    ),
    Family(
        "kvgauge_kv_block_tokens",
        "gauge",
        "Tokens in one KV block.",
        ENGINE_LABELS,
        _pools(lambda pool: pool.block_tokens),
    ),
    Family(
        "kvgauge_kv_capacity_tokens",
        "gauge",
        "KV slots as the engine states them.",
        ENGINE_LABELS,
        _pools(lambda pool: pool.capacity_tokens),
    ),
    Family(
        "kvgauge_kv_predicted_capacity_tokens",
        "gauge",
        "KV slots that the memory model predicts.",
        ENGINE_LABELS,
        _pools(lambda pool: pool.predicted_capacity_tokens),
    ),
    Family(
        "kvgauge_kv_tokens",
        "gauge",
        "KV slots by state; the states add up to the capacity. Where reclaimable is absent, free holds it.",
        (*ENGINE_LABELS, "state"),
        _kv_tokens,
    ),
    Family(
        "kvgauge_kv_live_tokens",
        "gauge",
        "KV slots that hold a token of a live sequence.",
        (*ENGINE_LABELS, "method"),
        _live_tokens,
    ),
    Family(
        "kvgauge_kv_usage_ratio",
        "gauge",
        "Active slots / capacity; where layers of several kinds have pools of their own (SGLang), of the fullest.",
        ENGINE_LABELS,
        _pools(lambda pool: pool.usage_ratio),
    ),
    Family(
        "kvgauge_waste_bytes",
        "gauge",
        "Bytes on each GPU that are taken and hold nothing, or a copy. Kinds do not overlap: see below.",
        (*ENGINE_LABELS, "kind", "method"),
        _waste,
    ),
    Family(
        "kvgauge_allocator_bytes",
        "gauge",
        "torch's caching allocator, all processes with an agent together; of largest_free the largest of any.",
        (*GPU_LABELS, "state"),
        _allocators,
    ),
    Family(
        "kvgauge_allocator_fragmentation_ratio",
        "gauge",
        "Of the memory that the allocator holds free, the share outside the largest free piece.",
        GPU_LABELS,
        _fragmentation,
    ),
    Family("kvgauge_requests", "gauge", "Requests by state.", (*ENGINE_LABELS, "state"), _requests),
    Family(
        "kvgauge_preemptions_total",
        "counter",
        "Requests that lost their KV blocks and must be computed again.",
        ENGINE_LABELS,
        _preemptions,
    ),
    Family(
        "kvgauge_request_tokens",
        "gauge",
        "Lengths that the advice stands on: of the requests that finished lately, made up from older ones where few.",
        (*ENGINE_LABELS, "part", "stat"),
        _request_tokens,
    ),
    Family(
        "kvgauge_safe_concurrency",
        "gauge",
        "Requests that may run together: the smallest limit.",
        ENGINE_LABELS,
        _pod(lambda advice: advice.safe_concurrency),
    ),
    Family(
        "kvgauge_concurrency_limit",
        "gauge",
        "Each limit on concurrency; kv_worst_case is every request at max_model_len and never binds.",
        (*ENGINE_LABELS, "limit"),
        _limits,
    ),
    Family(
        "kvgauge_binding_limit",
        "gauge",
        "1 for the limit that binds, 0 for the others.",
        (*ENGINE_LABELS, "limit"),
        _binding,
    ),
    Family(
        "kvgauge_load_ratio",
        "gauge",
        "Demand / safe capacity, the queue included; may exceed 1. The scaling signal; it adds up over pods.",
        ENGINE_LABELS,
        _pod(lambda advice: advice.load_ratio),
    ),
    Family(
        "kvgauge_kv_exhaustion_seconds",
        "gauge",
        "Time until the KV pool is full, by its trend or by what those running grow to; +Inf when not heading there.",
        ENGINE_LABELS,
        _pod(lambda advice: advice.kv_exhaustion_seconds),
    ),
    Family(
        "kvgauge_advice_valid",
        "gauge",
        "1 while the advice stands on fresh facts, else 0.",
        ENGINE_LABELS,
        _pod(lambda advice: float(advice.valid)),
    ),
    Family("kvgauge_source_up", "gauge", "1 when the last read of the source succeeded.", ("source",), _source_up),
    Family("kvgauge_source_age_seconds", "gauge", "Age of the last good reading.", ("source",), _source_age),
    Family("kvgauge_source_read_seconds", "gauge", "How long the last read took.", ("source",), _source_read),
    Family(
        "kvgauge_source_errors_total",
        "counter",
        "Reads that failed, and lines or values that could not be used, by reason.",
        ("source", "reason"),
        _source_errors,
    ),
    Family("kvgauge_build_info", "gauge", "This build.", ("version", "revision"), _build_info),
)
