"""Configs of the models that the vectors name: as published, written out in full, or put together from listed facts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.model.known import known_models

from kvmodel import Architecture, ModelError, read_architecture

Config = Mapping[str, Any]

_MODEL_TYPES = {
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "Gemma3ForCausalLM": "gemma3_text",
    "Gemma3ForConditionalGeneration": "gemma3_text",
    "Gemma4ForConditionalGeneration": "gemma4_text",
    "Gemma4UnifiedForConditionalGeneration": "gemma4_unified_text",
    "GemmaForCausalLM": "gemma",
    "GptOssForCausalLM": "gpt_oss",
    "GraniteForCausalLM": "granite",
    "KimiLinearForCausalLM": "kimi_linear",
    "Llama4ForConditionalGeneration": "llama4_text",
    "LlamaForCausalLM": "llama",
    "Mistral3ForConditionalGeneration": "ministral3",
    "MixtralForCausalLM": "mixtral",
    "NemotronForCausalLM": "nemotron",
    "OPTForCausalLM": "opt",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2VLForConditionalGeneration": "qwen2_vl_text",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "Qwen3NextForCausalLM": "qwen3_next",
    "Qwen3_5ForConditionalGeneration": "qwen3_5_text",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5_moe_text",
}
"""The text model's type by the class name that a list of facts gives."""
_NOT_CONFIG = frozenset(
    {
        "architecture_of",
        "attention_class",
        "full_attention_layers",
        "hf_architecture",
        "kv_shape_confirmed_by",
        "linear_kind",
        "linear_layers",
        "model_id",
        "moe",
        "mtp_layers",
        "notes",
        "sliding_kind",
        "sliding_layers",
        "sources",
        "total_params_b",
        "vision",
    }
)


@dataclass(frozen=True, slots=True)
class Library:
    """Where configs are looked up, best source first."""

    vectors: Path
    facts: Mapping[str, Config]

    def config(self, model_id: str) -> Config | None:
        """The config of a model; None where nothing tells its shape."""
        facts = self.facts.get(model_id)
        names = [model_id, *([facts["architecture_of"]] if facts and "architecture_of" in facts else [])]
        for name in names:
            for folder in ("published_configs", "configs"):
                found = self.file(folder, name)
                if found is not None:
                    return found
        if model_id in _tests_configs():
            return _tests_configs()[model_id]
        return None if facts is None else config_of_facts(facts)

    def file(self, folder: str, model_id: str) -> Config | None:
        """The config in one folder of the vectors."""
        path = self.vectors / folder / f"{model_id.replace('/', '--')}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def architecture(self, model_id: str) -> Architecture | None:
        """`config`, read; None too where the facts are not enough for the model."""
        config = self.config(model_id)
        try:
            return None if config is None else read_architecture(config)
        except ModelError:
            return None


def read_library(vectors: Path) -> Library:
    return Library(vectors, json.loads((vectors / "engine_log_configs.json").read_text()))


def _tests_configs() -> dict[str, dict[str, Any]]:
    return {model.id: model.config for model in known_models()}


def config_of_facts(facts: Config) -> Config | None:
    """A config.json put together from listed facts; None where they name no class of model.

    Where only the number of full layers is listed, they are spread evenly, the last of each period being full.
    """
    kind = _MODEL_TYPES.get(facts.get("hf_architecture", ""))
    if kind is None:
        return None
    if kind == "ministral3" and facts.get("kv_lora_rank"):
        kind = "mistral4"
    config = {key: value for key, value in facts.items() if key not in _NOT_CONFIG and value is not None}
    config["model_type"] = kind
    config["architectures"] = [facts["hf_architecture"]]
    for size in ("intermediate_size", "vocab_size"):
        # Neither enters the cache; some lists leave them out.
        config.setdefault(size, facts["hidden_size"])
    if "kv_lora_rank" in config:
        # Of MLA's heads only the latent is cached.
        config.setdefault("qk_nope_head_dim", 128)
        config.setdefault("v_head_dim", 128)
    if "mtp_layers" in facts:
        config["mtp_num_hidden_layers"] = facts["mtp_layers"]
    if kind.startswith("qwen3_5"):
        # Every published config of the family names it, the lists leave it out.
        config["mamba_ssm_dtype"] = "float32"
    if kind == "opt":
        config["ffn_dim"] = config.get("intermediate_size")
    full = facts.get("full_attention_layers")
    if full:
        other = "linear_attention" if facts.get("linear_layers") else "sliding_attention"
        other = "chunked_attention" if kind == "llama4_text" else other
        config["layer_types"] = spread_layers(full, facts["num_hidden_layers"], other)
    return config


def spread_layers(full: int, layers: int, other: str) -> list[str]:
    """`full` layers of full attention spread evenly over `layers`, the rest being of the `other` kind."""
    return [
        "full_attention" if (index + 1) * full // layers > index * full // layers else other for index in range(layers)
    ]
