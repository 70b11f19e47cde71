"""The one table from `model_type` to how that family's config is read.

A row holds what published configs leave out: the defaults of the family's config class and its other spellings
(Hugging Face transformers 5.23, `models/<family>/configuration_<family>.py`; InternLM2 from its own repository).
A model whose cache is not fully modelled has no row, and is refused by its `model_type`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from kvmodel import shape as layouts
from kvmodel.errors import ModelError, show
from kvmodel.experts import (
    ExpertKeys,
    Experts,
    after_first_dense,
    each_sparse_step,
    every_layer,
    listed_or_interleaved,
)
from kvmodel.fields import Fields
from kvmodel.layers import LayerGroup
from kvmodel.shape import Shape


@dataclass(frozen=True, slots=True)
class Family:
    """How one `model_type` is read."""

    layout: Callable[[Shape], tuple[LayerGroup, ...]] = layouts.full
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Defaults of the config class that published configs are known to rely on."""
    nested_defaults: Mapping[str, object] = field(default_factory=dict)
    """Further defaults inside a multimodal config: transformers writes there only what differs from the class."""
    experts: Callable[[Shape], Experts | None] | None = None
    kv_heads: Callable[[Shape], int] | None = None
    intermediate: Callable[[Shape], int] | None = None
    tied_embeddings: bool = False
    rotary: bool = True
    rotary_factor: float = 1.0

    def shape(self, text: Mapping[str, object], nested: bool) -> Shape:
        """The config object read through this row's names and defaults."""
        for name in ("is_encoder_decoder", "add_cross_attention"):
            if text.get(name):
                raise ModelError(name, f"{show(text[name])}: cross-attention is not modelled")
        defaults = {**self.defaults, **self.nested_defaults} if nested else self.defaults
        return Shape(
            Fields(text, aliases=self.aliases, defaults=defaults),
            default_kv_heads=self.kv_heads,
            default_intermediate=self.intermediate,
            rotary=self.rotary,
            default_rotary_factor=self.rotary_factor,
        )


def _four_times_hidden(shape: Shape) -> int:
    return 4 * shape.hidden_size


def _mpt_intermediate(shape: Shape) -> int:
    return shape.fields.count("expansion_ratio") * shape.hidden_size


def _multi_query(shape: Shape) -> int:
    return 1 if shape.fields.flag("multi_query", True) else shape.heads


def _falcon_kv_heads(shape: Shape) -> int:
    """`num_kv_heads` counts only in the new decoder; the old one has one head or all."""
    if not shape.fields.flag("new_decoder_architecture", False):
        return _multi_query(shape)
    given = shape.fields.optional_count("num_kv_heads") or shape.heads
    if shape.heads % given:
        raise shape.fields.refuse("num_kv_heads", f"does not divide {shape.heads} attention heads")
    return given


def _dbrx_kv_heads(shape: Shape) -> int:
    attention = Fields(shape.fields.section("attn_config"), aliases={}, defaults={})
    given = attention.optional_count("kv_n_heads") or shape.fields.count("num_key_value_heads")
    if shape.heads % given:
        raise ModelError("attn_config.kv_n_heads", f"{given} does not divide {shape.heads} attention heads")
    return given


def _dbrx_intermediate(shape: Shape) -> int:
    return Fields(shape.fields.section("ffn_config"), aliases={}, defaults={}).count("ffn_hidden_size")


