"""The whole autoscaler, sync after sync."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.simulate.hpa import SYNC_SECONDS, HorizontalPodAutoscaler, HpaSpec
from kvgauge.simulate.hpa_behavior import Behavior, Policy, Reason, Recommendation, ScalingRules
from kvgauge.simulate.hpa_calculator import ExternalMetric, Metric, Pod, PodsMetric, ResourceMetric

NO_WINDOWS = Behavior(scale_down=ScalingRules((Policy("Percent", 100, 15),)))


def load(replicas: float | None, name: str = "load") -> ExternalMetric:
    """A metric that asks for so many replicas, or fails."""
    return ExternalMetric(name, 1000, None if replicas is None else round(1000 * replicas))


def pods(count: int) -> list[Pod]:
    return [Pod(f"p{index}") for index in range(count)]


def settle(autoscaler: HorizontalPodAutoscaler, start_seconds: float, replicas: int, wanted: list[float]) -> list[int]:
    """The sizes after each of a series of syncs, in a workload whose pods are there at once."""
    sizes = []
    for step, want in enumerate(wanted):
        now = start_seconds + SYNC_SECONDS * step
        replicas = autoscaler.sync(now, replicas, replicas, pods(replicas), [load(want)]).replicas
        sizes.append(replicas)
    return sizes


def test_first_sync_remembers_the_size_so_that_nothing_shrinks_for_a_window() -> None:
    sizes = settle(HorizontalPodAutoscaler(HpaSpec(20)), 0, 8, [2.0] * 22)
    assert sizes == [8] * 20 + [2] * 2


def test_growth_is_at_once_and_by_default_doubles_or_adds_four_in_a_quarter_minute() -> None:
    assert settle(HorizontalPodAutoscaler(HpaSpec(100)), 0, 1, [100.0] * 6) == [5, 10, 20, 40, 80, 100]


def test_without_behavior_growth_doubles_at_every_sync() -> None:
    assert settle(HorizontalPodAutoscaler(HpaSpec(30, behavior=None)), 0, 1, [30.0] * 4) == [4, 8, 16, 30]


def test_without_behavior_a_peak_is_still_followed_after_it_has_gone() -> None:
    wanted = [40.0] + [1.0] * 21
    plain = settle(HorizontalPodAutoscaler(HpaSpec(100, behavior=None)), 0, 1, wanted)
    assert plain == [4, 8, 16, 32] + [40] * 17 + [1]
    assert settle(HorizontalPodAutoscaler(HpaSpec(100)), 0, 1, wanted) == [5] * 20 + [1] * 2


def test_what_is_remembered_is_what_the_metrics_asked_for() -> None:
    # 50 was asked for and 5 allowed: five minutes of 50 in memory hold 5 up, though 1 is enough.
    behavior = Behavior(ScalingRules((Policy("Pods", 4, 600),)), ScalingRules((Policy("Percent", 100, 15),), 300))
    autoscaler = HorizontalPodAutoscaler(HpaSpec(50, behavior=behavior))
    assert settle(autoscaler, 0, 1, [50.0] + [1.0] * 20) == [5] * 20 + [1]


def test_policies_count_changes_over_their_period() -> None:
    behavior = Behavior(ScalingRules((Policy("Pods", 3, 60),)))
    assert settle(HorizontalPodAutoscaler(HpaSpec(50, behavior=behavior)), 0, 2, [50.0] * 9) == [5] * 4 + [8] * 4 + [11]


def test_a_size_out_of_bounds_is_mended_without_asking_and_past_all_policies() -> None:
    slow = Behavior(ScalingRules((Policy("Pods", 1, 60),)), ScalingRules((Policy("Pods", 1, 60),), 300))
    spec = HpaSpec(8, 4, slow)
    for size, mended, reason in ((20, 8, Reason.TOO_MANY), (1, 4, Reason.TOO_FEW)):
        decision = HorizontalPodAutoscaler(spec).sync(0, size, size, pods(size), [load(6)])
        assert (decision.replicas, decision.reason, decision.proposals) == (mended, reason, ())


def test_mending_counts_as_a_change() -> None:
    slow = Behavior(ScalingRules((Policy("Pods", 2, 60),)))
    autoscaler = HorizontalPodAutoscaler(HpaSpec(20, 4, slow))
    assert settle(autoscaler, 0, 1, [20.0] * 6) == [4, 4, 4, 4, 6, 6]


def test_switched_off_at_none_unless_none_is_allowed() -> None:
    off = HorizontalPodAutoscaler(HpaSpec(8, 1)).sync(0, 0, 0, [], [load(5)])
    assert (off.replicas, off.reason, off.proposals) == (0, Reason.DISABLED, ())
    assert HorizontalPodAutoscaler(HpaSpec(8, 0)).sync(0, 0, 0, [], [load(3)]).replicas == 3
    to_none = HorizontalPodAutoscaler(HpaSpec(8, 0, NO_WINDOWS))
    assert to_none.sync(0, 1, 1, pods(1), [load(0)]).replicas == 0


@pytest.mark.parametrize(
    ("wanted", "expected", "recommended"),
    [
        ([3, 7], 7, 7),
        ([7, None], 7, 7),
        ([None, 5], 5, 5),  # no change: nothing to forbid
        ([None, 3], 5, None),
        ([None, None], 5, None),
        ([], 5, None),
        ([3, 2], 3, 3),
    ],
)
def test_largest_wins_and_a_failure_forbids_shrinking(
    wanted: list[float | None], expected: int, recommended: int | None
) -> None:
    autoscaler = HorizontalPodAutoscaler(HpaSpec(20, behavior=NO_WINDOWS))
    metrics = [load(want, f"load-{index}") for index, want in enumerate(wanted)]
    decision = autoscaler.sync(0, 5, 5, pods(5), metrics)
    assert (decision.replicas, decision.recommended_replicas) == (expected, recommended)
    assert (decision.reason is Reason.METRICS_FAILED) == (recommended is None)
    assert [one.replicas for one in decision.proposals] == wanted
    assert [one.error for one in decision.proposals] == [
        f"metric load-{index} was not read" if want is None else None for index, want in enumerate(wanted)
    ]


def test_a_sync_that_failed_leaves_no_recommendation() -> None:
    autoscaler = HorizontalPodAutoscaler(HpaSpec(20), [])
    held = autoscaler.sync(0, 5, 5, pods(5), [load(None), load(3)])
    assert held.reason is Reason.METRICS_FAILED
    # Were 5 remembered, this would not shrink.
    assert autoscaler.sync(15, 5, 5, pods(5), [load(2)]).replicas == 2


def test_decision_tells_what_each_step_made_of_it() -> None:
    autoscaler = HorizontalPodAutoscaler(HpaSpec(30), [Recommendation(-10, 9)])
    shrinking = autoscaler.sync(0, 12, 12, pods(12), [load(3)])
    assert (shrinking.recommended_replicas, shrinking.stabilized_replicas, shrinking.replicas) == (3, 9, 9)
    growing = autoscaler.sync(15, 9, 9, pods(9), [load(40)])
    assert (growing.recommended_replicas, growing.stabilized_replicas, growing.replicas) == (40, 40, 18)
    assert growing.reason is Reason.SCALE_UP_LIMIT


def test_shared_value_averages_over_status_and_holds_at_spec() -> None:
    # A surge pod: 5 exist, 4 are wanted. 4.9 over 5 is within the band, and the band answers with 5.
    autoscaler = HorizontalPodAutoscaler(HpaSpec(20))
    assert autoscaler.sync(0, 4, 5, pods(5), [load(4.9)]).replicas == 5
    assert autoscaler.sync(15, 4, 5, pods(5), [load(4)]).replicas == 4


def test_tolerance_of_behavior_and_of_controller() -> None:
    assert settle(HorizontalPodAutoscaler(HpaSpec(20)), 0, 10, [11.0]) == [10]
    assert settle(HorizontalPodAutoscaler(HpaSpec(20, tolerance=0.05)), 0, 10, [11.0]) == [11]
    assert settle(HorizontalPodAutoscaler(HpaSpec(20, behavior=None, tolerance=0.05)), 0, 10, [11.0]) == [11]
    exact = Behavior(ScalingRules((Policy("Pods", 9, 15),), tolerance=0.0))
    assert settle(HorizontalPodAutoscaler(HpaSpec(20, behavior=exact)), 0, 10, [11.0]) == [11]


def test_cpu_of_a_pod_in_its_first_minutes_waits_for_a_whole_sample() -> None:
    started = Pod("new", started_seconds=0, ready_changed_seconds=20, ready=False)
    metric = ResourceMetric(50, {"p0": 1000, "new": 1000}, 1000)
    spec = HpaSpec(20, cpu_initialization_seconds=100, initial_readiness_delay_seconds=30)
    # One full and one idle pod: 50 of 50.
    assert HorizontalPodAutoscaler(spec).sync(99, 2, 2, [Pod("p0"), started], [metric]).replicas == 2
    # It has never been ready, which only the later of the two settings says.
    assert HorizontalPodAutoscaler(spec).sync(100, 2, 2, [Pod("p0"), started], [metric]).replicas == 2
    once_ready = HpaSpec(20, cpu_initialization_seconds=100, initial_readiness_delay_seconds=20)
    assert HorizontalPodAutoscaler(once_ready).sync(100, 2, 2, [Pod("p0"), started], [metric]).replicas == 4


def test_metrics_of_all_kinds_in_one_sync() -> None:
    metrics: list[Metric] = [
        PodsMetric("queue", 1000, {"p0": 3000, "p1": 3000}),
        ResourceMetric(50, {"p0": 500, "p1": 500}, 1000),
        ExternalMetric("rate", 1000, 2000, "Value"),
    ]
    decision = HorizontalPodAutoscaler(HpaSpec(20)).sync(0, 2, 2, pods(2), metrics)
    assert [(one.metric, one.replicas) for one in decision.proposals] == [("queue", 6), ("cpu", 2), ("rate", 4)]
    assert decision.replicas == 6


def test_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match="max_replicas must be at least 3, not 2"):
        HpaSpec(2, 3)
    with pytest.raises(ValueError, match="tolerance"):
        HpaSpec(2, tolerance=-1)


bounded = st.tuples(st.integers(0, 10), st.integers(1, 40)).map(lambda pair: (pair[0], max(pair)))
wants = st.lists(st.none() | st.floats(0, 100), max_size=3)


@settings(deadline=None)
@given(bounded, st.integers(1, 60), st.lists(wants, min_size=1, max_size=25), st.booleans())
def test_no_history_leads_out_of_bounds(
    bounds: tuple[int, int], replicas: int, history: list[list[float | None]], plain: bool
) -> None:
    lowest, highest = bounds
    autoscaler = HorizontalPodAutoscaler(HpaSpec(highest, lowest, None if plain else Behavior()))
    for step, wanted in enumerate(history):
        metrics = [load(want) for want in wanted]
        before = replicas
        decision = autoscaler.sync(SYNC_SECONDS * step, replicas, replicas, pods(replicas), metrics)
        replicas = decision.replicas
        assert lowest <= replicas <= highest
        if lowest <= before <= highest and None in wanted:
            assert replicas >= before
