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
    """Some versions of it keep the text model's fields at the top."""


_MOST_DEPTH = 3

_TYPE_OF_ARCHITECTURE: Mapping[str, str] = {
    "LongcatFlashForCausalLM": "longcat_flash",
    "LongcatFlashNgramForCausalLM": "longcat_flash",
}
"""Published configs that name no `model_type` but these architectures."""

WRAPPERS: Mapping[str, Wrapper] = {
    "aria": Wrapper("aria_text"),
    "audioflamingo3": Wrapper("qwen2"),
    "aya_vision": Wrapper("cohere2"),
    "bee": Wrapper("qwen3"),
    "blip-2": Wrapper("opt"),
    "chameleon": Wrapper("llama", flat=True),
    "cohere2_vision": Wrapper("cohere2"),
    "cohere_compass": Wrapper("cohere_compass_text"),
    "cosmos3_edge": Wrapper("cosmos3_edge_text"),
    "cosmos3_omni": Wrapper("qwen3_vl_text"),
    "deepseek_ocr2": Wrapper("deepseek_ocr2_text"),
    "deepseek_vl": Wrapper("llama"),
    "deepseek_vl_hybrid": Wrapper("llama"),
    "deepseek_vl_v2": Wrapper(None, key="language_config"),
    "dots_ocr": Wrapper("qwen2", flat=True),
    "emu3": Wrapper("emu3_text_model"),
    "ernie4_5_moe_vl": Wrapper("ernie4_5_moe", flat=True),
    "ernie4_5_vl_moe": Wrapper("ernie4_5_vl_moe_text"),
    "exaone4_5": Wrapper("exaone4"),
    "fast_vlm": Wrapper("qwen2"),
    "florence2": Wrapper("bart"),
    "fun_asr_nano": Wrapper("qwen3"),
    "fuyu": Wrapper("persimmon", flat=True),
    "gemma3": Wrapper("gemma3_text"),
    "gemma3n": Wrapper("gemma3n_text"),
    "gemma4": Wrapper("gemma4_text"),
    "gemma4_unified": Wrapper("gemma4_unified_text"),
    "glm46v": Wrapper("glm4v_text"),
    "glm4v": Wrapper("glm4v_text"),
    "glm4v_moe": Wrapper("glm4v_moe_text"),
    "glm5_next": Wrapper("glm5_next_text"),
    "glm_ocr": Wrapper("glm_ocr_text"),
    "glmasr": Wrapper("llama"),
    "glmga": Wrapper("glm4v_text"),
    "got_ocr2": Wrapper("qwen2"),
    "granite4_vision": Wrapper("granitemoehybrid"),
    "granite_speech": Wrapper("granite"),
    "granite_speech_plus": Wrapper("granite"),
    "h2ovl_chat": Wrapper(None, key="llm_config"),
    "hunyuan_vl": Wrapper("hunyuan_vl_text", flat=True),
    "hyperclovax_vision_v2": Wrapper("hyperclovax"),
    "idefics2": Wrapper("mistral"),
    "idefics3": Wrapper("llama"),
    "inkling_mm_model": Wrapper("inkling_text"),
    "instructblip": Wrapper("opt"),
    "instructblipvideo": Wrapper("opt"),
    "interns1": Wrapper("qwen3"),
    "internvl": Wrapper("qwen2"),
    "internvl_chat": Wrapper(None, key="llm_config"),
    "janus": Wrapper("llama"),
    "keye": Wrapper("qwen3", flat=True),
    "kimi_k25": Wrapper("deepseek_v3"),
    "kimi_k3": Wrapper("kimi_linear", flat=True),
    "kimi_vl": Wrapper("deepseek_v3"),
    "lfm2_vl": Wrapper("lfm2"),
    "lighton_ocr": Wrapper("qwen3"),
    "llama4": Wrapper("llama4_text"),
    "llava": Wrapper("llama"),
    "llava_next": Wrapper("llama"),
    "llava_next_video": Wrapper("llama"),
    "llava_onevision": Wrapper("qwen2"),
    "minicpmv4_6": Wrapper("qwen3_5_text"),
    "minicpmv4_7": Wrapper("qwen3_5_text"),
    "minimax_m3_vl": Wrapper("minimax_m3_vl_text"),
    "mistral3": Wrapper("mistral"),
    "mllama": Wrapper("mllama_text_model"),
    "multi_modality": Wrapper("llama", key="language_config"),
    "muse_glimmer": Wrapper("muse_glimmer_text"),
    "musicflamingo": Wrapper("qwen2"),
    "nemotron_h_omni": Wrapper("nemotron_h"),
    "NemotronH_Nano_VL_V2": Wrapper("nemotron_h", key="llm_config"),
    "NVLM_D": Wrapper(None, key="llm_config"),
    "ovis": Wrapper(None, key="llm_config"),
    "ovis2": Wrapper("qwen2"),
    "ovis2_5": Wrapper("qwen3", key="llm_config"),
    "paddleocr_vl": Wrapper("paddleocr_vl_text", flat=True),
    "paligemma": Wrapper(None),
    "perception_lm": Wrapper("llama"),
    "pp_chart2table": Wrapper("qwen2"),
    "qianfan_ocr": Wrapper("qwen3"),
    "qwen2_5_omni": Wrapper("qwen2_5_omni_thinker", key="thinker_config"),
    "qwen2_5_omni_thinker": Wrapper("qwen2_5_omni_text"),
    "qwen2_5_vl": Wrapper("qwen2_5_vl_text", flat=True),
    "qwen2_audio": Wrapper("qwen2"),
    "qwen2_vl": Wrapper("qwen2_vl_text", flat=True),
    "qwen3_5": Wrapper("qwen3_5_text"),
    "qwen3_5_moe": Wrapper("qwen3_5_moe_text"),
    "qwen3_asr": Wrapper("qwen3"),
    "qwen3_omni_moe": Wrapper("qwen3_omni_moe_thinker", key="thinker_config"),
    "qwen3_omni_moe_thinker": Wrapper("qwen3_omni_moe_text"),
    "qwen3_vl": Wrapper("qwen3_vl_text"),
    "qwen3_vl_moe": Wrapper("qwen3_vl_moe_text"),
    "shieldgemma2": Wrapper("gemma3_text"),
    "smolvlm": Wrapper("llama"),
    "step3_vl": Wrapper("step3_text"),
    "step3p7": Wrapper("step3p5", flat=True),
    "t5gemma": Wrapper("t5_gemma_module", key="decoder"),
    "ultravox": Wrapper("llama"),
    "vibevoice": Wrapper("qwen2"),
    "vibevoice_asr": Wrapper("qwen2"),
    "video_llama_3": Wrapper("qwen2"),
    "video_llava": Wrapper("llama"),
    "vipllava": Wrapper("llama"),
    "voxtral": Wrapper("llama"),
    "voxtral_realtime": Wrapper("voxtral_realtime_text"),
}


