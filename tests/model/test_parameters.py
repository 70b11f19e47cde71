"""Parameter counts against those of Hugging Face transformers' modules, and the bytes that follow from them.

`parameter_counts.json` holds, per model, the config fields that parameters depend on and the number of parameters of
the model class built from it without weights (transformers 5.19 and 5.23, PyTorch's meta device). Rows named "default"
are a family's config class as it comes, or a small one of it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmodel.errors import ModelError
from kvmodel.parameters import count_parameters, estimate_weights
from kvmodel.weight_formats import format_of_config, weight_format

from .h100_startups import QWEN_7B_8BIT, QWEN_30B_A3B, QWEN_72B, deepseek
from .known import LLAMA_8B, known_config

COUNTED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("parameter_counts.json").read_text())
GIB = 2**30


@pytest.mark.parametrize("row", COUNTED, ids=lambda row: str(row["id"]))
def test_counts_are_exact(row: dict[str, Any]) -> None:
    count = count_parameters(row["config"])
    assert count.total == row["count"]
    assert count.active <= count.total
    assert 0 < count.quantizable < count.total


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("moonshotai/Kimi-K2-Instruct", 32.9),
        ("Qwen/Qwen3-235B-A22B", 22.2),
        ("mistralai/Mixtral-8x7B-v0.1", 12.9),
        ("zai-org/GLM-4.5", 33.6),
    ],
)
def test_active_parameters(model: str, billions: float) -> None:
    """As the models' cards print them, give or take how embeddings are counted."""
    config = next((row["config"] for row in COUNTED if row["id"] == model), None)
    if config is None:
        config = {**known_config(model), "n_shared_experts": 1, "moe_intermediate_size": 2048}
    assert count_parameters(config).active == pytest.approx(billions * 1e9, rel=0.02)


# Sums of the checkpoints' headers in GiB (jgchn/llm-d-planner, accuracy/results/v0.19.0, Apache-2.0).
@pytest.mark.parametrize(
    ("config", "dtype", "header_gib", "within"),
    [
        (LLAMA_8B, None, 14.9575, 0.0001),
        (QWEN_72B, "bfloat16", 2 * 67.7129, 0.0001),
        (QWEN_30B_A3B, None, 56.8705, 0.0001),
        ({**deepseek(102400, 163840, 10944), "n_shared_experts": 2}, None, 29.2556, 0.0001),
        (QWEN_7B_8BIT, "int8", 8.1106, 0.001),
        (QWEN_7B_8BIT, "fp8", 8.1106, 0.001),
        (LLAMA_8B, "w8a8", 8.4601, 0.001),
        (LLAMA_8B, "w4a16", 5.3417, 0.01),
    ],
)
def test_estimates_of_checkpoints(config: dict[str, Any], dtype: str | None, header_gib: float, within: float) -> None:
    estimate = estimate_weights(config, weights_dtype=dtype)
    assert estimate.total_bytes == pytest.approx(header_gib * GIB, rel=within)
    assert estimate.low_bytes_per_gpu <= header_gib * GIB <= estimate.high_bytes_per_gpu


def test_gpt_oss_keeps_all_but_its_experts_in_16_bits() -> None:
    """12.8 GiB are published."""
    row = next(row for row in COUNTED if row["id"] == "openai/gpt-oss-20b")
    estimate = estimate_weights({**row["config"], "quantization_config": {"quant_method": "mxfp4"}})
    assert estimate.total_bytes == pytest.approx(12.8 * GIB, rel=0.002)


def test_bits_per_weight() -> None:
    bits = {
        name: weight_format(name).bits for name in ("gptq", "awq", "nf4", "nf4_double", "fp8_block", "mxfp4", "nvfp4")
    }
    assert bits["gptq"] == bits["awq"] == pytest.approx(4.16, abs=0.005)
    assert bits["nf4"] == 4.5
    assert bits["nf4_double"] == pytest.approx(4.127, abs=0.0005)
    assert bits["fp8_block"] == pytest.approx(8.002, abs=0.0005)
    assert (bits["mxfp4"], bits["nvfp4"]) == (4.25, 4.5)
    assert weight_format("Q4_K").bits == 4.5
    assert weight_format("torch.bfloat16").bits == 16


def compressed(bits: int, kind: str, **more: object) -> dict[str, object]:
    weights = {"num_bits": bits, "type": kind, **more}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(
    ("section", "name", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq_int4", 4.15625),
        ({"quant_method": "gptq", "bits": 8, "group_size": 32}, "gptq_int8", 8.75),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, "awq_int4", 4.3125),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", 8 + 32 / 16384),
        ({"quant_method": "fp8"}, "fp8", 8 + 32 / 4096),
        ({"quant_method": "mxfp4"}, "mxfp4", 4.25),
        ({"load_in_4bit": True}, "nf4", 4.5),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
            "nf4_double",
            4.127,
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8", 8 + 16 / 4096),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", 4.5),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", 8 + 32 / 4096),
        (compressed(8, "float"), "fp8", 8 + 32 / 4096),
        (compressed(4, "float", group_size=16), "nvfp4", 4.5),
        (compressed(4, "int", group_size=128, symmetric=True), "int4", 4.125),
        (compressed(4, "int", group_size=128, symmetric=False), "int4", 4.15625),
    ],
)
def test_formats_of_checkpoints(section: dict[str, object], name: str, bits: float) -> None:
    found = format_of_config({**LLAMA_8B, "quantization_config": section}, "bfloat16")
    assert found.name == name
    assert found.bits == pytest.approx(bits, abs=0.0001)


