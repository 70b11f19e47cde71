"""The one table from `model_type` to what a layer of it is made of."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvmodel import parameter_mixers as mixers
from kvmodel import parameter_mlps as mlps
from kvmodel.parameter_mlps import Block


@dataclass(frozen=True, slots=True)
class Family:
    """How one model type differs from a plain decoder. A bias may be given by the config's flag of that name."""

    mixer: Block
    feed_forward: Block
    norms: int = 2
    """Norms of hidden width per layer."""
    norm_size: int = 1
    """Numbers per channel of a norm: 2 with a bias."""
    final_norms: int = 1
    positions: tuple[str, int] | None = None
    """The learned position table's field and the rows beyond it."""
    embedding_norm: bool = False
    output_bias: bool | str = False
    tied: bool = False


_FLAGGED = mixers.attention("attention_bias", "attention_bias")
_QK_HEAD = mixers.attention("attention_bias", "attention_bias", qk_norm="head")
_ALL_BIAS = mixers.attention(qkv_bias=True, out_bias=True)
_OLD_MLP = mlps.mlp(gated=False, bias=True)
FAMILIES: Mapping[str, Family] = {
    "arcee": Family(_FLAGGED, mlps.mlp(gated=False, bias="mlp_bias")),
    "bamba": Family(mixers.mamba2_or_attention, mlps.mlp(bias="mlp_bias")),
    "bloom": Family(_ALL_BIAS, _OLD_MLP, norm_size=2, embedding_norm=True, tied=True),
    "cohere": Family(
        mixers.attention("attention_bias", "attention_bias", qk_norm="if:full"), mlps.mlp(), norms=1, tied=True
    ),
    "cohere2": Family(_FLAGGED, mlps.mlp(), norms=1, tied=True),
    "cwm": Family(_FLAGGED, mlps.mlp(bias="mlp_bias")),
    "dbrx": Family(mixers.dbrx_attention, mlps.dbrx_experts),
    "deepseek_v2": Family(mixers.latent, mlps.deepseek_experts),
    "deepseek_v3": Family(mixers.latent, mlps.deepseek_experts),
    "deepseek_v32": Family(mixers.latent, mlps.deepseek_experts),
    "dots1": Family(_QK_HEAD, mlps.deepseek_experts),
    "ernie4_5": Family(mixers.attention("use_bias", "use_bias"), mlps.mlp(bias="use_bias"), tied=True),
    "exaone4": Family(mixers.attention(qk_norm="head"), mlps.mlp()),
    "falcon": Family(mixers.falcon_attention, mlps.mlp(gated=False, bias="bias"), norms=0, norm_size=2, tied=True),
    "falcon_h1": Family(mixers.falcon_h1, mlps.mlp(bias="mlp_bias")),
    "falcon_mamba": Family(mixers.mamba1, mlps.no_mlp, norms=1),
    "gemma": Family(_FLAGGED, mlps.mlp(), tied=True),
    "gemma2": Family(_FLAGGED, mlps.mlp(), norms=4, tied=True),
    "gemma3_text": Family(_QK_HEAD, mlps.mlp(), norms=4, tied=True),
    "gemma4_text": Family(mixers.gemma4, mlps.mlp(), norms=4, tied=True),
    "glm": Family(mixers.attention("attention_bias"), mlps.mlp()),
    "glm4": Family(mixers.attention("attention_bias"), mlps.mlp(), norms=4),
    "glm4_moe": Family(mixers.attention("attention_bias", qk_norm="if:head"), mlps.deepseek_experts),
    "glm_moe_dsa": Family(mixers.latent, mlps.deepseek_experts),
    "gpt2": Family(_ALL_BIAS, _OLD_MLP, norm_size=2, positions=("n_positions", 0), tied=True),
    "gpt_bigcode": Family(mixers.bigcode_attention, _OLD_MLP, norm_size=2, positions=("n_positions", 0), tied=True),
    "gpt_neox": Family(mixers.attention("attention_bias!", "attention_bias!"), _OLD_MLP, norm_size=2),
    "gpt_oss": Family(
        mixers.attention(qkv_bias=True, out_bias=True, sinks=True),
        mlps.experts(router_bias=True, expert_bias=True),
    ),
    "gptj": Family(mixers.attention(), _OLD_MLP, norms=1, norm_size=2, output_bias=True),
    "granite": Family(_FLAGGED, mlps.mlp(bias="mlp_bias")),
    "granitemoe": Family(_FLAGGED, mlps.experts()),
    "granitemoehybrid": Family(mixers.mamba2_or_attention, mlps.granite_hybrid_experts),
    "helium": Family(_FLAGGED, mlps.mlp(bias="mlp_bias")),
    "hunyuan_v1_dense": Family(_QK_HEAD, mlps.mlp()),
    "jamba": Family(mixers.jamba, mlps.jamba_experts),
    "kimi_k2": Family(mixers.latent, mlps.deepseek_experts),
    "lfm2": Family(mixers.lfm2, mlps.lfm2_mlp, tied=True),
    "llama": Family(_FLAGGED, mlps.mlp(bias="mlp_bias")),
    "llama4_text": Family(_FLAGGED, mlps.llama4_experts),
    "mamba": Family(mixers.mamba1, mlps.no_mlp, norms=1, tied=True),
    "minicpm3": Family(mixers.latent, mlps.mlp(), tied=True),
    "minimax": Family(mixers.minimax, mlps.experts()),
    "minimax_m2": Family(mixers.attention(qk_norm="full"), mlps.experts()),
    "ministral": Family(mixers.attention(), mlps.mlp()),
    "ministral3": Family(mixers.attention(), mlps.mlp()),
    "mistral": Family(mixers.attention(), mlps.mlp()),
    "mixtral": Family(mixers.attention(), mlps.experts()),
    "mpt": Family(mixers.attention(), mlps.mlp(gated=False), tied=True),
    "nemotron": Family(_FLAGGED, mlps.mlp(gated=False, bias="mlp_bias"), norm_size=2),
    "nemotron_h": Family(mixers.nemotron_h, mlps.no_mlp, norms=1),
    "olmo": Family(_FLAGGED, mlps.mlp(), norms=0, final_norms=0),
    "olmo2": Family(mixers.attention("attention_bias", "attention_bias", qk_norm="full"), mlps.mlp()),
    "olmo3": Family(mixers.attention("attention_bias", "attention_bias", qk_norm="full"), mlps.mlp()),
    "olmoe": Family(mixers.attention("attention_bias", "attention_bias", qk_norm="full"), mlps.experts()),
    "opt": Family(_ALL_BIAS, _OLD_MLP, norm_size=2, positions=("max_position_embeddings", 2), tied=True),
    "phi": Family(_ALL_BIAS, _OLD_MLP, norms=1, norm_size=2, output_bias=True),
    "phi3": Family(mixers.attention(), mlps.mlp()),
    "phimoe": Family(_FLAGGED, mlps.experts(), norm_size=2, output_bias="lm_head_bias"),
    "qwen2": Family(mixers.attention(qkv_bias=True), mlps.mlp()),
    "qwen2_moe": Family(mixers.attention(qkv_bias=True), mlps.qwen_experts),
    "qwen3": Family(_QK_HEAD, mlps.mlp()),
    "qwen3_5_moe_text": Family(mixers.qwen_hybrid, mlps.qwen_experts),
    "qwen3_5_text": Family(mixers.qwen_hybrid, mlps.mlp()),
    "qwen3_moe": Family(_QK_HEAD, mlps.qwen_experts),
    "qwen3_next": Family(mixers.qwen_hybrid, mlps.qwen_experts),
    "seed_oss": Family(mixers.attention("attention_bias", "attention_out_bias"), mlps.mlp(bias="mlp_bias")),
    "smollm3": Family(_FLAGGED, mlps.mlp(bias="mlp_bias"), tied=True),
    "stablelm": Family(mixers.attention("use_qkv_bias"), mlps.mlp(), norm_size=2),
    "starcoder2": Family(
        mixers.attention("use_bias", "use_bias"), mlps.mlp(gated=False, bias="use_bias"), norm_size=2, tied=True
    ),
}
SAME_TEXT = {
    "llama4": "llama4_text",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_vl_text": "qwen3",
}
"""Types whose language model has another type's parameters."""
