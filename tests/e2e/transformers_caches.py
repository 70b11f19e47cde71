"""Run by the python of an environment with transformers: the bytes that its caches hold, on the meta device.

Reads a JSON object {"model_types": [...], "tokens": n} from stdin and writes one JSON object per model type to stdout:
the config in full and as published, and either the bytes cached after one forward pass or the reason why there are
none. No weight is allocated: tensors on the meta device have shapes only.
"""

import inspect
import json
import os
import sys
import warnings
from importlib import import_module
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
LAYERS = 6
WINDOW_TOKENS = 16
SHORT = {
    "num_hidden_layers": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "num_layers": LAYERS,
    "sliding_window": WINDOW_TOKENS,
    "sliding_window_size": WINDOW_TOKENS,
    "attention_chunk_size": WINDOW_TOKENS,
}
# Where the class's own defaults do not make a model that runs: the least that does.
NEEDED: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [2]},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "gemma3n_text": {"num_hidden_layers": 20},
    "glm4_moe": {"head_dim": 128},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * (LAYERS // 2)},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128},
}


def main() -> None:
    warnings.simplefilter("ignore")
    job = json.load(sys.stdin)
    transformers = import_module("transformers")
    transformers.logging.set_verbosity_error()
    for model_type in job["model_types"]:
        print(json.dumps(examined(model_type, job["tokens"], transformers)), flush=True)


def examined(model_type: str, tokens: int, transformers: Any) -> dict[str, Any]:
    """What is known of one model type: `config`, `published`, `cached_bytes`, or `failure`."""
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    found: dict[str, Any] = {"model_type": model_type}
    if model_type not in known:
        return found | {"failure": "no config class"}
    try:
        config = shortened(known[model_type])
    except Exception as error:
        return found | {"failure": f"no config: {type(error).__name__}: {error}"[:300]}
    config.dtype = "bfloat16"
    found |= {"config": plain(config.to_dict()), "published": plain(config.to_diff_dict())}
    # The full form names the type, which the published one leaves to the class.
    found["published"]["model_type"] = model_type
    try:
        return found | cached(config, tokens, transformers)
    except Exception as error:
        return found | {"failure": f"no forward pass: {type(error).__name__}: {error}"[:300]}


def shortened(config_class: Any) -> Any:
    """The class's default config with few layers and short windows, or the default where it does not take them."""
    named = inspect.signature(config_class.__init__).parameters
    names = {name for cls in config_class.__mro__ for name in getattr(cls, "__annotations__", {})} | set(named)
    short = {name: value for name, value in SHORT.items() if name in names}
    short |= NEEDED.get(config_class.model_type, {})
    text_class = getattr(config_class, "sub_configs", {}).get("text_config")
    if text_class is not None and inspect.isclass(text_class) and "AutoConfig" not in text_class.__name__:
        return config_class(text_config=shortened(text_class).to_dict())
    for attempt in (short, {name: short[name] for name in short if name == "sliding_window"}, {}):
        try:
            return config_class(**attempt)
        except Exception as error:
            last = error
    raise last


def cached(config: Any, tokens: int, transformers: Any) -> dict[str, Any]:
    """Bytes of all tensors in the cache after a forward pass over one sequence."""
    torch = import_module("torch")
    text = config.get_text_config(decoder=True) if config.is_encoder_decoder is False else config
    text.dtype = "bfloat16"
    autos = ["AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM", "AutoModel"]
    with torch.device("meta"):
        model = built([getattr(transformers, auto) for auto in autos], text, torch)
        model.eval()
        ids = torch.zeros((1, tokens), dtype=torch.long)
        given = {"input_ids": ids, "use_cache": True}
        if config.is_encoder_decoder:
            given["decoder_input_ids"] = ids
        with torch.no_grad():
            output = model(**given)
    caches = [
        value
        for name in ("past_key_values", "cache_params", "state", "rnn_state")
        if (value := getattr(output, name, None)) is not None
    ]
    if not caches:
        raise LookupError("the output has no cache")
    return {"cached_bytes": tensor_bytes(caches, torch, set()), "encoder_tokens": encoder_tokens(caches[0])}


def built(autos: list[Any], config: Any, torch: Any) -> Any:
    """The model by the first class that knows its config."""
    for auto in autos[:-1]:
        try:
            return auto.from_config(config, dtype=torch.bfloat16, attn_implementation="eager")
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
    return autos[-1].from_config(config, dtype=torch.bfloat16, attn_implementation="eager")


def tensor_bytes(value: Any, torch: Any, seen: set[int]) -> int:
    """Bytes of the tensors of two dimensions and more that are reachable from a cache, each counted once."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size() if value.dim() >= 2 else 0
    if isinstance(value, dict):
        return sum(tensor_bytes(item, torch, seen) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(tensor_bytes(item, torch, seen) for item in value)
    if type(value).__module__.startswith("transformers.") and "Config" not in type(value).__name__:
        return sum(tensor_bytes(item, torch, seen) for item in vars(value).values())
    return 0


def encoder_tokens(cache: Any) -> int:
    """Tokens of the encoder's output that cross-attention keeps; 0 without it."""
    cross = getattr(cache, "cross_attention_cache", None)
    return int(cross.layers[0].keys.shape[-2]) if cross is not None and cross.layers else 0


def plain(value: Any) -> Any:
    """A config's values as JSON has them."""
    return json.loads(json.dumps(value, default=str))


if __name__ == "__main__":
    main()
