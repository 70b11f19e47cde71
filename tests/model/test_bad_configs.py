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

LONGEST_SECONDS = 1.0


@contextmanager
def refused(field: str, says: str = "") -> Iterator[None]:
    began = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        yield
    assert time.perf_counter() - began < LONGEST_SECONDS
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
        (b'{"a":' * 1_000_000, "is nested too deeply"),
        (b" " * (16 * 2**20 + 1), "is larger than"),
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
