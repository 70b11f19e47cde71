"""How the Kubernetes horizontal pod autoscaler turns one metric into a number of replicas.

Source: kubernetes pkg/controller/podautoscaler/replica_calculator.go and metrics/utilization.go, as of the release that
gave scale-up and scale-down tolerances of their own. Values and targets are integers of thousandths, averages and
utilisations are cut to integers and ratios are doubles, because the controller's roundings decide between two answers.

A metric is handed in already read: the text of the error, or None, stands for one that could not be read.
"""

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

MAX_REPLICAS = 2**31 - 1
"""Counts saturate here: the controller holds them in 32 bits."""

Phase: TypeAlias = Literal["Pending", "Running", "Succeeded", "Failed"]
PodValues: TypeAlias = Mapping[str, int | None] | str | None
"""Pod name to thousandths, None for a pod without a value; a text or None alone for a metric that failed."""


class MetricFailure(Exception):  # noqa: N818 - an outcome that the autoscaler expects, not a defect
    """A metric that gives no number of replicas. The message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Pod:
    """What the autoscaler looks at in a pod. Times are virtual seconds; the defaults are those of a long-lived pod."""

    name: str
    phase: Phase = "Running"
    ready: bool | None = True
    """The Ready condition; None while the pod has none yet."""
    deleting: bool = False
    started_seconds: float | None = -math.inf
    """When the node took the pod; None before that."""
    ready_changed_seconds: float = -math.inf
    """When the Ready condition last changed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Over which time a pod's CPU usage was measured: `window_seconds` up to `taken_seconds`."""

    taken_seconds: float
    window_seconds: float


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far the ratio of value to target may be from 1 without any change, upward and downward."""

    up: float = 0.1
    down: float = 0.1

    def __post_init__(self) -> None:
        for name, value in (("up", self.up), ("down", self.down)):
            if not 0 <= value < math.inf:
                raise ValueError(f"tolerance {name} must be 0 or more, not {value}")

    def hold(self, ratio: float) -> bool:
        """Whether this ratio is too close to 1 to act on; the edges belong to the band."""
        return 1.0 - self.down <= ratio <= 1.0 + self.up


@dataclass(frozen=True, slots=True)
class CpuReadiness:
    """Which CPU samples count at `now_seconds`. The defaults are kube-controller-manager's."""

    now_seconds: float
    initialization_seconds: float = 300.0
    """While a pod is younger than this, only whole sample windows taken since it became ready count."""
    initial_delay_seconds: float = 30.0
    """A pod not ready whose condition has not changed since this long after its start has never been ready."""

    def counts(self, pod: Pod, sample: Sample | None) -> bool:
        """Whether the pod's sample says something about load. Without `sample` it was taken now, in an instant."""
        if pod.ready is None or pod.started_seconds is None:
            return False
        if pod.started_seconds + self.initialization_seconds > self.now_seconds:
            taken, window = (sample.taken_seconds, sample.window_seconds) if sample else (self.now_seconds, 0.0)
            return pod.ready and taken >= pod.ready_changed_seconds + window
        return pod.ready or pod.started_seconds + self.initial_delay_seconds <= pod.ready_changed_seconds


@dataclass(frozen=True, slots=True)
class PodGroups:
    """Pods sorted by what their metric is worth."""

    counted: int
    """Pods whose value counts as it is. For anything but CPU that includes pods that run and are not ready."""
    unready: frozenset[str]
    """Pods too young to judge by: they count as idle, and only against scaling up."""
    missing: frozenset[str]
    """Pods that should have a value and have none."""
    ignored: frozenset[str]
    """Pods on their way out: neither they nor their values count."""


@dataclass(frozen=True, slots=True)
class PodsMetric:
    """The mean over the pods against a target: type Pods, or type Resource with an AverageValue.

    For the latter `resource` names the resource; "cpu" leaves out pods that are not ready, others do not.
    """

    name: str
    target_milli: int
    values: PodValues
    resource: str = ""
    samples: Mapping[str, Sample] | None = None
    """When CPU was measured, by pod; only read for "cpu"."""

    def __post_init__(self) -> None:
        _check_target(self.name, self.target_milli, "target_milli")


