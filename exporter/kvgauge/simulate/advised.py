"""The signal `kvgauge`: each simulated pod has its sidecar's own advice, and the fleet has the aggregator's own rule.

Nothing here decides anything. Each look reads the pods as their sidecars would, lets `advise` make its advice of that
and `FleetHistory` remember it; each sync asks `advise_fleet` for the replicas and lets an autoscaler follow them: an
External metric with AverageValue 1 under rules with a tolerance of 0, no windows and no limits of rate, since the rule
has its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvgauge.advise import Advice, History, advise
from kvgauge.advise.fleet import FleetAdvice, Wish, advise_fleet
from kvgauge.advise.fleet_history import FleetHistory, PodReport, report_of
from kvgauge.assess import Assessment, EngineFlags, Memo, assess
from kvgauge.simulate.autoscaled import Hpa, milli
from kvgauge.simulate.fleet import FleetPlan, FleetView, PodView
from kvgauge.simulate.hpa_behavior import Behavior, Policy, ScalingRules
from kvgauge.simulate.hpa_calculator import ExternalMetric
from kvgauge.simulate.reading import observation_of, reading_of
from kvgauge.simulate.signals import Kind, register
from kvgauge.simulate.signals import Wish as SignalWish
from kvgauge.simulate.state import EngineState

LOOK_SECONDS = 5.0
"""A sidecar looks every second; in the simulation every fifth is enough, and the rest is the same."""
_MODEL = "simulated"

BEHAVIOR = Behavior(
    scale_up=ScalingRules((Policy("Percent", 900, 15), Policy("Pods", 100, 15)), tolerance=0.0),
    scale_down=ScalingRules((Policy("Percent", 100, 15),), stabilization_seconds=0, tolerance=0.0),
)


@dataclass(slots=True)
class _Sidecar:
    """One pod's, for as long as the pod lives."""

    history: History
    memo: Memo
    advice: Advice | None = None
    read_seconds: float | None = None


class Advised:
    """The signal. `roofline_ratio`: by how much the sidecars' step cost is off before they have learned; at
    `restart_at_seconds` all sidecars start anew and have forgotten everything."""

    scrape_seconds = LOOK_SECONDS
    emptiest_first = True

    def __init__(
        self,
        plan: FleetPlan,
        name: str = "kvgauge",
        *,
        roofline_ratio: float = 1.0,
        restart_at_seconds: float | None = None,
        behavior: Behavior | None = None,
    ) -> None:
        self.name = name
        self._plan = plan
        self._cost = plan.spec.step_cost.scaled(roofline_ratio, roofline_ratio)
        self._restart_at_seconds = restart_at_seconds
        self._sidecars: dict[str, _Sidecar] = {}
        self._fleet = FleetHistory()
        self._wishes: tuple[Wish, ...] = ()
        self._hpa = Hpa(plan, behavior or BEHAVIOR)
        self.last: FleetAdvice | None = None

    def observe(self, view: FleetView) -> None:
        if self._restart_at_seconds is not None and view.now_seconds >= self._restart_at_seconds:
            self._restart_at_seconds = None
            self._sidecars.clear()
        names = {pod.name for pod in view.pods}
        for gone in self._sidecars.keys() - names:
            del self._sidecars[gone]
        for pod in view.pods:
            if pod.state is not None and pod.ready and not pod.deleting:
                self._look(pod.name, pod.state)
        self._fleet.remember(self._reports(view), view.now_seconds)

    def replicas(self, view: FleetView) -> int:
        facts = self._fleet.facts(self._reports(view), view.spec_replicas, view.now_seconds)
        self.last = advise_fleet(facts, self._wishes)
        self._wishes = self.last.wishes
        return self._hpa.sync(view, ExternalMetric("kvgauge_required_replicas", 1000, milli(self.last.replicas)))

    def _look(self, name: str, state: EngineState) -> None:
        sidecar = self._sidecars.get(name)
        if sidecar is None:
            sidecar = self._sidecars[name] = _Sidecar(History(), Memo())
        if sidecar.read_seconds == state.clock_seconds:
            return
        plan = self._plan
        observation = observation_of(reading_of(state, plan.spec, _MODEL), state.clock_seconds)
        sidecar.history.remember(observation)
        assessment = assess(observation, EngineFlags(tp=1), sidecar.memo)
        sidecar.advice = advise(
            self._with_cost(assessment),
            sidecar.history,
            max_num_seqs=plan.spec.max_num_seqs,
            slo_ttft_seconds=plan.slo_ttft_seconds,
            slo_tpot_seconds=plan.slo_tpot_seconds,
        )
        sidecar.read_seconds = state.clock_seconds

    def _with_cost(self, assessment: Assessment) -> Assessment:
        """With the roofline that a sidecar derives from the model's files and the card, which are not simulated."""
        return replace(assessment, step_cost=self._cost)

    def _reports(self, view: FleetView) -> list[PodReport]:
        return [_report(pod, self._sidecars) for pod in view.pods if not pod.deleting]


def _report(pod: PodView, sidecars: Mapping[str, _Sidecar]) -> PodReport:
    sidecar = sidecars.get(pod.name)
    advice = sidecar.advice if sidecar is not None else None
    if sidecar is None or advice is None:
        return PodReport(pod.name, pod.ready, None)
    return report_of(pod.name, pod.ready, sidecar.read_seconds, advice)


def _make(wish: SignalWish) -> Advised:
    return Advised(wish.plan, wish.text, behavior=wish.behavior)


register(Kind("kvgauge", "kvgauge's own advice: replicas by its fleet rule, at the frozen default", _make))
