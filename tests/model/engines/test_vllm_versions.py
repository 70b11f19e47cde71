"""vLLM's plans by version: start-up logs of many versions, and what changed between them.

The logs print the pool in hundredths of a GiB, so the tokens may differ by what that rounding holds.
"""

from dataclasses import replace
from typing import Any

import pytest

from kvmodel import Architecture, Gpu, ModelError, find_gpu, plan_pool, read_architecture
from kvmodel.engines.vllm.profiles import PROFILES, profile_of
from kvmodel.engines.vllm.scheduling import batches_in_flight, usual_batches
from kvmodel.engines.vllm.stages import stage_sizes
from kvmodel.layers import Block, group_layers
from kvmodel.states import KimiDeltaState
from tests.model.known import LLAMA_8B, known_models
from tests.model.known_caches import known_caches

CONFIGS = {model.id: model.config for model in known_models()} | {cache.id: cache.config for cache in known_caches()}
GIB = 1 << 30


def architecture(model_id: str) -> Architecture:
    return read_architecture(CONFIGS[model_id])


LOGS: list[tuple[str, str, dict[str, Any], float, int, float | None]] = [
    # Model, version, settings, GiB of the pool, tokens and concurrency as printed. Public start-up logs.
    # Windows in groups: llm-d-incubation/llm-d-planner pull 205.
    ("google/gemma-3-12b-it", "0.19.0", {"max_model_len": 8192}, 47.72, 130304, 15.88),
    ("google/gemma-3-1b-it", "0.13.0", {"max_model_len": 2048}, 25.39, 950864, 461.21),
    # A model of chunks has one group by default, and several if asked: the same tokens, another concurrency.
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "0.12.0", {"max_model_len": 5242880, "tp": 8}, 89.71, 3919664, 0.75),
    (
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "0.12.0",
        {"max_model_len": 8388608, "tp": 8, "hybrid_kv_cache": True},
        89.71,
        3919664,
        1.86,
    ),
    # States, fp8, prefix caching and drafts.
    ("Qwen/Qwen3.5-35B-A3B", "0.20.0", {"max_model_len": 65536, "kv_dtype": "fp8_e4m3"}, 3.07, 79648, 4.03),
    ("Qwen/Qwen3.5-35B-A3B", "0.18.0", {"max_model_len": 32768, "kv_dtype": "fp8"}, 5.69, 148816, 12.91),
    (
        "Qwen/Qwen3.5-35B-A3B",
        "0.20.x",
        {"max_model_len": 262144, "kv_dtype": "fp8", "draft_layers": 1, "speculative_tokens": 2},
        66.58,
        5747892,
        21.93,
    ),
    ("Qwen/Qwen3.5-27B", "0.32.0", {"max_model_len": 131072, "kv_dtype": "fp8_e4m3", "tp": 2}, 4.99, 302921, 2.31),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", "0.27.1", {"max_model_len": 131072}, 16.63, 708425, None),
    # Compressed rows, windows and compressor state packed into one block.
    ("deepseek-ai/DeepSeek-V4-Flash", "0.22.0", {"max_model_len": 256000, "kv_dtype": "fp8"}, 37.93, 2497693, 9.76),
]


@pytest.mark.parametrize(("model_id", "version", "flags", "gib", "tokens", "concurrency"), LOGS)
def test_what_the_log_prints(
    model_id: str, version: str, flags: dict[str, Any], gib: float, tokens: int, concurrency: float | None
) -> None:
    caching = {"prefix_caching": True} if "Qwen" in model_id else {}
    settings: dict[str, Any] = {"max_num_batched_tokens": 8192, "engine_version": version, **caching, **flags}
    low, plan, high = (
        plan_pool(architecture(model_id), kv_bytes=int((gib + off) * GIB), **settings) for off in (-0.006, 0, 0.006)
    )
    assert low.capacity_tokens <= tokens <= high.capacity_tokens
    assert plan.capacity_tokens == pytest.approx(tokens, rel=1e-3)
    if concurrency is not None:
        assert low.max_concurrency - 0.005 <= concurrency <= high.max_concurrency + 0.005


@pytest.mark.parametrize(
    ("config", "tp", "gib", "blocks"),
    [
        # V0 logs, vLLM 0.6 and before; the GiB are rounded. opt-125m, Llama-3-70B on 8 cards, Llama-3.1-8B.
        ({**LLAMA_8B, "num_hidden_layers": 80, "num_attention_heads": 64, "hidden_size": 8192}, 8, 14.34, 23500),
        (LLAMA_8B, 1, 11.12, 5691),
    ],
)
def test_blocks_of_v0(config: dict[str, Any], tp: int, gib: float, blocks: int) -> None:
    plan = plan_pool(
        read_architecture(config), kv_bytes=int(gib * GIB), max_model_len=8192, tp=tp, engine_version="0.6.3"
    )
    assert plan.num_blocks == pytest.approx(blocks, rel=1e-3)
    assert plan.max_concurrency == pytest.approx((plan.num_blocks or 0) * 16 / 8192)