@dataclass(frozen=True, slots=True)
class ResourceMetric:
    """Usage as a percentage of what the pods request: type Resource with an AverageUtilization."""

    target_percent: int
    usage_milli: PodValues
    requests_milli: Mapping[str, int] | int
    """By pod, or one number for all of them. A pod without a request makes the metric fail."""
    name: str = "cpu"
    samples: Mapping[str, Sample] | None = None

    def __post_init__(self) -> None:
        _check_target(self.name, self.target_percent, "target_percent")


@dataclass(frozen=True, slots=True)
class ExternalMetric:
    """One number for the whole workload: type External, and type Object, which counts the same."""

    name: str
    target_milli: int
    value_milli: int | str | None
    kind: Literal["AverageValue", "Value"] = "AverageValue"
    """AverageValue shares the number among the replicas. Value multiplies the *ready* pods, so that a workload half
    of whose pods are starting is asked to shrink by the very load it starts them for."""

    def __post_init__(self) -> None:
        _check_target(self.name, self.target_milli, "target_milli")


Metric: TypeAlias = PodsMetric | ResourceMetric | ExternalMetric


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of the workload: what it is told to have, and how many pods its controller has found."""

    spec_replicas: int
    status_replicas: int


def propose(metric: Metric, scale: Scale, pods: Iterable[Pod], tolerances: Tolerances, readiness: CpuReadiness) -> int:
    """The replicas that this metric alone asks for, before any policy. Raises MetricFailure when it gives none."""
    match metric:
        case ExternalMetric():
            return _external_replicas(metric, scale, pods, tolerances)
        case ResourceMetric():
            return _utilization_replicas(metric, scale, tuple(pods), tolerances, readiness)
        case PodsMetric():
            return _average_replicas(metric, scale, tuple(pods), tolerances, readiness)


def group_pods(
    pods: Iterable[Pod],
    measured: Container[str],
    cpu: CpuReadiness | None = None,
    samples: Mapping[str, Sample] | None = None,
) -> PodGroups:
    """Sorts pods by what their value is worth; `cpu` only for the CPU resource, the one that asks for readiness."""
    counted = 0
    unready: set[str] = set()
    missing: set[str] = set()
    ignored: set[str] = set()
    for pod in pods:
        if pod.deleting or pod.phase == "Failed":
            ignored.add(pod.name)
        elif pod.phase == "Pending":
            unready.add(pod.name)
        elif pod.name not in measured:
            missing.add(pod.name)
        elif cpu is not None and not cpu.counts(pod, samples.get(pod.name) if samples else None):
            unready.add(pod.name)
        else:
            counted += 1
    return PodGroups(counted, frozenset(unready), frozenset(missing), frozenset(ignored))


def _external_replicas(metric: ExternalMetric, scale: Scale, pods: Iterable[Pod], tolerances: Tolerances) -> int:
    if not isinstance(metric.value_milli, int):
        raise MetricFailure(metric.value_milli or f"metric {metric.name} was not read")
    ratio = metric.value_milli / metric.target_milli
    if metric.kind == "AverageValue":
        # With no pods the controller divides by zero, which no tolerance holds back.
        replicas = scale.status_replicas
        held = replicas > 0 and tolerances.hold(metric.value_milli / (float(metric.target_milli) * replicas))
        return replicas if held else _whole(ratio)
    if scale.spec_replicas == 0:
        return _whole(ratio)
    if tolerances.hold(ratio):
        return scale.spec_replicas
    listed = tuple(pods)
    if not listed:
        raise MetricFailure(f"metric {metric.name} has no pods to count")
    return _whole(ratio * sum(pod.phase == "Running" and pod.ready is True for pod in listed))


def _average_replicas(
    metric: PodsMetric, scale: Scale, pods: tuple[Pod, ...], tolerances: Tolerances, readiness: CpuReadiness
) -> int:
    values = _readings(metric.name, metric.values, pods)
    groups = group_pods(pods, values, readiness if metric.resource == "cpu" else None, metric.samples)
    target = metric.target_milli

    def ratio_of(measured: Mapping[str, int]) -> float:
        return _cut(sum(measured.values()), len(measured)) / target

    return _settle(metric.name, values, groups, scale.spec_replicas, tolerances, ratio_of, lambda _: target)


def _utilization_replicas(
    metric: ResourceMetric, scale: Scale, pods: tuple[Pod, ...], tolerances: Tolerances, readiness: CpuReadiness
) -> int:
    usage = _readings(metric.name, metric.usage_milli, pods)
    groups = group_pods(pods, usage, readiness if metric.name == "cpu" else None, metric.samples)
    requests = _requests(metric, pods)
    # A missing pod must not speak for scaling down, and a target above its request would let a full one do so.
    fill_percent = max(100, metric.target_percent)

    def ratio_of(measured: Mapping[str, int]) -> float:
        known = [name for name in measured if name in requests]
        requested = sum(requests[name] for name in known)
        if requested == 0:
            raise MetricFailure(f"metric {metric.name} has no value for a known pod")
        return _cut(100 * sum(measured[name] for name in known), requested) / metric.target_percent

    def fill(name: str) -> int:
        return requests[name] * fill_percent // 100

    return _settle(metric.name, usage, groups, scale.spec_replicas, tolerances, ratio_of, fill)


def _settle(
    name: str,
    measured: dict[str, int],
    groups: PodGroups,
    current: int,
    tolerances: Tolerances,
    ratio_of: Callable[[Mapping[str, int]], float],
    fill: Callable[[str], int],
) -> int:
    """Replicas from what was measured, with pods that have no say counted so that they damp the change.

    `measured` is used up. `fill` gives the value that a missing pod is taken to have when scaling down.
    """
    for absent in (*groups.ignored, *groups.unready):
        measured.pop(absent, None)
    if not measured:
        raise MetricFailure(f"metric {name} has no value for a pod that counts")
    ratio = ratio_of(measured)
    damp_up = bool(groups.unready) and ratio > 1
    if not damp_up and not groups.missing:
        return current if tolerances.hold(ratio) else _whole(ratio * groups.counted)
    if ratio < 1:
        measured.update((pod, fill(pod)) for pod in groups.missing)
    elif ratio > 1:
        measured.update(dict.fromkeys(groups.missing | groups.unready, 0))
    damped = ratio_of(measured)
    if tolerances.hold(damped) or ratio < 1 < damped or damped < 1 < ratio:
        return current
    replicas = _whole(damped * len(measured))
    # More or fewer pods than spec.replicas, as during a rollout, can turn a change round by their count alone.
    against = replicas > current if damped < 1 else replicas < current
    return current if against else replicas


def _readings(name: str, values: PodValues, pods: tuple[Pod, ...]) -> dict[str, int]:
    """The values there are, in a dict of the caller's own. Raises MetricFailure for a metric that was not read."""
    if not isinstance(values, Mapping):
        raise MetricFailure(values or f"metric {name} was not read")
    if not pods:
        raise MetricFailure(f"metric {name} has no pods to count")
    return {pod: value for pod, value in values.items() if value is not None}


def _requests(metric: ResourceMetric, pods: tuple[Pod, ...]) -> Mapping[str, int]:
    requests = metric.requests_milli
    if isinstance(requests, int):
        return {pod.name: requests for pod in pods}
    for pod in pods:
        if pod.name not in requests:
            raise MetricFailure(f"pod {pod.name} has no request for {metric.name}")
    return requests


def _cut(total: int, parts: int) -> int:
    """Integer division that cuts towards zero, as the controller's language does; `parts` is above 0."""
    return total // parts if total >= 0 else -(-total // parts)


def _whole(replicas: float) -> int:
    """Rounded up, within what a count of replicas can hold."""
    return min(math.ceil(replicas), MAX_REPLICAS) if replicas > 0 else 0


def _check_target(name: str, target: int, field: str) -> None:
    if target <= 0:
        raise ValueError(f"{field} of metric {name} must be above 0, not {target}")
