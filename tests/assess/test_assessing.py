from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.assess import EngineFlags, assess
from tests.support.facts import ENGINE, GIB, GPU, LLAMA_8B_PARAMETERS, RANK, model, observation

KV_BYTES_PER_TOKEN = 32 * 8 * 128 * 2 * 2


def test_kv_bytes_per_token_is_the_formula() -> None:
    (pool,) = assess(observation(with_model=model()), EngineFlags()).pools
    assert pool.kv_bytes_per_token == KV_BYTES_PER_TOKEN == 131_072
    assert pool.state_bytes_per_request == 0


def test_tensor_parallelism_divides_heads_and_then_repeats_them() -> None:
    def per_token(tp: int) -> int | None:
        return assess(observation(with_model=model()), EngineFlags(tp=tp)).pools[0].kv_bytes_per_token

    assert [per_token(tp) for tp in (1, 2, 8, 16)] == [131_072, 65_536, 16_384, 16_384]


def test_an_fp8_cache_is_half() -> None:
    seen = observation(engine=replace(ENGINE, kv_dtype="fp8"), with_model=model())
    assert assess(seen, EngineFlags()).pools[0].kv_bytes_per_token == KV_BYTES_PER_TOKEN // 2


def test_the_tail_of_blocks_is_estimated_and_says_so() -> None:
    (pool,) = assess(observation(with_model=model()), EngineFlags()).pools
    tail_tokens = 10 * 15 / 2
    assert (pool.live_tokens, pool.live_tokens_method) == (8000 - tail_tokens, "estimated")
    waste = pool.waste[0]
    assert (waste.kind, waste.method, waste.waste_bytes) == ("block_tail", "estimated", tail_tokens * 131_072)


def test_what_the_engine_measured_is_not_estimated() -> None:
    (pool,) = assess(observation(with_model=model(), live_tokens=7000), EngineFlags()).pools
    assert (pool.live_tokens, pool.live_tokens_method) == (7000, "measured")
    assert pool.waste[0].waste_bytes == 1000 * 131_072


def test_without_a_model_tokens_are_known_and_bytes_are_not() -> None:
    (pool,) = assess(observation(), EngineFlags()).pools
    assert (pool.active_tokens, pool.live_tokens_method) == (8000, "estimated")
    assert (pool.kv_bytes_per_token, pool.predicted_capacity_tokens) == (None, None)
    # One GPU has no copies, and vLLM never reserves: that needs no model.
    assert [(waste.kind, waste.waste_bytes) for waste in pool.waste] == [("reservation", 0), ("head_replication", 0)]
    assert {"kv_bytes_per_token", "predicted_capacity_tokens"} <= set(pool.missing)


def test_window_models_have_no_tail_estimate() -> None:
    hybrid = model(model_type="mistral", sliding_window=4096)
    (pool,) = assess(observation(with_model=hybrid), EngineFlags()).pools
    assert pool.live_tokens is None
    assert "block_tail" not in {waste.kind for waste in pool.waste}
    assert {"live_tokens", "waste.block_tail"} <= set(pool.missing)


def test_the_pool_of_an_engine_without_rules_is_not_planned_by_anothers() -> None:
    result = assess(observation(engine=replace(ENGINE, engine="max"), with_model=model()), EngineFlags())
    assert result.pools[0].predicted_capacity_tokens is None
    assert "max" in result.missing["memory"]
    assert "max" in result.pools[0].missing["predicted_capacity_tokens"]


def test_the_fullest_of_several_pools_is_what_usage_tells() -> None:
    def usage(engine: str, usage_ratio: float) -> float | None:
        ranks = (replace(RANK, active_tokens=8000, usage_ratio=usage_ratio),)
        seen = observation(engine=replace(ENGINE, engine=engine, ranks=ranks))
        return assess(seen, EngineFlags()).pools[0].usage_ratio

    assert usage("sglang", 0.9) == 0.9
    assert usage("sglang", 0.4) == 0.5
    # Old builds of llama.cpp count the cells of idle slots.
    assert usage("llama.cpp", 0.9) == 0.5


def test_prediction_against_the_driver() -> None:
    result = assess(observation(with_model=model()), EngineFlags(max_num_seqs=1024, max_num_batched_tokens=8192))
    (gpu,) = result.gpus
    assert gpu.total is not None
    assert gpu.total.low_bytes <= gpu.total.expected_bytes <= gpu.total.high_bytes
    assert gpu.total.actual_bytes == 76 * GIB
    assert gpu.total.error_ratio == (76 * GIB - gpu.total.expected_bytes) / (76 * GIB)
    parts = {part.component: part for part in gpu.components}
    # The checkpoint's bytes, and the rotary table that is in memory but not in the file.
    assert parts["weights"].low_bytes == 2 * LLAMA_8B_PARAMETERS
    assert parts["weights"].expected_bytes == pytest.approx(14.99 * GIB, rel=0.001)
    # vLLM 0.19.0 printed 58.11 GiB and 476,016 tokens for this start (llm-d-planner's public measurements).
    assert parts["kv_pool"].expected_bytes == pytest.approx(58.11 * GIB, rel=0.05)
    assert result.pools[0].predicted_capacity_tokens == pytest.approx(476_016, rel=0.05)
    assert parts["kv_pool"].actual_bytes == 16_000 * 131_072


def test_a_pool_asked_for_by_flag_is_predicted_exactly_without_a_gpu() -> None:
    fixed = replace(ENGINE, kv_cache_bytes=1000 * 16 * 131_072 + 5)
    (pool,) = assess(observation(engine=fixed, gpus=(), with_model=model()), EngineFlags()).pools
    assert pool.predicted_capacity_tokens == 16_000
    overridden = replace(ENGINE, num_blocks_override=512, kv_cache_bytes=1 << 40)
    (pool,) = assess(observation(engine=overridden, gpus=(), with_model=model()), EngineFlags()).pools
    assert pool.predicted_capacity_tokens == 512 * 16


def test_several_gpus_without_tp_are_not_guessed() -> None:
    result = assess(observation(gpus=(GPU, replace(GPU, gpu=1)), with_model=model()), EngineFlags())
    assert result.tp is None
    assert "--tp" in result.missing["tp"]
    assert result.pools[0].kv_bytes_per_token is None
    assert result.pools[0].active_tokens == 8000
    assert all(gpu.total is None for gpu in result.gpus)


def test_a_tp_that_does_not_divide_is_a_reason_and_no_crash() -> None:
    (pool,) = assess(observation(with_model=model()), EngineFlags(tp=3)).pools
    assert pool.kv_bytes_per_token is None
    assert "tp" in pool.missing["kv_bytes_per_token"]


def test_nothing_seen_is_nothing_assessed() -> None:
    result = assess(observation(engine=None, gpus=()), EngineFlags())
    assert (result.pools, result.gpus) == ((), ())


@given(
    running=st.none() | st.integers(0, 5000),
    active=st.none() | st.integers(0, 16_000),
    block=st.none() | st.sampled_from([1, 16, 784]),
)
def test_live_never_exceeds_active_and_waste_is_never_negative(
    running: int | None, active: int | None, block: int | None
) -> None:
    seen = observation(with_model=model(), running=running, active_tokens=active, block_tokens=block)
    (pool,) = assess(seen, EngineFlags()).pools
    if pool.live_tokens is not None:
        assert active is not None
        assert 0 <= pool.live_tokens <= active
    assert all(waste.waste_bytes >= 0 for waste in pool.waste)
    assert (active is None) == (pool.usage_ratio is None or pool.active_tokens is None)
