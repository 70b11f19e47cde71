"""The autoscaler against the recorded cases of Kubernetes' own tests: `python -m bench.advice.hpa_vectors [FILE]`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict

from kvgauge.simulate.hpa import HorizontalPodAutoscaler, HpaSpec
from kvgauge.simulate.hpa_behavior import (
    Behavior,
    Bounds,
    Policy,
    Recommendation,
    ScaleEvent,
    ScaleEvents,
    ScalingRules,
    limit_rate,
    scale_down_limit,
    scale_up_limit,
    stabilize,
)
from kvgauge.simulate.hpa_calculator import (
    CpuReadiness,
    ExternalMetric,
    Metric,
    MetricFailure,
    Phase,
    Pod,
    PodsMetric,
    ResourceMetric,
    Sample,
    Scale,
    Tolerances,
    group_pods,
    propose,
)

VECTORS = Path(__file__).resolve().parents[2] / "../shared/vectors/hpa_vectors.json"
NOW_SECONDS = 100_000.0
Outcome: TypeAlias = int | tuple[int, str] | tuple[int, int, int, int] | None
Pair: TypeAlias = tuple[Outcome, Outcome]
"""What is expected, and what came out; None for a metric that fails."""


class Settings(TypedDict):
    tolerance_up: float
    tolerance_down: float
    cpu_initialization_period_s: float
    initial_readiness_delay_s: float


class PodFacts(TypedDict, total=False):
    usage: int | None
    request: int
    ready: bool | None
    phase: Phase
    deleting: bool
    cpu_sample_unusable: bool
    has_metric: bool
    age_s: float
    since_transition_s: float
    metric_window_s: float
    metric_age_s: float


class PolicyFacts(TypedDict):
    type: Literal["Pods", "Percent"]
    value: int
    period_s: float


class Aged(TypedDict, total=False):
    replicas: int
    change: int
    age_s: float


class Groups(TypedDict):
    ready: int
    unready: int
    missing: int
    ignored: int


class Case(TypedDict, total=False):
    """The fields of all groups together; each group has its own part of them."""

    test: str
    expected: int
    expected_reason: str
    expected_limit: int
    metric: str
    spec_replicas: int
    target: int
    pods: list[PodFacts]
    value: int
    ready_pods: int
    resource: str
    current: int
    desired: int
    up_window_s: float
    down_window_s: float
    past_recommendations: list[Aged]
    min: int
    max: int
    scale_up_policies: list[PolicyFacts]
    scale_down_policies: list[PolicyFacts]
    policies: list[PolicyFacts]
    select_policy: Literal["Max", "Min", "Disabled"]
    scale_up_events: list[Aged]
    scale_down_events: list[Aged]
    direction: str
    spec: int
    status: int
    metric_desired: int | list[int | None] | None


def _calculated(case: Case, settings: Settings) -> Pair:
    tolerances = Tolerances(settings["tolerance_up"], settings["tolerance_down"])
    readiness = _readiness(settings)
    if "pods" in case:
        pods = [_calculator_pod(index, pod, readiness) for index, pod in enumerate(case["pods"])]
    else:
        ready, wanted = case["ready_pods"], case["spec_replicas"]
        pods = [Pod(f"pod-{index}", ready=index < ready) for index in range(max(ready, wanted))]
    scale = Scale(case["spec_replicas"], case["spec_replicas"])
    try:
        return case["expected"], propose(_metric(case, pods), scale, pods, tolerances, readiness)
    except MetricFailure:
        return case["expected"], None


def _readiness(settings: Settings) -> CpuReadiness:
    return CpuReadiness(NOW_SECONDS, settings["cpu_initialization_period_s"], settings["initial_readiness_delay_s"])


def _calculator_pod(index: int, facts: PodFacts, readiness: CpuReadiness) -> Pod:
    """A pod long ready, or one that became what it is halfway through its initialisation."""
    young = facts.get("cpu_sample_unusable", False) or not facts["ready"]
    since = NOW_SECONDS - (readiness.initialization_seconds / 2 if young else 10 * readiness.initialization_seconds)
    return Pod(f"pod-{index}", facts["phase"], facts["ready"], facts.get("deleting", False), since, since)


def _metric(case: Case, pods: list[Pod]) -> Metric:
    kind, target = case["metric"], case["target"]
    match kind:
        case "cpu_utilization":
            facts = {pod.name: one for pod, one in zip(pods, case["pods"], strict=True)}
            usage = {name: one["usage"] for name, one in facts.items()}
            requests = {name: one["request"] for name, one in facts.items()}
            # A window longer than the pod is ready makes the sample of a young pod unusable.
            samples = {
                name: Sample(NOW_SECONDS, 1e6 if one.get("cpu_sample_unusable") else 0) for name, one in facts.items()
            }
            return ResourceMetric(target, usage, requests, samples=samples)
        case "pods_average_value":
            values = {pod.name: one["usage"] for pod, one in zip(pods, case["pods"], strict=True)}
            return PodsMetric("metric", target, values)
        case "object_value" | "external_value":
            return ExternalMetric("metric", target, case["value"], "Value")
        case "object_average_value" | "external_average_value":
            return ExternalMetric("metric", target, case["value"])
        case _:
            raise ValueError(f"metric of {case['test']} is unknown: {kind}")


def _grouped(case: Case, settings: Settings) -> Pair:
    pods, samples = [], {}
    for index, facts in enumerate(case["pods"]):
        name = f"pod-{index}"
        started, changed = NOW_SECONDS - facts.get("age_s", 0), NOW_SECONDS - facts.get("since_transition_s", 0)
        pods.append(Pod(name, facts["phase"], facts.get("ready"), facts.get("deleting", False), started, changed))
        if facts.get("has_metric", False):
            samples[name] = Sample(NOW_SECONDS - facts.get("metric_age_s", 0), facts.get("metric_window_s", 0))
    groups = group_pods(pods, samples, _readiness(settings) if case["resource"] == "cpu" else None, samples)
    found = (groups.counted, len(groups.unready), len(groups.missing), len(groups.ignored))
    expected: Groups = case["expected"]  # type: ignore[assignment]
    return (expected["ready"], expected["unready"], expected["missing"], expected["ignored"]), found


def _stabilized(case: Case, _: Settings) -> Pair:
    anything = (Policy("Percent", 100, 15),)
    up, down = (ScalingRules(anything, case[window]) for window in ("up_window_s", "down_window_s"))
    past = _recommendations(case)
    return case["expected"], stabilize(case["current"], case["desired"], past, NOW_SECONDS, Behavior(up, down))


def _recommendations(case: Case) -> list[Recommendation]:
    return [Recommendation(NOW_SECONDS - one["age_s"], one["replicas"]) for one in case["past_recommendations"]]


def _rate_limited(case: Case, _: Settings) -> Pair:
    select = case["select_policy"]
    behavior = Behavior(_rules(case["scale_up_policies"], select), _rules(case["scale_down_policies"], select))
    events = ScaleEvents(_events(case["scale_up_events"]), _events(case["scale_down_events"]))
    bounds = Bounds(case["min"], case["max"])
    replicas, reason = limit_rate(case["current"], case["desired"], bounds, behavior, events, NOW_SECONDS)
    return (case["expected"], case["expected_reason"]), (replicas, str(reason))


def _rules(policies: list[PolicyFacts], select: Literal["Max", "Min", "Disabled"]) -> ScalingRules:
    return ScalingRules(tuple(Policy(one["type"], one["value"], one["period_s"]) for one in policies), select=select)


def _events(events: list[Aged]) -> list[ScaleEvent]:
    return [ScaleEvent(NOW_SECONDS - one["age_s"], one["change"]) for one in events]


def _limited(case: Case, _: Settings) -> Pair:
    rules = _rules(case["policies"], case["select_policy"])
    limit = scale_up_limit if case["direction"] == "up" else scale_down_limit
    return case["expected_limit"], limit(case["current"], rules, ScaleEvents(), NOW_SECONDS)


def _controlled(case: Case, _: Settings) -> Pair:
    """One sync without `spec.behavior`, with metrics that ask for the replicas given, or fail."""
    wanted = case["metric_desired"]
    metrics = [
        ExternalMetric(f"metric-{index}", 1000, None if replicas is None else 1000 * replicas)
        for index, replicas in enumerate(wanted if isinstance(wanted, list) else [wanted])
    ]
    # The case says what the metric asked for, after its tolerance.
    spec = HpaSpec(case["max"], case["min"], behavior=None, tolerance=0.0)
    past = _recommendations(case) if "past_recommendations" in case else None
    status = case.get("status", case["spec"])
    pods = [Pod(f"pod-{index}") for index in range(status)]
    decision = HorizontalPodAutoscaler(spec, past).sync(NOW_SECONDS, case["spec"], status, pods, metrics)
    return case["expected"], decision.replicas


GROUPS: dict[str, Callable[[Case, Settings], Pair]] = {
    "replica_calculator": _calculated,
    "group_pods": _grouped,
    "stabilization_with_behavior": _stabilized,
    "rate_policies": _rate_limited,
    "policy_limits": _limited,
    "controller": _controlled,
}


def _differs(pair: Pair) -> bool:
    expected, found = pair
    return expected != found


def conformance(path: Path) -> list[tuple[str, int, int, list[str]]]:
    """Runs every case of the file: group, cases passed, cases in all, and the names of those that failed.

    Raises OSError for a file that cannot be read, ValueError or KeyError for one of another shape.
    """
    vectors = json.loads(path.read_text())
    results = []
    for group, run in GROUPS.items():
        cases: list[Case] = vectors[group]
        failed = [case["test"] for case in cases if _differs(run(case, vectors["settings"]))]
        results.append((group, len(cases) - len(failed), len(cases), failed))
    return results


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else VECTORS
    results = conformance(path)
    for group, passed, total, failed in results:
        print(f"{group:28} {passed:3} of {total:3}", *failed, sep="\n  ")
    sys.exit(any(failed for *_, failed in results))


if __name__ == "__main__":
    main()
