"""Every kind of cache beyond plain attention, exact to the byte, and where it lies in the model."""

from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from kvmodel import ModelError, read_architecture
from kvmodel.layers import (
    CompressedLatentAttention,
    CrossAttention,
    FullAttention,
    IndexKeys,
    KimiDeltaState,
    LatentAttention,
    Mamba1State,
    Mamba2State,
    RwkvState,
    SlidingWindowAttention,
    WindowLatent,
)

from .known import LLAMA_8B, known_models
from .known_caches import KnownCache, known_cache_config, known_caches

KNOWN = known_caches()


@pytest.mark.parametrize("model", KNOWN, ids=lambda model: model.id)
def test_bytes_of_a_sequence_are_exact(model: KnownCache) -> None:
    architecture = read_architecture(model.config)
    assert architecture.growth_bytes_per_token() == model.growth_bytes_per_token
    assert architecture.window_bytes_per_sequence() == model.window_bytes_per_sequence
    assert architecture.state_bytes_per_sequence() == model.state_bytes_per_sequence
    assert architecture.state_bytes_as(conv_bytes=2, recurrent_bytes=2) == model.state_bytes_in_16_bits
    assert architecture.cross_bytes_per_encoder_token() == model.cross_bytes_per_encoder_token
    assert {tokens: architecture.bytes_at(int(tokens)) for tokens in model.bytes_at} == model.bytes_at


def kinds(config: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        tuple(type(layer).__name__ for layer in block.caches) or ((f"reads {block.shares_with}"),)
        for block in read_architecture(config).blocks
    ]


def test_layers_stand_in_model_order() -> None:
    jamba = read_architecture(known_cache_config("ai21labs/Jamba-v0.1"))
    attention = [index for index, layer in enumerate(jamba.layers) if isinstance(layer, FullAttention)]
    assert attention == [4, 12, 20, 28]
    assert all(isinstance(layer, Mamba1State) for index, layer in enumerate(jamba.layers) if index not in attention)
    assert len(jamba.blocks) == jamba.num_layers == 32


def test_attention_and_state_side_by_side_share_a_block() -> None:
    falcon = read_architecture(known_cache_config("tiiuae/Falcon-H1-7B-Base"))
    assert {tuple(map(type, block.caches)) for block in falcon.blocks} == {(FullAttention, Mamba2State)}
    assert len(falcon.layers) == 88


def test_layers_without_a_cache_are_blocks_without_one() -> None:
    nano = read_architecture(known_cache_config("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"))
    assert nano.num_layers == len(nano.blocks) == 52
    assert sum(not block.caches for block in nano.blocks) == 23
    assert nano.experts is not None
    assert nano.experts.sparse_layers == 23
    assert nano.state_dtype == "float32"


def test_shared_layers_read_the_last_owner_of_their_kind() -> None:
    gemma = read_architecture(known_cache_config("google/gemma-3n-E4B-it"))
    owners = [block for block in gemma.blocks if block.caches]
    assert (len(gemma.blocks), len(owners)) == (35, 20)
    for index, block in enumerate(gemma.blocks[20:], start=20):
        assert block.shares_with == (19 if (index + 1) % 5 == 0 else 18)


def test_only_owners_of_an_indexer_keep_its_keys() -> None:
    glm = read_architecture(known_cache_config("zai-org/GLM-5.3"))
    owning = [index for index, block in enumerate(glm.blocks) if len(block.caches) == 2]
    assert owning == [0, 1, 2, *range(6, 78, 4)]
    assert glm.blocks[0].caches == (LatentAttention(512, 64), IndexKeys(128))


@pytest.mark.parametrize(
    "told", [{"index_topk_freq": 4, "index_skip_topk_offset": 3}, {"index_topk_pattern": ("FFF" + "SSSF" * 19)[:78]}]
)
def test_three_ways_to_tell_who_owns_an_indexer(told: dict[str, object]) -> None:
    config = known_cache_config("zai-org/GLM-5.3")
    listed = read_architecture(config).blocks
    for key in ("indexer_types", "index_topk_freq", "index_skip_topk_offset"):
        config.pop(key, None)
    assert read_architecture({**config, **told}).blocks == listed
    assert read_architecture(config).growth_bytes_per_token() == 78 * (1152 + 132)