def text_config_of(config: Mapping[str, object]) -> tuple[Mapping[str, object], bool, str]:
    """The object that describes the text model, whether it is a multimodal one's, and its `model_type`."""
    model_type = _model_type(config, "model_type")
    name = ""
    text, multimodal = config, False
    for _ in range(_MOST_DEPTH):
        wrapper = WRAPPERS.get(model_type)
        if wrapper is None:
            break
        inner = text.get(wrapper.key)
        if inner is None and wrapper.flat and wrapper.text_type is not None:
            sees = multimodal or any(isinstance(text.get(key), Mapping) for key in ("vision_config", "audio_config"))
            return text, sees, wrapper.text_type
        name = f"{name}{wrapper.key}"
        if inner is None:
            raise ModelError(name, f"is missing from a {model_type} config")
        if not isinstance(inner, Mapping):
            raise ModelError(name, f"{show(inner)} is not an object")
        text, multimodal = inner, True
        if text.get("model_type") is None and wrapper.text_type is not None:
            model_type = wrapper.text_type
        else:
            model_type = _model_type(text, f"{name}.model_type")
        name += "."
    return text, multimodal, model_type


def _model_type(config: Mapping[str, object], name: str) -> str:
    model_type = config.get("model_type")
    if model_type is None:
        architectures = config.get("architectures")
        for architecture in architectures if isinstance(architectures, (list, tuple)) else ():
            if isinstance(architecture, str) and architecture in _TYPE_OF_ARCHITECTURE:
                return _TYPE_OF_ARCHITECTURE[architecture]
        raise ModelError(name, "is missing")
    if not isinstance(model_type, str):
        raise ModelError(name, f"{show(model_type)} is not a name")
    return model_type
