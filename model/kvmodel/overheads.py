"""What else stands in GPU memory beside the KV pool, and the pool that is left, before anything runs.

vLLM's rules are those of `v1/worker/gpu_worker.py`, SGLang's of `model_executor/model_runner.py` (0.5.23) and
TensorRT-LLM's of its KvCacheConfig. What was not measured for a version, a card or a group size is widened to an
interval, with a note.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kvmodel.activations import activation_peak, graph_memory
from kvmodel.architecture import Architecture
from kvmodel.dtypes import model_dtype
from kvmodel.engines.vllm.profiles import profile_of
from kvmodel.engines.vllm.scheduling import usual_batches
from kvmodel.errors import ModelError, show
from kvmodel.resident import resident_extras
from kvmodel.startup import WORKSPACES, Interval, Startup, other_startup, vllm_startup

__all__ = ["Interval", "MemoryPrediction", "predict_memory"]

_MIB = 2**20
_GIB = 2**30
_ENGINES = ("vllm", "sglang", "tensorrt_llm")


@dataclass(frozen=True, slots=True)
class MemoryPrediction:
    """Memory of one GPU after start-up."""

    components: Mapping[str, Interval]
    """`weights`, `kv_pool`, `activations`, `graphs`, `context`, `communication`; `workspace` where there is one."""
    total: Interval
    """What the driver should show. Not the sum of the components' bounds: the pool fills what the others leave."""
    kv_pool: Interval
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Parts:
    """All that is not the pool."""

    weights: Interval
    activations: Interval
    graphs: Interval
    workspace: Interval
    startup: Startup

    @property
    def outside(self) -> list[Interval]:
        """Before the engine measures the card."""
        return [self.startup.context, self.startup.connected_outside]

    @property
    def inside(self) -> list[Interval]:
        """Outside the allocator, after that."""
        return [self.startup.inside, self.startup.connected_inside]


def predict_memory(
    architecture: Architecture,
    *,
    weights_bytes_per_gpu: int,
    gpu_total_bytes: int,
    gpu_memory_utilization: float,
    engine: str = "vllm",
    engine_version: str | None = None,
    tp: int = 1,
    pp: int = 1,
    free_bytes: int | None = None,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    enforce_eager: bool = False,
    kv_cache_bytes: int | None = None,
    dtype: str | None = None,
    attention_backend: str | None = None,
    gpu_name: str | None = None,
) -> MemoryPrediction:
    """Predicted memory of one GPU of a server with these flags.

    `weights_bytes_per_gpu` is the checkpoint's share (`weights_bytes_per_gpu()`); of several pipeline stages, the last
    one's, which limits the pool. `free_bytes` is what the card has free before the engine starts, all of it if absent.
    `dtype` is the dtype computed in where it is not the model's own; `attention_backend` names one with a workspace of
    its own (`flashinfer`, `flashinfer_mla`); `gpu_name` tells the cards whose default batch is smaller than their size.

    vLLM: the pool is `ceil(total * utilization) - weights - activation peak - memory outside the allocator`, less a
    CUDA graph estimate since 0.21. SGLang: `gpu_memory_utilization` is `mem_fraction_static`, the pool
    `free after loading - free before it * (1 - fraction)`; activations and graphs share the rest. TensorRT-LLM: it is
    `free_gpu_memory_fraction`, a share of what is free after a trial run. `kv_cache_bytes` (vLLM's
    `--kv-cache-memory-bytes`) replaces the pool. Flags left out take the version's defaults for a card of this size.
    Raises ModelError naming the argument at fault.
    """
    _check_arguments(weights_bytes_per_gpu, gpu_total_bytes, gpu_memory_utilization, kv_cache_bytes, free_bytes)
    architecture.check_tp(tp)
    if isinstance(pp, bool) or not isinstance(pp, int) or not 1 <= pp <= architecture.num_layers:
        raise ModelError("pp", f"{show(pp)} is not a number of stages for {architecture.num_layers} layers")
    if dtype is not None:
        dtype = model_dtype(dtype)
    startup = _startup(engine, engine_version, tp, pp)
    notes = list(startup.notes)
    default = _default_batch(engine, engine_version, gpu_total_bytes, gpu_name or "")
    if not gpu_name and None in (max_num_batched_tokens, max_num_seqs):
        smaller = _default_batch(engine, engine_version, gpu_total_bytes, "a100")
        if smaller != default:
            seen = f"{smaller[0]} tokens and {smaller[1]} sequences"
            notes.append(f"defaults of an H100-class card; an A100 takes {seen}")
    tokens, seqs = _batch(default, max_num_batched_tokens, max_num_seqs, max_model_len)
    graphs = graph_memory(architecture, seqs=seqs, enforce_eager=enforce_eager)
    if not enforce_eager:
        notes.append("CUDA graphs: measured on H100 only; vLLM's own estimate was off by up to three times")
    if architecture.multimodal:
        notes.append("the vision or audio encoder's own peak is not modelled")
    parts = _Parts(
        weights=_weights(architecture, weights_bytes_per_gpu, tp, pp),
        activations=activation_peak(architecture, startup, tokens=tokens, seqs=seqs, tp=tp, dtype=dtype),
        graphs=graphs,
        workspace=_workspace(attention_backend),
        startup=startup,
    )
    free = gpu_total_bytes if free_bytes is None else free_bytes
    if kv_cache_bytes is not None:
        pool = Interval(kv_cache_bytes, kv_cache_bytes, kv_cache_bytes, "given by --kv-cache-memory-bytes")
    elif engine == "vllm":
        pool = _vllm_pool(parts, gpu_total_bytes, free, gpu_memory_utilization, notes)
    elif engine == "sglang":
        pool = _sglang_pool(parts, free, gpu_memory_utilization, notes)
    else:
        pool = _tensorrt_pool(parts, free, gpu_memory_utilization, notes)
    total = _total(parts, pool, engine == "vllm" and kv_cache_bytes is None, gpu_total_bytes, gpu_memory_utilization)
    return MemoryPrediction(MappingProxyType(_components(parts, pool)), total, pool, tuple(notes))


