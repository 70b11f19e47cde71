"""What the baseline signals share: how old the figures are that an autoscaler sees, and the autoscalers under them.

Prometheus scrapes every 15 s and knows nothing of the autoscaler's own 15 s, so that a figure is 7.5 s old on average:
here each scrape lies halfway between two syncs. An adapter or KEDA asks Prometheus when it is asked, and adds no delay.
A pod whose page could not be read has no figure from that scrape on, as Prometheus marks it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kvgauge.simulate.fleet import FleetPlan, FleetView
from kvgauge.simulate.hpa import HorizontalPodAutoscaler, HpaSpec
from kvgauge.simulate.hpa_behavior import Behavior, Policy, ScalingRules
from kvgauge.simulate.hpa_calculator import ExternalMetric, Metric, Pod, PodsMetric, ResourceMetric
from kvgauge.simulate.keda import Keda, ScaledObject, Trigger
from kvgauge.simulate.state import EngineState

LOOK_SECONDS = 7.5
"""How often a signal that stands on Prometheus looks; every second look is a scrape."""
POLLING_SECONDS = 15.0

LLMD_BEHAVIOR = Behavior(
    scale_up=ScalingRules((Policy("Percent", 100, 15),)),
    scale_down=ScalingRules((Policy("Percent", 100, 15),), stabilization_seconds=300),
)
"""That of llm-d's KEDA + EPP guide (guides/workload-autoscaling/keda-epp): twice the pods every 15 s."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """What Prometheus knows after one scrape."""

    seconds: float
    states: Mapping[str, EngineState]
    """By pod, of those whose page was read; pods on their way out are not asked any more."""
    gateway_requests: int
    in_flight_requests: int
    """Requests that the gateway has handed to pods and that are not done."""


class Prometheus:
    """Turns every second look into a scrape."""

    def __init__(self) -> None:
        self.last: Scrape | None = None
        self._due = True

    def look(self, view: FleetView) -> Scrape | None:
        """The scrape, where this look is one."""
        due, self._due = self._due, not self._due
        if not due:
            return None
        self.last = scrape(view)
        return self.last


def scrape(view: FleetView) -> Scrape:
    """The fleet as one scrape reads it now."""
    states = {
        pod.name: pod.state
        for pod in view.pods
        if pod.ready and not pod.deleting and pod.state is not None and pod.state.clock_seconds >= view.now_seconds
    }
    in_flight = sum(pod.in_flight for pod in view.pods)
    return Scrape(view.now_seconds, states, view.gateway_requests, in_flight)


def milli(value: float) -> int:
    """Thousandths, cut as a Kubernetes quantity made from a double is."""
    return int(value * 1000)


def hpa_pods(view: FleetView) -> list[Pod]:
    """The pods as the autoscaler lists them: one that starts runs and is not ready yet."""
    return [
        Pod(pod.name, ready=pod.ready, deleting=pod.deleting, started_seconds=pod.created_seconds) for pod in view.pods
    ]


def status_replicas(view: FleetView) -> int:
    """Pods that the workload's controller counts: all but those on their way out."""
    return sum(not pod.deleting for pod in view.pods)


def ready_replicas(view: FleetView) -> int:
    """Pods that serve and will go on serving."""
    return sum(pod.ready and not pod.deleting for pod in view.pods)


class Hpa:
    """A plain autoscaler of this fleet."""

    def __init__(self, plan: FleetPlan, behavior: Behavior | None) -> None:
        self._hpa = HorizontalPodAutoscaler(HpaSpec(plan.max_replicas, max(1, plan.min_replicas), behavior))

    def sync(self, view: FleetView, metric: Metric) -> int:
        """Replicas wanted after one reconciliation."""
        pods = hpa_pods(view)
        return self._hpa.sync(view.now_seconds, view.spec_replicas, status_replicas(view), pods, [metric]).replicas


@dataclass(frozen=True, slots=True)
class Gauge:
    """One trigger of KEDA's: a total over the fleet, and how much of it one replica may have."""

    name: str
    target: float
    total: Callable[[Scrape], float]


