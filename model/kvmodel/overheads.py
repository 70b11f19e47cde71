"""What else stands in GPU memory beside the KV pool, and the pool that is left: vLLM, one GPU.

Formulas and constants come from public vLLM 0.11-0.19 start-up measurements on H100 (jgchn/llm-d-planner, Apache-2.0)
and from vLLM's `v1/worker/gpu_worker.py`. What was not measured for a version, a card or a group size is widened to
an interval, with a note.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kvmodel.architecture import Architecture
from kvmodel.errors import ModelError, show
from kvmodel.layers import LatentAttention

_GIB = 2**30
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Interval:
    """A prediction in bytes and the reason for it."""

    low_bytes: int
    expected_bytes: int
    high_bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class MemoryPrediction:
    """Memory of one GPU under vLLM after start-up."""

    components: Mapping[str, Interval]
    """`weights`, `kv_pool`, `activations`, `graphs`, `context`, `communication`."""
    total: Interval
    """What the driver should show. Not the sum of the components' bounds: the pool fills what the others leave."""
    kv_pool: Interval
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Profile:
    """The rules of one range of vLLM versions."""

    sampler_bytes: float
    """Peak bytes per sampled row and vocabulary entry: fp32 logits, their copies and, before 0.17, a full sort."""
    spread: float
    """Relative half-width of the activation interval."""
    graphs_in_budget: bool
    """Whether the pool is reduced by an estimate of the CUDA graphs."""
    note: str | None


def predict_memory(
    architecture: Architecture,
    *,
    weights_bytes_per_gpu: int,
    gpu_total_bytes: int,
    gpu_memory_utilization: float,
    engine_version: str | None = None,
    tp: int = 1,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    enforce_eager: bool = False,
    kv_cache_bytes: int | None = None,
) -> MemoryPrediction:
    """Predicted memory of one GPU of a vLLM server with these flags.

    `weights_bytes_per_gpu` is the checkpoint's share (`weights_bytes_per_gpu()`). The pool is
    `ceil(total * utilization) - weights - activation peak - engine's non-torch memory`, less a CUDA graph estimate
    since 0.21; `kv_cache_bytes` (`--kv-cache-memory-bytes`) replaces it. Flags left out take vLLM's defaults for a
    card of this size. Raises ModelError naming the argument at fault.
    """
    _check_arguments(weights_bytes_per_gpu, gpu_total_bytes, gpu_memory_utilization, kv_cache_bytes)
    architecture.check_tp(tp)
    notes: list[str] = []
    profile = _profile(engine_version)
    if profile.note is not None:
        notes.append(profile.note)
    tokens, seqs = _batch(gpu_total_bytes, max_num_batched_tokens, max_num_seqs, max_model_len, notes)
    weights = _weights(architecture, weights_bytes_per_gpu, tp)
    activations = _activations(architecture, tokens, seqs, tp, profile)
    graphs = _graphs(architecture, seqs, enforce_eager, notes)
    outside = Interval(_gib(0.4), _gib(0.51), _gib(0.7), "before the engine looks at the card")
    inside = Interval(_gib(0.13), _gib(0.25), _gib(0.46), "inside the engine's budget")
    connected_outside, connected_inside = _communication(tp, notes)
    context = _sum(
        (outside, inside), "CUDA context and libraries, measured on H100: 0.51 GiB before the engine, 0.25 in it"
    )
    communication = _sum((connected_outside, connected_inside), connected_inside.source)
    spent = [weights, activations, inside, connected_inside]
    beside = [outside, connected_outside]
    (spent if profile.graphs_in_budget else beside).append(graphs)
    requested = math.ceil(gpu_total_bytes * gpu_memory_utilization)
    if kv_cache_bytes is None:
        pool = _remainder(requested, spent, notes)
        held = Interval(requested, requested, requested, "requested")
        total = _sum([held, *beside], "the requested share of the card, and what lies outside it")
    else:
        pool = Interval(kv_cache_bytes, kv_cache_bytes, kv_cache_bytes, "given by --kv-cache-memory-bytes")
        total = _sum([pool, *spent, *beside], "sum of the components")
    components = {
        "weights": weights,
        "kv_pool": pool,
        "activations": activations,
        "graphs": graphs,
        "context": context,
        "communication": communication,
    }
    return MemoryPrediction(MappingProxyType(components), total, pool, tuple(notes))


