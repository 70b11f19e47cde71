"""The caches of transformers; the real ones are compared in tests/e2e/test_transformers_caches.py."""

from typing import Any

import pytest

from kvmodel import Architecture, ModelError, read_architecture
from kvmodel.engines.transformers import plan

from ..known import LLAMA_8B, known_config
from ..known_caches import known_cache_config

GIB = 2**30
GPT_OSS = known_config("openai/gpt-oss-20b")


def cached_bytes(architecture: Architecture, tokens: int, **flags: Any) -> int:
    return plan(architecture, length=tokens, **flags).pool_bytes


def test_a_grown_cache_has_the_real_length_and_one_layer_twice() -> None:
    found = plan(read_architecture(LLAMA_8B), length=1000, batch=3)
    assert found.pool_bytes == 3 * 1000 * 131072
    assert found.transient_bytes == 3 * 1000 * 4096


def test_a_static_cache_is_allocated_whole() -> None:
    found = plan(read_architecture(GPT_OSS), cache="static", length=4096)
    assert found.pool_bytes == 24576 * (4096 + 128)
    assert found.transient_bytes == 0


def test_a_grown_window_keeps_what_the_next_token_sees() -> None:
    architecture = read_architecture(GPT_OSS)
    assert cached_bytes(architecture, 100) == 2 * 24576 * 100
    assert cached_bytes(architecture, 1000) == 24576 * (1000 + 127)
    longest = plan(architecture, length=1000, batch=2)
    assert [longest.held_bytes(tokens) for tokens in (100, 1000)] == [2 * 24576 * 100, 24576 * (1000 + 127)]


def test_a_quantized_cache_keeps_the_last_tokens_as_they_are() -> None:
    found = plan(read_architecture(LLAMA_8B), cache="quantized", length=1128, nbits=4)
    elements = 1000 * 2 * 8 * 128 * 32
    assert found.pool_bytes == 128 * 131072 + elements // 2 + elements // 64 * 4
    assert found.transient_bytes > 1000 * 4096


def test_falcon_repeats_its_heads_before_caching() -> None:
    architecture = read_architecture(known_config("tiiuae/falcon-40b"))
    assert cached_bytes(architecture, 10) == 16 * architecture.bytes_at(10)
    old = read_architecture(known_config("tiiuae/falcon-7b"))
    assert cached_bytes(old, 10) == old.bytes_at(10)


def test_states_have_one_more_input_and_float32() -> None:
    architecture = read_architecture(known_cache_config("Qwen/Qwen3.5-27B"))
    found = plan(architecture, length=100)
    state = next(group for group in found.groups if group.kind == "state")
    assert state.block_bytes == 48 * (4 * 10240 * 2 + 48 * 128 * 128 * 4)


def test_an_encoders_output_is_held_once() -> None:
    architecture = read_architecture(known_cache_config("openai/whisper-large-v3"))
    assert cached_bytes(architecture, 10, encoder_tokens=1500) == 32 * 2 * 1280 * 2 * (10 + 1500)


@pytest.mark.parametrize(
    ("config", "flags", "sectors"),
    [
        # transformers 5.19: PagedAttentionMemoryHandler with 64 GiB free, batches of 8192 tokens.
        (LLAMA_8B, (True, True, True), 1763),
        (LLAMA_8B, (False, True, False), 1430),
        (LLAMA_8B, (True, False, True), 1661),
        (LLAMA_8B, (False, False, True), 1226),
        (GPT_OSS, (True, True, True), 8918),
        (GPT_OSS, (False, True, False), 3158),
        (GPT_OSS, (True, False, True), 8088),
        (GPT_OSS, (False, False, True), 1984),
    ],
)
def test_sectors_of_the_paged_cache(config: dict[str, Any], flags: tuple[bool, bool, bool], sectors: int) -> None:
    flash, slices, ahead = flags
    found = plan(
        read_architecture(config),
        cache="paged",
        available_bytes=64 * GIB,
        flash_attention=flash,
        slices_logits=slices,
        async_batching=ahead,
    )
    assert found.num_blocks == sectors
    assert found.pool_bytes == (sectors + 2) * (found.bytes_per_block or 0)


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"cache": "hybrid"}, "cache"),
        ({"length": 0}, "length"),
        ({"batch": 0}, "batch"),
        ({"dtype": "fp8"}, "dtype"),
        ({"cache": "quantized", "nbits": 5}, "nbits"),
        ({"cache": "paged"}, "available_bytes"),
        ({"cache": "paged", "available_bytes": GIB // 2}, "available_bytes"),
        ({"cache": "paged", "available_bytes": GIB, "page_size": 2}, "page_size"),
        ({"tp": 3}, "tp"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan(read_architecture(LLAMA_8B), **flags)
    assert caught.value.field == field


def test_paging_takes_one_geometry() -> None:
    for model in ("google/gemma-4-31B-it", "deepseek-ai/DeepSeek-R1"):
        with pytest.raises(ModelError) as caught:
            plan(read_architecture(known_config(model)), cache="paged", available_bytes=64 * GIB)
        assert caught.value.field == "architecture"
