"""vLLM's pool against start-up logs and its own planner's output."""

from typing import Any

import pytest

from kvmodel import ModelError, plan_pool, read_architecture

from .known import LLAMA_8B, known_config

QWEN_7B = {**LLAMA_8B, "model_type": "qwen2", "num_hidden_layers": 28, "num_attention_heads": 28}
QWEN_7B |= {"num_key_value_heads": 4, "hidden_size": 3584}


@pytest.mark.parametrize(
    ("config", "tp", "blocks", "tokens", "concurrency"),
    [
        # vLLM 0.19.0 on H100, block 16, max_model_len 8192: jgchn/llm-d-planner, accuracy/results (Apache-2.0).
        (LLAMA_8B, 1, 29751, 476016, 58.11),
        (LLAMA_8B, 2, 65293, 1044688, 127.53),
        (LLAMA_8B, 4, 138112, 2209792, 269.75),
        (QWEN_7B, 1, 75642, 1210272, 147.74),
        (known_config("Qwen/Qwen2.5-72B"), 2, 1245, 19920, 2.43),
        (known_config("Qwen/Qwen3-8B"), 1, 26168, 418688, 51.11),
        (known_config("deepseek-ai/DeepSeek-V2-Lite"), 1, 94097, 1505552, 183.78),
        (known_config("mistralai/Mixtral-8x7B-v0.1"), 2, 29121, 465936, 56.88),
    ],
)
def test_tokens_and_concurrency_as_the_log_prints_them(
    config: dict[str, Any], tp: int, blocks: int, tokens: int, concurrency: float
) -> None:
    architecture = read_architecture(config)
    plan = plan_pool(
        architecture, num_blocks=blocks, block_tokens=16, max_model_len=8192, tp=tp, engine_version="0.19.0"
    )
    assert plan.capacity_tokens == tokens
    assert round(plan.max_concurrency, 2) == concurrency


@pytest.mark.parametrize(
    ("config", "tp", "kv_gib", "blocks"),
    [
        (LLAMA_8B, 1, 58.11, 29751),
        (LLAMA_8B, 4, 67.44, 138112),
        (known_config("Qwen/Qwen3-8B"), 1, 57.50, 26168),
        (known_config("deepseek-ai/DeepSeek-V2-Lite"), 1, 43.61, 94097),
    ],
)
def test_blocks_from_the_bytes_the_log_prints(config: dict[str, Any], tp: int, kv_gib: float, blocks: int) -> None:
    """The log rounds the pool to 0.01 GiB, so its block count lies between the two roundings."""
    architecture = read_architecture(config)
    low, high = (
        plan_pool(architecture, kv_bytes=int((kv_gib + off) * 2**30), block_tokens=16, max_model_len=8192, tp=tp)
        for off in (-0.005, 0.005)
    )
    assert low.num_blocks is not None
    assert high.num_blocks is not None
    assert low.num_blocks <= blocks <= high.num_blocks


@pytest.mark.parametrize(
    ("max_model_len", "in_flight", "concurrency"),
    [(8192, 8192, 39.922), (131072, 8192, 26.632), (131072, 16384, 15.9875)],
)
def test_a_model_of_windows_reserves_for_what_is_in_flight(
    max_model_len: int, in_flight: int, concurrency: float
) -> None:
    """vLLM 0.32's own planner on Mistral-7B-v0.1 and 40 GiB."""
    plan = plan_pool(
        read_architecture(known_config("mistralai/Mistral-7B-v0.1")),
        kv_bytes=40 * 2**30,
        block_tokens=16,
        max_model_len=max_model_len,
        max_num_batched_tokens=in_flight,
        in_flight_batches=1,
    )
    assert (plan.bytes_per_block, plan.num_blocks) == (2_097_152, 20_480)
    assert plan.max_concurrency == pytest.approx(concurrency, abs=5e-4)


def test_replicated_heads() -> None:
    """94 layers of one head on each of 4 ranks, and of 8: 48,128 bytes per token either way (vLLM issue 21348)."""
    architecture = read_architecture(known_config("Qwen/Qwen3-235B-A22B"))
    for tp in (4, 8):
        plan = plan_pool(architecture, num_blocks=100, block_tokens=16, max_model_len=4096, tp=tp)
        assert plan.kv_bytes_per_token_per_gpu == 48_128


def test_an_fp8_cache_halves_a_block() -> None:
    architecture = read_architecture(LLAMA_8B)
    plan = plan_pool(architecture, num_blocks=9, block_tokens=16, max_model_len=64, kv_dtype="fp8")
    assert plan.bytes_per_block == 16 * 65536


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_blocks": 0}, "num_blocks"),
        ({"num_blocks": None}, "kv_bytes"),
        ({"kv_bytes": 2**30}, "kv_bytes"),
        ({"num_blocks": None, "kv_bytes": 1000}, "kv_bytes"),
        ({"num_blocks": None, "kv_bytes": -5}, "kv_bytes"),
        ({"block_tokens": 0}, "block_tokens"),
        ({"block_tokens": 16.0}, "block_tokens"),
        ({"max_model_len": -1}, "max_model_len"),
        ({"max_model_len": True}, "max_model_len"),
        ({"kv_dtype": "fp3"}, "kv_dtype"),
        ({"tp": 3}, "tp"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], field: str) -> None:
    arguments: dict[str, Any] = {"num_blocks": 9, "block_tokens": 16, "max_model_len": 64, **change}
    with pytest.raises(ModelError) as caught:
        plan_pool(read_architecture(LLAMA_8B), **arguments)
    assert caught.value.field == field
