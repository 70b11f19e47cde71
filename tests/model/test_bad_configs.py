"""Whatever stands in a config.json, the answer is an architecture or one ModelError that names the field, soon."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmodel import Architecture, ModelError, load_architecture, read_architecture
from kvmodel.families import FAMILIES
from kvmodel.nesting import WRAPPERS

from .known import LLAMA_8B, known_config
from .known_caches import known_cache_config

LONGEST_SECONDS = 1.0


@contextmanager
def refused(field: str, says: str = "") -> Iterator[None]:
    began = time.process_time()
    with pytest.raises(ModelError) as caught:
        yield
    assert time.process_time() - began < LONGEST_SECONDS
    assert caught.value.field == field
    assert says in caught.value.message
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 1000


@pytest.mark.parametrize(
    "field",
    ["model_type", "num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "vocab_size"],
)
def test_a_missing_field_is_named(field: str) -> None:
    config = dict(LLAMA_8B)
    del config[field]
    with refused(field, "is missing"):
        read_architecture(config)


@pytest.mark.parametrize("field", ["kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"])
def test_a_missing_latent_field_is_named(field: str) -> None:
    config = known_config("deepseek-ai/DeepSeek-R1")
    del config[field]
    with refused(field, "is missing"):
        read_architecture(config)


BAD_COUNTS = [0, -1, True, "32", 32.0, float("nan"), float("inf"), 10**30, 10**6000, [32], {}, b"32"]


@pytest.mark.parametrize("value", BAD_COUNTS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "field",
    ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "vocab_size", "head_dim"],
)
def test_a_value_that_is_no_size_is_refused(field: str, value: object) -> None:
    with refused(field):
        read_architecture({**LLAMA_8B, field: value})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"num_key_value_heads": 64}, "num_key_value_heads"),
        ({"num_attention_heads": 24, "num_key_value_heads": 8}, "hidden_size"),
        ({"torch_dtype": "int3"}, "torch_dtype"),
        ({"torch_dtype": 16}, "torch_dtype"),
        ({"model_type": "no_such_model"}, "model_type"),
        ({"model_type": "no\nsuch\rmodel"}, "model_type"),
        ({"model_type": 7}, "model_type"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"quantization_config": []}, "quantization_config"),
        ({"quantization_config": {}}, "quantization_config.quant_method"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"partial_rotary_factor": float("nan")}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 2}, "partial_rotary_factor"),
        ({"rope_parameters": [1]}, "rope_parameters"),
    ],
)
def test_contradictions_and_wrong_types_are_named(change: dict[str, object], field: str) -> None:
    with refused(field):
        read_architecture({**LLAMA_8B, **change})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"layer_types": ["full_attention"] * 45}, "layer_types"),
        ({"layer_types": ["full_attention"] * 45 + ["mamba"]}, "layer_types[45]"),
        ({"layer_types": ["full_attention"] * 45 + [{}]}, "layer_types[45]"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"sliding_window": "4096"}, "sliding_window"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern"),
        ({"sliding_window_pattern": "LLX"}, "sliding_window_pattern"),
    ],
)
def test_layer_patterns_are_checked(change: dict[str, object], field: str) -> None:
    with refused(field):
        read_architecture({**known_config("google/gemma-2-27b"), **change})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"block_configs": []}, "block_configs"),
        ({"block_configs": [7] * 80}, "block_configs[0].attention"),
        (
            {"block_configs": [{"attention": {"n_heads_in_group": 0}}] * 80},
            "block_configs[0].attention.n_heads_in_group",
        ),
        (
            {"block_configs": [{"attention": {"n_heads_in_group": 7}}] * 80},
            "block_configs[0].attention.n_heads_in_group",
        ),
        ({"block_configs": [{"attention": {"no_op": True}}] * 80}, "block_configs"),
    ],
)
def test_block_configs_are_checked(change: dict[str, object], field: str) -> None:
    with refused(field):
        read_architecture({**known_config("nvidia/Llama-3_3-Nemotron-Super-49B-v1"), **change})


@pytest.mark.parametrize(
    ("model_id", "change", "field"),
    [
        ("zai-org/GLM-5.3", {"indexer_types": ["full"] * 77}, "indexer_types"),
        ("zai-org/GLM-5.3", {"indexer_types": ["full"] * 77 + ["half"]}, "indexer_types[77]"),
        ("deepseek-ai/DeepSeek-V4-Flash", {"compress_ratios": [4] * 42}, "compress_ratios"),
        ("deepseek-ai/DeepSeek-V4-Flash", {"compress_ratios": [-4] * 43}, "compress_ratios[0]"),
        ("nvidia/Nemotron-H-56B-Base-8K", {"hybrid_override_pattern": "M*X"}, "hybrid_override_pattern"),
        ("nvidia/Nemotron-H-56B-Base-8K", {"hybrid_override_pattern": "--"}, "config"),
        ("nvidia/Nemotron-H-56B-Base-8K", {"hybrid_override_pattern": None}, "hybrid_override_pattern"),
        ("google/gemma-3n-E4B-it", {"num_kv_shared_layers": 35}, "num_kv_shared_layers"),
        ("google/gemma-3n-E4B-it", {"num_kv_shared_layers": 32}, "num_kv_shared_layers"),
        ("google/gemma-3n-E4B-it", {"intermediate_size": [16384, "wide"]}, "intermediate_size[1]"),
        ("Zyphra/Zamba2-2.7B", {"hybrid_layer_ids": [54], "layers_block_type": None}, "hybrid_layer_ids"),
        ("ibm-ai-platform/Bamba-9B-v2", {"attn_layer_indices": [True]}, "attn_layer_indices"),
        ("ibm-ai-platform/Bamba-9B-v2", {"mamba_n_heads": 127, "mamba_d_head": "auto"}, "mamba_n_heads"),
        ("ibm-ai-platform/Bamba-9B-v2", {"mamba_d_head": "some"}, "mamba_d_head"),
        ("google/recurrentgemma-2b", {"block_types": []}, "block_types"),
        ("MiniMaxAI/MiniMax-M3", {"sparse_attention_config": {"sparse_attention_freq": [1]}}, None),
        ("google-t5/t5-base", {"num_heads": 0}, "num_heads"),
        ("LiquidAI/LFM2-1.2B", {"layer_types": ["conv"] * 15}, "layer_types"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", {"layer_types": ["conv"] * 48}, "layer_types[0]"),
    ],
)
def test_other_caches_are_checked(model_id: str, change: dict[str, object], field: str | None) -> None:
    config = {**known_cache_config(model_id), **change}
    with refused(field or "sparse_attention_config.sparse_attention_freq"):
        read_architecture(config)


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        ("llama", "layer_types", ["full_attention"] * 3_000_000),
        ("gemma2", "layer_types", [[]] * 3_000_000),
        ("deepseek_v4", "compress_ratios", [4] * 3_000_000),
        ("glm_moe_dsa", "indexer_types", ["full"] * 3_000_000),
        ("glm_moe_dsa", "index_topk_pattern", "F" * 3_000_000),
        ("nemotron_h", "hybrid_override_pattern", "M" * 3_000_000),
        ("gpt_neo", "attention_types", [[["global"], 10**9]]),
        ("gemma4_text", "per_layer_config", {str(number): {} for number in range(300_000)}),
        ("llama", "num_hidden_layers", 10_001),
        ("hrm_text", "num_hidden_layers", 10_000),
    ],
)
def test_absurd_sizes_are_answered_at_once(model_type: str, field: str, value: object) -> None:
    config = {**LLAMA_8B, "model_type": model_type, "kv_lora_rank": 512, "qk_rope_head_dim": 64, field: value}
    config |= {"qk_nope_head_dim": 128, "num_heads": 32, "num_layers": 32}
    began = time.process_time()
    try:
        architecture = read_architecture(config)
    except ModelError as error:
        assert len(str(error)) < 1000  # noqa: PT017
    else:
        assert len(architecture.blocks) <= 10_000
    assert time.process_time() - began < LONGEST_SECONDS


def test_two_names_for_one_fact_must_agree() -> None:
    config = known_config("openai-community/gpt2")
    with refused("num_hidden_layers", "contradicts n_layer"):
        read_architecture({**config, "num_hidden_layers": 13})


@pytest.mark.parametrize("config", [None, 7, "llama", [], [LLAMA_8B]])
def test_a_config_is_an_object(config: Any) -> None:
    with refused("config", "is not an object"):
        read_architecture(config)


@pytest.mark.parametrize("wrapper", sorted(WRAPPERS))
def test_a_config_inside_itself_is_refused(wrapper: str) -> None:
    config: dict[str, object] = {"model_type": wrapper}
    config[WRAPPERS[wrapper].key] = config
    with pytest.raises(ModelError) as caught:
        read_architecture(config)
    assert caught.value.field == "model_type"


@pytest.mark.parametrize("text", [None, [], "llama", 7])
def test_the_nested_config_is_an_object(text: object) -> None:
    with refused("text_config"):
        read_architecture({"model_type": "gemma3", "text_config": text})


def test_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**LLAMA_8B, "num_attention_heads": -4}))
    with pytest.raises(ModelError) as caught:
        load_architecture(tmp_path)
    assert caught.value.file == str(file)
    assert str(caught.value) == f"{file}: num_attention_heads: -4 is outside 1..{2**40}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b'{"model_type": "llama", "num_hidden_layers": ' + b"9" * 10_000 + b"}", "is not JSON"),
        (b"[" * 1_000_000, "is nested too deeply"),
        (b'{"a":' * 500_000, "is nested too deeply"),
        (b" " * (4 * 2**20 + 1), "is larger than"),
        (b"[]", "is not an object"),
        (b"null", "is not an object"),
    ],
    ids=["empty", "cut", "not text", "huge number", "deep list", "deep object", "huge", "list", "null"],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with refused("config", says):
        load_architecture(file)


def test_no_file(tmp_path: Path) -> None:
    with refused("config", "there is no such file"):
        load_architecture(tmp_path)
    with refused("config", "there is no such file"):
        load_architecture(tmp_path / "nowhere" / "config.json")


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([1, 2, 8, 64, "full_attention", "sliding_attention"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(
    [
        *LLAMA_8B,
        "head_dim",
        "layer_types",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "sliding_window_pattern",
        "attention_chunk_size",
        "no_rope_layers",
        "kv_lora_rank",
        "qk_rope_head_dim",
        "qk_nope_head_dim",
        "v_head_dim",
        "block_configs",
        "attn_config",
        "ffn_config",
        "n_layer",
        "n_embd",
        "num_kv_heads",
        "num_local_experts",
        "n_routed_experts",
        "num_experts",
        "mlp_only_layers",
        "moe_layers",
        "moe_layer_freq",
        "rope_parameters",
        "quantization_config",
        "attention_other_setting",
        "text_config",
        "per_layer_config",
        "num_kv_shared_layers",
        "global_head_dim",
        "hybrid_layer_pattern",
        "hybrid_layer_ids",
        "hybrid_override_pattern",
        "layers_block_type",
        "attn_layer_indices",
        "attn_layer_period",
        "full_attn_idxs",
        "linear_attn_config",
        "linear_num_key_heads",
        "mamba_d_head",
        "mamba_n_heads",
        "mamba_expand",
        "state_size",
        "expand",
        "conv_kernel",
        "num_heads",
        "block_types",
        "cross_attention_layers",
        "indexer_types",
        "index_topk_freq",
        "index_topk_pattern",
        "index_head_dim",
        "compress_ratios",
        "compress_rates",
        "sparse_attention_config",
        "use_cla",
        "cla_share_factor",
        "mlp_layer_types",
        "attention_types",
        "ffn_multipliers",
        "decoder_layers",
        "num_decoder_layers",
        "d_model",
        "d_kv",
        "qk_dim_factor",
        "mamba_ssm_dtype",
    ]
)


@settings(deadline=1000, max_examples=400)
@given(st.sampled_from(sorted([*FAMILIES, *WRAPPERS])), st.dictionaries(fields, junk, max_size=6))
def test_anything_gives_an_architecture_or_a_named_field(model_type: str, change: dict[str, Any]) -> None:
    config = {**LLAMA_8B, "model_type": model_type, **change}
    outcome: Architecture | ModelError
    try:
        outcome = read_architecture(config)
    except ModelError as error:
        outcome = error
    if isinstance(outcome, ModelError):
        assert outcome.field
        assert str(outcome).isprintable()
    else:
        assert outcome.bytes_at(1) > 0