def test_v0_keeps_every_attention_layer_at_full_length() -> None:
    windows = plan_pool(architecture("google/gemma-3-27b-it"), num_blocks=100, engine_version="0.7.3")
    assert [(group.kind, group.layers) for group in windows.groups] == [("full", 62)]


def test_v0_kept_latents_expanded_and_then_on_a_grid() -> None:
    """0.6 padded the heads of DeepSeek-V2 to 256; 0.7 keeps one row of 576 elements in steps of 256 bytes."""
    latents = architecture("deepseek-ai/DeepSeek-V2-Lite")
    old, new = (plan_pool(latents, num_blocks=9, engine_version=v).bytes_per_block for v in ("0.6.6", "0.7.3"))
    assert old == 27 * 16 * 16 * 2 * 256 * 2
    assert new == 27 * 16 * 1280


def test_profiles_are_in_order_and_each_version_has_one() -> None:
    assert [profile.since for profile in PROFILES] == sorted(profile.since for profile in PROFILES)
    named = {
        version: profile_of(version).name for version in ("0.5.0", "v0.9.0", "0.9.1", "0.19.1", "0.20.0", "0.20.1")
    }
    assert list(named.values()) == ["vllm-v0", "vllm-0.9", "vllm-0.9.1", "vllm-0.18", "vllm-0.20", "vllm-0.20.1"]
    assert profile_of("0.1.dev20073+g8e685d198").name == PROFILES[-1].name
    assert profile_of("0.11.1rc6.dev115+gbc926c122").name == "vllm-0.11.1"
    assert profile_of("0.20").name == profile_of("0.20.x").name == "vllm-0.20.1"
    assert profile_of("0.99.0").name == profile_of("1.2.0").name == profile_of(None).name == PROFILES[-1].name


@pytest.mark.parametrize("text", ["", "v", "newest", "19", "x.1", "0.", "0.99999", "\u0663.1"])
def test_text_that_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ModelError) as caught:
        profile_of(text)
    assert caught.value.field == "engine_version"


def test_tokens_were_counted_from_blocks_before() -> None:
    """Windows reserve less than full layers: counted from concurrency the same pool has more tokens."""
    model = architecture("google/gemma-2-27b")
    settings: dict[str, Any] = {"num_blocks": 1000, "max_model_len": 131072, "max_num_batched_tokens": 8192}
    before = plan_pool(model, engine_version="0.20.0", **settings)
    after = plan_pool(model, engine_version="0.20.1", **settings)
    assert before.capacity_tokens == 1000 // 2 * 16
    assert after.capacity_tokens == int(after.max_concurrency * 131072) > before.capacity_tokens
    assert before.max_concurrency == after.max_concurrency


def test_groups_take_the_larger_size_when_kinds_are_nearly_as_many() -> None:
    """12 full and 13 window layers: two groups of 13 since 0.12, three of 12 and 1 before."""
    layers = ["sliding_attention", "full_attention"] * 12 + ["sliding_attention"]
    config = {**CONFIGS["openai/gpt-oss-20b"], "num_hidden_layers": 25, "layer_types": layers}
    older, newer = (
        plan_pool(read_architecture(config), num_blocks=99, engine_version=version) for version in ("0.11.0", "0.12.0")
    )
    assert [group.layers for group in older.groups] == [12, 7, 6]
    assert [group.layers for group in newer.groups] == [12, 13]


def test_groups_took_the_next_layers_before_0_11() -> None:
    model = architecture("google/gemma-3-1b-it")
    older, newer = (plan_pool(model, num_blocks=99, engine_version=version) for version in ("0.10.2", "0.11.0"))
    assert [group.layers for group in older.groups] == [4, 4, 4, 4, 4, 4, 2]
    assert [group.layers for group in newer.groups] == [4, 4, 4, 4, 4, 3, 3]


def test_stages_counted_all_layers_of_several_widths_up_to_0_16() -> None:
    model = architecture("google/gemma-4-31B-it")
    whole, older, newer = (
        plan_pool(model, num_blocks=99, engine_version=version, hybrid_kv_cache=False, pp=pp).bytes_per_block
        for version, pp in (("0.16.0", 1), ("0.16.0", 2), ("0.17.0", 2))
    )
    assert older == whole == 2 * (newer or 0)


