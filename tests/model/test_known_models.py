"""Every covered family, exact to the byte."""

import json
from pathlib import Path

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from kvmodel import ModelError, load_architecture, read_architecture
from kvmodel.architecture import load_config
from kvmodel.families import FAMILIES, NOT_MODELLED
from kvmodel.layers import ChunkedLocalAttention, LatentAttention, SlidingWindowAttention

from .known import LLAMA_8B, KnownModel, known_config, known_models

KNOWN = known_models()


@pytest.mark.parametrize("model", KNOWN, ids=lambda model: model.id)
def test_bytes_of_a_sequence_are_exact(model: KnownModel) -> None:
    architecture = read_architecture(model.config)
    assert architecture.growth_bytes_per_token() == model.growth_bytes_per_token
    assert architecture.window_bytes_per_sequence() == model.window_bytes_per_sequence
    assert architecture.state_bytes_per_sequence() == 0
    assert {tokens: architecture.bytes_at(tokens) for tokens in model.bytes_at} == model.bytes_at


def test_a_folder_and_a_file_read_alike(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    architecture = read_architecture(LLAMA_8B)
    assert load_config(tmp_path) == load_config(tmp_path / "config.json") == LLAMA_8B
    assert load_architecture(tmp_path) == architecture
    assert load_architecture(str(tmp_path / "config.json")) == architecture


def test_facts_of_a_plain_model() -> None:
    architecture = read_architecture(LLAMA_8B)
    assert architecture.architectures == ("LlamaForCausalLM",)
    assert (architecture.num_layers, architecture.num_kv_heads, architecture.head_dim) == (32, 8, 128)
    assert architecture.is_uniform_full_attention
    assert architecture.experts is None
    assert architecture.quantization is None
    assert not architecture.multimodal
    assert architecture.rotary_dim == 128


def test_one_latent_is_uniform_and_whole_on_every_rank() -> None:
    architecture = read_architecture(known_config("deepseek-ai/DeepSeek-R1"))
    assert architecture.groups[0].layer == LatentAttention(512, 64)
    assert architecture.is_uniform_full_attention
    assert architecture.growth_bytes_per_token(tp=16) == architecture.growth_bytes_per_token() == 70_272
    assert architecture.quantization == "fp8"


def test_windows_and_chunks_are_not_uniform() -> None:
    scout = read_architecture(known_config("meta-llama/Llama-4-Scout-17B-16E-Instruct"))
    assert {type(group.layer): group.count for group in scout.groups}[ChunkedLocalAttention] == 36
    assert not scout.is_uniform_full_attention
    phi = read_architecture(known_config("microsoft/Phi-3-mini-4k-instruct"))
    assert [type(group.layer) for group in phi.groups] == [SlidingWindowAttention]
    assert not phi.is_uniform_full_attention


@pytest.mark.parametrize(
    "model_id",
    ["google/gemma-2-27b", "google/gemma-3-27b-it", "openai/gpt-oss-20b", "allenai/Olmo-3-7B-Think"],
)
def test_layer_types_written_out_say_the_same_as_the_class_default(model_id: str) -> None:
    config = known_config(model_id)
    period = {"gemma2": 2, "gemma3_text": 6, "gpt_oss": 2, "olmo3": 4}[config["model_type"]]
    listed = [
        "full_attention" if (index + 1) % period == 0 else "sliding_attention"
        for index in range(config["num_hidden_layers"])
    ]
    assert read_architecture({**config, "layer_types": listed}) == read_architecture(config)


def test_layer_types_overrule_the_pattern() -> None:
    config = known_config("google/gemma-2-27b")
    all_full = read_architecture({**config, "layer_types": ["full_attention"] * 46})
    assert all_full.window_bytes_per_sequence() == 0
    assert all_full.growth_bytes_per_token() == 2 * read_architecture(config).growth_bytes_per_token()


def test_letters_are_a_pattern_too() -> None:
    config = known_config("LGAI-EXAONE/EXAONE-4.0-32B")
    assert read_architecture({**config, "sliding_window_pattern": "LLLG"}) == read_architecture(
        {**config, "sliding_window_pattern": 4}
    )


@pytest.mark.parametrize(("value", "windowed"), [(4096, True), (None, False), ("left out", True)])
def test_null_means_no_window_and_absence_means_the_class_default(value: object, windowed: bool) -> None:
    config = known_config("mistralai/Mistral-7B-v0.3")
    config.pop("sliding_window")
    if value != "left out":
        config["sliding_window"] = value
    assert (read_architecture(config).window_bytes_per_sequence() > 0) is windowed


@pytest.mark.parametrize(("use", "first", "windowed_layers"), [(False, 0, 0), (True, 16, 8), (True, 24, 0)])
def test_qwen_windows_only_when_told(use: bool, first: int, windowed_layers: int) -> None:
    config = known_config("Qwen/Qwen2.5-0.5B")
    config |= {"use_sliding_window": use, "sliding_window": 1024, "max_window_layers": first}
    per_layer = 2 * 64 * 2 * 2
    assert read_architecture(config).window_bytes_per_sequence() == windowed_layers * 1024 * per_layer


def test_multimodal_configs_leave_out_what_their_class_knows() -> None:
    """google/gemma-3-4b-it as published: no heads, no head_dim, no vocabulary."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    }
    architecture = read_architecture({"model_type": "gemma3", "text_config": text, "torch_dtype": "bfloat16"})
    # 5 full and 29 sliding layers of 4 heads x 256.
    assert architecture.growth_bytes_per_token() == 5 * 4 * 512 * 2
    assert architecture.window_bytes_per_sequence() == 29 * 1024 * 4 * 512 * 2
    assert (architecture.num_attention_heads, architecture.vocab_size) == (8, 262208)
    assert architecture.multimodal


def test_the_older_flat_form_of_a_multimodal_config() -> None:
    flat = {**LLAMA_8B, "model_type": "qwen2_5_vl", "vision_config": {"depth": 32}}
    nested = {"model_type": "qwen2_5_vl", "text_config": {**LLAMA_8B, "model_type": "qwen2_5_vl_text"}}
    assert read_architecture(flat).growth_bytes_per_token() == 131072
    assert read_architecture(nested).growth_bytes_per_token() == 131072


@pytest.mark.parametrize(
    ("declared", "served"),
    [("float16", "float16"), ("torch.bfloat16", "bfloat16"), ("float32", "bfloat16"), (None, "bfloat16")],
)
def test_the_dtype_engines_serve_in(declared: str | None, served: str) -> None:
    architecture = read_architecture({**LLAMA_8B, "torch_dtype": declared})
    assert architecture.dtype == served
    assert architecture.growth_bytes_per_token() == 131072


def test_experts_and_dense_layers() -> None:
    deepseek = read_architecture(known_config("deepseek-ai/DeepSeek-R1")).experts
    assert deepseek is not None
    assert (deepseek.count, deepseek.per_token, deepseek.intermediate_size, deepseek.sparse_layers) == (
        256,
        8,
        2048,
        58,
    )
    qwen = read_architecture({**known_config("Qwen/Qwen3-235B-A22B"), "mlp_only_layers": [0, 1]}).experts
    assert qwen is not None
    assert qwen.sparse_layers == 92


@pytest.mark.parametrize("model_type", sorted(NOT_MODELLED))
def test_what_is_not_modelled_is_refused_by_name(model_type: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_architecture({**LLAMA_8B, "model_type": model_type})
    assert caught.value.field == "model_type"
    assert model_type in caught.value.message


def test_no_family_is_both_modelled_and_not() -> None:
    assert not FAMILIES.keys() & NOT_MODELLED.keys()


models = st.sampled_from(KNOWN)
tensor_parallel = st.sampled_from([1, 2, 4, 8, 16, 32, 64])
cache_dtypes = st.sampled_from(["auto", "fp8", "int8_per_token_head", "nvfp4", "float32"])


@settings(deadline=None)
@given(models, st.integers(0, 10**7), st.integers(0, 10**7), cache_dtypes)
def test_a_longer_sequence_never_holds_less(model: KnownModel, one: int, other: int, kv_dtype: str) -> None:
    architecture = read_architecture(model.config)
    shorter, longer = sorted((one, other))
    assert architecture.bytes_at(shorter, kv_dtype) <= architecture.bytes_at(longer, kv_dtype)


@settings(deadline=None)
@given(models, st.integers(10**6, 10**7), st.integers(0, 10**6))
def test_beyond_all_windows_only_growth_is_left(model: KnownModel, tokens: int, more: int) -> None:
    architecture = read_architecture(model.config)
    growth = architecture.growth_bytes_per_token()
    assert architecture.bytes_at(tokens + more) - architecture.bytes_at(tokens) == more * growth
    assert architecture.bytes_at(tokens) == tokens * growth + architecture.window_bytes_per_sequence()


@settings(deadline=None)
@given(models, tensor_parallel, tensor_parallel, st.integers(0, 10**6))
def test_more_ranks_never_hold_more_each(model: KnownModel, one: int, other: int, tokens: int) -> None:
    architecture = read_architecture(model.config)
    few, many = sorted((one, other))
    try:
        held = [architecture.bytes_at(tokens, tp=tp) for tp in (few, many)]
    except ModelError:
        reject()
    assert held[0] >= held[1]
    assert held[1] * many >= architecture.bytes_at(tokens)
