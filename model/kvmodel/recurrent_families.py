"""Families with recurrent layers, alone or beside attention."""

from collections.abc import Mapping
from dataclasses import replace

from kvmodel import hybrids
from kvmodel.attention_families import COUNTED_EXPERTS, DEEPSEEK_EXPERTS, LOCAL_EXPERTS, QWEN_EXPERTS
from kvmodel.errors import ModelError
from kvmodel.experts import ExpertKeys, each_period
from kvmodel.family import Family
from kvmodel.shape import Shape

_MAMBA_NAMES: Mapping[str, tuple[str, ...]] = {
    "state_size": ("mamba_d_state", "state_size"),
    "conv_kernel": ("mamba_d_conv", "conv_kernel"),
    "expand": ("mamba_expand", "expand"),
}
_MAMBA2_NAMES: Mapping[str, tuple[str, ...]] = {
    **_MAMBA_NAMES,
    "state_heads": ("mamba_n_heads", "mamba_num_heads"),
    "state_head_dim": ("mamba_d_head", "mamba_head_dim"),
    "state_groups": ("mamba_n_groups", "n_groups"),
    "layer_types": ("layer_types", "layers_block_type"),
}
_NEMOTRON_NAMES: Mapping[str, tuple[str, ...]] = {
    **_MAMBA2_NAMES,
    "state_size": ("ssm_state_size", "mamba_d_state"),
    "head_dim": ("head_dim", "attention_head_dim"),
}
_ZAMBA_NAMES: Mapping[str, tuple[str, ...]] = {
    **_MAMBA_NAMES,
    "head_dim": ("attention_head_dim",),
    "layer_types": ("layers_block_type",),
}
_GDN_DEFAULTS = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "full_attention_interval": 4,
}


def _no_mlp(_shape: Shape) -> int:
    return 0


def _twice_hidden_per_head(shape: Shape) -> int:
    if (2 * shape.hidden_size) % shape.heads:
        raise ModelError("hidden_size", f"twice {shape.hidden_size} is not divided by {shape.heads} heads")
    return 2 * shape.hidden_size // shape.heads


def _nemotron_layers(shape: Shape) -> int:
    return len(hybrids.nemotron_h_kinds(shape))


def _nemotron_sparse(shape: Shape) -> int:
    return hybrids.nemotron_h_kinds(shape).count("moe")


def _moe_only_width(shape: Shape) -> int:
    return shape.fields.optional_count("shared_expert_intermediate_size") or shape.fields.count("moe_intermediate_size")


def _rwkv_width(shape: Shape) -> int:
    return 4 * shape.hidden_size


