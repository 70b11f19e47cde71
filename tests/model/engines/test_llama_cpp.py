"""llama.cpp's cells and bytes."""

from typing import Any

import pytest

from kvmodel import ModelError, read_architecture
from kvmodel.engines.llama_cpp import plan

from ..known import LLAMA_8B, known_config
from ..known_caches import known_cache_config

MIB = 2**20
GEMMA = "google/gemma-3-27b-it"


@pytest.mark.parametrize(
    ("config", "flags", "cells", "size"),
    [
        # Formulas of llama-kv-cache*.cpp worked out by hand.
        (known_config(GEMMA), {"n_ctx": 131072, "n_parallel": 1}, [1536, 131072], 10_864 * MIB),
        (known_config(GEMMA), {"n_ctx": 131072, "n_parallel": 4, "unified": True}, [4608, 131072], 12_112 * MIB),
        (known_config(GEMMA), {"n_ctx": 131072, "n_parallel": 1, "swa_full": True}, [131072, 131072], 63_488 * MIB),
        (LLAMA_8B, {"n_ctx": 8192, "n_parallel": 1}, [8192], 1024 * MIB),
        (LLAMA_8B, {"n_ctx": 8192, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}, [8192], 544 * MIB),
        (LLAMA_8B, {"n_ctx": 8192, "cache_type_k": "q4_0", "cache_type_v": "q4_0"}, [8192], 288 * MIB),
        (LLAMA_8B, {"n_ctx": 8192, "cache_type_k": "q8_0", "cache_type_v": "f16"}, [8192], (272 + 512) * MIB),
        (known_config("deepseek-ai/DeepSeek-R1"), {"n_ctx": 8192}, [8192], 575_668_224),
        (known_config("openai/gpt-oss-20b"), {"n_ctx": 131072, "n_parallel": 1}, [768, 131072], 3_240_099_840),
    ],
)
def test_cells_and_bytes(config: dict[str, Any], flags: dict[str, Any], cells: list[int], size: int) -> None:
    found = plan(read_architecture(config), **flags)
    assert [group.num_blocks for group in found.groups] == cells
    assert found.pool_bytes == size


def test_slots_of_their_own_share_the_context() -> None:
    found = plan(read_architecture(LLAMA_8B), n_ctx=10_000, n_parallel=3)
    # 10,000 rounds to 10,240, a third of that, 3,413, to 3,584.
    assert (found.num_blocks, found.capacity_tokens, found.max_concurrency) == (3 * 3584, 3 * 3584, 3.0)
    assert found.pool_bytes == 3 * 3584 * 131072


def test_windows_of_slots_of_their_own_hold_one_window_each() -> None:
    found = plan(read_architecture(known_config(GEMMA)), n_ctx=131072, n_parallel=4, unified=False)
    window, full = found.groups
    assert (window.num_blocks, full.num_blocks) == (4 * 1536, 131072)


def test_automatic_slots_are_four_that_share() -> None:
    found = plan(read_architecture(LLAMA_8B), n_ctx=8192)
    assert (found.profile, found.max_requests, found.safe_requests) == ("unified", 4, 1)


def test_windows_that_llama_cpp_does_not_know_are_full() -> None:
    found = plan(read_architecture(known_config("mistralai/Mistral-7B-v0.1")), n_ctx=32768)
    assert found.groups[0].num_blocks == 32768
    assert "knows no windows of mistral" in found.warnings[0]


def test_narrow_v_rows_are_padded_without_flash_attention() -> None:
    """Gemma 4: 4096 elements of K and V in windows, 2048 in full layers."""
    architecture = read_architecture(known_config("google/gemma-4-31B-it"))
    with_flash = plan(architecture, n_ctx=4096)
    without = plan(architecture, n_ctx=4096, flash_attention=False)
    full = next(group for group in with_flash.groups if group.kind == "full")
    padded = next(group for group in without.groups if group.kind == "full")
    assert (full.page_bytes, padded.page_bytes) == (2 * (2048 + 2048), 2 * (2048 + 4096))
    assert without.warnings == ("V rows are padded from 2048 to 4096 elements: flash attention is off",)


def test_expanded_latents() -> None:
    """MiniCPM3 has 40 heads of 64 + 32 for K and 64 for V in 62 layers."""
    found = plan(read_architecture(known_config("openbmb/MiniCPM3-4B")), n_ctx=256)
    assert found.kv_bytes_per_token_per_gpu == 62 * 40 * (96 + 64) * 2


def test_state_lies_in_float32_once_per_slot() -> None:
    """Qwen3.5-27B: 48 layers of 3 x 10,240 convolved inputs and 48 matrices of 128 x 128."""
    architecture = read_architecture(known_cache_config("Qwen/Qwen3.5-27B"))
    one = 48 * (3 * 10240 + 48 * 128 * 128) * 4
    for slots, rollback in ((1, 0), (4, 0), (4, 3)):
        found = plan(architecture, n_ctx=4096, n_parallel=slots, rollback=rollback)
        state = next(group for group in found.groups if group.kind == "state")
        assert state.block_bytes * (state.num_blocks or 0) == one * slots * (1 + rollback)
        assert state.held_bytes(77) == one * (1 + rollback)


def test_a_model_of_state_only_has_no_cells() -> None:
    found = plan(read_architecture(known_cache_config("tiiuae/falcon-mamba-7b")), n_ctx=4096)
    assert (found.kv_bytes_per_token_per_gpu, found.max_concurrency, found.limit) == (0, 4.0, "slots")


def test_an_indexer_has_cells_of_its_own() -> None:
    """DeepSeek-V3.2: 61 latents of 576 elements and as many index keys of 128."""
    found = plan(read_architecture(known_cache_config("deepseek-ai/DeepSeek-V3.2")), n_ctx=256)
    assert found.kv_bytes_per_token_per_gpu == 61 * (576 + 128) * 2


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"n_ctx": 0}, "n_ctx"),
        ({"n_ctx": 256, "n_parallel": 300}, "n_ctx"),
        ({"n_parallel": 0}, "n_parallel"),
        ({"n_ubatch": 0}, "n_ubatch"),
        ({"n_batch": True}, "n_batch"),
        ({"rollback": -1}, "rollback"),
        ({"cache_type_k": "fp8"}, "cache_type_k"),
        ({"cache_type_v": 16}, "cache_type_v"),
        ({"cache_type_v": "q8_0", "flash_attention": False}, "cache_type_v"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan(read_architecture(LLAMA_8B), **flags)
    assert caught.value.field == field


def test_blocks_must_divide_heads() -> None:
    config = {**LLAMA_8B, "head_dim": 80}
    with pytest.raises(ModelError) as caught:
        plan(read_architecture(config), n_ctx=256, cache_type_k="q8_0")
    assert caught.value.field == "cache_type_k"


def test_what_is_not_planned_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        plan(read_architecture(known_cache_config("deepseek-ai/DeepSeek-V4-Flash")), n_ctx=256)
    assert caught.value.field == "architecture"
