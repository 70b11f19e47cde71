"""Families whose decoder layers all attend: plain, windowed, grouped, latent, compressed."""

from collections.abc import Mapping
from dataclasses import replace

from kvmodel import family_rules as rules
from kvmodel import latents, layouts
from kvmodel.experts import (
    ExpertKeys,
    after_first_dense,
    each_sparse_step,
    ernie_interval,
    every_layer,
    listed_or_interleaved,
)
from kvmodel.family import Family

GPT2_NAMES: Mapping[str, tuple[str, ...]] = {
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
_XGLM_NAMES: Mapping[str, tuple[str, ...]] = {
    "num_hidden_layers": ("num_layers", "num_hidden_layers"),
    "num_attention_heads": ("attention_heads", "num_attention_heads"),
    "hidden_size": ("d_model", "hidden_size"),
    "intermediate_size": ("ffn_dim",),
}

LOCAL_EXPERTS = ExpertKeys("num_local_experts", "num_experts_per_tok", "intermediate_size", every_layer)
QWEN_EXPERTS = ExpertKeys("num_experts", "num_experts_per_tok", "moe_intermediate_size", each_sparse_step)
DEEPSEEK_EXPERTS = ExpertKeys("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", after_first_dense)
COUNTED_EXPERTS = replace(DEEPSEEK_EXPERTS, count="num_experts")
_NARROW_LOCAL_EXPERTS = replace(DEEPSEEK_EXPERTS, count="num_local_experts")
_ERNIE_EXPERTS = ExpertKeys("moe_num_experts", "moe_k", "moe_intermediate_size", ernie_interval)

_LLAMA = Family()
_WINDOWED = Family(layouts.one_window)
_LISTED = Family(layouts.listed)
_EACH_NTH = Family(layouts.window_except_each_nth)
_QWEN = Family(layouts.qwen_window)
_GPT2 = Family(
    aliases=GPT2_NAMES,
    kv_heads=rules.one_per_head,
    intermediate=rules.four_times_hidden,
    tied_embeddings=True,
    rotary=False,
)
_GEMMA2 = Family(layouts.window_except_each_nth, defaults={"sliding_window_pattern": 2})
_GEMMA3 = replace(
    _GEMMA2,
    defaults={"sliding_window_pattern": 6},
    nested_defaults={"vocab_size": 262208, "num_attention_heads": 8, "max_position_embeddings": 131072},
)
_GEMMA4 = Family(
    layouts.gemma4,
    defaults={"global_head_dim": 512},
    experts=ExpertKeys("num_experts", "top_k_experts", "moe_intermediate_size", every_layer),
)
_GLM4 = Family(rotary_factor=0.5)
_GLM4_MOE = Family(experts=DEEPSEEK_EXPERTS, rotary_factor=0.5)
_LATENT = Family(latents.latent)
_LATENT_MOE = Family(latents.latent, experts=DEEPSEEK_EXPERTS)
_DEEPSEEK_V3 = Family(
    latents.latent,
    class_name="deepseek_v3",
    defaults={"first_k_dense_replace": 3, "moe_layer_freq": 1},
    experts=DEEPSEEK_EXPERTS,
)
_INDEXED = Family(
    latents.indexed_latent,
    defaults={"first_k_dense_replace": 3, "moe_layer_freq": 1, "index_head_dim": 128},
    experts=DEEPSEEK_EXPERTS,
)
_MINIMAX_M3 = Family(
    latents.indexed_heads,
    aliases={"intermediate_size": ("dense_intermediate_size",), "expert_size": ("intermediate_size",)},
    class_name="minimax_m3_vl_text",
    experts=ExpertKeys("num_local_experts", "num_experts_per_tok", "expert_size", after_first_dense),
)
_MIMO_V2 = Family(
    layouts.mimo_v2,
    aliases={"sliding_window": ("sliding_window_size", "sliding_window")},
    class_name="mimo_v2_flash",
    experts=DEEPSEEK_EXPERTS,
    rotary_factor=0.334,
)
_STEP3 = Family(
    layouts.step3,
    aliases={
        "num_key_value_heads": ("num_key_value_heads", "num_attention_groups"),
        "num_experts": ("num_experts", "moe_num_experts", "n_routed_experts"),
        "num_experts_per_tok": ("num_experts_per_tok", "moe_top_k"),
    },
    class_name="step3p5",
    experts=COUNTED_EXPERTS,
    defaults={"first_k_dense_replace": 3},
)
_CHATGLM = Family(
    aliases={
        "num_hidden_layers": ("num_layers", "num_hidden_layers"),
        "intermediate_size": ("ffn_hidden_size",),
        "head_dim": ("kv_channels",),
        "vocab_size": ("padded_vocab_size", "vocab_size"),
        "max_position_embeddings": ("seq_length", "max_position_embeddings"),
    },
    kv_heads=rules.chatglm_kv_heads,
    rotary_factor=0.5,
)

_REFINED_WEB = Family(
    aliases={
        "num_hidden_layers": ("n_layer", "num_hidden_layers"),
        "num_attention_heads": ("n_head", "num_attention_heads"),
        "num_key_value_heads": ("n_head_kv",),
    },
    defaults={"max_position_embeddings": 2048},
    kv_heads=rules.refined_web_kv_heads,
    intermediate=rules.four_times_hidden,
    tied_embeddings=True,
)

ATTENTION_FAMILIES: Mapping[str, Family] = {
    "RefinedWeb": _REFINED_WEB,
    "RefinedWebModel": _REFINED_WEB,
    "afmoe": Family(
        layouts.window_except_each_nth,
        aliases={"sliding_window_pattern": ("global_attn_every_n_layers",)},
        defaults={"sliding_window_pattern": 4},
        experts=ExpertKeys(
            "num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            lambda shape: shape.layers - (shape.fields.optional_count("num_dense_layers", least=0) or 0),
        ),
    ),
    "apertus": _LLAMA,
    "arcee": _LLAMA,
    "aria_text": Family(experts=ExpertKeys("moe_num_experts", "moe_topk", "intermediate_size", every_layer)),
    "arctic": Family(experts=LOCAL_EXPERTS),
    "axk1": _LATENT_MOE,
    "axk2": _INDEXED,
    "baichuan": Family(kv_heads=rules.one_per_head),
    "bailing_moe": Family(experts=COUNTED_EXPERTS),
    "bailing_moe_v2": Family(experts=COUNTED_EXPERTS),
    "biogpt": Family(kv_heads=rules.one_per_head, rotary=False),
    "bitnet": _LLAMA,
    "bloom": Family(
        aliases={
            "num_hidden_layers": ("n_layer", "num_hidden_layers"),
            "num_attention_heads": ("n_head", "num_attention_heads"),
            "hidden_size": ("n_embed", "hidden_size"),
        },
        kv_heads=rules.one_per_head,
        intermediate=rules.four_times_hidden,
        tied_embeddings=True,
        rotary=False,
    ),
    "chatglm": _CHATGLM,
    "codegen": replace(_GPT2, rotary=True, tied_embeddings=False),
    "cohere": Family(),
    "cohere2": Family(layouts.window_except_each_nth, defaults={"sliding_window_pattern": 4}),
    "cohere2_moe": Family(
        layouts.window_except_each_nth,
        defaults={"sliding_window_pattern": 4},
        experts=ExpertKeys("num_experts", "num_experts_per_tok", "intermediate_size", after_first_dense),
    ),
    "cohere_compass_text": _LISTED,
    "cosmos3_edge_text": _LLAMA,
    "cpmant": Family(
        aliases={"head_dim": ("dim_head",), "intermediate_size": ("dim_ff",)}, kv_heads=rules.one_per_head, rotary=False
    ),
    "ctrl": replace(_GPT2, aliases={**GPT2_NAMES, "intermediate_size": ("dff",)}),
    "cwm": Family(layouts.window_after_each_nth, defaults={"sliding_window_pattern": 4}),
    "dbrx": Family(
        aliases=_MPT_NAMES,
        kv_heads=rules.dbrx_kv_heads,
        intermediate=rules.dbrx_intermediate,
        experts=ExpertKeys("moe_num_experts", "moe_top_k", "ffn_hidden_size", every_layer, section="ffn_config"),
    ),
    "deci": Family(
        layouts.openelm, aliases={"num_kv_heads": ("num_key_value_heads_per_layer",)}, kv_heads=rules.openelm_heads
    ),
    "deepseek": Family(experts=DEEPSEEK_EXPERTS),
    "deepseek_ocr2_text": Family(experts=DEEPSEEK_EXPERTS),
    "deepseek_v2": replace(
        _DEEPSEEK_V3, class_name="deepseek_v2", defaults={"first_k_dense_replace": 0, "moe_layer_freq": 1}
    ),
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _INDEXED,
    "deepseek_v4": Family(
        latents.compressed,
        aliases={"intermediate_size": ("moe_intermediate_size",)},
        defaults={"qk_rope_head_dim": 64, "index_head_dim": 128},
        experts=replace(DEEPSEEK_EXPERTS, sparse_layers=every_layer),
        kv_dtype="fp8_ds_mla",
        rotary_factor=0.125,
    ),
    "diffllama": _LLAMA,
    "doge": Family(layouts.one_window),
    "dots1": Family(layouts.dots1, experts=DEEPSEEK_EXPERTS),
    "emu3_text_model": _LLAMA,
    "ernie4_5": Family(),
    "ernie4_5_moe": Family(experts=_ERNIE_EXPERTS),
    "ernie4_5_vl_moe_text": Family(experts=_ERNIE_EXPERTS),
    "exaone": Family(
        aliases={
            "num_hidden_layers": ("num_layers", "num_hidden_layers"),
            "intermediate_size": ("intermediate_size",),
        }
    ),
    "exaone4": Family(layouts.window_except_each_nth, defaults={"sliding_window_pattern": 4}),
    "exaone_moe": Family(
        layouts.window_except_each_nth, defaults={"sliding_window_pattern": 4}, experts=COUNTED_EXPERTS
    ),
    "falcon": Family(
        aliases={"hidden_size": ("n_embed", "hidden_size"), "intermediate_size": ("ffn_hidden_size",)},
        defaults={"max_position_embeddings": 2048},
        kv_heads=rules.falcon_kv_heads,
        intermediate=rules.four_times_hidden,
        tied_embeddings=True,
    ),
    "flex_olmo": Family(experts=ExpertKeys("num_experts", "num_experts_per_tok", "intermediate_size", every_layer)),
    "gemma": Family(),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "gemma3n_text": Family(layouts.gemma3n),
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "glm": _GLM4,
    "glm4": _GLM4,
    "glm4_moe": _GLM4_MOE,
    "glm4_moe_lite": Family(latents.latent, experts=DEEPSEEK_EXPERTS, defaults={"first_k_dense_replace": 1}),
    "glm4v_moe_text": _GLM4_MOE,
    "glm4v_text": Family(rotary_factor=0.5),
    "glm_moe_dsa": _INDEXED,
    "glm_ocr_text": Family(),
    "gpt2": _GPT2,
    "gpt_bigcode": replace(_GPT2, kv_heads=rules.multi_query),
    "gpt_neo": Family(
        layouts.gpt_neo,
        aliases={
            "num_hidden_layers": ("num_layers", "num_hidden_layers"),
            "num_attention_heads": ("num_heads", "num_attention_heads"),
        },
        kv_heads=rules.one_per_head,
        intermediate=rules.four_times_hidden,
        rotary=False,
    ),
    "gpt_neox": Family(
        aliases={"partial_rotary_factor": ("rotary_pct",)}, kv_heads=rules.one_per_head, rotary_factor=0.25
    ),
    "gpt_neox_japanese": Family(
        kv_heads=rules.one_per_head,
        intermediate=lambda shape: shape.fields.count("intermediate_multiple_size") * shape.hidden_size,
        defaults={"intermediate_multiple_size": 4},
    ),
    "gpt_oss": Family(layouts.window_except_each_nth, defaults={"sliding_window_pattern": 2}, experts=LOCAL_EXPERTS),
    "gptj": replace(_GPT2, rotary=True, tied_embeddings=False),
    "granite": _LLAMA,
    "granite_swa": Family(layouts.window_after_each_nth, defaults={"sliding_window_pattern": 4}),
    "granitemoe": Family(experts=LOCAL_EXPERTS),
    "granitemoe_swa": Family(
        layouts.window_after_each_nth, defaults={"sliding_window_pattern": 4}, experts=LOCAL_EXPERTS
    ),
    "granitemoeshared": Family(experts=LOCAL_EXPERTS),
    "grok-1": Family(experts=LOCAL_EXPERTS),
    "helium": Family(),
    "hrm_text": Family(layers=rules.hrm_layers, defaults={"H_cycles": 2, "L_cycles": 3}),
    "hunyuan": Family(
        layouts.hunyuan,
        aliases={"head_dim": ("head_dim", "attention_head_dim")},
        defaults={"cla_share_factor": 1},
        experts=ExpertKeys("num_experts", "moe_topk", "intermediate_size", every_layer),
    ),
    "hunyuan_v1_dense": Family(layouts.hunyuan, defaults={"cla_share_factor": 1}),
    "hunyuan_v1_moe": Family(
        layouts.hunyuan,
        defaults={"cla_share_factor": 1},
        experts=ExpertKeys("num_experts", "moe_topk", "intermediate_size", every_layer),
    ),
    "hunyuan_vl_text": _LLAMA,
    "hy_v3": Family(experts=COUNTED_EXPERTS),
    "hy_v4": _INDEXED,
    "hyperclovax": _LLAMA,
    "internlm": Family(kv_heads=rules.one_per_head),
    "internlm2": Family(),
    "internlm3": Family(defaults={"num_key_value_heads": 2, "head_dim": 128}),
    "jais2": Family(),
    "jetmoe": Family(
        aliases={"head_dim": ("kv_channels",), "num_attention_heads": ("num_attention_heads",)},
        kv_heads=rules.jetmoe_heads,
        experts=LOCAL_EXPERTS,
    ),
    "kimi_k2": _DEEPSEEK_V3,
    "laguna": Family(layouts.listed, experts=COUNTED_EXPERTS),
    "llama": _LLAMA,
    "llama4_text": Family(
        layouts.llama4,
        aliases={"intermediate_size": ("intermediate_size_mlp",), "expert_size": ("intermediate_size",)},
        defaults={"attention_chunk_size": 8192, "no_rope_layer_interval": 4},
        experts=ExpertKeys("num_local_experts", "num_experts_per_tok", "expert_size", listed_or_interleaved),
    ),
    "longcat_flash": Family(
        latents.two_latents,
        aliases={
            "num_hidden_layers": ("num_layers", "num_hidden_layers"),
            "intermediate_size": ("ffn_hidden_size",),
            "num_experts_per_tok": ("moe_topk",),
            "moe_intermediate_size": ("expert_ffn_hidden_size",),
        },
        experts=replace(DEEPSEEK_EXPERTS, sparse_layers=every_layer),
    ),
    "mellum": Family(layouts.listed, experts=_NARROW_LOCAL_EXPERTS),
    "mimo": _QWEN,
    "mimo_v2": _MIMO_V2,
    "mimo_v2_flash": _MIMO_V2,
    "minicpm": Family(),
    "minicpm3": Family(latents.latent, tied_embeddings=True),
    "minicpmo": _LLAMA,
    "minicpmv": _LLAMA,
    "minimax_m2": Family(experts=LOCAL_EXPERTS),
    "minimax_m3": _MINIMAX_M3,
    "minimax_m3_vl_text": _MINIMAX_M3,
    "ministral": Family(layouts.one_window),
    "ministral3": Family(layouts.one_window),
    "mistral": _WINDOWED,
    "mistral4": _LATENT_MOE,
    "mixtral": Family(layouts.one_window, experts=LOCAL_EXPERTS),
    "modernbert-decoder": Family(
        layouts.modernbert_decoder, defaults={"global_attn_every_n_layers": 3}, kv_heads=rules.one_per_head
    ),
    "mpt": Family(
        aliases=_MPT_NAMES,
        defaults={"expansion_ratio": 4},
        kv_heads=rules.one_per_head,
        intermediate=rules.mpt_intermediate,
        tied_embeddings=True,
        rotary=False,
    ),
    "muse_glimmer_text": Family(layouts.window_except_each_nth, defaults={"sliding_window_pattern": 4}),
    "nanochat": Family(),
    "nemotron": Family(rotary_factor=0.5),
    "nemotron-nas": Family(layouts.nemotron_nas, intermediate=rules.nas_intermediate),
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": Family(layouts.window_except_each_nth, defaults={"sliding_window_pattern": 4}),
    "olmoe": Family(experts=ExpertKeys("num_experts", "num_experts_per_tok", "intermediate_size", every_layer)),
    "openai-gpt": _GPT2,
    "openelm": Family(
        layouts.openelm,
        aliases={
            "num_hidden_layers": ("num_transformer_layers", "num_hidden_layers"),
            "hidden_size": ("model_dim", "hidden_size"),
            "num_attention_heads": ("num_query_heads", "num_attention_heads"),
            "max_position_embeddings": ("max_context_length",),
        },
        defaults={"ffn_dim_divisor": 256},
        heads=rules.openelm_query_heads,
        kv_heads=rules.openelm_heads,
        intermediate=rules.openelm_intermediate,
        tied_embeddings=True,
    ),
    "opt": Family(aliases={"intermediate_size": ("ffn_dim",)}, kv_heads=rules.one_per_head, rotary=False),
    "orion": Family(),
    "pangu_ultra_moe": _DEEPSEEK_V3,
    "PanguEmbedded": Family(layouts.sink_tokens),
    "pangu_pro_moe_v2": Family(layouts.sink_tokens, experts=DEEPSEEK_EXPERTS),
    "paddleocr_vl_text": _LLAMA,
    "persimmon": Family(kv_heads=rules.one_per_head, rotary_factor=0.5),
    "phi": Family(rotary_factor=0.5),
    "phi3": _WINDOWED,
    "phi3_v": replace(_WINDOWED, class_name="phi3"),
    "phi4_multimodal": _WINDOWED,
    "phi4mm": replace(_WINDOWED, class_name="phi3"),
    "phimoe": Family(layouts.one_window, experts=LOCAL_EXPERTS),
    "qwen": Family(kv_heads=rules.one_per_head),
    "qwen2": _QWEN,
    "qwen2_5_omni_text": _QWEN,
    "qwen2_5_vl_text": _QWEN,
    "qwen2_moe": Family(layouts.qwen2_moe_window, experts=QWEN_EXPERTS),
    "qwen2_vl_text": _QWEN,
    "qwen3": _QWEN,
    "qwen3_moe": Family(layouts.gated_window, experts=QWEN_EXPERTS),
    "qwen3_omni_moe_text": Family(layouts.gated_window, experts=QWEN_EXPERTS),
    "qwen3_vl_moe_text": Family(experts=QWEN_EXPERTS),
    "qwen3_vl_text": Family(),
    "sarvam_mla": Family(latents.latent, experts=COUNTED_EXPERTS),
    "sarvam_moe": Family(experts=COUNTED_EXPERTS),
    "seed_oss": Family(),
    "smollm3": Family(layouts.smollm3_window, defaults={"no_rope_layer_interval": 4}),
    "solar": _LLAMA,
    "solar_open": Family(experts=DEEPSEEK_EXPERTS, intermediate=rules.moe_width),
    "stablelm": Family(rotary_factor=0.25),
    "starcoder2": _WINDOWED,
    "step3_text": Family(
        aliases={
            "num_key_value_heads": ("num_attention_groups",),
            "max_position_embeddings": ("max_position_embedding", "max_seq_len", "max_position_embeddings"),
        },
        defaults={"num_key_value_heads": 1, "head_dim": 256},
        experts=ExpertKeys("moe_num_experts", "moe_top_k", "moe_intermediate_size", every_layer),
    ),
    "step3p5": _STEP3,
    "vaultgemma": _GEMMA2,
    "voxtral_realtime_text": _WINDOWED,
    "xglm": Family(aliases=_XGLM_NAMES, kv_heads=rules.one_per_head, rotary=False),
    "youtu": _LATENT,
}
