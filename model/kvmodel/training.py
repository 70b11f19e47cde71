"""Memory of training and fine-tuning: weights, gradients, optimizer states and activations, per GPU.

Activations: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198),
table 2. Model states: Rajbhandari et al., "ZeRO" (arXiv 1910.02054), section 3. LoRA: arXiv 2106.09685; QLoRA's 4-bit
base weights: arXiv 2305.14314.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from kvmodel.errors import ModelError, show

_RECOMPUTATIONS = ("none", "selective", "full")
_PRECISIONS = {
    # Weights, gradients, and the fp32 copy of the weights that the optimizer keeps, in bytes per parameter.
    "float32": (4, 4, 0),
    "bfloat16": (2, 2, 4),
    "float16": (2, 2, 4),
    "bfloat16_pure": (2, 2, 0),
}
_OPTIMIZERS = {
    # Bytes of state per trained parameter.
    "adamw": 8.0,
    # Two 8-bit states with one fp32 scale per 256 (arXiv 2110.02861).
    "adamw_8bit": 2 * (1 + 4 / 256),
    "sgd_momentum": 4.0,
    "sgd": 0.0,
}
_LARGEST = 2**60


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes on one GPU."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    """Optimizer states and, in mixed precision, the fp32 master copy."""
    activations_bytes: int
    trained_parameters: int

    @property
    def total_bytes(self) -> int:
        """The sum; CUDA's context, communication buffers and fragmentation come on top."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes


