"""LMDeploy's block pools."""

from typing import Any

import pytest

from kvmodel import ModelError, read_architecture
from kvmodel.engines.lmdeploy import plan

from ..known import LLAMA_8B, known_config
from ..known_caches import known_cache_config

GIB = 2**30


@pytest.mark.parametrize(("policy", "per_head"), [(0, 256), (8, 132), (4, 68)])
def test_turbomind_keeps_a_scale_and_a_zero_point_per_head(policy: int, per_head: int) -> None:
    found = plan(read_architecture(LLAMA_8B), free_bytes=60 * GIB, session_len=8192, quant_policy=policy)
    block = 64 * 32 * 8 * 2 * per_head
    assert found.bytes_per_block == block
    assert found.num_blocks == int(60 * GIB * 0.8) // block
    assert found.max_concurrency == found.num_blocks / 128


@pytest.mark.parametrize(("policy", "per_head"), [(0, 256), (8, 132), (4, 68), (16, 128)])
def test_the_pytorch_engine_sets_buffers_aside(policy: int, per_head: int) -> None:
    found = plan(
        read_architecture(LLAMA_8B), free_bytes=60 * GIB, session_len=8192, backend="pytorch", quant_policy=policy
    )
    block = 64 * 32 * 8 * 2 * per_head
    runtime = (8192 + 2 * 128) * 128256 * 2
    assert found.num_blocks == int((60 * GIB - runtime) * 0.8) // block


def test_prefill_is_halved_where_memory_is_short() -> None:
    free = (2048 + 256) * 128256 * 2 + 16 * 64 * 131072 * 2
    found = plan(read_architecture(LLAMA_8B), free_bytes=free, session_len=8192, backend="pytorch")
    assert found.num_blocks == int((free - (2048 + 256) * 128256 * 2) * 0.8) // (64 * 131072)


def test_one_latent_for_k_and_v() -> None:
    architecture = read_architecture(known_config("deepseek-ai/DeepSeek-R1"))
    for backend in ("turbomind", "pytorch"):
        found = plan(architecture, free_bytes=60 * GIB, session_len=8192, backend=backend)
        assert found.bytes_per_block == 64 * 61 * 1152
    without = plan(architecture, free_bytes=60 * GIB, session_len=8192, backend="pytorch", flash_mla=False)
    assert without.block_tokens == 32


def test_states_take_from_the_share() -> None:
    """TurboMind keeps 4 inputs per convolution of width 4, for each of the batch."""
    architecture = read_architecture(known_cache_config("Qwen/Qwen3-Next-80B-A3B-Instruct"))
    state = architecture.state_bytes_as(conv_bytes=2, recurrent_bytes=2, more_columns=1)
    found = plan(architecture, free_bytes=60 * GIB, session_len=8192, max_batch_size=64)
    assert found.num_blocks == (int(60 * GIB * 0.8) - 64 * state) // (found.bytes_per_block or 1)
    assert found.groups[1].num_blocks == 64


def test_a_count_takes_the_place_of_the_share() -> None:
    found = plan(read_architecture(LLAMA_8B), free_bytes=GIB, cache_blocks=77, prefix_caching=True)
    assert found.num_blocks == 77
    assert found.warnings == ("blocks kept for reuse are counted as used, not as free",)


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"backend": "vllm"}, "backend"),
        ({"quant_policy": 16}, "quant_policy"),
        ({"quant_policy": 5}, "quant_policy"),
        ({"free_bytes": 1000}, "free_bytes"),
        ({"cache_max_entry_count": 0}, "cache_max_entry_count"),
        ({"block_tokens": 0}, "block_tokens"),
        ({"tp": 3}, "tp"),
        ({"session_len": -1}, "session_len"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan(read_architecture(LLAMA_8B), **{"free_bytes": 10**10, **flags})
    assert caught.value.field == field


def test_flash_mla_needs_its_block() -> None:
    with pytest.raises(ModelError) as caught:
        plan(
            read_architecture(known_config("deepseek-ai/DeepSeek-R1")),
            free_bytes=10**10,
            backend="pytorch",
            block_tokens=32,
        )
    assert caught.value.field == "block_tokens"