def _weights(architecture: Architecture, file_bytes: int, tp: int) -> Interval:
    """The checkpoint, rotary tables (`max_position * rotary_dim`, 2 bytes, on every rank), absorbed MLA copies."""
    extra = 0
    if architecture.rotary_dim is not None and architecture.max_position_embeddings is not None:
        extra += architecture.max_position_embeddings * architecture.rotary_dim * 2
    for group in architecture.groups:
        if isinstance(group.layer, LatentAttention):
            expanded = (architecture.qk_nope_head_dim or 0) + (architecture.v_head_dim or 0)
            heads = architecture.num_attention_heads // tp
            extra += group.count * heads * group.layer.kv_lora_rank * expanded * 2
    expected = file_bytes + extra
    # 0.6 GiB: the most seen that no formula explains (gemma-3); TP shares below an even cut were not seen.
    return Interval(file_bytes, expected, expected + 6 * _GIB // 10, "checkpoint share, rotary tables, MLA copies")


def _activations(architecture: Architecture, tokens: int, seqs: int, tp: int, profile: _Profile) -> Interval:
    """Peak of the profiling forward pass: the widest layer, or the sampler behind the last one."""
    hidden_rows = tokens * architecture.hidden_size * 2
    experts = architecture.experts
    workspace = 0
    if experts is not None and architecture.quantization != "mxfp4":
        width = experts.intermediate_size // tp
        per_token = max(2 * width, architecture.hidden_size) + width
        workspace = tokens * experts.per_token * 2 * per_token
    tail = int(profile.sampler_bytes * min(seqs, tokens) * architecture.vocab_size) + hidden_rows + workspace
    if architecture.multimodal:
        tail += hidden_rows
    dense = experts is None or experts.sparse_layers < architecture.num_layers
    width = architecture.intermediate_size // tp if dense else 0
    layer = tokens * 2 * (3 * width + 4 * architecture.hidden_size)
    expected = max(layer, tail)
    return Interval(
        int(expected * (1 - profile.spread)),
        expected,
        int(expected * (1 + profile.spread)),
        "sampler-bound" if tail >= layer else "layer-bound",
    )


def _graphs(architecture: Architecture, seqs: int, enforce_eager: bool, notes: list[str]) -> Interval:
    """0.25 GiB and 0.42 MiB per layer and piecewise size; models of experts took up to twice that."""
    if enforce_eager:
        return Interval(0, 0, 0, "no CUDA graphs with enforce_eager")
    largest = min(2 * seqs, 512)
    sizes = sum(1 for size in (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)) if size <= largest)
    expected = _GIB // 4 + int(0.42 * _MIB * architecture.num_layers * sizes)
    high = 2 * expected if architecture.experts is not None else expected * 3 // 2
    notes.append("CUDA graphs: measured on H100 only; vLLM's own estimate was off by up to three times")
    return Interval(expected // 2, expected, high, f"{architecture.num_layers} layers, {sizes} capture sizes")


def _communication(tp: int, notes: list[str]) -> tuple[Interval, Interval]:
    """NCCL, custom all-reduce and symmetric memory, beyond what one GPU takes: outside and inside the budget."""
    if tp == 1:
        none = Interval(0, 0, 0, "one GPU")
        return none, none
    if tp > 4:
        notes.append(f"communication buffers were measured up to TP 4, not at {tp}")
    outside = Interval(_gib(0.9), _gib(1.03), _gib(1.5), "H100")
    inside = Interval(_gib(0.3), _gib(1.85), _gib(2.2), "NCCL and all-reduce buffers, measured on H100 at TP 2 and 4")
    return outside, inside


def _remainder(requested: int, spent: list[Interval], notes: list[str]) -> Interval:
    low = requested - sum(part.high_bytes for part in spent)
    expected = requested - sum(part.expected_bytes for part in spent)
    high = requested - sum(part.low_bytes for part in spent)
    if expected <= 0:
        notes.append(f"weights and overheads exceed the budget by {-expected} bytes: the engine would not start")
    return Interval(max(0, low), max(0, expected), max(0, high), "what the budget leaves")


def _profile(version: str | None) -> _Profile:
    """The rules for a version; a version outside the measured ones takes its neighbour's, with a wider interval."""
    if version is None:
        return _Profile(15.15, 0.5, True, "the engine's version is unknown: 0.21 and later assumed")
    minor = _minor(version)
    if minor < 11:
        return _Profile(38.4, 0.5, False, f"vLLM {show(version)} is older than the measured 0.11-0.19")
    if minor < 17:
        return _Profile(38.4, 0.1, False, None)
    if minor < 20:
        return _Profile(15.15, 0.05, False, None)
    if minor < 21:
        return _Profile(15.15, 0.1, False, None)
    note = f"vLLM {show(version)}: the sampler's constant was measured up to 0.19"
    return _Profile(15.15, 0.4, True, note)


def _minor(version: str) -> int:
    """The minor number of a `0.N` version; anything from 1.0 on counts as the newest."""
    parts = version.removeprefix("v").split(".") if isinstance(version, str) else []
    if len(parts) < 2 or not all(part.isdecimal() and len(part) < 6 for part in parts[:2]):
        raise ModelError("engine_version", f"{show(version)} is not a version such as 0.19.0")
    return int(parts[1]) if int(parts[0]) == 0 else 10**6


def _batch(
    total_bytes: int, tokens: int | None, seqs: int | None, max_model_len: int | None, notes: list[str]
) -> tuple[int, int]:
    """`max_num_batched_tokens` and `max_num_seqs`, vLLM's defaults by card size where they are not given.

    `engine/arg_utils.py`, `get_batch_defaults`, for the API server.
    """
    for name, value in (
        ("max_num_batched_tokens", tokens),
        ("max_num_seqs", seqs),
        ("max_model_len", max_model_len),
    ):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**40):
            raise ModelError(name, f"{show(value)} is not a positive whole number")
    if total_bytes >= 160 * _GIB:
        default_tokens, default_seqs = 16384, 1024
    elif total_bytes >= 70 * _GIB:
        default_tokens, default_seqs = 8192, 1024
        if tokens is None or seqs is None:
            notes.append("defaults of an H100-class card; an A100 takes 2048 tokens and 256 sequences")
    else:
        default_tokens, default_seqs = 2048, 256
    seqs = default_seqs if seqs is None else seqs
    if tokens is None:
        tokens = default_tokens if max_model_len is None else min(default_tokens, seqs * max_model_len)
    return tokens, min(seqs, tokens)


def _check_arguments(weights_bytes: int, total_bytes: int, utilization: float, kv_cache_bytes: int | None) -> None:
    sizes = [("weights_bytes_per_gpu", weights_bytes, 0), ("gpu_total_bytes", total_bytes, 1)]
    if kv_cache_bytes is not None:
        sizes.append(("kv_cache_bytes", kv_cache_bytes, 1))
    for name, value, least in sizes:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**60:
            raise ModelError(name, f"{show(value)} is not a number of bytes")
    number = isinstance(utilization, (int, float)) and not isinstance(utilization, bool)
    if not number or not 0 < utilization <= 1:
        raise ModelError("gpu_memory_utilization", f"{show(utilization)} is not above 0 and up to 1")


def _sum(parts: list[Interval] | tuple[Interval, ...], source: str) -> Interval:
    return Interval(
        sum(part.low_bytes for part in parts),
        sum(part.expected_bytes for part in parts),
        sum(part.high_bytes for part in parts),
        source,
    )


def _gib(value: float) -> int:
    return int(value * _GIB)
