"""Baselines that are a law of their own: llm-d's latency objective and AIBrix's pod autoscaler."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from kvgauge.simulate.autoscaled import (
    LOOK_SECONDS,
    Prometheus,
    keda_replicas,
    make_keda,
    milli,
    ready_replicas,
    scrape,
)
from kvgauge.simulate.fleet import FleetPlan, FleetView
from kvgauge.simulate.hpa_behavior import Behavior, Policy, ScalingRules
from kvgauge.simulate.tally import Distribution

SLO_AWARE_BEHAVIOR = Behavior(
    scale_up=ScalingRules((Policy("Percent", 100, 60), Policy("Pods", 4, 60)), stabilization_seconds=30),
    scale_down=ScalingRules((Policy("Pods", 1, 120),), stabilization_seconds=180),
)
"""That of llm-d's SLO-aware guide."""
SLO_UP, SLO_DOWN = 0.55, 0.40
_CLAMP = 2.0
_QUANTILE = 0.9
_RATE_SECONDS = 60.0
_RATE_SCRAPES = 4
"""Scrapes in that time."""
_SMOOTHED_RULES = 3
"""Evaluations of the recording rule, one each 15 s, in the 45 s that it is averaged over."""

_KPA_SCRAPE_SECONDS = 10.0
_KPA_PANIC_THRESHOLD = 2.0
_KPA_RATE = 2.0
_KPA_TOLERANCE = 0.1


class SloAware:
    """llm-d's SLO-aware KEDA loop, on latencies as measured: the worse of P90 TTFT and P90 TPOT over their objectives.

    Source: llm-d guides/workload-autoscaling/README.slo-aware.md, whose published figures stand on a trained predictor
    instead. TTFT is known at the first token, from the engines' histograms, as Prometheus reads a quantile off them;
    TPOT is known when a request is done, as the gateway has it. (llm-d's gateway notes both at the end, which makes
    the loop later.) A quantile of nothing counts as 0, as the guide's recording rule has it.
    """

    scrape_seconds = LOOK_SECONDS
    emptiest_first = False

    def __init__(self, name: str, plan: FleetPlan, up: float, down: float, behavior: Behavior | None) -> None:
        self.name = name
        self._up, self._down = up, down
        self._keda = make_keda(plan, [("replicas", 1.0)], behavior or SLO_AWARE_BEHAVIOR)
        self._prometheus = Prometheus()
        self._ttfts: deque[Mapping[str, Distribution]] = deque(maxlen=_RATE_SCRAPES + 1)
        self._saturations: deque[float] = deque(maxlen=_SMOOTHED_RULES)

    def observe(self, view: FleetView) -> None:
        read = self._prometheus.look(view)
        if read is None:
            return
        self._ttfts.append({name: state.ttft_seconds for name, state in read.states.items()})
        ttft = histogram_quantile(_QUANTILE, self._ttfts[0], self._ttfts[-1]) / view.plan.slo_ttft_seconds
        tpot = tpot_quantile(_QUANTILE, view) / view.plan.slo_tpot_seconds
        self._saturations.append(min(max(ttft, tpot), _CLAMP))

    def replicas(self, view: FleetView) -> int:
        smoothed = sum(self._saturations) / len(self._saturations) if self._saturations else 0.0
        wanted = slo_replicas(smoothed, view.spec_replicas, ready_replicas(view), self._up, self._down)
        return keda_replicas(self._keda, view, {"replicas": milli(wanted)})


def histogram_quantile(quantile: float, before: Mapping[str, Distribution], now: Mapping[str, Distribution]) -> float:
    """Seconds below which that share of the observations between two scrapes of all pods lies, on a straight line
    within the bucket; the last finite bound for those above it, and 0 without observations."""
    bounds: tuple[float, ...] = ()
    counts: list[int] = []
    for name, one in now.items():
        past = before[name].cumulative if name in before else (0,) * len(one.cumulative)
        bounds = one.bounds
        counts = [
            sum(three) for three in zip(counts or [0] * len(past), one.cumulative, (-n for n in past), strict=True)
        ]
    if not counts or counts[-1] <= 0:
        return 0.0
    rank = quantile * counts[-1]
    bucket = bisect_left(counts, rank)
    if bucket == len(counts) - 1:
        return bounds[-2]
    low, below = (bounds[bucket - 1], counts[bucket - 1]) if bucket else (0.0, 0)
    return low + (bounds[bucket] - low) * (rank - below) / (counts[bucket] - below)


