"""The peak of a forward pass and the memory of CUDA graphs, as vLLM's start-up profiling meets them."""

from kvmodel.architecture import Architecture
from kvmodel.layers import LatentAttention
from kvmodel.startup import (
    GRAPHS_BYTES_PER_LAYER_AND_SIZE,
    GRAPHS_FIXED_BYTES,
    LATENT_GRAPHS_BYTES_PER_LAYER_AND_SIZE,
    SAMPLER_FIXED_BYTES,
    Interval,
    Startup,
)

_ELEMENT_BYTES = {"float32": 4}
_WIDER_SPREAD = 0.03
"""Models of experts and of images were measured up to 5.8 % above the formula, all others within 1 %."""


def activation_peak(
    architecture: Architecture,
    startup: Startup,
    *,
    tokens: int,
    seqs: int,
    tp: int = 1,
    dtype: str | None = None,
    samples: bool = True,
) -> Interval:
    """Bytes of the larger of two peaks: the widest layer, or the sampler behind the last one.

    Layer: `tokens * e * (3 * intermediate / tp + 4 * hidden)`, e bytes per element of `dtype`. Sampler: the logits and
    their fp32 temporaries of `min(seqs, tokens)` rows over the whole vocabulary (ranks gather them), the hidden states
    and the fused expert kernel's workspace. A rank that is not the last pipeline stage `samples` nothing.
    """
    element = _ELEMENT_BYTES.get(dtype or architecture.dtype, 2)
    hidden_rows = tokens * architecture.hidden_size * element
    layer = layer_peak(architecture, tokens, tp, element)
    tail = 0
    if samples:
        tail = int((startup.sampler_bytes + element) * min(seqs, tokens) * architecture.vocab_size)
        tail += SAMPLER_FIXED_BYTES + hidden_rows + expert_workspace(architecture, tokens, tp, element)
        if architecture.multimodal:
            # The encoder's output for a whole batch of tokens is cached before the language model runs.
            tail += hidden_rows
    expected = max(layer, tail)
    spread = startup.spread
    if architecture.experts is not None or architecture.multimodal:
        spread += _WIDER_SPREAD
    return Interval(
        int(expected * (1 - spread)),
        expected,
        int(expected * (1 + spread)),
        "sampler-bound: max_num_seqs times the vocabulary" if tail >= layer else "layer-bound: max_num_batched_tokens",
    )


def layer_peak(architecture: Architecture, tokens: int, tp: int, element: int = 2) -> int:
    """Bytes of the widest dense layer's intermediate results."""
    experts = architecture.experts
    dense = experts is None or experts.sparse_layers < architecture.num_layers
    width = architecture.intermediate_size // tp if dense else 0
    return tokens * element * (3 * width + 4 * architecture.hidden_size)


def expert_workspace(architecture: Architecture, tokens: int, tp: int, element: int = 2) -> int:
    """vLLM's fused Triton kernel: two buffers for every (token, expert) pair. The MXFP4 kernels have none."""
    experts = architecture.experts
    if experts is None or architecture.quantization == "mxfp4":
        return 0
    width = experts.intermediate_size // tp
    return tokens * experts.per_token * element * (max(2 * width, architecture.hidden_size) + width)


def graph_memory(architecture: Architecture, *, seqs: int, enforce_eager: bool = False) -> Interval:
    """Bytes of captured CUDA graphs: a fixed part and one per layer and captured size."""
    if enforce_eager:
        return Interval(0, 0, 0, "no CUDA graphs with enforce_eager")
    sizes = captured_sizes(architecture, seqs)
    latent = any(isinstance(group.layer, LatentAttention) for group in architecture.groups)
    each = LATENT_GRAPHS_BYTES_PER_LAYER_AND_SIZE if latent else GRAPHS_BYTES_PER_LAYER_AND_SIZE
    expected = GRAPHS_FIXED_BYTES + each * architecture.num_layers * sizes
    high = 2 * expected if architecture.experts is not None else expected * 3 // 2
    return Interval(expected // 2, expected, high, f"{architecture.num_layers} layers, {sizes} capture sizes")


def captured_sizes(architecture: Architecture, seqs: int) -> int:
    """How many batch sizes vLLM captures: 1, 2, 4, by 8 to 248, by 16 to 512 (gpt-oss 1024), up to twice `seqs`."""
    largest = min(2 * seqs, 1024 if architecture.model_type == "gpt_oss" else 512)
    return sum(1 for size in (1, 2, 4, *range(8, 256, 8), *range(256, 1025, 16)) if size <= largest)
