"""TensorRT-LLM's pools."""

from typing import Any

import pytest

from kvmodel import ModelError, read_architecture
from kvmodel.engines.tensorrt_llm import plan

from ..known import LLAMA_8B, known_config
from ..known_caches import known_cache_config

GIB = 2**30
GPT_OSS = known_config("openai/gpt-oss-20b")


def test_a_fraction_of_what_is_free_in_blocks_of_32() -> None:
    found = plan(read_architecture(LLAMA_8B), free_bytes=60 * GIB, max_seq_len=8192)
    tokens = 0.9 * 60 * GIB / 131072
    assert found.num_blocks == int(tokens // 32)
    assert (found.block_tokens, found.bytes_per_block) == (32, 32 * 131072)
    assert found.max_concurrency == found.num_blocks / 256


def test_max_tokens_caps() -> None:
    found = plan(read_architecture(LLAMA_8B), free_bytes=60 * GIB, max_seq_len=8192, max_tokens=10_000)
    assert found.num_blocks == 10_000 // 32


@pytest.mark.parametrize(("kv_dtype", "size"), [("auto", 131072), ("fp8", 65536), ("nvfp4", 36864)])
def test_cache_types(kv_dtype: str, size: int) -> None:
    found = plan(read_architecture(LLAMA_8B), kv_bytes=GIB, max_seq_len=128, kv_dtype=kv_dtype)
    assert found.kv_bytes_per_token_per_gpu == size


def test_heads_are_shared_out_rounded_up() -> None:
    architecture = read_architecture(known_config("Qwen/Qwen3-235B-A22B"))
    assert plan(architecture, kv_bytes=GIB, max_seq_len=128, tp=8).kv_bytes_per_token_per_gpu == 48_128
    spread = plan(architecture, kv_bytes=GIB, max_seq_len=128, tp=8, attention_dp=True)
    assert spread.kv_bytes_per_token_per_gpu == 4 * 48_128


def test_windows_are_whole_unless_the_flag_says_so() -> None:
    found = plan(read_architecture(GPT_OSS), kv_bytes=40 * GIB, max_seq_len=131072)
    assert [(group.kind, group.layers) for group in found.groups] == [("full", 24)]
    assert "max_attention_window is not set" in found.warnings[0]


@pytest.mark.parametrize("pattern", [[128, 131072], [128, 200_000], "model"])
def test_a_pool_for_each_window_with_equal_shares(pattern: Any) -> None:
    found = plan(read_architecture(GPT_OSS), kv_bytes=40 * GIB, max_seq_len=131072, max_attention_window=pattern)
    blocks = {group.kind: group.num_blocks for group in found.groups}
    each = int(20 * GIB / 24576 // 32)
    assert blocks == {"window": each, "full": each}
    assert found.max_concurrency == each / 4096
    window = next(group for group in found.groups if group.kind == "window")
    assert window.blocks_per_request == 128 // 32 + 1


def test_shares_by_size_follow_what_a_sequence_needs() -> None:
    found = plan(
        read_architecture(GPT_OSS),
        kv_bytes=40 * GIB,
        max_seq_len=131072,
        max_attention_window="model",
        window_shares="size",
    )
    window, full = found.groups
    assert window.num_blocks == int(40 * GIB * (128 / (128 + 131072)) / 24576 // 32)
    assert full.num_blocks == int(40 * GIB * (131072 / (128 + 131072)) / 24576 // 32)


def test_a_share_is_kept_for_the_encoders_output() -> None:
    architecture = read_architecture(known_cache_config("openai/whisper-large-v3"))
    found = plan(architecture, kv_bytes=4 * GIB, max_seq_len=448)
    groups = {group.kind: group for group in found.groups}
    each = 32 * 2 * 1280 * 2
    assert groups["full"].num_blocks == groups["cross"].num_blocks == int(2 * GIB / each // 32)
    assert groups["cross"].blocks_per_request == -(-1500 // 32)
    assert found.limit == "cross"


def test_states_come_first() -> None:
    """Nemotron-H: the recurrent part in 16 bits unless the config names a type."""
    architecture = read_architecture(known_cache_config("ai21labs/Jamba-v0.1"))
    state = architecture.state_bytes_as(conv_bytes=2, recurrent_bytes=2)
    found = plan(architecture, free_bytes=40 * GIB, max_seq_len=8192, max_batch_size=64)
    full = next(group for group in found.groups if group.kind == "full")
    assert full.num_blocks == int(0.9 * (40 * GIB - 64 * state) / full.block_bytes)
    assert found.safe_requests <= 64


def test_a_request_that_does_not_fit_is_told() -> None:
    found = plan(read_architecture(LLAMA_8B), kv_bytes=GIB, max_seq_len=131072)
    assert found.safe_requests == 0
    assert "does not fit" in found.warnings[0]


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({}, "free_bytes"),
        ({"kv_bytes": 1, "free_bytes": 1}, "free_bytes"),
        ({"free_bytes": 10**9, "free_gpu_memory_fraction": 1.2}, "free_gpu_memory_fraction"),
        ({"kv_bytes": 10**9, "tokens_per_block": 0}, "tokens_per_block"),
        ({"kv_bytes": 10**9, "max_tokens": 0}, "max_tokens"),
        ({"kv_bytes": 10**9, "max_attention_window": []}, "max_attention_window"),
        ({"kv_bytes": 10**9, "max_attention_window": "all"}, "max_attention_window"),
        ({"kv_bytes": 10**9, "max_attention_window": [0]}, "max_attention_window"),
        ({"kv_bytes": 10**9, "window_shares": "fair"}, "window_shares"),
        ({"kv_bytes": 10**9, "kv_dtype": "q8_0"}, "kv_dtype"),
        ({"kv_bytes": 10**9, "tp": 3}, "tp"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan(read_architecture(LLAMA_8B), max_seq_len=128, **flags)
    assert caught.value.field == field