@pytest.mark.parametrize(
    ("version", "caching", "drafts", "held"),
    [
        ("0.19.0", False, 0, 1),
        ("0.19.0", True, 0, 2),
        ("0.19.0", True, 2, 4),
        ("0.33.0", False, 2, 3),
        ("0.32.0", True, 0, 2),
        ("0.33.0", True, 0, 3),
    ],
)
def test_blocks_a_state_holds(version: str, caching: bool, drafts: int, held: int) -> None:
    plan = plan_pool(
        architecture("Qwen/Qwen3-Next-80B-A3B-Instruct"),
        num_blocks=999,
        engine_version=version,
        prefix_caching=caching,
        speculative_tokens=drafts,
    )
    assert {group.blocks_per_request for group in plan.groups if group.kind == "state"} == {held}


def test_mamba_kept_a_state_per_block() -> None:
    """`all` mode, the default for Mamba with prefix caching up to 0.27: blocks of whole kernel chunks."""
    plan = plan_pool(
        architecture("ibm-granite/granite-4.0-h-small"),
        num_blocks=9999,
        max_model_len=131072,
        engine_version="0.19.0",
        prefix_caching=True,
    )
    assert plan.block_tokens == 768
    assert {group.blocks_per_request for group in plan.groups} == {-(-131072 // 768)}


def test_the_block_of_a_hybrid_of_mla_is_a_multiple_of_128_since_0_27() -> None:
    """Kimi-Linear: 7 layers of MLA, 20 of delta attention."""
    known = architecture("deepseek-ai/DeepSeek-V2-Lite")
    latent = known.groups[0].layer
    delta = KimiDeltaState(4, 32, 128)
    layers = [latent if place in (3, 7, 11, 15, 19, 23, 26) else delta for place in range(27)]
    blocks = tuple(Block((layer,)) for layer in layers)
    kimi = replace(known, model_type="kimi_linear", blocks=blocks, groups=group_layers(layers), num_attention_heads=32)
    plans = {
        version: plan_pool(kimi, kv_bytes=40 * GIB, max_model_len=8192, engine_version=version, prefix_caching=False)
        for version in ("0.19.0", "0.24.0", "0.32.0")
    }
    assert {version: plan.block_tokens for version, plan in plans.items()} == {
        "0.19.0": 1920,
        "0.24.0": 1888,
        "0.32.0": 1920,
    }
    # vLLM 0.32's own planner.
    assert (plans["0.32.0"].num_blocks, plans["0.32.0"].max_concurrency) == (2774, 346.75)


@pytest.mark.parametrize(
    ("layers", "pp", "sizes"), [(32, 2, [16, 16]), (61, 4, [15, 15, 16, 15]), (6, 4, [1, 2, 2, 1])]
)
def test_what_does_not_divide_goes_to_stages_before_the_last(layers: int, pp: int, sizes: list[int]) -> None:
    assert stage_sizes(layers, pp) == sizes


def test_the_widest_stage_decides_the_blocks() -> None:
    """vLLM 0.19 on two H100 cards: the last stage's 65.63 GiB made the 67207 blocks (llm-d-planner pull 205)."""
    plan = plan_pool(
        read_architecture(LLAMA_8B),
        num_blocks=67207,
        max_model_len=8192,
        pp=2,
        engine_version="0.19.0",
        max_num_batched_tokens=8192,
    )
    assert (plan.capacity_tokens, round(plan.max_concurrency, 2)) == (1075312, 131.26)
    assert plan.pool_bytes == pytest.approx(65.63 * GIB, rel=1e-4)
    assert plan.kv_bytes_per_token_per_gpu == 16 * 4096


def test_context_ranks_share_the_tokens() -> None:
    one, four = (plan_pool(read_architecture(LLAMA_8B), num_blocks=512, max_model_len=8192, dcp=dcp) for dcp in (1, 4))
    assert four.max_concurrency == 4 * one.max_concurrency
    with pytest.raises(ModelError, match="dcp"):
        plan_pool(architecture("google/gemma-2-27b"), num_blocks=512, dcp=2)


def card(name: str, gib: int) -> Gpu:
    return replace(find_gpu("h100-80gb"), name=name, usable_bytes=gib * GIB)


@pytest.mark.parametrize(
    ("version", "name", "gib", "batched", "seqs"),
    [
        ("0.19.0", "NVIDIA H100 80GB HBM3", 79, 8192, 1024),
        ("0.19.0", "NVIDIA A100-SXM4-80GB", 79, 2048, 256),
        ("0.19.0", "", 79, 8192, 1024),
        ("0.8.5", "a100-80gb", 79, 8192, 1024),
        ("0.19.0", "l40s", 44, 2048, 256),
        ("0.27.0", "b200", 178, 8192, 1024),
        ("0.28.0", "b200", 178, 16384, 1024),
        ("0.32.0", "gb10", 119, 8192, 1024),
        ("0.33.0", "gb10", 119, 2048, 256),
    ],
)
def test_defaults_of_the_scheduler(version: str, name: str, gib: int, batched: int, seqs: int) -> None:
    assert usual_batches(profile_of(version), gib * GIB, name) == (batched, seqs)


@pytest.mark.parametrize(
    ("version", "overlapped", "pp", "in_flight"),
    [
        ("0.25.0", None, 1, 1),
        ("0.26.0", None, 1, 2),
        ("0.26.0", False, 1, 1),
        ("0.26.0", None, 2, 3),
        ("0.26.0", False, 2, 2),
    ],
)
def test_batches_in_flight(version: str, overlapped: bool | None, pp: int, in_flight: int) -> None:
    assert batches_in_flight(profile_of(version), overlapped, pp) == in_flight


def test_an_unknown_batch_is_said_to_be_assumed_where_it_matters() -> None:
    windows = architecture("google/gemma-3-27b-it")
    guessed = plan_pool(windows, num_blocks=99999, max_model_len=131072)
    assert guessed.warnings[-1] == "max_num_batched_tokens is not known: 8192 assumed"
    known = plan_pool(windows, num_blocks=99999, max_model_len=131072, gpu=card("h100", 79))
    assert not any("assumed" in warning for warning in known.warnings)
    full = plan_pool(read_architecture(LLAMA_8B), num_blocks=9999, max_model_len=8192)
    assert full.warnings == ()


def test_a_pool_too_small_for_one_request_is_said() -> None:
    plan = plan_pool(read_architecture(LLAMA_8B), num_blocks=512, max_model_len=8192)
    assert "does not start" in plan.warnings[-1]
    assert (
        plan_pool(read_architecture(LLAMA_8B), num_blocks=512, max_model_len=8192, engine_version="0.19.0").warnings
        == ()
    )


@pytest.mark.parametrize(
    ("model_id", "flags", "field"),
    [
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", {"hybrid_kv_cache": False}, "hybrid_kv_cache"),
        ("deepseek-ai/DeepSeek-V4-Flash", {"hybrid_kv_cache": False}, "hybrid_kv_cache"),
        ("deepseek-ai/DeepSeek-V4-Flash", {"engine_version": "0.19.0"}, "architecture"),
        ("google/gemma-4-31B-it", {"engine_version": "0.11.0"}, "architecture"),
        ("google/recurrentgemma-2b", {}, "architecture"),
        ("google-t5/t5-base", {}, "encoder_tokens"),
        ("state-spaces/mamba-2.8b-hf", {"draft_layers": 1, "max_model_len": 9}, "draft_layers"),
        ("google/gemma-3n-E4B-it", {"pp": 3}, "pp"),
        ("Qwen/Qwen3-8B", {"speculative_tokens": -1}, "speculative_tokens"),
        ("Qwen/Qwen3-8B", {"max_num_seqs": 0}, "max_num_seqs"),
    ],
)
def test_what_vllm_refuses_is_refused(model_id: str, flags: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan_pool(architecture(model_id), **{"num_blocks": 999, "max_model_len": 2048, **flags})
    assert caught.value.field == field


def test_a_draft_model_brings_caches_of_its_own() -> None:
    """EAGLE: one layer of the target's width beside 32."""
    target = read_architecture(LLAMA_8B)
    draft = read_architecture({**LLAMA_8B, "num_hidden_layers": 1})
    plan = plan_pool(target, draft=draft, num_blocks=999, max_model_len=8192, speculative_tokens=3)
    assert plan.groups[0].layers == 33
    assert plan_pool(target, draft_layers=1, num_blocks=999, max_model_len=8192).groups == plan.groups


def test_sparse_mla_has_an_fp8_row_of_its_own() -> None:
    """656 bytes beside an indexer's 132, since 0.11 the default of that version alone; Blackwell keeps plain fp8."""
    sparse = architecture("deepseek-ai/DeepSeek-V3.2")
    settings: dict[str, Any] = {"num_blocks": 999, "max_model_len": 8192}
    assert plan_pool(sparse, kv_dtype="fp8", **settings).kv_bytes_per_token_per_gpu == 61 * (656 + 132)
    assert plan_pool(sparse, engine_version="0.11.0", **settings).kv_bytes_per_token_per_gpu == 61 * (656 + 132)
    assert plan_pool(sparse, engine_version="0.12.0", **settings).kv_bytes_per_token_per_gpu == 61 * (1152 + 132)
    plain = plan_pool(sparse, kv_dtype="fp8", gpu=find_gpu("b200"), **settings)
    assert (plain.kv_bytes_per_token_per_gpu, plain.block_tokens) == (61 * (576 + 132), 64)
