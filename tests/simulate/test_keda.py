"""KEDA: on and off by activity, in between by the autoscaler it answers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.simulate.hpa_behavior import Reason
from kvgauge.simulate.hpa_calculator import Pod
from kvgauge.simulate.keda import Activation, Activity, Fallback, Keda, ScaledObject, Trigger

QUEUE = Trigger("queue", target_milli=5000)
RATE = Trigger("rate", target_milli=1000, activation_milli=500)
NO_WORK = {"queue": 0}
WORK = {"queue": 1}


def pods(count: int) -> list[Pod]:
    return [Pod(f"p{index}") for index in range(count)]


def test_work_switches_on_at_once() -> None:
    assert Keda(ScaledObject((QUEUE,))).poll(0, 0, WORK) == Activation(1, Activity.ACTIVATED)
    assert Keda(ScaledObject((QUEUE,), min_replicas=3)).poll(0, 0, WORK) == Activation(3, Activity.ACTIVATED)
    assert Keda(ScaledObject((QUEUE,))).poll(0, 0, NO_WORK) == Activation(0, Activity.INACTIVE)


def test_any_trigger_above_its_activation_threshold_is_work() -> None:
    spec = ScaledObject((QUEUE, RATE))
    assert Keda(spec).poll(0, 0, {"queue": 0, "rate": 500}).replicas == 0
    assert Keda(spec).poll(0, 0, {"queue": 0, "rate": 501}).replicas == 1


def test_switched_off_when_the_last_work_is_older_than_the_cooldown() -> None:
    keda = Keda(ScaledObject((QUEUE,), cooldown_seconds=60))
    keda.poll(0, 0, WORK)
    assert keda.poll(30, 1, WORK) == Activation(1, Activity.ACTIVE)
    assert keda.poll(90, 4, NO_WORK) == Activation(4, Activity.COOLING_DOWN)
    assert keda.poll(91, 4, NO_WORK) == Activation(0, Activity.DEACTIVATED)


def test_a_workload_that_never_had_work_waits_for_the_initial_cooldown_instead() -> None:
    keda = Keda(ScaledObject((QUEUE,), cooldown_seconds=1, initial_cooldown_seconds=100), created_seconds=10)
    assert keda.poll(110, 2, NO_WORK) == Activation(2, Activity.COOLING_DOWN)
    assert keda.poll(111, 2, NO_WORK) == Activation(0, Activity.DEACTIVATED)
    assert Keda(ScaledObject((QUEUE,))).poll(1, 2, NO_WORK) == Activation(0, Activity.DEACTIVATED)


def test_a_minimum_is_kept_without_work() -> None:
    keda = Keda(ScaledObject((QUEUE,), min_replicas=2))
    assert keda.poll(1000, 5, NO_WORK) == Activation(5, Activity.INACTIVE)
    assert keda.poll(1000, 1, NO_WORK) == Activation(2, Activity.RAISED)


def test_idle_size_below_the_minimum() -> None:
    keda = Keda(ScaledObject((QUEUE,), min_replicas=3, idle_replicas=1, cooldown_seconds=60))
    assert keda.poll(0, 1, WORK) == Activation(3, Activity.ACTIVATED)
    assert keda.poll(30, 4, NO_WORK) == Activation(4, Activity.COOLING_DOWN)
    assert keda.poll(61, 4, NO_WORK) == Activation(1, Activity.DEACTIVATED)
    assert keda.poll(90, 1, NO_WORK) == Activation(1, Activity.INACTIVE)


@pytest.mark.parametrize("failed", [{"queue": None}, {"queue": "timed out"}, {}])
def test_a_failure_is_no_lack_of_work(failed: dict[str, int | str | None]) -> None:
    assert Keda(ScaledObject((QUEUE,))).poll(1000, 4, failed) == Activation(4, Activity.HELD)
    assert Keda(ScaledObject((QUEUE,), fallback=Fallback(3, 6))).poll(1000, 4, failed) == Activation(4, Activity.HELD)
    to_none = ScaledObject((QUEUE,), fallback=Fallback(3, 0))
    assert Keda(to_none).poll(1000, 4, failed) == Activation(0, Activity.DEACTIVATED)


def test_work_beside_a_failure_switches_on_but_does_not_put_off_the_cooldown() -> None:
    keda = Keda(ScaledObject((QUEUE, RATE), cooldown_seconds=60))
    partly: dict[str, int | str | None] = {"queue": 1, "rate": None}
    assert keda.poll(0, 0, partly) == Activation(1, Activity.ACTIVATED)
    assert keda.poll(50, 1, partly) == Activation(1, Activity.PARTLY_FAILED)
    assert keda.last_active_seconds == 0


def test_between_one_and_most_it_is_the_autoscaler() -> None:
    keda = Keda(ScaledObject((QUEUE, RATE), max_replicas=9))
    decision = keda.sync(0, 4, 4, pods(4), {"queue": 26_000, "rate": 5000})
    assert [(one.metric, one.replicas) for one in decision.proposals] == [("queue", 6), ("rate", 5)]
    assert decision.replicas == 6
    assert keda.sync(15, 6, 6, pods(6), {"queue": 200_000, "rate": 0}).replicas == 9


def test_the_autoscaler_keeps_one_and_is_off_at_none() -> None:
    keda = Keda(ScaledObject((QUEUE,)))
    sizes = [keda.sync(15.0 * step, 2, 2, pods(2), NO_WORK).replicas for step in range(22)]
    assert sizes == [2] * 21 + [1]
    assert keda.sync(400, 0, 0, [], {"queue": 50_000}).reason is Reason.DISABLED


@pytest.mark.parametrize(
    ("fallback", "current", "expected"),
    [
        (Fallback(2, 6), 3, 6),
        (Fallback(2, 6, "currentReplicas"), 3, 3),
        (Fallback(2, 6, "currentReplicasIfHigher"), 3, 6),
        (Fallback(2, 2, "currentReplicasIfHigher"), 3, 3),
        (Fallback(2, 6, "currentReplicasIfLower"), 3, 3),
        (Fallback(2, 6, "currentReplicasIfLower"), 7, 6),
    ],
)
def test_fallback_is_reported_after_more_failures_than_its_threshold(
    fallback: Fallback, current: int, expected: int
) -> None:
    keda = Keda(ScaledObject((QUEUE,), fallback=fallback))
    failed = {"queue": None}
    held = [keda.sync(15.0 * step, current, current, pods(current), failed) for step in range(2)]
    assert [one.reason for one in held] == [Reason.METRICS_FAILED] * 2
    proposal = keda.sync(30, current, current, pods(current), failed).proposals[0]
    assert (proposal.replicas, proposal.error) == (expected, None)


def test_one_success_forgives_all_failures_and_no_query_is_no_failure() -> None:
    keda = Keda(ScaledObject((QUEUE,), fallback=Fallback(1, 6)))
    failed = {"queue": None}
    reasons = [keda.sync(0, 3, 3, pods(3), failed).reason, keda.sync(15, 3, 3, pods(3), {"queue": 15_000}).reason]
    reasons += [keda.sync(30.0, 0, 0, [], failed).reason, keda.sync(45, 3, 3, pods(3), failed).reason]
    assert reasons == [Reason.METRICS_FAILED, Reason.WITHIN_RANGE, Reason.DISABLED, Reason.METRICS_FAILED]
    assert keda.sync(60, 3, 3, pods(3), failed).replicas == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaledObject(()), "triggers must not be empty"),
        (lambda: ScaledObject((QUEUE,), polling_seconds=0), "polling_seconds must be above 0, not 0"),
        (lambda: ScaledObject((QUEUE,), cooldown_seconds=-1), "cooldown_seconds must be 0 or more, not -1"),
        (lambda: ScaledObject((QUEUE,), idle_replicas=0), "idle_replicas must be from 0 to below min_replicas, not 0"),
        (lambda: ScaledObject((QUEUE,), min_replicas=2, idle_replicas=-1), "idle_replicas"),
        (lambda: ScaledObject((QUEUE,), max_replicas=0), "max_replicas must be at least 1, not 0"),
        (lambda: Trigger("queue", 0), "target_milli of trigger queue must be above 0, not 0"),
        (lambda: Fallback(-1, 2), "failure_threshold of the fallback must be 0 or more, not -1"),
        (lambda: Fallback(1, -2), "replicas of the fallback must be 0 or more, not -2"),
    ],
)
def test_impossible_settings_are_refused(make: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@settings(deadline=None)
@given(
    st.lists(st.none() | st.integers(0, 60_000), min_size=1, max_size=40),
    st.integers(0, 3),
    st.integers(3, 12),
    st.sampled_from([0.0, 45.0, 300.0]),
)
def test_no_history_leads_out_of_bounds_or_off_with_work(
    history: list[int | None], lowest: int, highest: int, cooldown: float
) -> None:
    keda = Keda(ScaledObject((QUEUE,), lowest, highest, cooldown_seconds=cooldown))
    replicas = lowest
    for step, value in enumerate(history):
        now = 15.0 * step
        replicas = keda.sync(now, replicas, replicas, pods(replicas), {"queue": value}).replicas
        if step % 2 == 0:
            replicas = keda.poll(now, replicas, {"queue": value}).replicas
            assert replicas > 0 or not value
        assert lowest <= replicas <= highest
