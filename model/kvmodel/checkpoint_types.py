"""What a config says about element types: of the model, of its quantised weights, of the caches."""

from collections.abc import Mapping

from kvmodel.dtypes import model_dtype
from kvmodel.errors import ModelError, show

_MOST_NAMED = 64


def declared_dtype(*configs: Mapping[str, object]) -> str | None:
    """The dtype the first of the config objects that names one names, None where none does."""
    for config in configs:
        for key in ("dtype", "torch_dtype"):
            if config.get(key) is not None:
                return model_dtype(config[key], key)
    return None


def state_dtype_of(config: Mapping[str, object]) -> str | None:
    """The type of recurrent state where the config names one (Nemotron-H, Qwen3.5)."""
    for key in ("mamba_ssm_cache_dtype", "mamba_ssm_dtype"):
        if config.get(key) not in (None, "auto"):
            return model_dtype(config[key], key)
    return None


def quantization_of(config: Mapping[str, object]) -> str | None:
    """`quant_method` of the checkpoint's weights, in lower case; None for plain ones.

    Raises ModelError with field `quantization_config` for a section that names no method.
    """
    section = _section(config)
    if section is None:
        return None
    for key in ("quant_method", "quant_algo"):
        name = section.get(key)
        if isinstance(name, str) and name:
            return name.lower()[:_MOST_NAMED]
    inner = section.get("quantization")
    if isinstance(inner, Mapping) and isinstance(inner.get("quant_algo"), str):
        return str(inner["quant_algo"]).lower()[:_MOST_NAMED]
    # Checkpoints from before `quant_method` existed say only this (transformers reads them as bitsandbytes).
    if section.get("load_in_8bit") is True or section.get("load_in_4bit") is True:
        return "bitsandbytes"
    raise ModelError("quantization_config.quant_method", "is missing")


def declared_kv_dtype(config: Mapping[str, object]) -> str | None:
    """The cache's type that the checkpoint was quantised for, which engines take under `auto`; None for the model's.

    compressed-tensors names it in `kv_cache_scheme`, ModelOpt there or in `kv_cache_quant_algo` (vLLM 0.32
    `utils/torch_utils.py: get_kv_cache_quant_algo_string`, `layers/attention/attention.py`). A scheme engines do not
    know leaves the cache as it is, as they do.
    """
    section = _section(config)
    if section is None:
        return None
    inner = section.get("quantization")
    places = [section, inner] if isinstance(inner, Mapping) else [section]
    for place in places:
        scheme = place.get("kv_cache_scheme")
        if isinstance(scheme, Mapping):
            known = {(8, "float"): "fp8", (4, "float"): "nvfp4"}
            bits, kind = scheme.get("num_bits"), scheme.get("type")
            return known.get((bits, kind)) if isinstance(bits, int) and isinstance(kind, str) else None
        for name in (scheme, place.get("kv_cache_quant_algo")):
            if isinstance(name, str):
                return {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}.get(name.lower())
    return None


def _section(config: Mapping[str, object]) -> Mapping[str, object] | None:
    section = config.get("quantization_config")
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise ModelError("quantization_config", f"{show(section)} is not an object")
    return section
