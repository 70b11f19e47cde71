import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmodel.plan import FIELDS, plan
from tests.model.known import LLAMA_8B, known_config


def planned(**case: object) -> dict[str, Any]:
    return plan({"config": LLAMA_8B, **case})


def test_a_pool_of_given_bytes() -> None:
    result = planned(available_kv_gib=40, max_model_len=8192, engine_version="0.19.0")
    assert result["error"] is None
    assert result["ideal"]["growth_bytes_per_token"] == 131_072
    assert result["ideal"]["bytes_at"]["8192"] == 8192 * 131_072
    engine = result["engine_plan"]
    assert (engine["block_tokens"], engine["bytes_per_block"], engine["num_blocks"]) == (16, 2 << 20, 20_480)
    assert (engine["capacity_tokens"], engine["max_concurrency"]) == (327_680, 40.0)
    assert result["profile"].startswith("vllm-0.1")


def test_a_card_instead_of_bytes() -> None:
    result = planned(gpu="h100-80gb", engine_version="0.19.0", gpu_memory_utilization=0.95, max_model_len=8192)
    # vLLM 0.19.0 on such a card printed 58.11 GiB, 476,016 tokens (llm-d-planner's public measurements).
    assert result["memory"]["kv_pool_bytes"] == pytest.approx(58.11 * 2**30, rel=0.01)
    assert result["engine_plan"]["capacity_tokens"] == pytest.approx(476_016, rel=0.01)
    assert result["memory"]["low_bytes"] <= result["memory"]["total_bytes"] <= result["memory"]["high_bytes"]
    assert result["latency"]["ttft_seconds"] > result["latency"]["tpot_seconds"] > 0
    freed = [entry["frees_bytes"] for entry in result["advice"]]
    assert freed == sorted(freed, reverse=True)
    assert freed[-1] > 0


def test_concurrency_at_a_usual_request() -> None:
    result = planned(available_kv_gib=40, max_model_len=8192, tokens_per_request=1000)
    assert result["engine_plan"]["concurrency_at_tokens_per_request"] == 20_480 // 63


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm", "tgi", "lmdeploy", "llama.cpp"])
def test_each_engine_has_a_plan(engine: str) -> None:
    result = planned(engine=engine, available_kv_gib=40, max_model_len=8192)
    assert result["error"] is None
    assert result["engine_plan"]["capacity_tokens"] > 0


def test_weights_are_read_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1000], "data_offsets": [0, 2000]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(2000))
    result = plan({"model": str(tmp_path), "gpu_memory_gib": 80, "max_model_len": 4096})
    assert result["error"] is None
    assert isinstance(result["memory"], dict)
    assert result["memory"]["weights_bytes"] == pytest.approx(2000 + 131072 * 128 * 2, abs=1)


@pytest.mark.parametrize(
    ("case", "field"),
    [
        ({}, "model"),
        ({"model": "nowhere/at-all"}, "model"),
        ({"config": []}, "config"),
        ({"config": {"model_type": "nonsuch"}}, "model_type"),
        ({"config": LLAMA_8B, "tp": 3, "available_kv_gib": 1}, "tp"),
        ({"config": LLAMA_8B, "tp": "two"}, "tp"),
        ({"config": LLAMA_8B, "gpu": "abacus"}, "gpu"),
        ({"config": LLAMA_8B, "engine": "abacus", "available_kv_gib": 1}, "engine"),
        ({"config": LLAMA_8B, "engine_version": "new", "available_kv_gib": 1}, "engine_version"),
        ({"config": LLAMA_8B, "kv_dtype": "fp3", "available_kv_gib": 1}, "kv_dtype"),
        ({"config": LLAMA_8B, "available_kv_gib": 1, "available_kv_bytes": 5}, "available_kv_gib"),
        ({"config": LLAMA_8B, "gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        ({"config": LLAMA_8B, "at_tokens": []}, "at_tokens"),
        ({"config": LLAMA_8B, "max_model_len": -1}, "max_model_len"),
    ],
)
def test_a_bad_case_names_its_field(case: dict[str, object], field: str) -> None:
    result = plan(case)
    assert result["error"] is not None
    assert result["error"]["field"] == field  # type: ignore[index]


def test_what_can_be_answered_is_answered_beside_an_error() -> None:
    result = planned(available_kv_gib=1, tp=3)
    assert result["error"]["field"] == "tp"
    assert result["ideal"]["growth_bytes_per_token"] == 131_072


def test_unknown_keys_are_warned_of_and_notes_are_not() -> None:
    result = planned(available_kv_gib=1, colour="red", id="case 1")
    assert result["error"] is None
    assert [warning for warning in result["warnings"] if "colour" in warning]
    assert not [warning for warning in result["warnings"] if "'id'" in warning]


@given(
    st.dictionaries(
        st.sampled_from([*FIELDS, "x"]), st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    )
)
def test_plan_never_raises_and_is_always_json(case: dict[str, object]) -> None:
    result = plan({"config": known_config("google/gemma-3-27b-it"), **case})
    json.dumps(result, allow_nan=False)
