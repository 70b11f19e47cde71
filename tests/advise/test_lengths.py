import math
import random
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.advise.lengths import (
    Lengths,
    kaplan_meier,
    lengths_of,
    unfinished_ages,
    whole_lengths,
)
from kvgauge.observe.records import Histogram
from kvgauge.simulate.tally import bounds_1_2_5
from tests.support.facts import histogram

BOUNDS = (*bounds_1_2_5(131_072), math.inf)
SOME = st.lists(st.integers(1, 100_000), min_size=1, max_size=60)


def page(values: Sequence[float]) -> Histogram:
    """Lengths as vLLM's page has them."""
    return histogram(values, BOUNDS)


def likely(values: Sequence[float], longest_tokens: float = math.inf) -> Lengths:
    found = lengths_of(page(values), longest_tokens)
    assert found is not None
    return found[0]


def least_spread(values: Sequence[float]) -> Lengths:
    found = lengths_of(page(values))
    assert found is not None
    return found[1]


def variance(lengths: Lengths) -> float:
    return lengths.moment(2) - lengths.mean**2


def test_nothing_finished_is_nothing_known() -> None:
    assert lengths_of(page([])) is None
    assert whole_lengths([]) is None
    assert kaplan_meier(None, [5, 6]) is None


@given(SOME)
def test_the_likely_distribution_has_the_exact_mean_and_counts(values: list[int]) -> None:
    lengths = likely(values)
    assert lengths.mean == pytest.approx(statistics.fmean(values), rel=1e-3)
    assert math.fsum(lengths.shares) == pytest.approx(1)
    for bound in BOUNDS:
        under = math.fsum(
            share for point, share in zip(lengths.points, lengths.shares, strict=True) if point <= bound + 1e-6
        )
        assert under == pytest.approx(sum(value <= bound for value in values) / len(values), abs=1e-9)


@given(SOME)
def test_no_lengths_with_this_page_spread_less(values: list[int]) -> None:
    least = least_spread(values)
    assert least.mean == pytest.approx(statistics.fmean(values), rel=1e-9)
    assert variance(least) <= statistics.pvariance(values) + 1e-6 * statistics.fmean(values) ** 2
    assert variance(least) <= variance(likely(values)) + 1e-3 * statistics.fmean(values) ** 2


@pytest.mark.parametrize(("median", "sigma"), [(200, 0.7), (1500, 1.2), (12_000, 0.6)])
def test_moments_of_a_known_distribution_are_recovered(median: float, sigma: float) -> None:
    draw = random.Random(3)
    values = [min(max(round(draw.lognormvariate(math.log(median), sigma)), 1), 60_000) for _ in range(5000)]
    lengths = likely(values, 60_000)
    for power in (2, 3):
        true = statistics.fmean(value**power for value in values)
        assert lengths.moment(power) == pytest.approx(true, rel=0.05 * power)


def test_equal_lengths_at_a_bound_are_recognised() -> None:
    assert variance(likely([1000] * 50)) == pytest.approx(0, abs=1)
    assert likely([1, 1, 1]).points == (1, 1, 1)


def test_no_length_beyond_the_longest() -> None:
    values = [300] * 40 + [40_500]
    assert likely(values).points[-1] > 41_000
    assert likely(values, 40_960).points[-1] <= 40_960


def test_alike_lengths_in_two_buckets_can_be_alike() -> None:
    least = least_spread([990, 1010] * 20)
    assert least.points == (1000, 1001) or variance(least) < 2


@pytest.mark.parametrize(("generated", "remaining"), [(0, 200), (100, 200), (150, 150), (299, 1), (300, 1), (900, 1)])
def test_what_is_still_to_come(generated: float, remaining: float) -> None:
    lengths = whole_lengths([100, 300])
    assert lengths is not None
    assert lengths.remaining(generated) == remaining


def test_without_running_requests_the_estimate_is_what_finished() -> None:
    finished = whole_lengths([10, 10, 40, 200])
    assert finished is not None
    estimate = kaplan_meier(finished, [])
    assert estimate is not None
    assert estimate.points == finished.points
    assert estimate.shares == pytest.approx(finished.shares)


def test_product_limit_by_hand() -> None:
    # Of four, one ends at 10, one is censored at 20, one of the two left ends at 30; half of three quarters is left.
    finished = whole_lengths([10, 30])
    assert finished is not None
    estimate = kaplan_meier(finished, [20, 35])
    assert estimate is not None
    assert estimate.shares == pytest.approx((0.25, 0.375, 0.375))
    # Beyond 35, the tail's mean is all tokens for each that finished: (10 + 30 + 20 + 35) / 2.
    assert estimate.points == pytest.approx((10, 30, 35 + 47.5))


def test_a_tail_ends_at_the_longest() -> None:
    finished = whole_lengths([10])
    assert finished is not None
    estimate = kaplan_meier(finished, [500], longest_tokens=600)
    assert estimate is not None
    assert estimate.points[-1] == 600


def test_completions_after_a_change_are_biased_short_and_the_estimate_is_not() -> None:
    draw = random.Random(5)
    outputs = [max(round(draw.expovariate(1 / 1000)), 1) for _ in range(3000)]
    # All began at once, 300 steps ago.
    finished = likely([tokens for tokens in outputs if tokens <= 300])
    estimate = kaplan_meier(finished, [300] * sum(tokens > 300 for tokens in outputs))
    assert finished.mean < 160
    assert estimate is not None
    assert estimate.mean == pytest.approx(1000, rel=0.1)


@given(SOME, st.lists(st.integers(0, 100_000), max_size=200))
def test_running_requests_only_ever_lengthen(values: list[int], running: list[int]) -> None:
    finished = likely(values)
    estimate = kaplan_meier(finished, running)
    assert estimate is not None
    assert math.fsum(estimate.shares) == pytest.approx(1)
    assert estimate.mean >= finished.mean * (1 - 1e-6)
    assert list(estimate.points) == sorted(estimate.points)


@given(st.floats(1, 1e6), st.integers(1, 500))
def test_ages_from_sums_have_the_sum(generated: float, running: int) -> None:
    ages = unfinished_ages(generated + 50, 50, running)
    assert len(ages) == running
    if running % 8 == 0 or running < 8:
        assert math.fsum(ages) == pytest.approx(generated)


def test_no_ages_where_none_are_told_of() -> None:
    assert unfinished_ages(100, 100, 5) == ()
    assert unfinished_ages(100, 0, 0) == ()


def test_an_absurd_number_of_running_requests_costs_no_more_than_many() -> None:
    ages = unfinished_ages(1e15, 0.0, 10**12)
    assert len(ages) <= 10_000
    assert math.fsum(ages) / len(ages) == pytest.approx(1e15 / 10**12, rel=0.01)