def activation_bytes(
    *,
    sequence_tokens: int,
    micro_batch: int,
    hidden_size: int,
    num_layers: int,
    num_attention_heads: int,
    recomputation: str = "none",
    tp: int = 1,
    sequence_parallel: bool = False,
) -> int:
    """Bytes of stored activations of `num_layers` transformer layers in 16 bits, on one GPU of a `tp` group.

    `s*b*h*L*(34 + 5*a*s/h)` without parallelism; 10 of the 34 are not cut by tensor parallelism unless
    `sequence_parallel`; `selective` recomputes the attention term, `full` keeps each layer's input alone. Embeddings
    and the output layer, small beside the layers, are left out. Raises ModelError naming the argument.
    """
    sizes = {
        "sequence_tokens": sequence_tokens,
        "micro_batch": micro_batch,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_attention_heads": num_attention_heads,
        "tp": tp,
    }
    for name, value in sizes.items():
        _check_count(name, value, 2**32)
    if recomputation not in _RECOMPUTATIONS:
        raise ModelError("recomputation", f"{show(recomputation)} is not one of {', '.join(_RECOMPUTATIONS)}")
    if num_attention_heads % tp:
        raise ModelError("tp", f"{tp} does not divide {num_attention_heads} attention heads")
    tokens = sequence_tokens * micro_batch
    if recomputation == "full":
        per_layer = 2 * tokens * hidden_size
        return num_layers * (-(-per_layer // tp) if sequence_parallel else per_layer)
    shared, cut = (0, 34) if sequence_parallel else (10, 24)
    attention = 5 * num_attention_heads * sequence_tokens if recomputation == "none" else 0
    return num_layers * (tokens * shared * hidden_size + -(-tokens * (cut * hidden_size + attention) // tp))


def lora_parameters(rank: int, matrices: Iterable[tuple[int, int]], num_layers: int) -> int:
    """Trained parameters of LoRA: `rank * (in + out)` per adapted matrix (in, out) of each layer."""
    _check_count("rank", rank, 2**20)
    _check_count("num_layers", num_layers, 2**20)
    per_layer = 0
    for rows, columns in matrices:
        _check_count("matrices", rows, 2**40)
        _check_count("matrices", columns, 2**40)
        per_layer += rank * (rows + columns)
    return num_layers * per_layer


def training_memory(
    parameters: int,
    *,
    precision: str = "bfloat16",
    optimizer: str = "adamw",
    activations_bytes: int = 0,
    zero_stage: int = 0,
    dp: int = 1,
    tp: int = 1,
    pp: int = 1,
    trained_parameters: int | None = None,
    base_bits_per_parameter: float | None = None,
) -> TrainingMemory:
    """Memory of one GPU of `tp * pp * dp`, the model cut evenly over `tp * pp`.

    Mixed precision (`bfloat16`, `float16`) keeps 16-bit weights and gradients and an fp32 master copy beside AdamW's
    two fp32 states: 2 + 2 + 12 bytes per parameter; `float32` 4 + 4 + 8; `bfloat16_pure` no master copy. ZeRO stage 1
    cuts the optimizer over `dp`, 2 the gradients too, 3 the weights too.

    With `trained_parameters` (`lora_parameters()`) the base is frozen: no gradients and no states for it, the adapter
    is added to it. `base_bits_per_parameter` is the frozen base's storage: 4.127 for QLoRA's NF4 with double
    quantization. `activations_bytes` is taken as given. Raises ModelError naming the argument.
    """
    for name, value in (("parameters", parameters), ("dp", dp), ("tp", tp), ("pp", pp)):
        _check_count(name, value, _LARGEST)
    if isinstance(activations_bytes, bool) or not isinstance(activations_bytes, int) or activations_bytes < 0:
        raise ModelError("activations_bytes", f"{show(activations_bytes)} is not a number of bytes")
    if precision not in _PRECISIONS:
        raise ModelError("precision", f"{show(precision)} is not one of {', '.join(_PRECISIONS)}")
    if optimizer not in _OPTIMIZERS:
        raise ModelError("optimizer", f"{show(optimizer)} is not one of {', '.join(_OPTIMIZERS)}")
    if isinstance(zero_stage, bool) or zero_stage not in (0, 1, 2, 3):
        raise ModelError("zero_stage", f"{show(zero_stage)} is not 0, 1, 2 or 3")
    weight, gradient, master = _PRECISIONS[precision]
    frozen_bytes = 0.0
    trained = parameters
    if trained_parameters is not None:
        _check_count("trained_parameters", trained_parameters, parameters)
        trained = trained_parameters
        frozen_bytes = parameters * _base_bytes(base_bits_per_parameter, weight)
    elif base_bits_per_parameter is not None:
        raise ModelError(
            "base_bits_per_parameter", "only a frozen base is stored in other bits: give trained_parameters"
        )
    ranks = tp * pp
    return TrainingMemory(
        weights_bytes=_cut(frozen_bytes + trained * weight, ranks * (dp if zero_stage == 3 else 1)),
        gradients_bytes=_cut(trained * gradient, ranks * (dp if zero_stage >= 2 else 1)),
        optimizer_bytes=_cut(trained * (master + _OPTIMIZERS[optimizer]), ranks * (dp if zero_stage >= 1 else 1)),
        activations_bytes=activations_bytes,
        trained_parameters=trained,
    )


def zero_gpus_needed(memory: TrainingMemory, gpu_bytes: int, zero_stage: int) -> int | None:
    """Data-parallel GPUs on which ZeRO cuts `memory` (of one rank, not cut over `dp` yet) to at most `gpu_bytes`.

    None where what every rank keeps whole is more than that: activations, and the states the stage does not cut.
    Raises ModelError naming the argument.
    """
    _check_count("gpu_bytes", gpu_bytes, _LARGEST)
    if isinstance(zero_stage, bool) or zero_stage not in (0, 1, 2, 3):
        raise ModelError("zero_stage", f"{show(zero_stage)} is not 0, 1, 2 or 3")
    states = (memory.optimizer_bytes, memory.gradients_bytes, memory.weights_bytes)
    cut = states[:zero_stage]
    left = gpu_bytes - (memory.total_bytes - sum(cut))
    if left < len(cut):
        return None
    ranks = max(1, -(-sum(cut) // max(1, left)))
    # Each state is cut by itself and rounded up.
    while sum(_cut(size, ranks) for size in cut) > left:
        ranks += 1
    return ranks


def _base_bytes(bits: float | None, weight_bytes: int) -> float:
    if bits is None:
        return float(weight_bytes)
    if isinstance(bits, bool) or not isinstance(bits, (int, float)) or not 0 < bits <= 64:
        raise ModelError("base_bits_per_parameter", f"{show(bits)} is not a number of bits")
    return bits / 8


def _cut(size_bytes: float, ranks: int) -> int:
    return math.ceil(size_bytes / ranks)


def _check_count(name: str, value: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ModelError(name, f"{show(value)} is not a whole number in 1..{most}")
