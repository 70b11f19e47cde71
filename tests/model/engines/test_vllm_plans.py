"""Our plans against those of vLLM 0.32.0's own planning code, run on the same geometries.

`vllm_032_plans.json`: 40 GiB for the cache, blocks of 16, no prefix caching; models by their id in `known_models.json`
and `known_caches.json`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from kvmodel import Architecture, ModelError, plan_pool, read_architecture
from tests.model.known import LLAMA_8B, known_models
from tests.model.known_caches import known_caches

PLANS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("vllm_032_plans.json").read_text())
CONFIGS = {model.id: model.config for model in known_models()} | {cache.id: cache.config for cache in known_caches()}


def architecture(model_id: str) -> Architecture:
    return read_architecture(CONFIGS[model_id])


@pytest.mark.parametrize("row", PLANS, ids=lambda row: f"{row['id'].split('/')[1]}-{row['max_model_len']}")
def test_plans_are_vllms_own(row: dict[str, Any]) -> None:
    plan = plan_pool(
        architecture(row["id"]),
        kv_bytes=row["kv_bytes"],
        max_model_len=row["max_model_len"],
        max_num_batched_tokens=row["max_num_batched_tokens"],
        in_flight_batches=row["in_flight_batches"],
        hybrid_kv_cache=row["hybrid_kv_cache"],
        tp=row["tp"],
        engine_version="0.32.0",
        prefix_caching=False,
    )
    assert [[group.layers, group.page_bytes] for group in plan.groups] == row["groups"]
    assert (plan.bytes_per_block, plan.num_blocks) == (row["bytes_per_block"], row["num_blocks"])
    assert plan.max_concurrency == pytest.approx(row["max_concurrency"], abs=5e-5)


# What vLLM 0.32.0's own planning code said to 40 GiB, 8192 tokens, blocks of 16 and two batches of 8192 in flight.
@pytest.mark.parametrize(
    ("model_id", "flags", "bytes_per_block", "num_blocks", "capacity_tokens"),
    [
        (
            "google/gemma-3-27b-it",
            {"kv_dtype": "fp8", "kv_dtype_skip_layers": ["sliding_window"]},
            1310720,
            32768,
            80514,
        ),
        ("google/gemma-3-27b-it", {"kv_dtype": "nvfp4", "kv_dtype_skip_layers": ["0", "1"]}, 294912, 145635, 272508),
        (
            "openai/gpt-oss-20b",
            {"kv_dtype": "fp8", "kv_dtype_skip_layers": ["sliding_window"], "hybrid_kv_cache": False},
            1179648,
            36408,
            1165056,
        ),
        (
            "Qwen/Qwen3.5-27B",
            {"kv_dtype": "fp8", "kv_dtype_skip_layers": ["3"], "state_dtype": "float32"},
            6422528,
            6687,
            553332,
        ),
        ("deepseek-ai/DeepSeek-R1", {"kv_dtype": "fp8", "kv_dtype_skip_layers": ["0"]}, 1142784, 37583, 1202656),
        ("meta-llama/Llama-3.1-8B", {"kv_dtype": "nvfp4", "kv_dtype_skip_layers": ["0"]}, 2547712, 16858, 1078912),
        # The first two layers and the last two keep 16 bits without being asked to.
        ("meta-llama/Llama-3.1-8B", {"kv_dtype": "turboquant_k8v4"}, 2893824, 14841, 710979),
    ],
)
def test_layers_of_several_types_share_the_blocks(
    model_id: str, flags: dict[str, Any], bytes_per_block: int, num_blocks: int, capacity_tokens: int
) -> None:
    model = read_architecture(CONFIGS.get(model_id, LLAMA_8B))
    plan = plan_pool(
        model,
        kv_bytes=40 << 30,
        max_model_len=8192,
        in_flight_batches=2,
        max_num_batched_tokens=8192,
        engine_version="0.32.0",
        prefix_caching=False,
        **flags,
    )
    assert (plan.bytes_per_block, plan.num_blocks, plan.capacity_tokens) == (
        bytes_per_block,
        num_blocks,
        capacity_tokens,
    )


@pytest.mark.parametrize(
    ("model_id", "flags", "field"),
    [
        ("google/gemma-3-27b-it", {"kv_dtype_skip_layers": ["62"]}, "kv_dtype_skip_layers"),
        ("google/gemma-3-27b-it", {"kv_dtype_skip_layers": ["windows"]}, "kv_dtype_skip_layers"),
        (
            "google/gemma-3-27b-it",
            {"kv_dtype_skip_layers": ["0"], "engine_version": "0.31.0"},
            "kv_dtype_skip_layers",
        ),
        # vLLM's own code fails to scale the padded windows to a skipped layer of full attention.
        ("google/gemma-3-27b-it", {"kv_dtype": "fp8", "kv_dtype_skip_layers": ["5"]}, "kv_dtype_skip_layers"),
        ("google/gemma-4-31B-it", {"kv_dtype": "fp8", "kv_dtype_skip_layers": ["5"]}, "kv_dtype_skip_layers"),
        ("deepseek-ai/DeepSeek-V3.2", {"kv_dtype_skip_layers": ["0"]}, "kv_dtype_skip_layers"),
        (
            "Qwen/Qwen3.5-27B",
            {"kv_dtype": "turboquant_k8v4", "kv_dtype_skip_layers": ["3"]},
            "kv_dtype_skip_layers",
        ),
        ("deepseek-ai/DeepSeek-R1", {"kv_dtype": "nvfp4"}, "kv_dtype"),
        ("Qwen/Qwen3.5-27B", {"state_dtype": "fp8"}, "state_dtype"),
    ],
)
def test_types_that_are_not_planned_are_refused(model_id: str, flags: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan_pool(architecture(model_id), **{"num_blocks": 512, "engine_version": "0.32.0", **flags})
    assert caught.value.field == field


def test_packed_types_before_their_rules_were_read_are_warned_of() -> None:
    plan = plan_pool(read_architecture(LLAMA_8B), num_blocks=512, kv_dtype="turboquant_k8v4", engine_version="0.30.0")
    assert any("turboquant_k8v4" in warning for warning in plan.warnings)


def test_ultraquant_takes_blocks_of_64() -> None:
    plan = plan_pool(read_architecture(LLAMA_8B), num_blocks=512, kv_dtype="ultraquant_4bit", engine_version="0.30.0")
    assert plan.block_tokens == 64


def test_static_sinks_fill_whole_blocks() -> None:
    model = read_architecture({**LLAMA_8B, "model_type": "PanguEmbedded", "param_sink_number": 128})
    plain = plan_pool(read_architecture(LLAMA_8B), num_blocks=512, max_model_len=8192)
    # They lie in blocks of the pool that the printed capacity does not leave out.
    assert plan_pool(model, num_blocks=512, max_model_len=8192).capacity_tokens == plain.capacity_tokens
    with pytest.raises(ModelError, match="block_tokens: 48 does not divide 128 sink tokens"):
        plan_pool(model, num_blocks=512, max_model_len=8192, block_tokens=48)


def test_an_encoders_blocks_follow_the_scaled_block() -> None:
    """Whisper, layers of two types: blocks of 64 hold 1500 tokens 24 times, not as many as blocks of 16 would."""
    whisper = architecture("openai/whisper-large-v3")
    skipped: dict[str, Any] = {
        "kv_dtype": "fp8",
        "kv_dtype_skip_layers": ["12"],
        "engine_version": "0.32.0",
        "max_model_len": 448,
    }
    cross = [group for group in plan_pool(whisper, num_blocks=512, **skipped).groups if group.kind == "cross"]
    assert {(group.block_tokens, group.blocks_per_request) for group in cross} >= {(64, 24)}


def test_windows_reserve_for_two_batches_since_0_26() -> None:
    """gemma-4-31B on H200 fitted one batch of 8192 up to 0.24 (configiq issue 112); 0.26 counts all in flight."""
    windows = architecture("google/gemma-3-27b-it")
    older, newer = (
        plan_pool(windows, kv_bytes=40 << 30, max_model_len=131072, engine_version=version, max_num_batched_tokens=8192)
        for version in ("0.24.0", "0.30.0")
    )
    assert older.max_concurrency > newer.max_concurrency


def test_blocks_of_hybrids_hold_a_state() -> None:
    plan = plan_pool(architecture("Qwen/Qwen3-Next-80B-A3B-Instruct"), kv_bytes=40 << 30, prefix_caching=False)
    assert plan.block_tokens == 544


def test_pipeline_stages_hold_their_share_of_the_layers() -> None:
    llama = read_architecture(LLAMA_8B)
    one, two = (plan_pool(llama, kv_bytes=10 << 30, max_model_len=8192, pp=pp) for pp in (1, 2))
    assert one.bytes_per_block == 2 * (two.bytes_per_block or 0)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"kv_bytes": 1 << 30, "pp": 33}, "pp"),
        ({"kv_bytes": 1 << 30, "dcp": 0}, "dcp"),
        ({"kv_bytes": 1 << 30, "engine_version": "newest"}, "engine_version"),
        ({"kv_bytes": 5}, "kv_bytes"),
        ({}, "kv_bytes"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan_pool(read_architecture(LLAMA_8B), **arguments)
    assert caught.value.field == field
