import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmodel.plan import FIELDS, plan
from tests.model.known import LLAMA_8B, known_config
from tests.model.known_caches import known_cache_config


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


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm", "tgi", "lmdeploy", "llama.cpp", "transformers"])
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
        ({"config": LLAMA_8B, "state_dtype": "fp8", "available_kv_gib": 1}, "state_dtype"),
        ({"config": LLAMA_8B, "speculative_tokens": 0}, "speculative_tokens"),
        ({"config": LLAMA_8B, "draft_layers": "one"}, "draft_layers"),
        ({"config": LLAMA_8B, "kv_dtype_skip_layers": ["0", "32"], "available_kv_gib": 1}, "kv_dtype_skip_layers"),
        ({"config": LLAMA_8B, "kv_dtype_skip_layers": "0", "available_kv_gib": 1}, "kv_dtype_skip_layers"),
        ({"config": LLAMA_8B, "engine": "sglang", "engine_version": "new", "gpu": "h100"}, "engine_version"),
        (
            {"config": LLAMA_8B, "engine": "tgi", "block_size": 1, "max_model_len": 8192, "available_kv_bytes": 1},
            "kv_bytes",
        ),
        ({"config": LLAMA_8B, "lengths": []}, "lengths"),
        ({"config": LLAMA_8B, "lengths": "512:3"}, "lengths"),
        ({"config": LLAMA_8B, "lengths": [[512]]}, "lengths"),
        ({"config": LLAMA_8B, "lengths": [[512, 0]]}, "lengths"),
        ({"config": LLAMA_8B, "lengths": [{"tokens": 1.5}]}, "lengths"),
        ({"config": LLAMA_8B, "lengths": [{"prompt": 5}]}, "lengths"),
        ({"config": LLAMA_8B, "lengths": [{"tokens": 5, "wait": 1}]}, "lengths"),
        ({"config": LLAMA_8B, "lengths": [[2**25, 1]]}, "lengths"),
        ({"config": LLAMA_8B, "lengths": [[5, 1], {"prompt": 5, "output": 5}]}, "lengths"),
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


def test_the_expected_live_bytes_of_a_distribution() -> None:
    case = {"available_kv_gib": 40, "max_model_len": 8192}
    found = planned(**case, lengths=[{"tokens": 500, "weight": 3}, [4090, 1]])["expected"]
    assert found["mean_tokens"] == (3 * 500 + 4090) / 4
    assert found["ideal_bytes"] == found["mean_tokens"] * 131_072
    # Blocks of 16 tokens: 32 of them, and 256.
    assert found["plan_bytes"] == (3 * 512 + 4096) / 4 * 131_072
    assert found["plan_p95_bytes"] == 4096 * 131_072
    assert found["concurrency"] == pytest.approx(20_480 / ((3 * 32 + 256) / 4))
    assert "on average" in found["label"]


def test_a_usual_request_is_a_distribution_of_one() -> None:
    one = planned(available_kv_gib=40, max_model_len=8192, tokens_per_request=1000)
    assert one["expected"]["mean_tokens"] == 1000
    assert one["expected"]["plan_bytes"] == one["engine_plan"]["bytes_per_request"]
    assert planned(available_kv_gib=40)["expected"] is None


def test_requests_that_grow_are_met_by_the_time_they_take() -> None:
    lengths = [{"prompt": 100, "output": 100}, {"prompt": 100, "output": 900, "weight": 1}]
    found = planned(lengths=lengths)
    # E[o(s + o/2)] / E[o]
    assert found["expected"]["mean_tokens"] == pytest.approx((100 * 150 + 900 * 550) / 1000)
    assert found["expected"]["plan_bytes"] is None
    assert found["expected"]["ideal_bytes"] == pytest.approx(found["expected"]["mean_tokens"] * 131_072)


def test_lengths_beyond_the_longest_request_are_warned_of() -> None:
    result = planned(available_kv_gib=40, max_model_len=4096, lengths=[[5000, 1]])
    assert "5000 tokens are more than the longest request's 4096" in result["warnings"]


def test_windows_and_states_count_in_the_expected_bytes() -> None:
    result = plan({"config": known_config("openai/gpt-oss-20b"), "lengths": [[10_000, 1]]})
    assert result["expected"]["ideal_bytes"] == 24_576 * (10_000 + 128)  # type: ignore[index]


@pytest.mark.parametrize(
    ("engine", "warned"),
    [
        ("vllm", []),
        ("sglang", ["kv_dtype_skip_layers"]),
        ("tgi", ["kv_dtype_skip_layers", "state_dtype", "draft_layers"]),
        ("llama.cpp", ["kv_dtype_skip_layers", "state_dtype", "speculative_tokens", "draft_layers"]),
    ],
)
def test_settings_an_engine_has_not_are_warned_of(engine: str, warned: list[str]) -> None:
    case = {"kv_dtype_skip_layers": [0], "state_dtype": "float32", "speculative_tokens": 2, "draft_layers": 1}
    result = planned(engine=engine, available_kv_gib=40, max_model_len=8192, **case)
    assert result["error"] is None
    aside = [warning.partition(":")[0] for warning in result["warnings"] if "left aside" in warning]
    assert aside == warned
    assert planned(engine=engine, available_kv_gib=40)["error"] is None


