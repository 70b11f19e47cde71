"""Models whose cache is known to the byte.

`known_models.json` holds, per model, the config fields that memory depends on and the expected bytes of one sequence
in 16 bits. The expectations are arithmetic on the model's published layer facts, and agree with the cache shapes of
Hugging Face transformers 5.23; gemma-4's width fields do not enter its cache and are only plausible.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One row of `known_models.json`."""

    id: str
    config: dict[str, Any]
    growth_bytes_per_token: int
    window_bytes_per_sequence: int
    bytes_at: dict[int, int]


def known_models() -> list[KnownModel]:
    """All rows."""
    rows = json.loads(Path(__file__).with_name("known_models.json").read_text())
    return [
        KnownModel(
            row["id"],
            row["config"],
            row["growth_bytes_per_token"],
            row["window_bytes_per_sequence"],
            {int(tokens): size for tokens, size in row["bytes_at"].items()},
        )
        for row in rows
    ]


def known_config(model_id: str) -> dict[str, Any]:
    """A fresh copy of one model's config."""
    return next(model.config for model in known_models() if model.id == model_id)


LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
"""meta-llama/Llama-3.1-8B: 131072 bytes per token in 16 bits."""
