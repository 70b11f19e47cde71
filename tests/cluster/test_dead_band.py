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
     (3, 2, 3, 3), (1, 2, 1, 1), (5, 5, 5, 5), (101, 100, 112, 101), (0, 4, 0, 0)],
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


@given(SIZES, SIZES, TOLERANCES, TOLERANCES)
def test_more_is_always_followed_to_the_very_number(required: int, replicas: int, up: float, down: float) -> None:
    if required > replicas:
        assert settled(required, replicas, up, down) == required


@given(SIZES, SIZES)
def test_without_a_tolerance_it_is_the_number(required: int, replicas: int) -> None:
    assert value_for(required, replicas, 0.0, 0.0) == 1000 * required
    assert followed(required, replicas, 0.0, 0.0) == required


def test_no_workload_yet() -> None:
    assert value_for(3, 0, 0.1, 0.1) == 3000
