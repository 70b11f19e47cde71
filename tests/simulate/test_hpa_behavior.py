"""How fast a recommendation may be followed: windows, policies, their memory, and the older rules without them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.simulate.hpa_behavior import (
    Behavior,
    Bounds,
    Policy,
    Reason,
    Recommendation,
    ScaleEvent,
    ScaleEvents,
    ScalingRules,
    limit_rate,
    limit_without_behavior,
    remember,
    scale_down_limit,
    scale_up_limit,
    stabilize,
    stabilize_without_behavior,
)
from kvgauge.simulate.hpa_calculator import Tolerances

NOW = 1000.0
WIDE = Bounds(0, 10_000)
HUNDRED = (Policy("Percent", 100, 15),)


def windows(up: float, down: float) -> Behavior:
    return Behavior(ScalingRules(HUNDRED, up), ScalingRules(HUNDRED, down))


def past(*replicas_and_ages: tuple[int, float]) -> list[Recommendation]:
    return [Recommendation(NOW - age, replicas) for replicas, age in replicas_and_ages]


def events(*changes_and_ages: tuple[int, float]) -> list[ScaleEvent]:
    return [ScaleEvent(NOW - age, change) for change, age in changes_and_ages]


@pytest.mark.parametrize(
    ("current", "desired", "up", "down", "remembered", "expected"),
    [
        (8, 20, 0, 0, past((3, 1)), 20),  # no windows, no memory
        (8, 20, 60, 0, past((9, 59), (3, 60)), 9),  # growth as far as all of the last minute wanted it
        (8, 20, 60, 0, past((5, 10)), 8),  # someone wanted fewer: no growth, and no shrinking for it
        (8, 2, 0, 60, past((6, 59), (9, 60)), 6),
        (8, 2, 0, 60, past((9, 10)), 8),
        (8, 9, 60, 60, past((4, 10), (12, 20)), 8),
        (8, 8, 60, 60, past((4, 10)), 8),
        (8, 2, 600, 60, past((1, 10)), 2),  # each window bears on its own direction
    ],
)
def test_windows_hold_back_what_they_disagree_on(
    current: int, desired: int, up: float, down: float, remembered: list[Recommendation], expected: int
) -> None:
    assert stabilize(current, desired, remembered, NOW, windows(up, down)) == expected


counts = st.integers(0, 500)
ages = st.floats(0, 400)
memories = st.lists(st.builds(lambda replicas, age: Recommendation(NOW - age, replicas), counts, ages), max_size=30)


@settings(deadline=None)
@given(counts, counts, ages, ages, memories)
def test_windows_never_move_past_current_the_wrong_way(
    current: int, desired: int, up: float, down: float, remembered: list[Recommendation]
) -> None:
    result = stabilize(current, desired, remembered, NOW, windows(up, down))
    assert min(current, desired) <= result <= max(current, desired)


@pytest.mark.parametrize(
    ("current", "policies", "select", "expected"),
    [
        (3, (("Pods", 4), ("Percent", 100)), "Max", 7),
        (10, (("Pods", 4), ("Percent", 100)), "Max", 20),
        (10, (("Pods", 4), ("Percent", 100)), "Min", 14),
        (10, (("Pods", 4),), "Disabled", 10),
        (7, (("Percent", 1),), "Max", 8),  # rounded up, or it could never grow
        (0, (("Percent", 100),), "Max", 0),
        (100, (("Percent", 10),), "Max", 111),  # 1.1 as a double is a little more
    ],
)
def test_up_limit(current: int, policies: tuple[tuple[str, int], ...], select: str, expected: int) -> None:
    rules = ScalingRules(tuple(Policy(kind, value, 60) for kind, value in policies), select=select)  # type: ignore[arg-type]
    assert scale_up_limit(current, rules, ScaleEvents(), NOW) == expected


@pytest.mark.parametrize(
    ("current", "policies", "select", "expected"),
    [
        (100, (("Pods", 5), ("Percent", 10)), "Max", 90),
        (100, (("Pods", 5), ("Percent", 10)), "Min", 95),
        (100, (("Pods", 5),), "Disabled", 100),
        (5, (("Percent", 30),), "Max", 3),  # 3.5, cut
        (3, (("Pods", 5),), "Max", -2),
        (3, (("Percent", 150),), "Max", -1),  # cut, not rounded down
    ],
)
def test_down_limit(current: int, policies: tuple[tuple[str, int], ...], select: str, expected: int) -> None:
    rules = ScalingRules(tuple(Policy(kind, value, 60) for kind, value in policies), select=select)  # type: ignore[arg-type]
    assert scale_down_limit(current, rules, ScaleEvents(), NOW) == expected


def test_limits_start_from_where_the_period_started() -> None:
    rules = ScalingRules((Policy("Pods", 10, 60),))
    halves = ScalingRules((Policy("Percent", 50, 60),))
    lately = ScaleEvents(events((6, 59), (50, 60)), events((2, 30)))
    # 20 now, 16 a minute ago; what is just a minute old no longer counts.
    assert scale_up_limit(20, rules, lately, NOW) == 26
    assert scale_up_limit(20, halves, lately, NOW) == 24
    assert scale_down_limit(20, rules, lately, NOW) == 6
    assert scale_down_limit(20, halves, lately, NOW) == 8


def test_each_policy_looks_over_its_own_period() -> None:
    rules = ScalingRules((Policy("Pods", 4, 15), Policy("Pods", 10, 300)), select="Min")
    lately = ScaleEvents(events((9, 100)))
    assert scale_up_limit(20, rules, lately, NOW) == 21


@pytest.mark.parametrize(
    ("current", "desired", "bounds", "expected", "reason"),
    [
        (5, 5, WIDE, 5, Reason.WITHIN_RANGE),
        (5, 8, WIDE, 8, Reason.WITHIN_RANGE),
        (5, 30, WIDE, 10, Reason.SCALE_UP_LIMIT),
        (5, 30, Bounds(1, 10), 10, Reason.TOO_MANY),  # bound and rate agree: the bound is named
        (5, 30, Bounds(1, 7), 7, Reason.TOO_MANY),
        (50, 0, WIDE, 25, Reason.SCALE_DOWN_LIMIT),
        (50, 0, Bounds(25, 60), 25, Reason.TOO_FEW),
        (50, 0, Bounds(40, 60), 40, Reason.TOO_FEW),
        (1, 0, WIDE, 0, Reason.WITHIN_RANGE),
    ],
)
def test_rate_and_bounds(current: int, desired: int, bounds: Bounds, expected: int, reason: Reason) -> None:
    behavior = Behavior(ScalingRules(HUNDRED), ScalingRules((Policy("Percent", 50, 60),)))
    assert limit_rate(current, desired, bounds, behavior, ScaleEvents(), NOW) == (expected, reason)


def test_changes_that_used_up_the_rate_stop_it_and_do_not_turn_it_round() -> None:
    behavior = Behavior(ScalingRules((Policy("Pods", 3, 60),)), ScalingRules((Policy("Pods", 3, 60),)))
    grown = ScaleEvents(ups=events((9, 10)))
    assert limit_rate(20, 40, WIDE, behavior, grown, NOW) == (20, Reason.SCALE_UP_LIMIT)
    shrunk = ScaleEvents(downs=events((9, 10)))
    assert limit_rate(20, 1, WIDE, behavior, shrunk, NOW) == (20, Reason.SCALE_DOWN_LIMIT)


policies = st.builds(Policy, st.sampled_from(["Pods", "Percent"]), st.integers(1, 300), st.floats(1, 600))
rules = st.builds(
    ScalingRules,
    st.lists(policies, min_size=1, max_size=3).map(tuple),
    st.floats(0, 300),
    st.sampled_from(["Max", "Min", "Disabled"]),
)
changes = st.lists(st.builds(lambda change, age: ScaleEvent(NOW - age, change), st.integers(1, 50), ages), max_size=5)


@settings(deadline=None)
@given(st.data(), st.builds(Behavior, rules, rules), st.builds(ScaleEvents, changes, changes))
def test_rate_is_never_above_its_limit_nor_out_of_bounds_nor_turned_round(
    data: st.DataObject, behavior: Behavior, lately: ScaleEvents
) -> None:
    lowest = data.draw(st.integers(0, 50))
    bounds = Bounds(lowest, data.draw(st.integers(max(1, lowest), 300)))
    current = data.draw(st.integers(bounds.min_replicas, bounds.max_replicas))
    desired = data.draw(counts)
    result, reason = limit_rate(current, desired, bounds, behavior, lately, NOW)
    assert bounds.min_replicas <= result <= bounds.max_replicas
    assert min(current, desired) <= result <= max(current, desired)
    if result > current:
        assert result <= scale_up_limit(current, behavior.scale_up, lately, NOW)
    if result < current:
        assert result >= scale_down_limit(current, behavior.scale_down, lately, NOW)
    assert (reason is Reason.WITHIN_RANGE) == (result == desired)


def test_changes_are_recorded_in_their_direction() -> None:
    lately = ScaleEvents()
    behavior = Behavior()
    lately.record(10, 3, 7, behavior)
    lately.record(20, 7, 5, behavior)
    assert lately == ScaleEvents([ScaleEvent(10, 4)], [ScaleEvent(20, 2)])


def test_an_old_change_gives_way_to_a_new_one_and_only_one_does() -> None:
    entries = events((1, 90), (2, 80), (3, 5))
    remember(entries, ScaleEvent(NOW, 4), NOW - 60)
    assert [event.change for event in entries] == [1, 4, 3]
    remember(entries, ScaleEvent(NOW, 5), NOW - 60)
    assert [event.change for event in entries] == [5, 4, 3]
    remember(entries, ScaleEvent(NOW, 6), NOW - 60)
    assert [event.change for event in entries] == [5, 4, 3, 6]
    remember(entries, ScaleEvent(NOW, 7), NOW - 5)
    assert [event.change for event in entries] == [5, 4, 3, 6, 7]


def test_growth_forgotten_by_its_own_policies_still_counts_for_a_longer_one_of_shrinking() -> None:
    behavior = Behavior(ScalingRules(HUNDRED), ScalingRules((Policy("Pods", 1, 600),)))
    lately = ScaleEvents()
    lately.record(0, 4, 6, behavior)
    # Four ten minutes ago, and one fewer may go.
    assert scale_down_limit(6, behavior.scale_down, lately, 100) == 3
    lately.record(100, 6, 12, behavior)
    # The place of the first change was taken: now it looks as if there had been six.
    assert scale_down_limit(12, behavior.scale_down, lately, 100) == 5


@pytest.mark.parametrize(
    ("current", "desired", "expected", "reason"),
    [
        (1, 30, 4, Reason.SCALE_UP_LIMIT),
        (3, 30, 6, Reason.SCALE_UP_LIMIT),
        (10, 30, 20, Reason.TOO_MANY),
        (10, 15, 15, Reason.WITHIN_RANGE),
        (10, 1, 2, Reason.TOO_FEW),
        (10, 2, 2, Reason.WITHIN_RANGE),
    ],
)
def test_older_limit_is_twice_the_pods_or_four(current: int, desired: int, expected: int, reason: Reason) -> None:
    assert limit_without_behavior(current, desired, Bounds(2, 20)) == (expected, reason)


def test_older_window_follows_the_highest_even_upward() -> None:
    assert stabilize_without_behavior(3, past((9, 300), (12, 301)), NOW, 300) == 9
    assert stabilize_without_behavior(3, [], NOW, 300) == 3


def test_tolerance_of_a_direction_replaces_the_controllers() -> None:
    assert Behavior().tolerances(0.2) == Tolerances(0.2, 0.2)
    exact_up = Behavior(scale_up=ScalingRules(HUNDRED, tolerance=0.0))
    assert exact_up.tolerances(0.2) == Tolerances(0.0, 0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Policy("Pods", 0, 60), "value of a policy must be above 0, not 0"),
        (lambda: Policy("Pods", 1, 0), "period_seconds of a policy must be above 0, not 0"),
        (lambda: Policy("pods", 1, 60), "kind of a policy must be Pods or Percent, not 'pods'"),  # type: ignore[arg-type]
        (lambda: ScalingRules(()), "policies must not be empty"),
        (lambda: ScalingRules(HUNDRED, -1), "stabilization_seconds must be 0 or more, not -1"),
        (lambda: ScalingRules(HUNDRED, math.inf), "stabilization_seconds"),
        (lambda: ScalingRules(HUNDRED, select="max"), "select must be Max, Min or Disabled, not 'max'"),  # type: ignore[arg-type]
        (lambda: Bounds(-1, 5), "min_replicas must be 0 or more, not -1"),
        (lambda: Bounds(0, 0), "max_replicas must be at least 1, not 0"),
        (lambda: Bounds(6, 5), "max_replicas must be at least 6, not 5"),
    ],
)
def test_impossible_settings_are_refused(make: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_disabled_needs_no_policies() -> None:
    assert scale_up_limit(5, ScalingRules((), select="Disabled"), ScaleEvents(), NOW) == 5