def _xlstm_width(shape: Shape) -> int:
    factor = shape.fields.number("ffn_proj_factor") or 2.667
    return int((factor * shape.hidden_size + 63) // 64) * 64


def _lfm2_experts(shape: Shape) -> int:
    return shape.layers - (shape.fields.optional_count("num_dense_layers", least=0) or 0)


_MAMBA = Family(
    hybrids.mamba1,
    aliases={**_MAMBA_NAMES, "mamba_inner": ("intermediate_size",)},
    intermediate=hybrids.mamba1_inner,
    attention_free=True,
    rotary=False,
)
_GDN = Family(hybrids.gated_delta, defaults=_GDN_DEFAULTS, rotary_factor=0.25)
_GDN_MOE = replace(_GDN, experts=QWEN_EXPERTS, intermediate=_moe_only_width)
_KIMI = Family(
    hybrids.kimi_linear,
    aliases={
        "max_position_embeddings": ("model_max_length", "max_position_embeddings"),
        "num_experts_per_tok": ("num_experts_per_token", "num_experts_per_tok"),
    },
    defaults={
        "linear_head_dim": 128,
        "linear_num_heads": 32,
        "linear_conv_kernel_dim": 4,
        "first_k_dense_replace": 1,
    },
    experts=COUNTED_EXPERTS,
)
_LIGHTNING = Family(hybrids.lightning, class_name="minimax", experts=LOCAL_EXPERTS)
_BAILING = Family(hybrids.bailing_linear, experts=COUNTED_EXPERTS)
_LFM2 = Family(
    hybrids.short_conv,
    aliases={"intermediate_size": ("block_ff_dim", "intermediate_size")},
    defaults={"conv_L_cache": 3},
)
_RWKV = Family(
    hybrids.rwkv_matrix,
    aliases={"rwkv_head_dim": ("head_size", "head_dim")},
    defaults={"rwkv_head_dim": 64},
    intermediate=_rwkv_width,
    attention_free=True,
    rotary=False,
)
_ZAMBA = Family(
    hybrids.zamba,
    aliases=_ZAMBA_NAMES,
    head_dim=_twice_hidden_per_head,
    defaults={"attn_layer_period": 6, "attn_layer_offset": 4},
)
_NEMOTRON_H = Family(
    hybrids.nemotron_h,
    aliases=_NEMOTRON_NAMES,
    defaults={"head_dim": 128},
    layers=_nemotron_layers,
    class_name="nemotron_h",
    experts=ExpertKeys("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", _nemotron_sparse),
    rotary=False,
)

RECURRENT_FAMILIES: Mapping[str, Family] = {
    "bailing_hybrid": _BAILING,
    "bailing_moe_linear": _BAILING,
    "bamba": Family(hybrids.bamba, aliases=_MAMBA2_NAMES, rotary_factor=0.5),
    "falcon_h1": Family(hybrids.falcon_h1, aliases={**_MAMBA2_NAMES, "mamba_inner": ("mamba_d_ssm",)}),
    "falcon_mamba": _MAMBA,
    "glm5_next_text": Family(
        hybrids.glm5_next, defaults={"index_head_dim": 128, "index_kpool": 16}, experts=DEEPSEEK_EXPERTS
    ),
    "granitemoehybrid": Family(hybrids.granite_hybrid, aliases=_MAMBA2_NAMES, experts=LOCAL_EXPERTS),
    "inkling_text": Family(
        hybrids.inkling,
        aliases={
            "sliding_window": ("sliding_window_size", "sliding_window"),
            "intermediate_size": ("dense_intermediate_size", "intermediate_size"),
            "conv_kernel_size": ("conv_kernel_size", "sconv_kernel_size"),
            "max_position_embeddings": ("max_position_embeddings", "model_max_length"),
        },
        defaults={"sliding_window": 512, "conv_kernel_size": 4},
        experts=DEEPSEEK_EXPERTS,
        rotary=False,
    ),
    "jamba": Family(
        hybrids.jamba,
        aliases={**_MAMBA_NAMES, "layer_types": ("layer_types", "layers_block_type")},
        experts=ExpertKeys("num_experts", "num_experts_per_tok", "intermediate_size", each_period),
        rotary=False,
    ),
    "kimi_linear": _KIMI,
    "lfm2": _LFM2,
    "lfm2_moe": replace(
        _LFM2,
        experts=ExpertKeys("num_experts", "num_experts_per_tok", "moe_intermediate_size", _lfm2_experts),
    ),
    "mamba": _MAMBA,
    "mamba2": Family(
        hybrids.mamba2,
        aliases={
            "state_heads": ("num_heads",),
            "state_head_dim": ("head_dim",),
            "state_groups": ("n_groups",),
        },
        intermediate=_no_mlp,
        attention_free=True,
        rotary=False,
    ),
    "minimax": _LIGHTNING,
    "minimax_m1": _LIGHTNING,
    "minimax_text_01": _LIGHTNING,
    "nemotron_h": _NEMOTRON_H,
    "olmo_hybrid": Family(hybrids.gated_delta, defaults={"full_attention_interval": 4}),
    "phi4flash": Family(
        hybrids.phi4_flash,
        aliases=_MAMBA_NAMES,
        defaults={"mb_per_layer": 2, "state_size": 16, "conv_kernel": 4, "expand": 2},
        tied_embeddings=True,
        rotary=False,
    ),
    "qwen3_5_moe_text": _GDN_MOE,
    "qwen3_5_text": _GDN,
    "qwen3_next": replace(_GDN, experts=QWEN_EXPERTS),
    "recurrent_gemma": Family(
        hybrids.recurrent_gemma,
        defaults={
            "block_types": ("recurrent", "recurrent", "attention"),
            "attention_window_size": 2048,
            "conv1d_width": 4,
        },
        rotary_factor=0.5,
    ),
    "rwkv": Family(
        hybrids.rwkv4,
        aliases={"max_position_embeddings": ("context_length", "max_position_embeddings")},
        intermediate=_rwkv_width,
        attention_free=True,
        rotary=False,
    ),
    **dict.fromkeys(("rwkv5", "rwkv6", "rwkv7"), _RWKV),
    "xlstm": Family(
        hybrids.xlstm,
        aliases={
            "state_heads": ("num_heads",),
            "hidden_size": ("hidden_size", "embedding_dim"),
            "num_hidden_layers": ("num_hidden_layers", "num_blocks"),
        },
        intermediate=_xlstm_width,
        attention_free=True,
        rotary=False,
    ),
    "zamba": _ZAMBA,
    "zamba2": replace(
        _ZAMBA,
        layout=hybrids.zamba2,
        aliases={
            **_ZAMBA_NAMES,
            "state_heads": ("n_mamba_heads",),
            "state_head_dim": ("mamba_headdim",),
            "state_groups": ("mamba_ngroups",),
        },
    ),
}
