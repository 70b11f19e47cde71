"""When KV pressure begins and ends."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.cluster.pressure import Bounds, Pressure, judge, tell
from kvgauge.cluster.records import Reading
from tests.cluster.herd import NOW, reading

BOUNDS = Bounds()
CALM = reading(usage=0.3, load=0.4)
FULL = reading(usage=0.97, load=0.4)


def after(seconds: int, said: Reading, before: Pressure | None = None, start: float = NOW) -> Pressure:
    """What is known when the pod has said the same for so long, a reading a second, the first one included."""
    pressure = before or Pressure()
    for at in range(seconds + 1):
        moment = start + at
        pressure = judge(pressure, replace(said, read_seconds=moment), BOUNDS, moment)
    return pressure


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(reading(usage=0.95), id="usage"),
        pytest.param(reading(usage=0.2, load=1.01), id="load"),
        pytest.param(reading(load=1.01, binding="state_slots"), id="load of state"),
        pytest.param(reading(usage=0.6, load=0.7, exhaustion=59.0), id="exhaustion"),
        pytest.param(reading(usage=0.96, load=0.2, valid=False), id="usage, advice not valid"),
    ],
)
def test_pressure_begins_after_the_hold_time(said: Reading) -> None:
    assert not after(14, said).on
    assert after(15, said) == Pressure(True, NOW, None, NOW + 15)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(CALM, id="calm"),
        pytest.param(reading(usage=0.9, load=1.0, exhaustion=60.0), id="at the bounds"),
        pytest.param(reading(usage=0.16, load=2.0, binding="token_rate"), id="another limit binds"),
        pytest.param(reading(usage=0.5, load=2.0, exhaustion=5.0, valid=False), id="advice not valid"),
        pytest.param(reading(), id="nothing told"),
        pytest.param(reading(load=3.0, binding=None), id="no limit named"),
    ],
)
def test_no_pressure(said: Reading) -> None:
    assert not after(100, said).on


def test_pressure_ends_below_lower_bounds_after_a_longer_hold() -> None:
    on = after(15, FULL)
    start = on.read_seconds + 1
    assert after(59, CALM, on, start).on
    assert after(60, CALM, on, start) == Pressure(False, start, None, start + 60)


@pytest.mark.parametrize(
    "said",
    [
        reading(usage=0.86),
        reading(usage=0.1, load=0.95),
        reading(usage=0.1, load=0.1, exhaustion=179.0),
        reading(),
        reading(usage=float("nan")),
    ],
)
def test_between_the_bounds_it_stays(said: Reading) -> None:
    on = after(15, FULL)
    assert after(200, said, on, on.read_seconds + 1).on


def test_a_moment_of_the_other_begins_the_hold_anew() -> None:
    almost = after(14, FULL)
    calm = judge(almost, replace(CALM, read_seconds=NOW + 15), BOUNDS, NOW + 15)
    assert not after(14, FULL, calm, NOW + 16).on
    assert after(15, FULL, calm, NOW + 16).on


def test_the_same_reading_is_no_evidence_twice() -> None:
    pressure = Pressure()
    for at in range(10):
        pressure = judge(pressure, FULL, replace(BOUNDS, hold_seconds=5), NOW + at)
    assert not pressure.on


def test_a_silent_pod_neither_begins_nor_ends() -> None:
    almost, on = after(14, FULL), after(15, FULL)
    for before in (almost, on):
        for said, now in ((None, NOW + 20), (replace(FULL, read_seconds=NOW), NOW + 100)):
            silent = judge(before, said, BOUNDS, now)
            assert silent.on == before.on
            assert silent.turning_seconds is None
    resumed = judge(almost, None, BOUNDS, NOW + 20)
    assert not after(14, FULL, resumed, NOW + 30).on


READINGS = st.builds(
    reading,
    usage=st.none() | st.floats(0, 1),
    load=st.none() | st.floats(0, 5),
    exhaustion=st.none() | st.floats(0, 1000),
    valid=st.booleans(),
    binding=st.sampled_from(["kv", "token_rate", None]),
)


@given(st.lists(st.tuples(st.floats(0.1, 30), st.none() | READINGS), max_size=60))
def test_two_changes_are_never_nearer_than_the_hold(said: list[tuple[float, Reading | None]]) -> None:
    pressure, now, changed = Pressure(), NOW, NOW
    for pause, what in said:
        now += pause
        after_it = judge(pressure, what and replace(what, read_seconds=now), BOUNDS, now)
        if after_it.on != pressure.on:
            assert what is not None
            hold = BOUNDS.hold_seconds if after_it.on else BOUNDS.hold_end_seconds
            assert after_it.since_seconds is not None
            assert now - after_it.since_seconds >= hold
            assert after_it.since_seconds >= changed
            changed = now
        pressure = after_it


def test_the_sentence_has_the_figures_that_are_known() -> None:
    on, off = Pressure(True, NOW), Pressure(False, NOW)
    full = reading(usage=0.968, load=1.314, exhaustion=42.4, running=12, waiting=30)
    assert tell(on, full) == (
        "KV pressure: 97 % of the pool in use, full in 42 s at the present trend, "
        "load 1.31 of what is safe, 12 running, 30 waiting."
    )
    assert tell(off, reading(usage=0.5, running=0), 340.2) == (
        "KV pressure ended after 340 s: 50 % of the pool in use, 0 running."
    )
    assert tell(on, replace(full, valid=False)) == ("KV pressure: 97 % of the pool in use, 12 running, 30 waiting.")
    assert tell(off, reading(usage=float("nan"))) == "KV pressure ended."