def _startup(engine: str, version: str | None, tp: int, pp: int) -> Startup:
    if engine == "vllm":
        return vllm_startup(version, tp, pp)
    if engine not in _ENGINES:
        raise ModelError("engine", f"{show(engine)} is not one of {', '.join(_ENGINES)}")
    return other_startup(engine, tp, pp)


def _weights(architecture: Architecture, file_bytes: int, tp: int, pp: int) -> Interval:
    extras = resident_extras(architecture, tp=tp, pp=pp)
    expected = file_bytes + sum(extras.values())
    # 0.6 GiB: the most seen that no formula explains (gemma-3); TP shares below an even cut were not seen.
    source = ", ".join(("checkpoint share", *extras))
    return Interval(file_bytes, expected, expected + 6 * _GIB // 10, source)


def _workspace(backend: str | None) -> Interval:
    if backend is None:
        return Interval(0, 0, 0, "none of its own")
    return WORKSPACES.get(backend.lower(), Interval(0, 0, 0, "none of its own"))


def _vllm_pool(parts: _Parts, total_bytes: int, free_bytes: int, utilization: float, notes: list[str]) -> Interval:
    requested = math.ceil(total_bytes * utilization)
    left = free_bytes - _sum(parts.outside, "").expected_bytes
    if requested > left:
        notes.append(f"{requested} bytes are requested but about {left} will be free: the engine would not start")
    spent = [parts.weights, parts.activations, parts.workspace, *parts.inside]
    if parts.startup.graphs_in_budget:
        spent.append(parts.graphs)
    return _remainder(requested, spent, notes)


def _sglang_pool(parts: _Parts, free_bytes: int, fraction: float, notes: list[str]) -> Interval:
    from kvmodel.engines.sglang.budget import available_kv_bytes

    outside, loaded = _sum(parts.outside, ""), _sum([parts.weights, *parts.inside], "")

    def left(outside_bytes: int, loaded_bytes: int) -> int:
        before = max(1, free_bytes - outside_bytes)
        return available_kv_bytes(
            free_bytes=max(1, before - loaded_bytes), free_before_weights_bytes=before, mem_fraction_static=fraction
        )

    reserved = int((free_bytes - outside.expected_bytes) * (1 - fraction))
    run = _sum([parts.activations, parts.graphs, parts.workspace], "")
    if run.expected_bytes > reserved:
        notes.append(f"activations and graphs need about {run.expected_bytes} bytes, only {reserved} are left for them")
    expected = left(outside.expected_bytes, loaded.expected_bytes)
    if not expected:
        notes.append(f"weights and overheads exceed a share of {fraction:g}: the engine would not start")
    return Interval(
        left(outside.high_bytes, loaded.high_bytes),
        expected,
        left(outside.low_bytes, loaded.low_bytes),
        f"mem_fraction_static {fraction:g} of what is free before the weights, less what is loaded",
    )


def _tensorrt_pool(parts: _Parts, free_bytes: int, fraction: float, notes: list[str]) -> Interval:
    spent = [parts.weights, parts.activations, parts.workspace, *parts.outside, *parts.inside]
    rest = _remainder(free_bytes, spent, notes)
    bounds = (rest.low_bytes, rest.expected_bytes, rest.high_bytes)
    low, expected, high = (math.floor(size * fraction) for size in bounds)
    return Interval(low, expected, high, f"{fraction:g} of what is free after a trial run")


def _remainder(budget: int, spent: list[Interval], notes: list[str]) -> Interval:
    low = budget - sum(part.high_bytes for part in spent)
    expected = budget - sum(part.expected_bytes for part in spent)
    high = budget - sum(part.low_bytes for part in spent)
    if expected <= 0:
        notes.append(f"weights and overheads exceed the budget by {-expected} bytes: the engine would not start")
    return Interval(max(0, low), max(0, expected), max(0, high), "what the budget leaves")


def _total(parts: _Parts, pool: Interval, fills_request: bool, total_bytes: int, utilization: float) -> Interval:
    beside = list(parts.outside)
    if not fills_request:
        held = [parts.weights, parts.activations, parts.workspace, parts.graphs, *parts.inside]
        return _sum([pool, *held, *beside], "sum of the components")
    requested = math.ceil(total_bytes * utilization)
    if not parts.startup.graphs_in_budget:
        beside.append(parts.graphs)
    asked = Interval(requested, requested, requested, "requested")
    return _sum([asked, *beside], "the requested share of the card, and what lies outside it")


def _components(parts: _Parts, pool: Interval) -> dict[str, Interval]:
    startup = parts.startup
    components = {
        "weights": parts.weights,
        "kv_pool": pool,
        "activations": parts.activations,
        "graphs": parts.graphs,
        "context": _sum([startup.context, startup.inside], f"{startup.context.source}; {startup.inside.source}"),
        "communication": _sum([startup.connected_outside, startup.connected_inside], startup.connected_inside.source),
    }
    if parts.workspace.high_bytes:
        components["workspace"] = parts.workspace
    return components


def _default_batch(engine: str, version: str | None, total_bytes: int, name: str) -> tuple[int, int]:
    """Tokens and sequences of a step; of TensorRT-LLM's too, vLLM's stand in."""
    tokens, seqs = usual_batches(profile_of(version if engine == "vllm" else None), total_bytes, name)
    if engine == "sglang":
        # Here, not above: plans of other engines need none of it.
        from kvmodel.engines.sglang.budget import chunked_prefill_tokens

        tokens = chunked_prefill_tokens(total_bytes // _MIB, version)
    return tokens, seqs


def _batch(
    default: tuple[int, int], tokens: int | None, seqs: int | None, max_model_len: int | None
) -> tuple[int, int]:
    """`max_num_batched_tokens` and `max_num_seqs`, the defaults where they are not given."""
    for name, value in (
        ("max_num_batched_tokens", tokens),
        ("max_num_seqs", seqs),
        ("max_model_len", max_model_len),
    ):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**40):
            raise ModelError(name, f"{show(value)} is not a positive whole number")
    seqs = default[1] if seqs is None else seqs
    if tokens is None:
        tokens = default[0] if max_model_len is None else min(default[0], seqs * max_model_len)
    return tokens, min(seqs, tokens)


def _check_arguments(
    weights_bytes: int, total_bytes: int, utilization: float, kv_cache_bytes: int | None, free_bytes: int | None
) -> None:
    sizes = [("weights_bytes_per_gpu", weights_bytes, 0), ("gpu_total_bytes", total_bytes, 1)]
    if kv_cache_bytes is not None:
        sizes.append(("kv_cache_bytes", kv_cache_bytes, 1))
    if free_bytes is not None:
        sizes.append(("free_bytes", free_bytes, 0))
    for name, value, least in sizes:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**60:
            raise ModelError(name, f"{show(value)} is not a number of bytes")
    if free_bytes is not None and free_bytes > total_bytes:
        raise ModelError("free_bytes", f"{free_bytes} is more than the card's {total_bytes}")
    number = isinstance(utilization, (int, float)) and not isinstance(utilization, bool)
    if not number or not 0 < utilization <= 1:
        raise ModelError("gpu_memory_utilization", f"{show(utilization)} is not above 0 and up to 1")


def _sum(parts: list[Interval], source: str) -> Interval:
    return Interval(
        sum(part.low_bytes for part in parts),
        sum(part.expected_bytes for part in parts),
        sum(part.high_bytes for part in parts),
        source,
    )
