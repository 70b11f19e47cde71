"""One metric into replicas: whose values count, what stands in for those that are missing, and what is left alone."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.simulate.hpa_calculator import (
    MAX_REPLICAS,
    CpuReadiness,
    ExternalMetric,
    Metric,
    MetricFailure,
    Pod,
    PodsMetric,
    ResourceMetric,
    Sample,
    Scale,
    Tolerances,
    group_pods,
    propose,
)

NOW = 1000.0
CPU = CpuReadiness(NOW, initialization_seconds=120, initial_delay_seconds=10)
JUST_STARTED = Pod("new", ready=False, started_seconds=NOW - 5, ready_changed_seconds=NOW - 5)


def ask(
    metric: Metric,
    pods: list[Pod],
    spec: int | None = None,
    status: int | None = None,
    tolerances: Tolerances = Tolerances(),  # noqa: B008 - frozen
) -> int:
    """What the metric asks for; a workload has as many replicas as pods unless told otherwise."""
    scale = Scale(len(pods) if spec is None else spec, len(pods) if status is None else status)
    return propose(metric, scale, pods, tolerances, CPU)


def ready_pods(count: int) -> list[Pod]:
    return [Pod(f"p{index}") for index in range(count)]


def by_pod(*values: int | None) -> Mapping[str, int | None]:
    return {f"p{index}": value for index, value in enumerate(values)}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((4000, 6000, 8000), 4),  # mean 6 against 5
        ((1000, 1000, 1000), 1),
        ((5500, 5500, 5500), 3),  # 1.1 is still within the band
        ((5501, 5501, 5501), 4),
        ((4500, 4500, 4500), 3),
        ((4499, 4499, 4499), 3),  # out of the band, and rounded up to what there is
        ((0, 0, 0), 0),
    ],
)
def test_mean_over_pods_against_target(values: tuple[int, ...], expected: int) -> None:
    assert ask(PodsMetric("load", 5000, by_pod(*values)), ready_pods(3)) == expected


def test_mean_is_cut_to_a_whole_thousandth() -> None:
    # The mean of 5501 and 5500 is 5500.5; uncut it would leave the band.
    assert ask(PodsMetric("load", 5000, by_pod(5501, 5500)), ready_pods(2)) == 2


def test_negative_means_are_cut_towards_zero_and_ask_for_nobody() -> None:
    assert ask(PodsMetric("load", 5000, by_pod(-1, -2)), ready_pods(2)) == 0


def test_pods_that_run_and_are_not_ready_count_in_full_outside_cpu() -> None:
    pods = [Pod("p0"), Pod("p1", ready=False, started_seconds=NOW - 1)]
    assert ask(PodsMetric("load", 5000, by_pod(10_000, 10_000)), pods) == 4


def test_cpu_average_leaves_out_pods_that_are_not_ready() -> None:
    pods = [Pod("p0"), JUST_STARTED]
    metric = PodsMetric("cpu", 500, {"p0": 900, "new": 9000}, resource="cpu")
    assert ask(metric, pods) == 2  # 900 and an idle pod: 450 against 500
    assert ask(PodsMetric("memory", 500, {"p0": 900, "new": 9000}, resource="memory"), pods) == 20


def test_utilization_is_a_whole_percentage_of_all_requests() -> None:
    pods = ready_pods(2)
    assert ask(ResourceMetric(50, by_pod(900, 300), 1000), pods) == 3  # 60 % against 50
    # 55.9 % is cut to 55, which is in the band; rounded it would not be.
    assert ask(ResourceMetric(50, by_pod(559, 559), 1000), pods) == 2
    # Weighted by request: 800 of 1300, not the mean of 100 % and 50 %.
    assert ask(ResourceMetric(50, by_pod(300, 500), {"p0": 300, "p1": 1000}), pods) == 3


def test_pods_without_a_value_are_full_when_scaling_down_and_idle_when_scaling_up() -> None:
    pods = ready_pods(4)
    # Two at 20 % of 80: alone they ask for 1; with two at their whole request 60 %, so 3 of 4.
    assert ask(ResourceMetric(80, by_pod(200, 200, None, None), 1000), pods) == 3
    # Two at 200 %: alone 5; with two idle ones the mean is 100 % of 80.
    assert ask(ResourceMetric(80, by_pod(2000, 2000, None, None), 1000), pods) == 5
    assert ask(PodsMetric("load", 1000, by_pod(200, 200, None, None)), pods) == 3
    assert ask(PodsMetric("load", 1000, by_pod(3000, 3000, None, None)), pods) == 6


def test_a_target_above_the_request_fills_missing_pods_up_to_the_target() -> None:
    # 100 % against 200 %, and the missing pod at 200 %: 150 %, so 2; at 100 % it would ask for 1.
    assert ask(ResourceMetric(200, by_pod(1000, None), 1000), ready_pods(2)) == 2
    assert ask(ResourceMetric(200, by_pod(1000, 1000, None), 1000), ready_pods(3)) == 2


def test_a_change_that_missing_pods_would_turn_round_is_dropped() -> None:
    # Two at 90 % of 80 ask for 3; with three idle ones it is 36 %, which asks for fewer than there are.
    assert ask(ResourceMetric(80, by_pod(900, 900, None, None, None), 1000), ready_pods(5)) == 5
    # One at 10 % of 30; with a full pod 55 %, which asks for more.
    assert ask(ResourceMetric(30, by_pod(100, None), 1000), ready_pods(2)) == 2


def test_missing_pods_change_nothing_at_exactly_the_target() -> None:
    exact = Tolerances(0, 0)
    assert ask(PodsMetric("load", 1000, by_pod(1000, None)), ready_pods(2), spec=7, tolerances=exact) == 7


def test_counts_that_contradict_the_direction_are_dropped() -> None:
    # A rollout's extra pod: spec 2, three pods, load below target, yet 0.87 x 3 rounds up to 3.
    assert ask(PodsMetric("load", 1000, by_pod(800, 800, None)), ready_pods(3), spec=2) == 2
    # The other way round: above target, but with fewer pods than spec.replicas has.
    assert ask(PodsMetric("load", 1000, by_pod(3000, None)), ready_pods(2), spec=5, status=2) == 5


def test_unready_pods_only_damp_scaling_up() -> None:
    starting = [Pod("p2", "Pending", ready=False), Pod("p3", "Pending", ready=None)]
    pods = ready_pods(2) + starting
    assert ask(PodsMetric("load", 1000, by_pod(3000, 3000)), pods) == 6
    assert ask(PodsMetric("load", 1000, by_pod(2200, 2200)), pods) == 4  # 1.1 with the two: left alone
    assert ask(PodsMetric("load", 1000, by_pod(300, 300)), pods) == 1


def test_values_of_pods_on_their_way_out_do_not_count() -> None:
    pods = [Pod("p0"), Pod("p1", deleting=True), Pod("p2", "Failed")]
    assert ask(PodsMetric("load", 1000, by_pod(2000, 50_000, 50_000)), pods, spec=1) == 2


def test_values_of_pods_that_are_not_listed_count_in_a_mean_and_not_in_a_utilization() -> None:
    stray: dict[str, int | None] = {"p0": 1000, "stray": 3000}
    assert ask(PodsMetric("load", 1000, stray), ready_pods(1)) == 2
    assert ask(ResourceMetric(100, stray, 1000), ready_pods(1)) == 1


@pytest.mark.parametrize(
    ("value", "status", "expected"),
    [
        (7000, 3, 7),
        (7001, 3, 8),  # rounded up
        (3300, 3, 3),  # 1.1 a replica
        (3301, 3, 4),
        (2700, 3, 3),
        (2699, 3, 3),  # leaves the band, rounds up to the same
        (1000, 10, 1),
        (11_000, 10, 10),  # one replica in ten is within the band: never acted on
        (0, 3, 0),
        (5000, 0, 5),  # nothing to average over
        (0, 0, 0),
    ],
)
def test_shared_value_is_total_over_target_whoever_is_ready(value: int, status: int, expected: int) -> None:
    metric = ExternalMetric("load", 1000, value)
    assert ask(metric, [], spec=50, status=status) == expected
    assert ask(metric, [Pod("p0", ready=False)], spec=50, status=status) == expected


def test_plain_value_multiplies_ready_pods_only() -> None:
    cold = ready_pods(3) + [Pod(f"c{index}", ready=False) for index in range(3)]
    assert ask(ExternalMetric("queue", 1000, 1500, "Value"), cold) == 5  # more load, fewer replicas: 1.5 x 3 of 6
    assert ask(ExternalMetric("queue", 1000, 1500, "Value"), ready_pods(6)) == 9
    assert ask(ExternalMetric("queue", 1000, 1100, "Value"), cold) == 6
    # A ready pod that has not been reported as running does not count.
    assert ask(ExternalMetric("queue", 1000, 2000, "Value"), [Pod("p0"), Pod("p1", "Pending")]) == 2


def test_plain_value_from_no_replicas_needs_no_pods_and_knows_no_tolerance() -> None:
    assert ask(ExternalMetric("queue", 1000, 1050, "Value"), [], spec=0) == 2
    assert ask(ExternalMetric("queue", 1000, 0, "Value"), [], spec=0) == 0


def test_each_direction_has_its_tolerance() -> None:
    tolerances = Tolerances(up=0.0, down=0.5)
    assert ask(ExternalMetric("load", 1000, 11_000), [], status=10, tolerances=tolerances) == 11
    assert ask(ExternalMetric("load", 1000, 5000), [], status=10, tolerances=tolerances) == 10
    assert ask(ExternalMetric("load", 1000, 4999), [], status=10, tolerances=tolerances) == 5


@pytest.mark.parametrize(
    ("metric", "pods", "message"),
    [
        (PodsMetric("load", 1, "connection refused"), ready_pods(1), "connection refused"),
        (PodsMetric("load", 1, None), ready_pods(1), "load was not read"),
        (PodsMetric("load", 1, by_pod(1)), [], "load has no pods"),
        (PodsMetric("load", 1, by_pod(None)), ready_pods(1), "load has no value"),
        (PodsMetric("load", 1, by_pod(5)), [Pod("p0", deleting=True)], "load has no value"),
        (ResourceMetric(50, by_pod(5), {}), ready_pods(1), "pod p0 has no request for cpu"),
        (ResourceMetric(50, {"stray": 5}, 1000), ready_pods(1), "cpu has no value for a known pod"),
        (ResourceMetric(50, "no API", 1000), ready_pods(1), "no API"),
        (ExternalMetric("queue", 1, None), ready_pods(1), "queue was not read"),
        (ExternalMetric("queue", 1, "timed out", "Value"), ready_pods(1), "timed out"),
        (ExternalMetric("queue", 1, 9, "Value"), [], "queue has no pods"),
    ],
)
def test_metric_that_gives_no_number_says_why(metric: Metric, pods: list[Pod], message: str) -> None:
    with pytest.raises(MetricFailure, match=message):
        ask(metric, pods, spec=1)


def pod_aged(seconds: float, *, ready: bool | None, changed_ago: float) -> Pod:
    return Pod("p", ready=ready, started_seconds=NOW - seconds, ready_changed_seconds=NOW - changed_ago)


@pytest.mark.parametrize(
    ("pod", "sample", "counts"),
    [
        (Pod("p"), None, True),
        (Pod("p", ready=None), None, False),
        (Pod("p", started_seconds=None), None, False),
        # Younger than 120 s: ready, and a whole window since it became so.
        (pod_aged(119, ready=True, changed_ago=30), Sample(NOW, 30), True),
        (pod_aged(119, ready=True, changed_ago=30), Sample(NOW, 31), False),
        (pod_aged(119, ready=True, changed_ago=30), Sample(NOW - 1, 30), False),
        (pod_aged(119, ready=True, changed_ago=30), None, True),
        (pod_aged(119, ready=False, changed_ago=100), Sample(NOW, 0), False),
        # From then on the sample's age is of no interest, and only a pod that was never ready is left out.
        (pod_aged(120, ready=True, changed_ago=1), Sample(NOW - 500, 60), True),
        (pod_aged(120, ready=False, changed_ago=111), None, False),
        (pod_aged(120, ready=False, changed_ago=110), None, True),
    ],
)
def test_cpu_sample_counts_once_it_shows_load_and_not_a_start(pod: Pod, sample: Sample | None, counts: bool) -> None:
    samples = {"p": sample} if sample else None
    groups = group_pods([pod], {"p"}, CPU, samples)
    assert (groups.counted, groups.unready) == ((1, frozenset()) if counts else (0, {"p"}))
    assert group_pods([pod], {"p"}, None, samples).counted == 1


def test_groups_look_at_the_way_out_first_then_at_the_phase_then_at_the_value() -> None:
    pods = [
        Pod("deleting", "Pending", deleting=True),
        Pod("failed", "Failed"),
        Pod("pending", "Pending"),
        Pod("silent"),
        Pod("done", "Succeeded"),
    ]
    groups = group_pods(pods, {"deleting", "failed", "pending", "done"})
    assert groups.ignored == {"deleting", "failed"}
    assert groups.unready == {"pending"}
    assert groups.missing == {"silent"}
    assert groups.counted == 1


def test_samples_reach_both_kinds_of_cpu_metric() -> None:
    young = pod_aged(60, ready=True, changed_ago=20)
    late = {"p": Sample(NOW, 30)}
    usage: dict[str, int | None] = {"p": 900, "p0": 900}
    for samples, expected in ((None, 4), (late, 2)):
        pods = [young, Pod("p0")]
        assert ask(ResourceMetric(50, usage, 1000, samples=samples), pods) == expected
        assert ask(PodsMetric("cpu", 500, usage, "cpu", samples), pods) == expected


def test_counts_saturate() -> None:
    assert ask(ExternalMetric("load", 1, 10**30), [], status=1) == MAX_REPLICAS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PodsMetric("load", 0, {}), "target_milli of metric load must be above 0, not 0"),
        (lambda: ResourceMetric(-1, {}, 1), "target_percent of metric cpu must be above 0, not -1"),
        (lambda: ExternalMetric("load", 0, 1), "target_milli of metric load"),
        (lambda: Tolerances(up=-0.1), "tolerance up must be 0 or more, not -0.1"),
        (lambda: Tolerances(down=math.nan), "tolerance down"),
    ],
)
def test_impossible_settings_are_refused(make: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


values = st.lists(st.none() | st.integers(0, 10**7), min_size=1, max_size=30)


@settings(deadline=None)
@given(values, st.integers(1, 10**6), st.integers(0, 40))
def test_missing_pods_never_make_a_change_larger(found: list[int | None], target: int, spec: int) -> None:
    known = [value for value in found if value is not None]
    if not known:
        return
    pods = ready_pods(len(found))
    damped = ask(PodsMetric("load", target, by_pod(*found)), pods, spec=spec)
    mean = sum(known) / len(known)
    assert damped <= max(spec, math.ceil(mean / target * len(found)))
    if mean < target:
        assert damped <= max(spec, len(found))


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1, 1000))
def test_shared_value_is_enough_and_not_one_more(total: int, target: int, status: int) -> None:
    replicas = ask(ExternalMetric("load", target, total), [], status=status)
    if replicas != status:
        assert (replicas - 1) * target < total <= replicas * target or total == replicas == 0
    else:
        assert 0.9 * target * status - target <= total <= 1.1 * target * status * (1 + 1e-12)