def _nas_intermediate(shape: Shape) -> int:
    """The widest MLP of `block_configs`: DeciLM rounds `2 / 3 * ffn_mult * hidden_size` up to 256."""
    blocks = shape.fields.items("block_configs") or []
    widths = []
    for block in blocks:
        ffn = block.get("ffn") if isinstance(block, Mapping) else None
        ratio = ffn.get("ffn_mult") if isinstance(ffn, Mapping) else None
        if ratio is None:
            continue
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1000:
            raise ModelError("block_configs.ffn.ffn_mult", f"{show(ratio)} is not a ratio")
        widths.append(-(-int(2 * ratio * shape.hidden_size / 3) // 256) * 256)
    if not widths:
        raise ModelError("block_configs.ffn.ffn_mult", "is missing")
    return max(widths)


_GPT2_NAMES: Mapping[str, tuple[str, ...]] = {
    "num_hidden_layers": ("n_layer", "num_hidden_layers"),
    "num_attention_heads": ("n_head", "num_attention_heads"),
    "hidden_size": ("n_embd", "hidden_size"),
    "intermediate_size": ("n_inner",),
    "max_position_embeddings": ("n_positions", "max_position_embeddings"),
}
_MPT_NAMES: Mapping[str, tuple[str, ...]] = {
    "num_hidden_layers": ("n_layers", "num_hidden_layers"),
    "num_attention_heads": ("n_heads", "num_attention_heads"),
    "hidden_size": ("d_model", "hidden_size"),
    "max_position_embeddings": ("max_seq_len", "max_position_embeddings"),
}
_LLAMA_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
_MISTRAL_7B = {**_LLAMA_7B, "intermediate_size": 14336, "max_position_embeddings": 131072}
_QWEN_WINDOW = {"sliding_window": 4096, "max_window_layers": 28}

_LLAMA = Family(nested_defaults=_LLAMA_7B)
_MISTRAL = Family(
    layouts.one_window,
    defaults={"sliding_window": 4096, "num_key_value_heads": 8},
    nested_defaults=_MISTRAL_7B,
)
_QWEN2 = Family(layouts.qwen_window, defaults={"num_key_value_heads": 32, **_QWEN_WINDOW})
_QWEN3 = Family(layouts.qwen_window, defaults={"num_key_value_heads": 32, "head_dim": 128, **_QWEN_WINDOW})
_QWEN2_VL = Family(
    layouts.qwen_window,
    defaults={"num_key_value_heads": 8, "sliding_window": 4096, "max_window_layers": 80},
)
_LOCAL_EXPERTS = ExpertKeys("num_local_experts", "num_experts_per_tok", "intermediate_size", every_layer)
_QWEN_EXPERTS = ExpertKeys("num_experts", "num_experts_per_tok", "moe_intermediate_size", each_sparse_step)
_DEEPSEEK_EXPERTS = ExpertKeys("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", after_first_dense)
_GPT2 = Family(aliases=_GPT2_NAMES, intermediate=_four_times_hidden, tied_embeddings=True, rotary=False)
_GEMMA2 = Family(
    layouts.window_except_each_nth,
    defaults={"head_dim": 256, "num_key_value_heads": 4, "sliding_window": 4096, "sliding_window_pattern": 2},
    tied_embeddings=True,
)
_GEMMA3 = replace(
    _GEMMA2,
    defaults={**_GEMMA2.defaults, "sliding_window_pattern": 6},
    nested_defaults={
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "max_position_embeddings": 131072,
    },
)
_GLM4 = Family(defaults={"head_dim": 128, "num_key_value_heads": 2}, rotary_factor=0.5)
_GLM4_MOE = Family(
    defaults={"num_key_value_heads": 8, "first_k_dense_replace": 1},
    experts=_DEEPSEEK_EXPERTS,
    rotary_factor=0.5,
)
_DEEPSEEK_V3 = Family(
    layouts.latent,
    defaults={"first_k_dense_replace": 3, "moe_layer_freq": 1},
    experts=_DEEPSEEK_EXPERTS,
)

FAMILIES: Mapping[str, Family] = {
    "apertus": _LLAMA,
    "arcee": _LLAMA,
    "bloom": Family(
        aliases={
            "num_hidden_layers": ("n_layer", "num_hidden_layers"),
            "num_attention_heads": ("n_head", "num_attention_heads"),
            "hidden_size": ("n_embed", "hidden_size"),
        },
        kv_heads=lambda shape: shape.heads,
        intermediate=_four_times_hidden,
        tied_embeddings=True,
        rotary=False,
    ),
    "codegen": replace(_GPT2, rotary=True, tied_embeddings=False),
    "cohere": Family(tied_embeddings=True),
    "cohere2": Family(
        layouts.window_except_each_nth,
        defaults={"sliding_window": 4096, "sliding_window_pattern": 4},
        tied_embeddings=True,
    ),
    "dbrx": Family(
        aliases=_MPT_NAMES,
        kv_heads=_dbrx_kv_heads,
        intermediate=_dbrx_intermediate,
        experts=ExpertKeys("moe_num_experts", "moe_top_k", "ffn_hidden_size", every_layer, section="ffn_config"),
    ),
    "deepseek_v2": replace(_DEEPSEEK_V3, defaults={"first_k_dense_replace": 0, "moe_layer_freq": 1}),
    "deepseek_v3": _DEEPSEEK_V3,
    "exaone4": Family(
        layouts.window_except_each_nth,
        defaults={"num_key_value_heads": 32, "sliding_window": 4096, "sliding_window_pattern": 4},
    ),
    "falcon": Family(
        aliases={"hidden_size": ("n_embed", "hidden_size"), "intermediate_size": ("ffn_hidden_size",)},
        defaults={"max_position_embeddings": 2048},
        kv_heads=_falcon_kv_heads,
        intermediate=_four_times_hidden,
        tied_embeddings=True,
    ),
    "gemma": Family(defaults={"head_dim": 256, "num_key_value_heads": 16}, tied_embeddings=True),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "gemma4_text": Family(
        layouts.gemma4,
        defaults={
            "head_dim": 256,
            "global_head_dim": 512,
            "num_key_value_heads": 4,
            "num_kv_shared_layers": 0,
            "sliding_window": 512,
        },
        experts=ExpertKeys("num_experts", "top_k_experts", "moe_intermediate_size", every_layer),
        tied_embeddings=True,
    ),
    "glm": _GLM4,
    "glm4": _GLM4,
    "glm4_moe": _GLM4_MOE,
    "glm4v_moe_text": _GLM4_MOE,
    "glm4v_text": Family(defaults={"num_key_value_heads": 2}, rotary_factor=0.5),
    "gpt2": replace(_GPT2, kv_heads=lambda shape: shape.heads),
    "gpt_bigcode": replace(_GPT2, kv_heads=_multi_query),
    "gpt_neox": Family(aliases={"partial_rotary_factor": ("rotary_pct",)}, rotary_factor=0.25),
    "gpt_oss": Family(
        layouts.window_except_each_nth,
        defaults={"num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128, "sliding_window_pattern": 2},
        experts=_LOCAL_EXPERTS,
    ),
    "gptj": replace(_GPT2, rotary=True, tied_embeddings=False, kv_heads=lambda shape: shape.heads),
    "granite": _LLAMA,
    "granitemoe": Family(experts=_LOCAL_EXPERTS),
    "helium": Family(defaults={"num_key_value_heads": 20, "head_dim": 128}),
    "hunyuan_v1_dense": _LLAMA,
    "internlm2": Family(),
    "internlm3": Family(defaults={"num_key_value_heads": 2, "head_dim": 128}),
    "kimi_k2": _DEEPSEEK_V3,
    "llama": _LLAMA,
    "llama4_text": Family(
        layouts.llama4,
        aliases={"intermediate_size": ("intermediate_size_mlp",), "expert_size": ("intermediate_size",)},
        defaults={"num_key_value_heads": 8, "attention_chunk_size": 8192, "no_rope_layer_interval": 4},
        experts=ExpertKeys("num_local_experts", "num_experts_per_tok", "expert_size", listed_or_interleaved),
    ),
    "minicpm3": Family(layouts.latent, tied_embeddings=True),
    "ministral3": Family(layouts.one_window, defaults={"num_key_value_heads": 8, "head_dim": 128}),
    "mistral": _MISTRAL,
    "mixtral": Family(layouts.one_window, defaults={"num_key_value_heads": 8}, experts=_LOCAL_EXPERTS),
    "mpt": Family(
        aliases=_MPT_NAMES,
        defaults={"expansion_ratio": 4},
        kv_heads=lambda shape: shape.heads,
        intermediate=_mpt_intermediate,
        tied_embeddings=True,
        rotary=False,
    ),
    "nemotron": Family(rotary_factor=0.5),
    "nemotron-nas": Family(layouts.nemotron_nas, intermediate=_nas_intermediate),
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": Family(
        layouts.window_except_each_nth,
        defaults={"sliding_window": 4096, "sliding_window_pattern": 4},
    ),
    "olmoe": Family(experts=ExpertKeys("num_experts", "num_experts_per_tok", "intermediate_size", every_layer)),
    "opt": Family(aliases={"intermediate_size": ("ffn_dim",)}, tied_embeddings=True, rotary=False),
    "persimmon": Family(rotary_factor=0.5),
    "phi": Family(rotary_factor=0.5),
    "phi3": Family(layouts.one_window),
    "phimoe": Family(layouts.one_window, defaults={"num_key_value_heads": 8}, experts=_LOCAL_EXPERTS),
    "qwen2": _QWEN2,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen2_moe": Family(
        layouts.qwen2_moe_window,
        defaults={"num_key_value_heads": 16, **_QWEN_WINDOW},
        experts=_QWEN_EXPERTS,
    ),
    "qwen2_vl_text": _QWEN2_VL,
    "qwen3": _QWEN3,
    "qwen3_moe": Family(
        layouts.gated_window,
        defaults={"num_key_value_heads": 4, "sliding_window": 4096},
        experts=_QWEN_EXPERTS,
    ),
    "qwen3_vl_moe_text": Family(defaults={"num_key_value_heads": 16}, experts=_QWEN_EXPERTS),
    "qwen3_vl_text": Family(defaults={"num_key_value_heads": 32, "head_dim": 128}),
    "seed_oss": Family(defaults={"num_key_value_heads": 8, "head_dim": 128}),
    "smollm3": Family(
        layouts.smollm3_window,
        defaults={"num_key_value_heads": 4, "no_rope_layer_interval": 4},
        tied_embeddings=True,
    ),
    "stablelm": Family(defaults={"num_key_value_heads": 32}, rotary_factor=0.25),
    "starcoder2": Family(layouts.one_window, defaults={"num_key_value_heads": 2}, tied_embeddings=True),
    "step3p7": Family(
        layouts.step3,
        experts=ExpertKeys("num_experts", "num_experts_per_tok", "moe_intermediate_size", after_first_dense),
        defaults={"first_k_dense_replace": 3},
    ),
}

NOT_MODELLED: Mapping[str, str] = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"), "recurrent state"),
    **dict.fromkeys(
        (
            "bamba",
            "falcon_h1",
            "granitemoehybrid",
            "jamba",
            "kimi_linear",
            "lfm2",
            "minimax",
            "nemotron_h",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_next",
            "recurrent_gemma",
            "zamba2",
        ),
        "attention beside recurrent state",
    ),
    **dict.fromkeys(("bart", "mllama", "mt5", "t5", "whisper"), "cross-attention"),
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa", "minimax_m3"), "an index cache beside the KV cache"),
    "deepseek_v4": "a compressed cache",
    **dict.fromkeys(("gemma3n", "gemma3n_text"), "a cache shared between layers"),
}
"""Known architectures whose cache is not modelled, and what is missing."""


def family_of(model_type: str) -> Family:
    """The row of a `model_type`. Raises ModelError with field `model_type` where there is none."""
    family = FAMILIES.get(model_type)
    if family is None:
        missing = NOT_MODELLED.get(model_type)
        why = "is not a known architecture" if missing is None else f"is not modelled: it has {missing}"
        raise ModelError("model_type", f"{show(model_type)} {why}")
    return family