def tpot_quantile(quantile: float, view: FleetView) -> float:
    """Of the requests that were done in the last minute, 0 without any."""
    since = view.now_seconds - _RATE_SECONDS
    ordered = sorted(_tpots(view.latencies, since))
    return ordered[max(math.ceil(quantile * len(ordered)) - 1, 0)] if ordered else 0.0


def _tpots(latencies: Sequence[tuple[float, float, float | None]], since: float) -> Iterable[float]:
    return (tpot for finished, _, tpot in latencies if finished > since and tpot is not None)


def slo_replicas(saturation: float, provisioned: int, ready: int, up: float = SLO_UP, down: float = SLO_DOWN) -> int:
    """The control law: pods that start are credited on the way up, and not on the way down."""
    if saturation > up:
        credit = ready / provisioned if 0 < ready < provisioned else 1.0
        return provisioned + math.ceil(provisioned * (saturation * credit / up - 1))
    if saturation < down:
        return provisioned - math.floor(provisioned * (1 - saturation / down))
    return provisioned


class AibrixKpa:
    """AIBrix's KPA, after Knative: the sum of the pods' cache usage over a stable and a panic window.

    Source: AIBrix's documentation and pkg/controller/podautoscaler. It reads the pods itself, every 10 s. Scaling down
    waits for the highest wish of 300 s, as documented; the code of late 2025 takes the lowest, taken for a slip here.
    """

    scrape_seconds = _KPA_SCRAPE_SECONDS
    emptiest_first = False

    def __init__(
        self,
        name: str,
        plan: FleetPlan,
        target_ratio: float,
        *,
        stable_seconds: float = 180.0,
        panic_seconds: float = 60.0,
        down_delay_seconds: float = 300.0,
    ) -> None:
        self.name = name
        self._target = target_ratio
        self._stable_seconds, self._panic_seconds = stable_seconds, panic_seconds
        self._down_delay_seconds = down_delay_seconds
        self._usable = plan.spec.usable_blocks
        self._bounds = (max(1, plan.min_replicas), plan.max_replicas)
        self._totals: deque[tuple[float, float]] = deque()
        self._wishes: deque[tuple[float, int]] = deque()

    def observe(self, view: FleetView) -> None:
        read = scrape(view)
        # No page at all is a failed reconciliation, not an idle fleet.
        if read.states:
            pools = sum(state.used_blocks for state in read.states.values()) / self._usable
            self._totals.append((view.now_seconds, pools))
        while self._totals and self._totals[0][0] <= view.now_seconds - self._stable_seconds:
            self._totals.popleft()

    def replicas(self, view: FleetView) -> int:
        current = view.spec_replicas
        if not self._totals or current == 0:
            return current
        stable = self._mean(view.now_seconds - self._stable_seconds)
        panic = self._mean(view.now_seconds - self._panic_seconds)
        wish = kpa_replicas(stable, panic, current, self._target)
        self._wishes.append((view.now_seconds, wish))
        while self._wishes[0][0] <= view.now_seconds - self._down_delay_seconds:
            self._wishes.popleft()
        if wish < current:
            wish = min(current, max(one for _, one in self._wishes))
        low, high = self._bounds
        return max(low, min(wish, high))

    def _mean(self, since: float) -> float:
        values = [total for when, total in self._totals if when > since] or [self._totals[-1][1]]
        return sum(values) / len(values)


def kpa_replicas(stable: float, panic: float, current: int, target: float) -> int:
    """KPA's wish from the totals of both windows; in a panic, when the short one is twice the long one, only upward."""
    most, least = max(1, math.ceil(_KPA_RATE * current)), math.floor(current / _KPA_RATE)

    def within(total: float) -> int:
        if 1 - _KPA_TOLERANCE <= total / (target * current) <= 1 + _KPA_TOLERANCE:
            return current
        return max(least, min(math.ceil(total / target), most))

    if stable <= 0 or panic / stable > _KPA_PANIC_THRESHOLD:
        return max(current, within(stable), within(panic)) if panic > 0 else within(stable)
    return within(stable)
