"""Staged loads: the rate they say at every moment, the lengths they say, and the same again for the same seed."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.simulate.stages import (
    Fixed,
    Lognormal,
    Normal,
    Ramp,
    Sine,
    Stage,
    StagedLoad,
    Steady,
    TokenCounts,
    Uniform,
)

rates = st.floats(0, 20)
times = st.floats(0.5, 100)
any_stage = st.one_of(
    st.builds(Steady, times, rates),
    st.builds(Ramp, times, rates, rates),
    st.builds(Sine, times, rates, st.floats(0, 1), st.floats(1, 500), st.floats(0, 1)),
)


def _load(stages: Sequence[Stage], arrivals: str = "constant", seed: int = 1) -> StagedLoad:
    return StagedLoad(tuple(stages), Uniform(10, 2000), Uniform(1, 500), arrivals, seed)  # type: ignore[arg-type]


def _arrivals(load: StagedLoad) -> list[float]:
    return [request.arrival_seconds for request in load.requests()]


def test_constant_arrivals_are_evenly_spaced_through_all_stages() -> None:
    assert _arrivals(_load([Steady(2, 1), Steady(1, 4), Steady(3, 0), Steady(1, 2)])) == [
        *(0.0, 1.0),
        *(2.0, 2.25, 2.5, 2.75),
        *(6.0, 6.5),
    ]


@settings(deadline=None)
@given(st.lists(any_stage, min_size=1, max_size=4).filter(lambda all_of: sum(s.expected_requests for s in all_of) > 2))
def test_constant_arrivals_follow_the_expected_number(stages: list[Stage]) -> None:
    load = _load(stages)
    arrivals = _arrivals(load)
    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= 0
    assert arrivals[-1] <= load.duration_seconds + 1e-6
    begin = 0.0
    expected = 0.0
    for stage in stages:
        begin += stage.seconds
        expected += stage.expected_requests
        assert sum(at < begin - 1e-5 for at in arrivals) <= expected + 1.001
        assert sum(at < begin + 1e-5 for at in arrivals) >= expected - 1.001


@settings(deadline=None)
@given(any_stage.filter(lambda stage: stage.expected_requests > 1), st.floats(0, 1))
def test_time_and_expected_number_belong_together(stage: Stage, share: float) -> None:
    """Against the rate summed up in small steps, in place of the formula for its integral."""
    until = stage.seconds_until(share * stage.expected_requests)
    assert 0 <= until <= stage.seconds * (1 + 1e-9)

    def rate(at: float) -> float:
        match stage:
            case Ramp(seconds, begin, end):
                return begin + (end - begin) * at / seconds
            case Sine():
                turn = 6.283185307179586 * (at / stage.period_seconds + stage.shift_ratio)
                return stage.requests_per_second * (1 + stage.amplitude_ratio * _sine(turn))
            case Steady():
                return stage.requests_per_second
        raise AssertionError(stage)

    steps = 2000
    summed = sum(rate((step + 0.5) * until / steps) for step in range(steps)) * until / steps
    assert summed == pytest.approx(share * stage.expected_requests, rel=2e-3, abs=2e-2)


def _sine(turn: float) -> float:
    # By another road than the code's: the imaginary part of a power of e.
    return (2.718281828459045 ** (1j * turn)).imag


@pytest.mark.parametrize("seed", range(5))
def test_poisson_arrivals_have_the_rate_and_the_spread_of_chance(seed: int) -> None:
    arrivals = _arrivals(_load([Steady(500, 4), Steady(500, 0), Steady(500, 16)], "poisson", seed))
    slow, none, fast = (sum(low <= at < low + 500 for at in arrivals) for low in (0, 500, 1000))
    # Six standard deviations of a Poisson count.
    assert abs(slow - 2000) < 6 * 2000**0.5
    assert none == 0
    assert abs(fast - 8000) < 6 * 8000**0.5
    in_ten_seconds = Counter(int(at // 10) for at in arrivals if at < 500)
    counts = [in_ten_seconds[index] for index in range(50)]
    mean = sum(counts) / 50
    variance = sum((count - mean) ** 2 for count in counts) / 49
    assert 0.3 < variance / mean < 2.2


def test_a_day_has_its_peak_and_its_valley() -> None:
    arrivals = _arrivals(_load([Sine(86400, 0.25, 0.5, shift_ratio=0.75)]))
    hours = Counter(int(at // 3600) for at in arrivals)
    assert len(arrivals) == 21600
    assert hours[0] == pytest.approx(450, rel=0.02)
    assert hours[12] == pytest.approx(1350, rel=0.02)


@settings(deadline=None)
@given(st.integers(0, 2**40), st.sampled_from(["constant", "poisson"]))
def test_the_same_seed_gives_the_same_requests_another_does_not(seed: int, arrivals: str) -> None:
    load = _load([Steady(10, 5)], arrivals, seed)
    assert list(load.requests()) == list(load.requests())
    other = _load([Steady(10, 5)], arrivals, seed + 1)
    assert list(load.requests()) != list(other.requests())


def test_lengths_stay_when_arrivals_change() -> None:
    even, chance = _load([Steady(20, 5)]), _load([Steady(60, 5)], "poisson")
    pairs = list(zip(even.requests(), chance.requests(), strict=False))
    assert len(pairs) == 100
    assert all((a.prompt_tokens, a.output_tokens) == (b.prompt_tokens, b.output_tokens) for a, b in pairs)


def _draws(counts: TokenCounts, seed: int = 5) -> list[int]:
    source = random.Random(seed)
    return sorted(counts.draw(source) for _ in range(4001))


def test_lengths_have_the_shape_they_say() -> None:
    assert set(_draws(Fixed(7))) == {7}
    uniform = _draws(Uniform(3500, 4500))
    assert (uniform[0], uniform[-1]) == pytest.approx((3500, 4500), abs=5)
    assert sum(uniform) / 4001 == pytest.approx(4000, rel=0.005)
    normal = _draws(Normal(4000, 300, 3500, 4500))
    assert (normal[0], normal[-1]) == (3500, 4500)
    # 68.3 % of a normal lies within one deviation.
    assert sum(3700 <= one <= 4300 for one in normal) / 4001 == pytest.approx(0.683, abs=0.03)
    lognormal = _draws(Lognormal(1000, 1.0, 50, 20_000))
    assert lognormal[2000] == pytest.approx(1000, rel=0.08)
    assert lognormal[round(4001 * 0.8413)] == pytest.approx(2718, rel=0.08)
    assert _draws(Lognormal(1000, 3.0, 50, 20_000))[0] == 50
    assert _draws(Lognormal(1000, 3.0, 50, 20_000))[-1] == 20_000


@settings(deadline=None)
@given(
    st.one_of(
        st.builds(Normal, st.floats(1, 1e7), st.floats(0, 1e7), st.integers(1, 50), st.integers(50, 10**7)),
        st.builds(Lognormal, st.floats(1, 1e7), st.floats(0, 5), st.integers(1, 50), st.integers(50, 10**7)),
    ),
    st.integers(0, 1000),
)
def test_lengths_stay_within_their_bounds(counts: Normal | Lognormal, seed: int) -> None:
    source = random.Random(seed)
    assert all(counts.least_tokens <= counts.draw(source) <= counts.most_tokens for _ in range(50))


def test_ramps_speed_up_from_nothing() -> None:
    arrivals = _arrivals(_load([Ramp(100, 0, 10)]))
    assert len(arrivals) == 500
    gaps = [after - before for before, after in pairwise(arrivals)]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(gaps))
    assert gaps[-1] == pytest.approx(0.1, rel=0.01)


def test_a_cut_load_is_the_beginning_of_the_whole() -> None:
    whole = _load([Steady(10, 2), Ramp(10, 2, 8)], "poisson")
    cut = replace(whole, cut_seconds=14)
    assert (whole.duration_seconds, cut.duration_seconds) == (20, 14)
    assert list(cut.requests()) == [one for one in whole.requests() if one.arrival_seconds < 14]
    assert replace(whole, cut_seconds=99).duration_seconds == 20


@given(any_stage.filter(lambda stage: stage.expected_requests > 1 or not stage.expected_requests), st.floats(0.1, 10))
def test_scaled_stages_bring_so_many_times_the_requests(stage: Stage, scale: float) -> None:
    scaled = stage.scaled(scale)
    assert scaled.seconds == stage.seconds
    assert scaled.expected_requests == pytest.approx(scale * stage.expected_requests, rel=1e-6, abs=1e-9)
    half = stage.expected_requests / 2
    assert scaled.seconds_until(scale * half) == pytest.approx(stage.seconds_until(half), rel=1e-3, abs=0.5)


def test_a_scaled_load_scales_all_its_stages() -> None:
    load = _load([Steady(10, 2), Steady(10, 4)])
    assert load.scaled(2).stages == (Steady(10, 4), Steady(10, 8))
    assert len(_arrivals(load.scaled(2))) == 120


nan = float("nan")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Steady(0, 1), "seconds must be above 0 and at most a year, not 0"),
        (lambda: Steady(nan, 1), "seconds must be above 0"),
        (lambda: Steady(1, -1), "requests_per_second must be from 0 to 100000, not -1"),
        (lambda: Ramp(1, nan, 1), "begin_requests_per_second must be"),
        (lambda: Ramp(1, 1, 1e9), "end_requests_per_second must be"),
        (lambda: Sine(1, 1, 1.5), "amplitude_ratio must be from 0 to 1, not 1.5"),
        (lambda: Sine(1, 1, 1, 0), "period_seconds must be"),
        (lambda: Sine(1, 1, 1, 10, 2), "shift_ratio must be"),
        (lambda: Fixed(0), "tokens must be from 1 to 10000000, the least first, not 0 to 0"),
        (lambda: Uniform(5, 4), "not 5 to 4"),
        (lambda: Normal(0, 1), "mean_tokens must be"),
        (lambda: Normal(5, nan), "deviation_tokens must be"),
        (lambda: Lognormal(nan, 1), "median_tokens must be"),
        (lambda: Lognormal(5, 6), "sigma must be from 0 to 5, not 6"),
        (lambda: _load([Steady(1, 1)], "often"), "arrivals must be constant or poisson, not 'often'"),
        (lambda: replace(_load([Steady(1, 1)]), cut_seconds=0), "cut_seconds must be above 0, not 0"),
        (lambda: _load([]), "stages must bring up to 5000000 requests, not 0"),
        (lambda: _load([Steady(10, 0)]), "stages must bring up to 5000000 requests, not 0"),
        (lambda: _load([Steady(100, 99_999)]), r"stages must bring up to 5000000 requests, not 9.9999e\+06"),
        (lambda: _load([Steady(3e7, 0.1), Steady(3e7, 0)]), "stages must last a year at most"),
    ],
)
def test_refuses_what_cannot_be(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
