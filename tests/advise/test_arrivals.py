import itertools
import math
import statistics
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.advise.arrivals import BIN_SECONDS, arrivals_of, moved
from tests.advise.fleets import poisson

COUNTS = st.lists(st.integers(0, 200).map(float), max_size=360)
HALF_HOUR = 1800.0


def bursts(rate: float, on_seconds: float, off_seconds: float, seed: int) -> list[float]:
    """Half an hour of ON and OFF."""
    found: list[float] = []
    for number in itertools.count():
        if len(found) * BIN_SECONDS >= HALF_HOUR:
            return found[: round(HALF_HOUR / BIN_SECONDS)]
        found += poisson(rate, on_seconds, f"{seed} {number}") + [0.0] * round(off_seconds / BIN_SECONDS)
    raise AssertionError


def test_nothing_seen_is_no_arrivals_and_no_upper_bound() -> None:
    seen = arrivals_of([])
    assert (seen.minute_rate, seen.least_rate, seen.trend) == (0.0, 0.0, 0.0)
    assert seen.most_rate == float("inf")


@given(COUNTS)
def test_rates_are_in_order_and_numbers(counts: list[float]) -> None:
    seen = arrivals_of(counts)
    assert 0 <= seen.least_rate <= seen.most_rate
    assert not any(math.isnan(value) for value in astuple(seen))
    assert 1 <= seen.burstiness <= seen.minute_burstiness
    assert seen.trend >= 0
    minute = counts[-12:]
    assert seen.minute_rate == pytest.approx(sum(minute) / (max(len(minute), 1) * BIN_SECONDS))


@given(COUNTS.filter(bool), st.integers(2, 5))
def test_twice_the_counts_are_twice_the_rate(counts: list[float], factor: int) -> None:
    one, many = arrivals_of(counts), arrivals_of([factor * count for count in counts])
    assert many.minute_rate == pytest.approx(factor * one.minute_rate)


def test_chance_alone_is_as_bursty_as_chance() -> None:
    found = [arrivals_of(poisson(3.0, HALF_HOUR, seed)).burstiness for seed in range(20)]
    assert statistics.fmean(found) == pytest.approx(1.0, abs=0.15)


def test_a_constant_rate_lies_within_the_level() -> None:
    inside = sum(
        seen.least_rate <= 3.0 <= seen.most_rate
        for seen in (arrivals_of(poisson(3.0, HALF_HOUR, seed)) for seed in range(100))
    )
    # Five looks at a rise and two at a fall, each of which chance passes now and then.
    assert inside >= 75


def test_bursts_are_bursty_and_do_not_move_the_level() -> None:
    for seed in range(5):
        counts = bursts(6.0, 60.0, 60.0, seed)
        seen = arrivals_of(counts)
        assert seen.burstiness > 3
        assert seen.minute_burstiness > 10
        # In an OFF minute the level is not taken to be gone, nor in an ON minute to be the burst's.
        assert seen.least_rate < 3.0 < seen.most_rate


def test_a_slow_change_is_no_burst() -> None:
    counts = [10 + place / 6 for place in range(360)]
    assert arrivals_of(counts).burstiness == 1.0


def test_a_rise_is_a_trend_and_a_fall_is_none() -> None:
    rise = [5.0] * 200 + [5 + 2.0 * step for step in range(36)]
    assert arrivals_of(rise).trend == pytest.approx(2.0 / 25, rel=0.3)
    assert arrivals_of(rise[::-1]).trend == 0.0
    flat = [arrivals_of(poisson(3.0, HALF_HOUR, seed)).trend > 0 for seed in range(100)]
    assert sum(flat) <= 10


def seen_after(counts: list[float], step_bin: int, seconds: float) -> tuple[float, float]:
    seen = arrivals_of(counts[: step_bin + round(seconds / BIN_SECONDS)])
    return seen.least_rate, seen.most_rate


def test_a_step_up_is_seen_within_a_minute_and_one_down_within_three() -> None:
    up = down = 0
    for seed in range(40):
        rise = poisson(2.0, 1200.0, f"a{seed}") + poisson(4.0, 600.0, f"b{seed}")
        up += max(seen_after(rise, 240, after)[0] for after in range(15, 65, 5)) > 2.3
        fall = poisson(4.0, 1200.0, f"a{seed}") + poisson(2.0, 600.0, f"b{seed}")
        down += seen_after(fall, 240, 180.0)[1] < 3.2
    assert up >= 36
    assert down >= 36


@given(COUNTS.filter(bool), st.floats(0, 50), st.just(0.0) | st.floats(0.01, 50), st.floats(1, 8))
def test_moving_keeps_what_is_within_and_scales_the_rest(
    counts: list[float], least: float, most: float, growth: float
) -> None:
    found = moved(counts, least, max(least, most), growth)
    assert len(found) == len(counts)
    for before, after in zip(counts, found, strict=True):
        assert 0 <= after <= before * growth * (1 + 1e-9)
        assert (after == 0) == (before == 0) or max(least, most) < 0.01


def test_moving_brings_an_old_level_to_the_new_one() -> None:
    counts = [10.0] * 100 + [20.0] * 100
    assert moved(counts, 0.0, float("inf"), 4.0) == counts
    assert moved(counts, 4.0, 4.0, 4.0)[:80] == [20.0] * 80
    assert moved(counts, 0.0, 2.0, 4.0)[-80:] == [10.0] * 80
    assert moved(counts, 100.0, 200.0, 4.0)[:80] == [40.0] * 80
