"""TGI's pool and its reservations."""

from typing import Any

import pytest

from kvmodel import ModelError, read_architecture
from kvmodel.engines.tgi import plan, reserved_bytes

from ..known import LLAMA_8B, known_config

GIB = 2**30


@pytest.mark.parametrize(("attention", "block"), [("flashinfer", 1), ("paged", 16), ("flashdecoding", 256)])
def test_blocks_by_attention(attention: str, block: int) -> None:
    found = plan(read_architecture(LLAMA_8B), kv_bytes=10 * GIB, max_total_tokens=4096, attention=attention)
    blocks = 10 * GIB // (block * 131072)
    assert (found.block_tokens, found.num_blocks) == (block, blocks)
    assert found.max_concurrency == (blocks - 1) / (4096 // block)


def test_the_two_fractions_come_off_the_card() -> None:
    sizes: dict[str, Any] = {"free_bytes": 60 * GIB, "total_bytes": 80 * GIB, "max_total_tokens": 4096}
    found = plan(read_architecture(LLAMA_8B), memory_fraction=0.95, wiggle_room=0.9, **sizes)
    assert found.num_blocks == int(60 * GIB - (1 - 0.95 * 0.9) * 80 * GIB) // 131072


def test_the_flag_for_tokens_is_the_pool() -> None:
    found = plan(read_architecture(LLAMA_8B), max_batch_total_tokens=100_000, max_total_tokens=4096)
    assert found.capacity_tokens == 100_000


def test_a_request_reserves_prompt_and_output() -> None:
    found = plan(read_architecture(LLAMA_8B), kv_bytes=10 * GIB, max_total_tokens=4096, attention="paged")
    assert found.reserves
    assert reserved_bytes(found, prompt_tokens=100, max_new_tokens=29) == 9 * 16 * 131072


def test_one_window_for_all_layers_bounds_a_reservation() -> None:
    found = plan(read_architecture(known_config("mistralai/Mistral-7B-v0.1")), kv_bytes=10 * GIB)
    assert found.groups[0].blocks_per_request == 4096
    assert reserved_bytes(found, prompt_tokens=9000, max_new_tokens=1000) == 4096 * 131072
    mixed = plan(read_architecture(known_config("google/gemma-2-27b")), kv_bytes=10 * GIB)
    assert mixed.groups[0].blocks_per_request == 8192
    assert "full length" in mixed.warnings[0]


def test_latents() -> None:
    """DeepSeek-V3 keeps latents; V2 16 expanded heads of 192 elements for K and as many for V (V2-Lite)."""
    latent = plan(read_architecture(known_config("deepseek-ai/DeepSeek-R1")), kv_bytes=10 * GIB)
    assert latent.kv_bytes_per_token_per_gpu == 61 * 576 * 2
    expanded = plan(read_architecture(known_config("deepseek-ai/DeepSeek-V2-Lite")), kv_bytes=10 * GIB)
    assert expanded.kv_bytes_per_token_per_gpu == 27 * 16 * 2 * 192 * 2


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({}, "free_bytes"),
        ({"kv_bytes": 1000}, "kv_bytes"),
        ({"kv_bytes": GIB, "attention": "eager"}, "attention"),
        ({"free_bytes": GIB, "wiggle_room": 0}, "wiggle_room"),
        ({"kv_bytes": GIB, "kv_dtype": "fp8"}, "kv_dtype"),
        ({"kv_bytes": GIB, "tp": 3}, "tp"),
        ({"kv_bytes": GIB, "max_concurrent_requests": 0}, "max_concurrent_requests"),
        ({"max_batch_total_tokens": 0}, "max_batch_total_tokens"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan(read_architecture(LLAMA_8B), **flags)
    assert caught.value.field == field