def test_drafts_and_their_caches_reach_the_plan() -> None:
    def per_token(**case: object) -> int:
        result = planned(available_kv_gib=40, max_model_len=8192, **case)
        return int(result["engine_plan"]["kv_bytes_per_token_per_gpu"])

    for engine in ("vllm", "sglang"):
        case = {"engine": engine, "speculative_tokens": 3, "draft_layers": 2}
        assert per_token(**case) == per_token(engine=engine) + 2 * 4096


def test_the_type_of_states_reaches_the_plan() -> None:
    hybrid = {"config": known_cache_config("Qwen/Qwen3.5-27B"), "available_kv_gib": 40, "max_model_len": 8192}
    for engine in ("vllm", "sglang"):
        sizes = {}
        for dtype in ("float32", "bfloat16"):
            result = plan({**hybrid, "engine": engine, "state_dtype": dtype})
            assert result["error"] is None
            groups = result["engine_plan"]["groups"]  # type: ignore[index]
            # vLLM grows the attention block to hold the state, SGLang hands out slots of it.
            sizes[dtype] = max(group["page_bytes"] for group in groups)
        assert 1.8 < sizes["float32"] / sizes["bfloat16"] < 2


def test_a_named_card_takes_its_own_defaults() -> None:
    case = {"engine_version": "0.19.0", "gpu_memory_utilization": 0.9, "max_model_len": 8192}
    a100, h100 = planned(gpu="a100-80gb", **case), planned(gpu="h100-80gb", **case)
    stated = planned(gpu="a100-80gb", max_num_batched_tokens=2048, max_num_seqs=256, **case)
    assert a100["memory"]["activations_bytes"] == stated["memory"]["activations_bytes"]
    assert a100["memory"]["activations_bytes"] < h100["memory"]["activations_bytes"] / 2
    assert not any("A100" in warning for warning in a100["warnings"])
    nameless = planned(gpu_memory_gib=79, **case)
    assert any("an A100 takes 2048 tokens and 256 sequences" in warning for warning in nameless["warnings"])
    assert nameless["engine_plan"]["max_requests"] == h100["engine_plan"]["max_requests"] == 1024


def test_sglangs_share_of_the_card_is_its_versions() -> None:
    """0.5.23 on an H100: 512 MiB, 1.5 a token of the chunk, an eighth of a GiB, 2 a request, 8 a prefill graph."""

    def taken(**case: object) -> Any:
        return planned(engine="sglang", gpu="h100-80gb", max_model_len=8192, **case)

    mib = int(79.19 * 1024)
    share = round((mib - (512 + 1.5 * 8192 + 128 + 2 * 256 + 8 * 58)) / mib, 3)
    by_default, stated = taken(engine_version="0.5.23"), taken(engine_version="0.5.23", gpu_memory_utilization=share)
    assert by_default["memory"] == stated["memory"]
    assert by_default["engine_plan"] == stated["engine_plan"]
    assert (
        taken(engine_version="0.4.6")["memory"] == taken(engine_version="0.4.6", gpu_memory_utilization=0.88)["memory"]
    )
    longer = taken(engine_version="0.5.23", max_num_batched_tokens=16384)
    assert longer["memory"]["kv_pool_bytes"] < by_default["memory"]["kv_pool_bytes"] - 10 * 2**30


def test_a_vision_tower_lowers_sglangs_share() -> None:
    text = known_config("google/gemma-3-27b-it")
    case = {"engine": "sglang", "engine_version": "0.5.23", "gpu": "h100-80gb", "max_model_len": 8192}
    towers = [{"num_hidden_layers": 24, "hidden_size": 1024}, {"num_hidden_layers": 48, "hidden_size": 1024}]
    pools = []
    for tower in towers:
        config = {"model_type": "gemma3", "text_config": {**text, "model_type": "gemma3_text"}, "vision_config": tower}
        result = plan({**case, "config": config, "weights_bytes_per_gpu": 2**34})
        assert result["error"] is None
        pools.append(result["memory"]["kv_pool_bytes"])  # type: ignore[index]
    assert pools[0] - pools[1] > 5 * 2**30


def test_transformers_grows_a_cache_or_pages_what_it_is_given() -> None:
    grown = planned(engine="transformers", max_model_len=1000, max_num_seqs=3)
    assert grown["engine_plan"]["pool_bytes"] == 3 * 1000 * 131_072
    paged = planned(engine="transformers", max_model_len=1000, available_kv_gib=40)
    assert paged["profile"] == "paged"
    assert 30 * 2**30 < paged["engine_plan"]["pool_bytes"] <= 40 * 2**30


@given(
    st.dictionaries(
        st.sampled_from([*FIELDS, "x"]), st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    )
)
def test_plan_never_raises_and_is_always_json(case: dict[str, object]) -> None:
    result = plan({"config": known_config("google/gemma-3-27b-it"), **case})
    json.dumps(result, allow_nan=False)
