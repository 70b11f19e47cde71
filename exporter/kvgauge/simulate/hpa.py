"""The Kubernetes horizontal pod autoscaler, autoscaling/v2, under a virtual clock.

Source: kubernetes pkg/controller/podautoscaler/horizontal.go. One `sync` is one reconciliation: the caller does one
every 15 s of its own time, hands in the pods and the metrics as they are then, and sets the workload to the answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvgauge.simulate.hpa_behavior import (
    Behavior,
    Bounds,
    Reason,
    Recommendation,
    ScaleEvents,
    limit_rate,
    limit_without_behavior,
    remember,
    stabilize,
    stabilize_without_behavior,
)
from kvgauge.simulate.hpa_calculator import CpuReadiness, Metric, MetricFailure, Pod, Scale, Tolerances, propose

SYNC_SECONDS = 15.0
"""The controller's default period between two reconciliations."""


@dataclass(frozen=True, slots=True)
class HpaSpec:
    """An autoscaler's settings, with the defaults of kube-controller-manager's flags."""

    max_replicas: int
    min_replicas: int = 1
    behavior: Behavior | None = Behavior()  # noqa: RUF009 - frozen, so it can be shared
    """None for a manifest without `spec.behavior`, which the controller still scales by its older rules: at most
    twice the pods or 4 at every sync, and the highest recommendation of the window."""
    tolerance: float = 0.1
    downscale_stabilization_seconds: float = 300.0
    """The window for scaling down where there is no behavior."""
    cpu_initialization_seconds: float = 300.0
    initial_readiness_delay_seconds: float = 30.0

    def __post_init__(self) -> None:
        Bounds(self.min_replicas, self.max_replicas)
        Tolerances(self.tolerance, self.tolerance)

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.min_replicas, self.max_replicas)

    @property
    def tolerances(self) -> Tolerances:
        if self.behavior is None:
            return Tolerances(self.tolerance, self.tolerance)
        return self.behavior.tolerances(self.tolerance)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What one metric asked for: either replicas, or the error that kept it from asking."""

    metric: str
    replicas: int | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of one sync."""

    replicas: int
    """What spec.replicas shall be; the present value where nothing changes."""
    reason: Reason
    proposals: tuple[Proposal, ...] = ()
    recommended_replicas: int | None = None
    """The largest proposal; None when the metrics were not asked or did not decide."""
    stabilized_replicas: int | None = None
    """The recommendation after the stabilisation windows, before rate policies and bounds."""


class HorizontalPodAutoscaler:
    """One autoscaler with its memory: recommendations and changes. Syncs must come in order of time."""

    def __init__(self, spec: HpaSpec, recommendations: Iterable[Recommendation] | None = None) -> None:
        """`recommendations` are those of an autoscaler that has run before; None for a new one."""
        self.spec = spec
        self._recommendations = None if recommendations is None else list(recommendations)
        self._events = ScaleEvents()
        self._bounds = spec.bounds
        self._tolerances = spec.tolerances

    def sync(
        self,
        now_seconds: float,
        spec_replicas: int,
        status_replicas: int,
        pods: Sequence[Pod],
        metrics: Iterable[Metric],
    ) -> Decision:
        """One reconciliation of a workload told to have `spec_replicas`, of which `status_replicas` pods exist."""
        if self._recommendations is None:
            # So that a new autoscaler, which knows no past, does not shrink a workload before its window has passed.
            self._recommendations = [Recommendation(now_seconds, spec_replicas)]
        if spec_replicas == 0 and self._bounds.min_replicas != 0:
            return Decision(0, Reason.DISABLED)
        if spec_replicas > self._bounds.max_replicas:
            return self._settle(now_seconds, spec_replicas, Decision(self._bounds.max_replicas, Reason.TOO_MANY))
        if spec_replicas < self._bounds.min_replicas:
            return self._settle(now_seconds, spec_replicas, Decision(self._bounds.min_replicas, Reason.TOO_FEW))
        proposals = self._ask(now_seconds, Scale(spec_replicas, status_replicas), pods, metrics)
        wanted = [one.replicas for one in proposals if one.replicas is not None]
        # A metric that cannot be read might have asked for more: enough to forbid shrinking, not growing.
        if not wanted or (len(wanted) < len(proposals) and max(wanted) < spec_replicas):
            return Decision(spec_replicas, Reason.METRICS_FAILED, proposals)
        return self._settle(
            now_seconds, spec_replicas, self._follow(now_seconds, spec_replicas, max(wanted), proposals)
        )

    def _ask(
        self, now_seconds: float, scale: Scale, pods: Sequence[Pod], metrics: Iterable[Metric]
    ) -> tuple[Proposal, ...]:
        readiness = CpuReadiness(
            now_seconds, self.spec.cpu_initialization_seconds, self.spec.initial_readiness_delay_seconds
        )
        proposals = []
        for metric in metrics:
            try:
                replicas = propose(metric, scale, pods, self._tolerances, readiness)
                proposals.append(Proposal(metric.name, replicas))
            except MetricFailure as failure:
                proposals.append(Proposal(metric.name, None, str(failure)))
        return tuple(proposals)

    def _follow(self, now_seconds: float, current: int, recommended: int, proposals: tuple[Proposal, ...]) -> Decision:
        """Stabilises and limits a recommendation, and remembers it as the metrics gave it."""
        past = self._recommendations = self._recommendations or []
        behavior = self.spec.behavior
        if behavior is None:
            window = self.spec.downscale_stabilization_seconds
            stabilized = stabilize_without_behavior(recommended, past, now_seconds, window)
            replicas, reason = limit_without_behavior(current, stabilized, self._bounds)
        else:
            window = max(behavior.scale_up.stabilization_seconds, behavior.scale_down.stabilization_seconds)
            stabilized = stabilize(current, recommended, past, now_seconds, behavior)
            replicas, reason = limit_rate(current, stabilized, self._bounds, behavior, self._events, now_seconds)
        remember(past, Recommendation(now_seconds, recommended), now_seconds - window)
        return Decision(replicas, reason, proposals, recommended, stabilized)

    def _settle(self, now_seconds: float, current: int, decision: Decision) -> Decision:
        if decision.replicas != current and self.spec.behavior is not None:
            self._events.record(now_seconds, current, decision.replicas, self.spec.behavior)
        return decision
