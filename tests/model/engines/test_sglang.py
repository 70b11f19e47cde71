"""SGLang's pools and budget."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmodel import ModelError, read_architecture
from kvmodel.engines.sglang import available_kv_bytes, default_mem_fraction_static, plan

from ..known import LLAMA_8B, known_config
from ..known_caches import known_cache_config

GIB = 2**30
GPT_OSS = known_config("openai/gpt-oss-20b")
QWEN_GDN = known_cache_config("Qwen/Qwen3.5-27B")


@pytest.mark.parametrize(
    ("config", "ratio", "full", "window", "size"),
    [
        # `pool_configurator.py` of 0.5.23 worked out by hand: 40 GiB, cells of full + ratio x window layers.
        (GPT_OSS, 0.8, 970_903, 776_722, 42_949_632_000),
        (GPT_OSS, 0.1, 1_588_751, 158_875, 42_949_656_576),
        (known_config("google/gemma-3-27b-it"), 0.8, 101_606, 81_284, 42_949_246_976),
    ],
)
def test_two_pools(config: dict[str, Any], ratio: float, full: int, window: int, size: int) -> None:
    found = plan(read_architecture(config), kv_bytes=40 * GIB, swa_full_tokens_ratio=ratio, two_pools=True)
    tokens = {group.kind: group.capacity_tokens for group in found.groups}
    assert tokens == {"full": full, "window": window}
    assert (found.capacity_tokens, found.pool_bytes) == (full, size)


def test_the_versions_list_decides_which_models_get_two_pools() -> None:
    two = plan(read_architecture({**GPT_OSS, "architectures": ["GptOssForCausalLM"]}), kv_bytes=40 * GIB)
    assert len(two.groups) == 2
    gemma = known_config("google/gemma-3-27b-it") | {"architectures": ["Gemma3ForConditionalGeneration"]}
    one = plan(read_architecture(gemma), kv_bytes=40 * GIB)
    assert [group.layers for group in one.groups] == [62]
    assert "no pool of their own" in one.warnings[0]
    older = plan(read_architecture({**GPT_OSS, "architectures": ["GptOssForCausalLM"]}), kv_bytes=GIB, version="0.5.5")
    assert len(older.groups) == 1


def test_older_versions_cut_the_pools_from_whole_tokens() -> None:
    found = plan(read_architecture(GPT_OSS), kv_bytes=40 * GIB, version="0.5.9", two_pools=True)
    whole_tokens = 40 * GIB // 49152
    full = int(whole_tokens * 49152 / (24576 + 0.8 * 24576))
    assert (found.profile, found.capacity_tokens) == ("0.5.9", full)


def test_pages_are_whole_and_one_more_is_allocated() -> None:
    found = plan(read_architecture(LLAMA_8B), kv_bytes=10**10, page_size=64)
    tokens = 10**10 // 131072 // 64 * 64
    assert (found.capacity_tokens, found.num_blocks) == (tokens, tokens // 64)
    table = (2048 + 1) * (131072 + 4) * 4
    assert found.outside_bytes == 64 * 131072 + table


def test_states_cap_the_requests() -> None:
    """Qwen3.5-27B: 131 slots of 153,944,064 bytes in 40 GiB x 0.9 / 1.9, three for each request."""
    found = plan(read_architecture(QWEN_GDN), kv_bytes=40 * GIB, context_tokens=4096)
    state = next(group for group in found.groups if group.kind == "state")
    assert (state.num_blocks, state.block_bytes) == (131, 153_944_064)
    assert (found.max_requests, found.limit, found.max_concurrency) == (43, "state", 43.0)
    left = 40 * GIB - 132 * 153_944_064
    assert found.capacity_tokens == left // 65536


@pytest.mark.parametrize(
    ("flags", "slots"),
    [
        ({"radix_cache": False, "max_running_requests": 100}, 100),
        ({"max_mamba_cache_size": 60}, 60),
        ({"max_mamba_cache_size": 60, "tp": 2, "dp": 2, "dp_attention": True}, 30),
        ({"version": "0.5.3"}, 132),
        ({"version": "0.5.3", "radix_cache": False, "kv_bytes": 100 * GIB}, 512),
    ],
)
def test_slots_of_state_by_flag_and_version(flags: dict[str, Any], slots: int) -> None:
    found = plan(read_architecture(QWEN_GDN), **{"kv_bytes": 40 * GIB, "context_tokens": 4096, **flags})
    state = next(group for group in found.groups if group.kind == "state")
    assert state.num_blocks == slots


def test_drafts_take_state_too() -> None:
    flags: dict[str, Any] = {"kv_bytes": 40 * GIB, "context_tokens": 4096, "draft_tokens": 4}
    found = plan(read_architecture(QWEN_GDN), max_running_requests=32, **flags)
    state = next(group for group in found.groups if group.kind == "state")
    each = 153_944_064
    budget = 40 * GIB * 0.9 / 1.9
    assert state.num_blocks == int((budget - each * 5) // (each * (1 + 4 / 3)))
    with pytest.raises(ModelError) as caught:
        plan(read_architecture(QWEN_GDN), **flags)
    assert caught.value.field == "max_running_requests"


def test_windows_sized_by_need() -> None:
    """Radix cache off and a cap of 64: each window, its eviction interval and two pages; two chunks in flight."""
    flags: dict[str, Any] = {"two_pools": True, "radix_cache": False, "max_running_requests": 64}
    found = plan(read_architecture(GPT_OSS), kv_bytes=40 * GIB, chunked_prefill_size=8192, **flags)
    window = next(group for group in found.groups if group.kind == "window")
    tokens = 64 * (128 + 128 + 2) + 2 * 8192 + 1
    assert window.num_blocks == tokens
    assert found.capacity_tokens == (40 * GIB - tokens * 24576) // 24576


@pytest.mark.parametrize(
    ("kv_dtype", "size"),
    [("auto", 1152), ("bf16", 1152), ("fp8_e4m3", 656), ("fp8_e5m2", 576)],
)
def test_sparse_latents_have_scaled_rows_in_fp8(kv_dtype: str, size: int) -> None:
    architecture = read_architecture(known_cache_config("deepseek-ai/DeepSeek-V3.2"))
    found = plan(architecture, kv_bytes=40 * GIB, context_tokens=8192, kv_dtype=kv_dtype)
    assert found.kv_bytes_per_token_per_gpu == 61 * (size + 132)


def test_plain_latents_in_fp8() -> None:
    architecture = read_architecture(known_config("deepseek-ai/DeepSeek-R1"))
    found = plan(architecture, kv_bytes=40 * GIB, kv_dtype="fp8_e4m3")
    assert found.kv_bytes_per_token_per_gpu == 61 * 576


def test_data_parallel_attention_keeps_all_heads_of_its_share() -> None:
    architecture = read_architecture(known_config("Qwen/Qwen3-235B-A22B"))
    assert plan(architecture, kv_bytes=GIB, tp=8).kv_bytes_per_token_per_gpu == 48_128
    spread = plan(architecture, kv_bytes=GIB, tp=8, dp=8, dp_attention=True, max_running_requests=64)
    assert (spread.kv_bytes_per_token_per_gpu, spread.max_requests) == (4 * 48_128, 8)


def test_draft_layers_cost_as_the_models_own() -> None:
    found = plan(read_architecture(LLAMA_8B), kv_bytes=GIB, draft_layers=1)
    assert found.kv_bytes_per_token_per_gpu == 131072 * 33 // 32


# MiB as nvidia-smi prints them.
H100, H200, RTX_4090, B200 = 81559, 143771, 24564, 183359


@pytest.mark.parametrize(
    ("flags", "reserved_mib"),
    [
        # Constant, prefill chunk x 1.5, ranks / 8 x 1024, decode graphs x 2, prefill graphs x 8.
        ({"gpu_memory_mib": H100, "version": "0.4.10"}, (9.5 + 0.5) * 1024),
        ({"gpu_memory_mib": H200, "version": "0.4.8", "tp": 8, "draft": "EAGLE"}, (12 + 4 + 2) * 1024),
        ({"gpu_memory_mib": H100, "version": "0.5.5"}, 512 + 12288 + 128 + 512),
        ({"gpu_memory_mib": H200, "version": "0.5.5"}, 512 + 12288 + 128 + 512),
        ({"gpu_memory_mib": H100, "version": "0.5.5", "draft": "STANDALONE"}, 512 + 12288 + 128 + 512 + 6144),
        ({"gpu_memory_mib": RTX_4090, "version": "0.5.9"}, 512 + 3072 + 128 + 48),
        ({"gpu_memory_mib": RTX_4090, "version": "0.5.15"}, 512 + 3072 + 128 + 48 + 8 * 42),
        ({"gpu_memory_mib": RTX_4090}, 512 + 6144 + 128 + 96 + 8 * 50),
        ({"gpu_memory_mib": RTX_4090, "max_running_requests": 8}, 512 + 6144 + 128 + 16 + 8 * 50),
        ({"gpu_memory_mib": H100}, 512 + 12288 + 128 + 512 + 8 * 58),
        ({"gpu_memory_mib": H100, "latent": True}, 512 + 12288 + 128 + 512 + 1536),
        ({"gpu_memory_mib": H100, "chunked_prefill_size": 2048}, 10 * 1024),
        ({"gpu_memory_mib": B200, "tp": 8, "deepep": True}, 512 + 24576 + 1024 + 1024 + 8 * 74 + 2048),
        (
            {"gpu_memory_mib": H100, "tp": 8, "dp": 8, "dp_attention": True, "latent": True},
            512 + 12288 + 1024 + 1024 + 512 * 8 * 4.5 + 1536,
        ),
    ],
)
def test_default_share_of_the_card(flags: dict[str, Any], reserved_mib: float) -> None:
    card = flags["gpu_memory_mib"]
    assert default_mem_fraction_static(**flags) == round((card - reserved_mib) / card, 3)


def test_the_first_versions_have_a_table() -> None:
    for ranks, fraction in ((1, 0.88), (2, 0.87), (4, 0.85), (8, 0.81), (16, 0.79)):
        assert default_mem_fraction_static(gpu_memory_mib=H100, version="0.4.6", tp=ranks) == fraction
    large = default_mem_fraction_static(gpu_memory_mib=H200, version="0.4.6")
    assert large == (H200 - 18432) / H200


def test_a_vision_tower_takes_its_part() -> None:
    plain = default_mem_fraction_static(gpu_memory_mib=H100)
    as_vit_large = default_mem_fraction_static(gpu_memory_mib=H100, vision=(24, 1024))
    twice_as_large = default_mem_fraction_static(gpu_memory_mib=H100, vision=(48, 1024))
    assert as_vit_large == pytest.approx(plain * 0.95)
    assert twice_as_large == pytest.approx(plain * 0.95 * 0.9)


def test_what_is_left_for_the_pools() -> None:
    sizes = {"free_bytes": 60 * GIB, "free_before_weights_bytes": 78 * GIB}
    assert available_kv_bytes(**sizes, mem_fraction_static=0.5) == 21 * GIB
    assert available_kv_bytes(**sizes, mem_fraction_static=0.1) == 0


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"kv_bytes": 0}, "kv_bytes"),
        ({"kv_bytes": 1000}, "kv_bytes"),
        ({"version": "0.3"}, "version"),
        ({"version": "new"}, "version"),
        ({"page_size": 0}, "page_size"),
        ({"kv_dtype": "int8"}, "kv_dtype"),
        ({"swa_full_tokens_ratio": 0}, "swa_full_tokens_ratio"),
        ({"mamba_full_memory_ratio": -1}, "mamba_full_memory_ratio"),
        ({"dp": 3, "tp": 4, "dp_attention": True}, "dp"),
        ({"tp": 5}, "tp"),
        ({"context_tokens": 0}, "context_tokens"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan(read_architecture(LLAMA_8B), **{"kv_bytes": 10**10, **flags})
    assert caught.value.field == field


@settings(deadline=None)
@given(st.integers(10**9, 10**12), st.sampled_from([1, 16, 64]), st.sampled_from([0.1, 0.5, 0.8, 1.0]))
def test_pools_stay_within_their_bytes(kv_bytes: int, page: int, ratio: float) -> None:
    found = plan(
        read_architecture(GPT_OSS), kv_bytes=kv_bytes, page_size=page, two_pools=True, swa_full_tokens_ratio=ratio
    )
    # Two roundings down to a page leave less than one page of each pool unused.
    assert kv_bytes - 2 * (page + 1) * 49152 < found.pool_bytes <= kv_bytes
    assert all((group.capacity_tokens or 0) % page == 0 for group in found.groups)