class KedaSignal:
    """Totals from Prometheus through KEDA, each an External metric with an AverageValue; the largest wins.

    A query that finds no series counts as 0, KEDA's default (`ignoreNullValues`), and a sum over series leaves out the
    pods that have none: with pages that cannot be read the load looks smaller than it is.
    """

    scrape_seconds = LOOK_SECONDS
    emptiest_first = False

    def __init__(
        self,
        name: str,
        plan: FleetPlan,
        gauges: Sequence[Gauge],
        behavior: Behavior | None,
        cooldown_seconds: float = 300.0,
    ) -> None:
        self.name = name
        self._gauges = gauges
        self._prometheus = Prometheus()
        self._keda = make_keda(plan, [(gauge.name, gauge.target) for gauge in gauges], behavior, cooldown_seconds)

    def observe(self, view: FleetView) -> None:
        self._prometheus.look(view)

    def replicas(self, view: FleetView) -> int:
        last = self._prometheus.last
        readings = {gauge.name: milli(gauge.total(last)) if last else 0 for gauge in self._gauges}
        return keda_replicas(self._keda, view, readings)


def make_keda(
    plan: FleetPlan, targets: Iterable[tuple[str, float]], behavior: Behavior | None, cooldown_seconds: float = 300.0
) -> Keda:
    """KEDA over this fleet, polling every 15 s as both llm-d's guides and production-stack have it."""
    triggers = tuple(Trigger(name, milli(target)) for name, target in targets)
    scaled = ScaledObject(
        triggers,
        plan.min_replicas,
        plan.max_replicas,
        POLLING_SECONDS,
        cooldown_seconds,
        behavior=behavior,
    )
    return Keda(scaled)


def keda_replicas(keda: Keda, view: FleetView, readings: Mapping[str, int]) -> int:
    """One poll, which only acts around 0 replicas, and one reconciliation of KEDA's autoscaler."""
    polled = keda.poll(view.now_seconds, view.spec_replicas, readings).replicas
    if polled != view.spec_replicas:
        return polled
    pods = hpa_pods(view)
    return keda.sync(view.now_seconds, view.spec_replicas, status_replicas(view), pods, readings).replicas


PodValue: TypeAlias = Callable[[EngineState, EngineState | None], float | None]
"""A pod's figure from its last scrape and the one before; None where it takes both and there is one."""


class PodsSignal:
    """A figure of each pod from Prometheus through an adapter, a Pods metric with an AverageValue."""

    scrape_seconds = LOOK_SECONDS
    emptiest_first = False

    def __init__(self, name: str, plan: FleetPlan, target: float, value: PodValue, behavior: Behavior | None) -> None:
        self.name = name
        self._target_milli = milli(target)
        self._value = value
        self._hpa = Hpa(plan, behavior)
        self._prometheus = Prometheus()
        self._values: dict[str, int | None] = {}

    def observe(self, view: FleetView) -> None:
        before = self._prometheus.last
        now = self._prometheus.look(view)
        if now is None:
            return
        self._values = {}
        for name, state in now.states.items():
            value = self._value(state, before.states.get(name) if before else None)
            self._values[name] = None if value is None else milli(value)

    def replicas(self, view: FleetView) -> int:
        present = {pod.name for pod in view.pods}
        values = {name: value for name, value in self._values.items() if name in present}
        return self._hpa.sync(view, PodsMetric("load", self._target_milli, values))


class CpuSignal:
    """CPU of all pods as a share of what they request: a Resource metric. It says the same whatever the load."""

    scrape_seconds = 15.0
    emptiest_first = False

    def __init__(
        self, name: str, plan: FleetPlan, target_percent: int, usage_percent: float, behavior: Behavior | None
    ) -> None:
        self.name = name
        self._target_percent = target_percent
        self._usage_milli = milli(usage_percent / 100)
        self._hpa = Hpa(plan, behavior)

    def observe(self, view: FleetView) -> None:
        """Needs no past."""

    def replicas(self, view: FleetView) -> int:
        usage: dict[str, int | None] = {pod.name: self._usage_milli for pod in view.pods}
        return self._hpa.sync(view, ResourceMetric(self._target_percent, usage, requests_milli=1000))


class DesiredSignal:
    """A controller that publishes the replicas it wants, followed by an autoscaler with the AverageValue 1."""

    scrape_seconds = LOOK_SECONDS
    emptiest_first = False

    def __init__(self, name: str, plan: FleetPlan, behavior: Behavior | None) -> None:
        self.name = name
        self._hpa = Hpa(plan, behavior)

    def follow(self, view: FleetView, desired: float | None) -> int:
        """Replicas wanted where the controller wants `desired`, None before it has said anything."""
        value = None if desired is None else milli(desired)
        return self._hpa.sync(view, ExternalMetric("desired_replicas", 1000, value))
