"""Expected live bytes: the formulas of length-biased sampling, and sums over blocks."""

import math
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmodel import ModelError, read_architecture
from kvmodel.engines import plan_of
from kvmodel.engines.contract import EnginePlan
from kvmodel.expected import ExpectedBytes, expected_ideal_bytes, expected_plan_bytes

from .known import LLAMA_8B, known_config
from .known_caches import known_cache_config

LLAMA = read_architecture(LLAMA_8B)
TOKEN = 131072
LENGTHS = [(100, 50, 3.0), (1000, 10, 1.0), (7, 300, 0.5)]


def closed_form(lengths: list[tuple[int, int, float]]) -> tuple[float, float]:
    """Mean and variance of the tokens held, both ends of a step counted for half: o(s+o/2), o(s^2+so+o^2/3+1/6)."""
    time = sum(w * o for s, o, w in lengths)
    mean = sum(w * o * (s + o / 2) for s, o, w in lengths) / time
    square = sum(w * o * (s * s + s * o + o * o / 3 + 1 / 6) for s, o, w in lengths) / time
    return mean, square - mean**2


def test_mean_and_spread_of_the_ideal() -> None:
    found = expected_ideal_bytes(LLAMA, LENGTHS)
    mean, variance = closed_form(LENGTHS)
    assert found.label == "ideal"
    assert found.mean_tokens == pytest.approx(mean)
    assert found.mean_bytes == pytest.approx(mean * TOKEN)
    assert found.standard_deviation_bytes == pytest.approx(math.sqrt(variance) * TOKEN)
    assert found.longest_tokens == 1010


def test_long_outputs_count_for_the_time_they_take() -> None:
    short_and_long = expected_ideal_bytes(LLAMA, [(10, 10, 1), (10, 990, 1)])
    assert short_and_long.mean_tokens == pytest.approx((10 * 15 + 990 * 505) / 1000)


def test_quantiles_are_those_of_the_time() -> None:
    found = expected_ideal_bytes(LLAMA, [(0, 100, 1)])
    assert found.quantile_bytes(0) == 0
    assert found.quantile_bytes(0.5) == 50 * TOKEN
    assert found.quantile_bytes(1) == 100 * TOKEN


def test_windows_and_state_are_held() -> None:
    gpt_oss = read_architecture(known_config("openai/gpt-oss-20b"))
    inside = expected_ideal_bytes(gpt_oss, [(1000, 2, 1)])
    assert inside.mean_bytes == pytest.approx(24576 * (1001 + 128))
    hybrid = read_architecture(known_cache_config("Qwen/Qwen3.5-27B"))
    assert expected_ideal_bytes(hybrid, [(10, 2, 1)]).mean_bytes == pytest.approx(11 * 65536 + 153_944_064)


def test_blocks_are_rounded_up() -> None:
    plan = plan_of("tensorrt-llm")(LLAMA, kv_bytes=2**33, max_seq_len=4096)
    found = expected_plan_bytes(plan, [(31, 3, 1)])
    # 31, 32, 32, 33, 33, 34 tokens, each for half a step: one block three times, two blocks three times.
    assert found.mean_bytes == pytest.approx(1.5 * 32 * TOKEN)
    assert found.quantile_bytes(0.5) == 32 * TOKEN
    assert found.quantile_bytes(0.51) == 64 * TOKEN


def test_windows_free_the_blocks_before_them() -> None:
    gpt_oss = read_architecture(known_config("openai/gpt-oss-20b"))
    plan = plan_of("tensorrt-llm")(gpt_oss, kv_bytes=2**35, max_seq_len=8192, max_attention_window="model")
    found = expected_plan_bytes(plan, [(1023, 1, 1)])
    full = (32 * 32 + 32 * 32) / 2 * 24576
    # 1023 tokens reach from block 27 to 31, 1024 from block 28 to 31.
    window = (5 * 32 + 4 * 32) / 2 * 24576
    assert found.mean_bytes == pytest.approx(full + window)


def test_a_reservation_is_held_from_the_start() -> None:
    plan = plan_of("tgi")(LLAMA, kv_bytes=2**33, max_total_tokens=4096)
    found = expected_plan_bytes(plan, [(100, 50, 1), (10, 100, 1)])
    assert found.mean_bytes == pytest.approx((50 * 150 + 100 * 110) / 150 * TOKEN)


def test_requests_without_output_stand_at_their_length() -> None:
    found = expected_ideal_bytes(LLAMA, [(512, 0, 3), (4096, 0, 1)])
    assert found.mean_tokens == 1408
    assert found.mean_bytes == 1408 * TOKEN
    assert found.quantile_bytes(0.75) == 512 * TOKEN
    assert found.longest_tokens == 4096
    reserved = plan_of("tgi")(LLAMA, kv_bytes=2**33, max_total_tokens=4096)
    assert expected_plan_bytes(reserved, [(512, 0, 3), (4096, 0, 1)]).mean_bytes == 1408 * TOKEN


def test_a_long_way_is_counted_at_some_of_its_lengths() -> None:
    calls = 0

    class Counted:
        engine, reserves = "counted", False

        def held_bytes(self, tokens: int) -> int:
            nonlocal calls
            calls += 1
            return tokens

    lengths: list[tuple[int, int, float]] = [(1000, 10**7, 1.0), (5, 3_000_000, 2.0)]
    found = expected_plan_bytes(cast("EnginePlan", Counted()), lengths)
    assert found.mean_bytes == pytest.approx(closed_form(lengths)[0], rel=1e-3)
    assert calls <= 4200


@pytest.mark.parametrize(
    "lengths", [[], [(5, 0, 0.0)], [(5, 5, 0.0)], [(5, 5, -1)], [(5, 5, math.nan)], [(-1, 5, 1)], [(5, 2**40, 1)]]
)
def test_bad_lengths_are_refused(lengths: list[Any]) -> None:
    with pytest.raises(ModelError) as caught:
        expected_ideal_bytes(LLAMA, lengths)
    assert caught.value.field == "lengths"
    with pytest.raises(ModelError) as caught:
        expected_plan_bytes(plan_of("tgi")(LLAMA, kv_bytes=2**33), lengths)
    assert caught.value.field == "lengths"


def test_a_bad_share_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        expected_ideal_bytes(LLAMA, LENGTHS).quantile_bytes(1.5)
    assert caught.value.field == "share"


Requests = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 200), st.floats(0.01, 100)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(Requests)
def test_the_sum_is_the_closed_form(lengths: list[tuple[int, int, float]]) -> None:
    found: ExpectedBytes = expected_ideal_bytes(LLAMA, lengths)
    mean, variance = closed_form(lengths)
    assert found.mean_tokens == pytest.approx(mean, rel=1e-9)
    assert found.standard_deviation_tokens**2 == pytest.approx(variance, rel=1e-6, abs=1e-6)
    median = found.quantile_bytes(0.5)
    assert found.quantile_bytes(0.1) <= median <= found.quantile_bytes(0.9) <= found.longest_tokens * TOKEN