def test_ranks_and_stages_share() -> None:
    whole = estimate_weights(LLAMA_8B)
    assert whole.bytes_per_gpu == whole.total_bytes == 16_060_522_496
    half = estimate_weights(LLAMA_8B, tp=2)
    # Norms are not cut; the vocabulary of 128256 is a multiple of 64.
    assert half.bytes_per_gpu == whole.total_bytes // 2 + 65 * 4096
    # A last stage: half the layers, the output, no embeddings.
    stage = estimate_weights(LLAMA_8B, pp=2)
    table = 128256 * 4096 * 2
    assert stage.bytes_per_gpu == pytest.approx((whole.total_bytes - 2 * table) / 2 + table)


def test_a_vision_tower_is_estimated() -> None:
    config = {
        "model_type": "gemma3",
        "text_config": next(row["config"] for row in COUNTED if row["id"] == "google/gemma-3-12b-it"),
        "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
        "dtype": "bfloat16",
    }
    estimate = estimate_weights(config)
    assert "encoder" in estimate.source
    assert estimate.total_bytes == pytest.approx(22.7007 * GIB, rel=0.005)


def test_a_number_instead_of_a_count() -> None:
    estimate = estimate_weights({"model_type": "new", "torch_dtype": "float16"}, parameters=10**10, tp=4)
    assert (estimate.total_bytes, estimate.bytes_per_gpu) == (2 * 10**10, 5 * 10**9)
    assert estimate.low_bytes_per_gpu < estimate.bytes_per_gpu < estimate.high_bytes_per_gpu


@given(st.sampled_from(COUNTED), st.sampled_from([1, 2, 4, 8, 64]), st.integers(1, 8), st.sampled_from(["fp8", "q4_k"]))
def test_shares_add_up_to_no_less_than_the_whole(row: dict[str, Any], tp: int, pp: int, dtype: str) -> None:
    plain = estimate_weights(row["config"], tp=tp, weights_dtype="bfloat16")
    assert plain.bytes_per_gpu * tp >= plain.total_bytes
    assert estimate_weights(row["config"], tp=tp, weights_dtype=dtype).bytes_per_gpu < plain.bytes_per_gpu
    share = estimate_weights(row["config"], tp=tp, pp=pp, weights_dtype=dtype)
    assert 0 <= share.low_bytes_per_gpu <= share.bytes_per_gpu <= share.high_bytes_per_gpu


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "model_type"),
        ({"model_type": "unheard_of"}, "model_type"),
        ({**LLAMA_8B, "hidden_size": None}, "hidden_size"),
        ({**LLAMA_8B, "hidden_size": "4096"}, "hidden_size"),
        ({**LLAMA_8B, "num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({**LLAMA_8B, "vocab_size": -1}, "vocab_size"),
        ({**LLAMA_8B, "intermediate_size": 2.5}, "intermediate_size"),
        ({**QWEN_30B_A3B, "mlp_only_layers": "none"}, "mlp_only_layers"),
        (deepseek(1, 1, 1), "n_shared_experts"),
        ({"model_type": "gemma3", "text_config": []}, "text_config"),
        ({"model_type": "dbrx", "n_layers": 1, "d_model": 8, "n_heads": 1, "vocab_size": 8}, "attn_config"),
        ({"model_type": "lfm2", "num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 8}, "layer_types"),
        (
            {**LLAMA_8B, "model_type": "nemotron_h", "hybrid_override_pattern": "X" * 32},
            "hybrid_override_pattern",
        ),
    ],
)
def test_bad_configs_are_named(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        count_parameters(config)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tp": 0}, "tp"),
        ({"pp": True}, "pp"),
        ({"parameters": 0}, "params"),
        ({"weights_dtype": "int5"}, "weights_dtype"),
        ({"weights_dtype": 4}, "weights_dtype"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        estimate_weights(LLAMA_8B, **change)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "section",
    [
        "fp8",
        {},
        {"quant_method": "magic"},
        {"quant_method": "gptq", "bits": 5},
        {"quant_method": "gptq", "bits": 4, "group_size": 0},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": [], "type": {}}}}},
    ],
)
def test_unknown_formats_are_refused(section: object) -> None:
    with pytest.raises(ModelError) as caught:
        estimate_weights({**LLAMA_8B, "quantization_config": section})
    assert caught.value.field.startswith("quantization_config")