def test_compressed_layers_and_their_compressors() -> None:
    flash = read_architecture(known_cache_config("deepseek-ai/DeepSeek-V4-Flash"))
    assert [len(block.caches) for block in flash.blocks[:4]] == [1, 1, 3, 2]
    window, rows, keys = flash.blocks[2].caches
    assert window == WindowLatent(512, 64, 128)
    assert isinstance(rows, CompressedLatentAttention)
    assert isinstance(keys, IndexKeys)
    assert (rows.compressor_rows, rows.compressor_row_bytes) == (8, 2 * 512 * 2 * 4)
    assert (keys.compressor_rows, keys.compressor_row_bytes) == (8, 2 * 128 * 2 * 4)
    assert flash.kv_cache_dtype == "fp8_ds_mla"
    # 21 layers of ratio 4 and 20 of ratio 128 keep 1024 bytes per row in 16 bits.
    assert flash.growth_bytes_per_token("bfloat16") == 21 * (1024 + 132) / 4 + 20 * 1024 / 128
    assert flash.growth_bytes_per_token("fp8") == flash.growth_bytes_per_token()


def test_cross_attention_costs_per_input_and_only_when_told() -> None:
    whisper = read_architecture(known_cache_config("openai/whisper-large-v3"))
    assert whisper.encoder_tokens == 1500
    assert whisper.has_cross_attention
    assert whisper.bytes_at(448, encoder_tokens=1500) - whisper.bytes_at(448) == 1500 * 163_840
    assert read_architecture(known_cache_config("google-t5/t5-base")).encoder_tokens is None


def test_an_image_of_mllama() -> None:
    """meta-llama/Llama-3.2-11B-Vision: 32 text layers, 8 that see 4 tiles of 1601 positions and keep no text."""
    text = {**LLAMA_8B, "model_type": "mllama_text_model", "num_hidden_layers": 40}
    text["cross_attention_layers"] = [3, 8, 13, 18, 23, 28, 33, 38]
    config = {"model_type": "mllama", "text_config": text, "vision_config": {"max_num_tiles": 4, "image_size": 560}}
    architecture = read_architecture(config)
    assert architecture.growth_bytes_per_token() == 131_072
    assert architecture.cross_bytes_per_encoder_token() == 32_768
    assert architecture.encoder_tokens == 6404
    assert isinstance(architecture.blocks[3].caches[0], CrossAttention)


def test_cross_layer_attention_caches_the_owners_only() -> None:
    """tencent/Tencent-Hunyuan-Large: 64 layers in pairs."""
    config = {**LLAMA_8B, "model_type": "hunyuan", "num_hidden_layers": 64, "num_attention_heads": 80}
    config |= {"hidden_size": 6400, "attention_head_dim": 128, "use_cla": True, "cla_share_factor": 2}
    architecture = read_architecture(config)
    assert architecture.growth_bytes_per_token() == 131_072
    assert [block.shares_with for block in architecture.blocks[:4]] == [None, 0, None, 2]
    assert read_architecture({**config, "use_cla": False}).growth_bytes_per_token() == 262_144


def test_two_latents_in_one_layer() -> None:
    """meituan-longcat/LongCat-Flash-Chat publishes no model_type."""
    config = {
        "architectures": ["LongcatFlashForCausalLM"],
        "num_layers": 28,
        "num_attention_heads": 64,
        "hidden_size": 6144,
        "ffn_hidden_size": 12288,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "vocab_size": 131072,
        "n_routed_experts": 512,
        "moe_topk": 12,
        "expert_ffn_hidden_size": 2048,
    }
    architecture = read_architecture(config)
    assert len(architecture.layers) == 56
    assert architecture.growth_bytes_per_token() == 56 * 1152


def test_kimi_linear_numbers_its_layers_from_one() -> None:
    """moonshotai/Kimi-Linear-48B-A3B-Instruct as published: 7 MLA layers, 20 of the delta rule."""
    full = [4, 8, 12, 16, 20, 24, 27]
    config = {
        "model_type": "kimi_linear",
        "num_hidden_layers": 27,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "vocab_size": 163840,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "linear_attn_config": {
            "full_attn_layers": full,
            "kda_layers": [layer for layer in range(1, 28) if layer not in full],
            "head_dim": 128,
            "num_heads": 32,
            "short_conv_kernel_size": 4,
        },
        "num_experts": 256,
        "num_experts_per_token": 8,
        "moe_intermediate_size": 1024,
    }
    architecture = read_architecture(config)
    assert [index + 1 for index, layer in enumerate(architecture.layers) if isinstance(layer, LatentAttention)] == full
    assert architecture.growth_bytes_per_token() == 7 * 1152
    assert architecture.state_bytes_per_sequence() == 20 * (3 * 32 * 128 * 3 * 2 + 32 * 128 * 128 * 4)
    assert KimiDeltaState(4, 32, 128).recurrent_always_32bit


