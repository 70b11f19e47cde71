"""The published value against the exact arithmetic of HPA."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.cluster.dead_band import value_for
from kvgauge.simulate.hpa_calculator import CpuReadiness, ExternalMetric, Scale, Tolerances, propose

SIZES = st.integers(1, 400)
TOLERANCES = st.sampled_from([0.0, 0.05, 0.1, 0.25])


def followed(required: int, replicas: int, up: float, down: float) -> int:
    """What HPA makes of it in one sync, with target AverageValue 1."""
    metric = ExternalMetric("required", 1000, value_for(required, replicas, up, down))
    return propose(metric, Scale(replicas, replicas), [], Tolerances(up, down), CpuReadiness(0.0))


def settled(required: int, replicas: int, up: float, down: float) -> int:
    """Where repeated syncs end."""
    for _ in range(50):
        after = followed(required, replicas, up, down)
        if after == replicas:
            return replicas
        replicas = after
    raise AssertionError("it never settles")


@pytest.mark.parametrize(
    ("required", "replicas", "first", "last"),
    [(11, 10, 12, 11), (10, 11, 10, 10), (9, 10, 9, 9), (21, 20, 23, 21), (19, 20, 20, 20), (18, 20, 18, 18),
     (3, 2, 3, 3), (1, 2, 1, 1), (5, 5, 5, 5), (101, 100, 112, 101), (110, 100, 111, 111), (0, 4, 0, 0)],
)  # fmt: skip
def test_steps_at_the_usual_tolerance(required: int, replicas: int, first: int, last: int) -> None:
    assert followed(required, replicas, 0.1, 0.1) == first
    if required:
        assert settled(required, replicas, 0.1, 0.1) == last


@given(SIZES, SIZES, TOLERANCES, TOLERANCES)
def test_never_less_than_required_and_little_more(required: int, replicas: int, up: float, down: float) -> None:
    end = settled(required, replicas, up, down)
    assert required <= end
    # At most what lies within the band above it.
    assert end * (1 - down) <= required + 1e-9 or end == required


@given(st.integers(1, 5000))
def test_one_more_is_followed_to_the_very_number_at_any_size(replicas: int) -> None:
    assert settled(replicas + 1, replicas, 0.1, 0.1) == replicas + 1


@given(st.integers(1, 5000), TOLERANCES)
def test_one_fewer_is_followed_as_long_as_the_band_is_narrower_than_two(replicas: int, down: float) -> None:
    if down * replicas < 1.99:
        assert settled(max(replicas - 1, 1), replicas, 0.1, down) == max(replicas - 1, 1)


@given(SIZES, SIZES, st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.9]), st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.9]))
def test_the_way_over_costs_no_more_than_it_saves(required: int, replicas: int, up: float, down: float) -> None:
    if required <= replicas:
        return
    least = next(size for size in range(required, 2000) if size > (1 + up) * replicas + 1e-9)
    # HPA's own bound is a float: a size at the very edge may be on either side.
    assert followed(required, replicas, up, down) <= max(required, 2 * (least + 1) - required)


@given(SIZES, SIZES, TOLERANCES, TOLERANCES)
def test_what_is_too_many_in_the_end_cannot_be_had_fewer(required: int, replicas: int, up: float, down: float) -> None:
    end = settled(required, replicas, up, down)
    values = range(1000 * (required - 1) + 1, 1000 * required + 1)
    if end > required:
        assert all(Tolerances(up, down).hold(value / (1000.0 * end)) for value in (values[0], values[1], values[-1]))


@given(SIZES, SIZES)
def test_without_a_tolerance_it_is_the_number(required: int, replicas: int) -> None:
    assert value_for(required, replicas, 0.0, 0.0) == 1000 * required
    assert followed(required, replicas, 0.0, 0.0) == required


def test_no_workload_yet() -> None:
    assert value_for(3, 0, 0.1, 0.1) == 3000
