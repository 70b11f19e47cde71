"""How many bits a weight takes in each format, scales and zeros included, and which weights a format covers."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvmodel.errors import ModelError, show
from kvmodel.ggml import GGML_TYPES

_USUAL_INPUTS = 4096
"""Inputs of a row, where a format keeps one scale per row."""


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """A storage format of weights. Embeddings, output, norms and routers stay in `other_bits` where not covered."""

    name: str
    bits: float
    """Per covered weight."""
    covers: str = "linear"
    """`all` weights, `linear` (attention, MLPs, experts) or `experts`."""
    other_bits: float = 16.0


def grouped(bits: int, group: int, *, zeros: bool = True, scale_bits: int = 16) -> float:
    """Bits per weight of integers with one scale, and one zero of the same width as the weights, per `group`."""
    return bits + (scale_bits + (bits if zeros else 0)) / group


_FORMATS = {
    format_.name: format_
    for format_ in (
        WeightFormat("bfloat16", 16, "all"),
        WeightFormat("float16", 16, "all"),
        WeightFormat("float32", 32, "all"),
        WeightFormat("fp8", 8 + 32 / _USUAL_INPUTS),
        # DeepSeek: one fp32 scale per block of 128 x 128.
        WeightFormat("fp8_block", 8 + 32 / (128 * 128)),
        WeightFormat("int8", 8 + 16 / _USUAL_INPUTS),
        WeightFormat("gptq_int4", grouped(4, 128)),
        WeightFormat("gptq_int8", grouped(8, 128)),
        WeightFormat("awq_int4", grouped(4, 128)),
        WeightFormat("int4", grouped(4, 128, zeros=False)),
        # bitsandbytes: an fp32 scale per 64; quantized once more, 8 bits per 64 and fp32 per 256 of those.
        WeightFormat("nf4", grouped(4, 64, zeros=False, scale_bits=32)),
        WeightFormat("nf4_double", 4 + 8 / 64 + 32 / (64 * 256)),
        # OCP MX: an 8-bit exponent per 32; NVFP4: an fp8 scale per 16 (and one fp32 per tensor).
        WeightFormat("mxfp4", grouped(4, 32, zeros=False, scale_bits=8)),
        WeightFormat("mxfp8", grouped(8, 32, zeros=False, scale_bits=8)),
        WeightFormat("nvfp4", grouped(4, 16, zeros=False, scale_bits=8)),
        *(WeightFormat(kind.name.lower(), kind.bits_per_element, "all") for kind in GGML_TYPES.values()),
    )
}
_ALIASES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "gptq": "gptq_int4",
    "awq": "awq_int4",
    "w4a16": "int4",
    "w8a8": "int8",
    "w8a16": "int8",
    "bnb": "nf4",
    "fp4": "nvfp4",
}


def weight_format(name: str) -> WeightFormat:
    """The format of this name. Raises ModelError (field `weights_dtype`)."""
    lowered = name.removeprefix("torch.").lower().replace("-", "_") if isinstance(name, str) else ""
    found = _FORMATS.get(_ALIASES.get(lowered, lowered))
    if found is None:
        raise ModelError("weights_dtype", f"unknown weight format {show(name)}")
    return found


def format_of_config(config: Mapping[str, object], dtype: str) -> WeightFormat:
    """What a config's `quantization_config` says the checkpoint is stored in; `dtype` where it has none.

    Raises ModelError (field `quantization_config`) for a method that is not known.
    """
    section = config.get("quantization_config")
    if section is None and isinstance(config.get("text_config"), Mapping):
        nested = config["text_config"]
        section = nested.get("quantization_config") if isinstance(nested, Mapping) else None
    if section is None:
        return weight_format(dtype)
    if not isinstance(section, Mapping):
        raise ModelError("quantization_config", f"{show(section)} is not an object")
    method = str(section.get("quant_method") or section.get("quant_algo") or "").lower()
    if method == "fp8":
        return weight_format("fp8_block" if section.get("weight_block_size") else "fp8")
    if method == "mxfp4":
        return WeightFormat("mxfp4", weight_format("mxfp4").bits, "experts")
    if method in ("gptq", "awq", "auto-round", "intel/auto-round"):
        return _integers(method, section)
    if method == "bitsandbytes" or "load_in_4bit" in section:
        if section.get("load_in_4bit"):
            return weight_format("nf4_double" if section.get("bnb_4bit_use_double_quant") else "nf4")
        return weight_format("int8")
    if method == "compressed-tensors":
        return _compressed_tensors(section)
    if "nvfp4" in method or (method == "modelopt" and "NVFP4" in str(section.get("quant_algo", ""))):
        return weight_format("nvfp4")
    if method == "modelopt" and "FP8" in str(section.get("quant_algo", "FP8")):
        return weight_format("fp8")
    raise ModelError("quantization_config.quant_method", f"weights of {show(method)} are not known")


def _integers(method: str, section: Mapping[str, object]) -> WeightFormat:
    bits, group = (
        section.get("bits", section.get("w_bit", 4)),
        section.get("group_size", section.get("q_group_size", 128)),
    )
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in (2, 3, 4, 8):
        raise ModelError("quantization_config.bits", f"{show(bits)} is not 2, 3, 4 or 8")
    if isinstance(group, bool) or not isinstance(group, int) or group == 0:
        raise ModelError("quantization_config.group_size", f"{show(group)} is not a size")
    return WeightFormat(f"{method}_int{bits}", grouped(bits, group if group > 0 else _USUAL_INPUTS))


def _compressed_tensors(section: Mapping[str, object]) -> WeightFormat:
    groups = section.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ModelError("quantization_config.config_groups", "names no format of weights")
    bits, kind, group = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
    if kind == "float" and bits == 8:
        return weight_format("fp8")
    if kind == "float" and bits == 4:
        return weight_format("mxfp4" if group == 32 else "nvfp4")
    if kind == "int" and bits in (2, 3, 4, 8) and isinstance(bits, int):
        size = group if isinstance(group, int) and group > 0 else _USUAL_INPUTS
        return WeightFormat(f"int{bits}", grouped(bits, size, zeros=weights.get("symmetric") is False))
    raise ModelError("quantization_config.config_groups", f"{show(bits)} bits of {show(kind)} are not known")