def test_keys_wider_than_values_and_windows_with_more_heads() -> None:
    """XiaomiMiMo/MiMo-V2-Flash: 9 full layers of 4 heads, 39 windows of 8; K is 192 wide, V 128."""
    config = {**LLAMA_8B, "model_type": "mimo_v2_flash", "num_hidden_layers": 48, "num_attention_heads": 64}
    config |= {"num_key_value_heads": 4, "head_dim": 192, "v_head_dim": 128, "sliding_window_size": 128}
    config |= {"swa_num_key_value_heads": 8, "swa_head_dim": 192, "swa_v_head_dim": 128}
    config["hybrid_layer_pattern"] = [0 if index == 0 or (index + 1) % 6 == 0 else 1 for index in range(48)]
    architecture = read_architecture(config)
    assert architecture.growth_bytes_per_token() == 9 * 4 * 320 * 2
    assert architecture.window_bytes_per_sequence() == 39 * 128 * 8 * 320 * 2


def test_a_decoder_that_reads_one_cache_of_another() -> None:
    """microsoft/Phi-4-mini-flash-reasoning: 32 layers, Mamba in even ones up to 16, windows of 512, one full cache."""
    config = {**LLAMA_8B, "model_type": "phi4flash", "num_attention_heads": 40, "num_key_value_heads": 20}
    config |= {"hidden_size": 2560, "sliding_window": 512, "mb_per_layer": 2}
    architecture = read_architecture(config)
    by_kind = {type(group.layer): group.count for group in architecture.groups}
    assert by_kind == {Mamba1State: 9, SlidingWindowAttention: 8, FullAttention: 1}
    assert architecture.growth_bytes_per_token() == 20 * 128 * 2
    assert [block.shares_with for block in architecture.blocks[17:22]] == [None, None, 17, None, 17]
    assert architecture.state_bytes_per_sequence() == 9 * (5120 * 3 * 2 + 5120 * 16 * 4)


def test_later_rwkv_keeps_a_matrix_per_head_in_32_bits() -> None:
    config = {"model_type": "rwkv7", "num_hidden_layers": 32, "hidden_size": 4096, "vocab_size": 65536}
    architecture = read_architecture(config)
    assert architecture.layers[0] == RwkvState(4096, 4096 * 64)
    assert architecture.state_bytes_per_sequence() == 32 * (2 * 4096 * 2 + 4096 * 64 * 4)
    assert architecture.state_bytes_as(conv_bytes=4, recurrent_bytes=2) == 32 * (2 * 4096 * 4 + 4096 * 64 * 4)
    assert (architecture.num_attention_heads, architecture.num_kv_heads, architecture.head_dim) == (0, 0, 0)


def test_gemma4_layers_of_their_own_geometry_and_shared_ones() -> None:
    """google/gemma-4-E4B: as published, and as transformers 5.19 writes it, layer by layer."""
    text = {**LLAMA_8B, "model_type": "gemma4_text", "num_hidden_layers": 12, "num_kv_shared_layers": 5}
    text |= {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "sliding_window": 512}
    published = read_architecture({**text, "global_head_dim": 512})
    overriding = {**text, "per_layer_config": {"05": {"head_dim": 512}, "11": {"head_dim": 512}}}
    assert read_architecture(overriding).blocks == published.blocks
    assert published.growth_bytes_per_token() == 2 * 1024 * 2
    assert [block.shares_with for block in published.blocks[7:]] == [6, 6, 6, 6, 5]


@pytest.mark.parametrize("model_id", ["Qwen/Qwen3-Next-80B-A3B-Instruct", "ibm-granite/granite-4.0-h-small"])
def test_older_names_of_layer_types(model_id: str) -> None:
    config = known_cache_config(model_id)
    architecture = read_architecture(config)
    named = ["attention" if type(layer) is FullAttention else "mamba" for layer in architecture.layers]
    key = "layers_block_type" if "granite" in model_id else "layer_types"
    config.pop("layer_types", None)
    assert read_architecture({**config, key: named}).blocks == architecture.blocks


def test_groups_of_mamba2_are_extended_to_the_ranks() -> None:
    layer = Mamba2State(conv_kernel=4, heads=128, head_dim=64, state=128, groups=1)
    assert layer.conv_elements() == (8192 + 2 * 128) * 3
    assert layer.conv_elements(tp=4) == (8192 + 2 * 4 * 128) // 4 * 3
    assert layer.recurrent_elements(tp=4) == 32 * 64 * 128
    assert (
        layer.state_bytes_as(conv_bytes=2, recurrent_bytes=4, more_columns=1) == (8192 + 256) * 4 * 2 + 8192 * 128 * 4
    )
    eight = Mamba2State(conv_kernel=4, heads=64, head_dim=64, state=128, groups=8)
    assert eight.conv_elements(tp=4) == (4096 + 2 * 8 * 128) // 4 * 3


