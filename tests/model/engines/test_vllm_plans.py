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
