"""Writes a model folder that weighs nothing: a real config.json and a real safetensors header over a sparse hole.

Whoever reads the configuration and the weights' header, as a memory model does, finds Llama-3.1-8B in every detail; the
16 GB of weights behind the header are a hole in the file and take no disk.
"""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

_LAYERS = 32
_HIDDEN = 4096
_INTERMEDIATE = 14336
_HEADS = 32
_KV_HEADS = 8
_HEAD = _HIDDEN // _HEADS
_VOCABULARY = 128256
_BYTES_PER_PARAMETER = 2

_CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": _HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": _INTERMEDIATE,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": _HEADS,
    "num_hidden_layers": _LAYERS,
    "num_key_value_heads": _KV_HEADS,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": _VOCABULARY,
}


def write_model_folder(folder: Path) -> Path:
    """Writes `config.json` and `model.safetensors` into `folder`, made if need be; returns it. Raises OSError.

    The safetensors file looks 16,060,522,496 bytes long and its header longer; it takes a few blocks of disk wherever
    the file system knows holes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=2) + "\n", encoding="utf-8")
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in _tensors():
        end = offset + math.prod(shape) * _BYTES_PER_PARAMETER
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format pads the header with spaces so that the data begin at a multiple of 8.
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        file.truncate(8 + len(text) + offset)
    return folder


def _tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the architecture, by its name in the published checkpoint, with its shape."""
    yield "model.embed_tokens.weight", (_VOCABULARY, _HIDDEN)
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (_HIDDEN,)
        yield f"{prefix}.mlp.down_proj.weight", (_HIDDEN, _INTERMEDIATE)
        yield f"{prefix}.mlp.gate_proj.weight", (_INTERMEDIATE, _HIDDEN)
        yield f"{prefix}.mlp.up_proj.weight", (_INTERMEDIATE, _HIDDEN)
        yield f"{prefix}.post_attention_layernorm.weight", (_HIDDEN,)
        yield f"{prefix}.self_attn.k_proj.weight", (_KV_HEADS * _HEAD, _HIDDEN)
        yield f"{prefix}.self_attn.o_proj.weight", (_HIDDEN, _HEADS * _HEAD)
        yield f"{prefix}.self_attn.q_proj.weight", (_HEADS * _HEAD, _HIDDEN)
        yield f"{prefix}.self_attn.v_proj.weight", (_KV_HEADS * _HEAD, _HIDDEN)
    yield "model.norm.weight", (_HIDDEN,)
    yield "lm_head.weight", (_VOCABULARY, _HIDDEN)