def test_heads_of_each_layer() -> None:
    """apple/OpenELM-270M: query and KV heads grow with the layers."""
    heads = [3] * 3 + [4] * 7 + [5] * 6
    config = {
        "model_type": "openelm",
        "num_transformer_layers": 16,
        "model_dim": 1280,
        "head_dim": 64,
        "num_query_heads": [4 * each for each in heads],
        "num_kv_heads": heads,
        "vocab_size": 32000,
        "ffn_multipliers": [0.5, 4.0],
        "max_context_length": 2048,
    }
    architecture = read_architecture(config)
    assert architecture.growth_bytes_per_token() == sum(heads) * 2 * 64 * 2
    assert [layer.token_bytes(architecture.cache_dtype()) for layer in architecture.layers[:4]] == [768, 768, 768, 1024]
    assert (architecture.num_attention_heads, architecture.num_kv_heads) == (20, 5)
    assert architecture.intermediate_size == 5120


def test_encoder_and_decoder_of_one_config() -> None:
    """facebook/bart-large-cnn, whose `num_hidden_layers` is the encoder's."""
    config = {"model_type": "bart", "is_encoder_decoder": True, "d_model": 1024, "decoder_layers": 12}
    config |= {"decoder_attention_heads": 16, "decoder_ffn_dim": 4096, "vocab_size": 50264, "num_hidden_layers": 6}
    architecture = read_architecture({**config, "max_position_embeddings": 1024})
    assert architecture.growth_bytes_per_token() == 12 * 2 * 1024 * 2
    assert architecture.encoder_tokens == 1024
    assert architecture.bytes_at(10, encoder_tokens=1024) == (10 + 1024) * 12 * 2 * 1024 * 2


def test_linear_attention_but_for_the_last_of_a_group() -> None:
    """inclusionAI/Ring-flash-linear-2.0: 32 layers in groups of 8; and the third version, of the delta rule."""
    config = {**LLAMA_8B, "model_type": "bailing_moe_linear", "layer_group_size": 8}
    architecture = read_architecture(config)
    assert [index for index, layer in enumerate(architecture.layers) if isinstance(layer, FullAttention)] == [
        7,
        15,
        23,
        31,
    ]
    assert architecture.state_bytes_per_sequence() == 28 * 32 * 128 * 128 * 4
    third = read_architecture({**config, "num_hidden_layers": 18, "architectures": ["BailingMoeV3ForCausalLM"]})
    assert [index for index, layer in enumerate(third.layers) if isinstance(layer, FullAttention)] == [7, 15, 16, 17]
    assert isinstance(third.layers[0], KimiDeltaState)


def test_sink_tokens_stand_before_every_sequence() -> None:
    architecture = read_architecture({**LLAMA_8B, "model_type": "PanguEmbedded", "param_sink_number": 128})
    assert architecture.bytes_at(0) == architecture.state_bytes_per_sequence() == 128 * 131_072
    assert architecture.bytes_at(10) == 138 * 131_072


models = st.sampled_from(KNOWN)
ranks = st.sampled_from([1, 2, 4, 8, 16, 32])


@settings(deadline=None)
@given(models, st.integers(0, 10**7), st.integers(0, 10**7))
def test_a_longer_sequence_never_holds_less(model: KnownCache, one: int, other: int) -> None:
    architecture = read_architecture(model.config)
    shorter, longer = sorted((one, other))
    assert architecture.bytes_at(shorter) <= architecture.bytes_at(longer)


@settings(deadline=None)
@given(models, st.integers(10**6, 10**7))
def test_growth_window_and_state_make_the_whole(model: KnownCache, tokens: int) -> None:
    architecture = read_architecture(model.config)
    constant = architecture.window_bytes_per_sequence() + architecture.state_bytes_per_sequence()
    assert architecture.bytes_at(tokens) == tokens * architecture.growth_bytes_per_token() + constant


@settings(deadline=None)
@given(models, ranks, st.integers(0, 10**5))
def test_all_ranks_together_hold_no_less_than_one(model: KnownCache, tp: int, tokens: int) -> None:
    architecture = read_architecture(model.config)
    try:
        held = architecture.bytes_at(tokens, tp=tp)
    except ModelError:
        reject()
    assert held <= architecture.bytes_at(tokens) <= held * tp


