"""What engines take for themselves while they start, by version: constants and the measurements they come from.

vLLM 0.11-0.19 on H100: public start-up logs (jgchn/llm-d-planner, accuracy/results, Apache-2.0; llm-d-incubation/
llm-d-planner, docs/empirical-vllm-memory-results.md). Each constant is one for all models; none is fitted to a model.
"""

from dataclasses import dataclass

from kvmodel.errors import ModelError, show

_MIB = 2**20
_GIB = 2**30
_NEWEST = 10**6


@dataclass(frozen=True, slots=True)
class Interval:
    """A prediction in bytes and the reason for it."""

    low_bytes: int
    expected_bytes: int
    high_bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class Startup:
    """The rules of one range of versions of one engine."""

    sampler_bytes: float
    """Peak bytes per sampled row and vocabulary entry beside the logits themselves: the fp32 copy and its
    temporaries, before vLLM 0.17 a full sort with 64-bit indices too."""
    spread: float
    """Relative half-width of the activation interval."""
    context: Interval
    """Before the engine looks at the card: CUDA context and libraries."""
    inside: Interval
    """Memory the engine takes outside the allocator, inside its budget."""
    connected_outside: Interval
    """What tensor parallelism adds to `context`."""
    connected_inside: Interval
    """What tensor parallelism adds to `inside`."""
    graphs_in_budget: bool
    """Whether the pool is reduced by an estimate of the CUDA graphs."""
    notes: tuple[str, ...] = ()


def gib(low: float, expected: float, high: float, source: str) -> Interval:
    """An interval given in GiB."""
    return Interval(int(low * _GIB), int(expected * _GIB), int(high * _GIB), source)


NOTHING = Interval(0, 0, 0, "one GPU")
SAMPLER_FIXED_BYTES = 52 * _MIB
"""What the sampler-bound peak has beyond its proportional part: least squares over 18 start-ups, 0.11-0.19."""
GRAPHS_FIXED_BYTES = _GIB // 4
GRAPHS_BYTES_PER_LAYER_AND_SIZE = int(0.42 * _MIB)
"""32 to 80 dense layers, 51 piecewise sizes, vLLM 0.19, H100: 0.67-1.85 GiB."""
LATENT_GRAPHS_BYTES_PER_LAYER_AND_SIZE = int(0.97 * _MIB)
"""DeepSeek-V2-Lite and Kimi-VL, likewise: 1.57 and 1.50 GiB at 27 layers."""
WORKSPACES = {
    "flashinfer": Interval(394 * _MIB, 394 * _MIB, 394 * _MIB, "FlashInfer's workspace buffer (vLLM's envs.py)"),
    "flashinfer_mla": Interval(128 * _MIB, 128 * _MIB, 256 * _MIB, "FlashInfer's MLA workspace"),
}
"""Buffers of attention backends that take one of their own."""

_CONTEXT = gib(0.4, 0.51, 0.7, "CUDA context and libraries, measured on H100")


def vllm_startup(version: str | None, tp: int, pp: int) -> Startup:
    """The rules for a version; one outside the measured ones takes its neighbour's, with a wider interval.

    Raises ModelError (field `engine_version`).
    """
    minor = None if version is None else version_minor(version)
    notes: list[str] = []
    spread = 0.05
    if minor is None:
        notes.append("the engine's version is unknown: 0.21 and later assumed")
        spread = 0.5
    elif minor < 11:
        notes.append(f"vLLM {show(version)} is older than the measured 0.11-0.19")
        spread = 0.5
    elif minor == 20:
        spread = 0.1
    elif minor > 20:
        notes.append(f"vLLM {show(version)}: the sampler's constant was measured up to 0.19")
        spread = 0.4
    sorts = minor is not None and minor < 17
    if sorts:
        inside = gib(0.1, 0.13, 0.46, "memory outside the allocator, measured on H100")
        joined = gib(0.3, 0.42, 1.85, "NCCL and all-reduce buffers, measured on H100 at TP 2")
    else:
        inside = gib(0.13, 0.25, 0.46, "memory outside the allocator, measured on H100")
        joined = gib(0.3, 1.85, 2.2, "NCCL and all-reduce buffers, measured on H100 at TP 2 and 4")
    joined_outside = gib(0.9, 1.03, 1.5, "libraries of a group of ranks, measured on H100")
    if tp == 1 and pp > 1:
        inside = gib(0.05, 0.07, 0.46, "memory outside the allocator, measured on H100 at PP 2 and 4")
        joined = NOTHING
        joined_outside = gib(0.8, 0.95, 1.5, "libraries of a group of ranks, measured on H100 at PP 2 and 4")
    elif tp == 1:
        joined = joined_outside = NOTHING
    elif tp > 4:
        notes.append(f"communication buffers were measured up to TP 4, not at {tp}")
    return Startup(
        sampler_bytes=36.0 if sorts else 12.5,
        spread=spread,
        context=_CONTEXT,
        inside=inside,
        connected_outside=joined_outside,
        connected_inside=joined,
        graphs_in_budget=minor is None or minor >= 21,
        notes=tuple(notes),
    )


def other_startup(engine: str, tp: int, pp: int) -> Startup:
    """SGLang and TensorRT-LLM: no public measurements of their own, so vLLM's with wide intervals."""
    near = vllm_startup("0.19.0", tp, pp)

    def wide(part: Interval) -> Interval:
        return Interval(part.low_bytes // 2, part.expected_bytes, 2 * part.high_bytes, f"{part.source}, under vLLM")

    return Startup(
        sampler_bytes=near.sampler_bytes,
        spread=0.6,
        context=wide(near.context),
        inside=wide(near.inside),
        connected_outside=wide(near.connected_outside),
        connected_inside=wide(near.connected_inside),
        graphs_in_budget=False,
        notes=(f"{engine}: activations and overheads are vLLM's figures with wide intervals", *near.notes),
    )


def version_minor(version: str) -> int:
    """The minor number of a `0.N` version; anything from 1.0 on counts as the newest."""
    parts = version.removeprefix("v").split(".") if isinstance(version, str) else []
    if len(parts) < 2 or not all(part.isdecimal() and len(part) < 6 for part in parts[:2]):
        raise ModelError("engine_version", f"{show(version)} is not a version such as 0.19.0")
    return int(parts[1]) if int(parts[0]) == 0 else _NEWEST
