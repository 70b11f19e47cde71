"""Multimodal configs: where the text model's own config lies inside them."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvmodel.errors import ModelError, show


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A multimodal config: its text model lies in the object under `key`, of type `text_type` where it names none."""

    text_type: str | None
    key: str = "text_config"
    flat: bool = False
    """Older versions of it keep the text model's fields at the top."""


WRAPPERS: Mapping[str, Wrapper] = {
    "aya_vision": Wrapper("cohere2"),
    "cohere2_vision": Wrapper("cohere2"),
    "deepseek_vl_v2": Wrapper(None, key="language_config"),
    "gemma3": Wrapper("gemma3_text"),
    "gemma4": Wrapper("gemma4_text"),
    "glm4v": Wrapper("glm4v_text"),
    "glm4v_moe": Wrapper("glm4v_moe_text"),
    "idefics3": Wrapper("llama"),
    "internvl": Wrapper("qwen2"),
    "internvl_chat": Wrapper(None, key="llm_config"),
    "kimi_k25": Wrapper("deepseek_v3"),
    "kimi_vl": Wrapper("deepseek_v3"),
    "llama4": Wrapper("llama4_text"),
    "llava": Wrapper("llama"),
    "llava_next": Wrapper("llama"),
    "llava_onevision": Wrapper("qwen2"),
    "mistral3": Wrapper("mistral"),
    "paligemma": Wrapper(None),
    "qwen2_5_vl": Wrapper("qwen2_5_vl_text", flat=True),
    "qwen2_audio": Wrapper("qwen2"),
    "qwen2_vl": Wrapper("qwen2_vl_text", flat=True),
    "qwen3_vl": Wrapper("qwen3_vl_text"),
    "qwen3_vl_moe": Wrapper("qwen3_vl_moe_text"),
    "vipllava": Wrapper("llama"),
    "voxtral": Wrapper("llama"),
}


def text_config_of(config: Mapping[str, object]) -> tuple[Mapping[str, object], bool, str]:
    """The object that describes the text model, whether it is a multimodal one's, and its `model_type`."""
    model_type = _model_type(config, "model_type")
    wrapper = WRAPPERS.get(model_type)
    if wrapper is None:
        return config, False, model_type
    text = config.get(wrapper.key)
    if text is None and wrapper.flat and wrapper.text_type is not None:
        return config, True, wrapper.text_type
    if text is None:
        raise ModelError(wrapper.key, f"is missing from a {model_type} config")
    if not isinstance(text, Mapping):
        raise ModelError(wrapper.key, f"{show(text)} is not an object")
    if text.get("model_type") is None and wrapper.text_type is not None:
        return text, True, wrapper.text_type
    return text, True, _model_type(text, f"{wrapper.key}.model_type")


def _model_type(config: Mapping[str, object], name: str) -> str:
    model_type = config.get("model_type")
    if model_type is None:
        raise ModelError(name, "is missing")
    if not isinstance(model_type, str):
        raise ModelError(name, f"{show(model_type)} is not a name")
    return model_type