@pytest.mark.parametrize(
    "section",
    [
        {"quant_method": "fp8", "activation_scheme": "dynamic"},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "mxfp4"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "compressed-tensors", "kv_cache_scheme": None},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {"quant_algo": "FP8"},
        {"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": None}},
        {"load_in_8bit": True},
    ],
)
def test_quantised_weights_leave_the_cache_as_it_is(section: dict[str, object]) -> None:
    for config in [row.config for row in KNOWN] + [row.config for row in known_models()]:
        plain = read_architecture({key: value for key, value in config.items() if key != "quantization_config"})
        quantised = read_architecture({**config, "quantization_config": section})
        assert quantised.blocks == plain.blocks
        assert quantised.bytes_at(5000) == plain.bytes_at(5000)
        assert quantised.quantization


FP8_SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}


@pytest.mark.parametrize(
    ("section", "kv_dtype"),
    [
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": FP8_SCHEME}, "fp8"),
        ({"quant_method": "modelopt", "kv_cache_scheme": {"num_bits": 4, "type": "float"}}, "nvfp4"),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, "fp8_e4m3"),
        ({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"}}, "nvfp4"),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 3, "type": "int"}}, None),
    ],
)
def test_a_scheme_for_the_cache_is_the_cache_under_auto(section: dict[str, object], kv_dtype: str | None) -> None:
    plain = read_architecture(LLAMA_8B)
    quantised = read_architecture({**LLAMA_8B, "quantization_config": section})
    assert quantised.kv_cache_dtype == kv_dtype
    assert quantised.growth_bytes_per_token() == plain.growth_bytes_per_token(kv_dtype or "auto")
    assert quantised.growth_bytes_per_token("bfloat16") == plain.growth_bytes_per_token()


@pytest.mark.parametrize(
    ("kv_dtype", "row"),
    [
        ("auto", 1152),
        ("fp8", 576),
        ("fp8_ds_mla", 656),
        ("nvfp4_ds_mla", 352),
        ("nvfp4", 324),
        ("int8_per_token_head", 584),
        ("int4_per_token_head", 296),
    ],
)
def test_rows_of_a_latent(kv_dtype: str, row: int) -> None:
    architecture = read_architecture(known_cache_config("deepseek-ai/DeepSeek-V3.2"))
    assert architecture.growth_bytes_per_token(kv_dtype) == 61 * (row + 132)


@pytest.mark.parametrize(
    ("kv_dtype", "per_head"),
    [
        ("turbomind_int8", 264),
        ("turbomind_int4", 136),
        ("kivi_2bit", 96),
        ("turboquant_k8v4", 128 + 68),
        ("turboquant_4bit_nc", 66 + 68),
        ("turboquant_k3v4_nc", 50 + 68),
        ("turboquant_3bit_nc", 50 + 52),
        ("ultraquant_4bit", 136),
        ("nvfp4_4over6", 144),
        ("fp4_e2m1", 144),
        ("fp8_inc", 256),
    ],
)
def test_bytes_of_a_key_and_a_value(kv_dtype: str, per_head: int) -> None:
    assert FullAttention(1, 128, 128).token_bytes(read_architecture(LLAMA_8B).cache_dtype(kv_dtype)) == per_head


@pytest.mark.parametrize(
    ("model_id", "kv_dtype"),
    [
        ("ai21labs/Jamba-v0.1", "fp8_ds_mla"),
        ("deepseek-ai/DeepSeek-V3.2", "turboquant_k8v4"),
        ("deepseek-ai/DeepSeek-V4-Flash", "nvfp4"),
        ("deepseek-ai/DeepSeek-V4-Flash", "fp8_per_token_head"),
    ],
)
def test_a_type_of_another_kind_of_cache_is_refused(model_id: str, kv_dtype: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_architecture(known_cache_config(model_id)).growth_bytes_per_token(kv_dtype)
    assert caught.value.field == "kv_dtype"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: {"model_type": "internvl_chat", "llm_config": text},
        lambda text: {"model_type": "deepseek_vl_v2", "language_config": text},
        lambda text: {"model_type": "qwen2_5_omni", "thinker_config": {"text_config": text}},
        lambda text: {"model_type": "qwen3_omni_moe", "thinker_config": {"text_config": text}},
        lambda text: {"model_type": "llava", "text_config": text},
    ],
)
def test_text_models_inside_others(wrap: Any) -> None:
    architecture = read_architecture(wrap(dict(LLAMA_8B)))
    assert architecture.blocks == read_architecture(LLAMA_8B).blocks
    assert architecture.multimodal


def test_a_missing_inner_config_is_named_with_its_path() -> None:
    with pytest.raises(ModelError) as caught:
        read_architecture({"model_type": "qwen3_omni_moe", "thinker_config": {"audio_config": {}}})
    assert caught.value.field == "thinker_config.text_config"
