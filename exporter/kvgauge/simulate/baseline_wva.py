"""The saturation analysers of llm-d's Workload Variant Autoscaler, one variant of one model.

Source: llm-d workload-variant-autoscaler, internal/saturation/analyzer.go (v1) and
internal/engines/analyzers/saturation_v2/analyzer.go with internal/engines/saturation/engine_v2.go (v2). The controller
reads the highest cache usage and queue of the last minute for each pod and publishes the replicas it wants; an
autoscaler follows those: the default one here, since the windows of 120 and 240 s that llm-d's guide and the chart set
for it only make it later. It reconciles every 60 s by default.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass

from kvgauge.simulate.autoscaled import DesiredSignal, Prometheus, Scrape, ready_replicas, status_replicas
from kvgauge.simulate.fleet import FleetPlan, FleetView
from kvgauge.simulate.hpa_behavior import Behavior
from kvgauge.simulate.tally import Distribution

RECONCILE_SECONDS = 60.0
PEAK_SECONDS = 60.0
LENGTHS_SECONDS = 300.0
KV_THRESHOLD = 0.80
QUEUE_THRESHOLD = 5
KV_SPARE_TRIGGER = 0.1
QUEUE_SPARE_TRIGGER = 3.0
SCALE_UP_THRESHOLD = 0.85
SCALE_DOWN_BOUNDARY = 0.70
_HISTORY = 10
_SHORT_OUTPUT, _MEDIUM_OUTPUT = 100, 500


@dataclass(frozen=True, slots=True)
class Replica:
    """One pod as the controller collects it: peaks over a minute, mean lengths over five."""

    kv_ratio: float
    queue: int
    prompt_tokens: float
    output_tokens: float


class Collector:
    """Keeps scrapes for as long as the controller's queries look back."""

    def __init__(self, usable_blocks: int) -> None:
        self._usable = usable_blocks
        self._scrapes: deque[Scrape] = deque()

    def add(self, scrape: Scrape) -> None:
        """One scrape, later than those before."""
        self._scrapes.append(scrape)
        while self._scrapes[0].seconds < scrape.seconds - LENGTHS_SECONDS:
            self._scrapes.popleft()

    def replicas(self) -> list[Replica]:
        """The pods that the last scrape reached."""
        last = self._scrapes[-1]
        peaks = [one for one in self._scrapes if one.seconds > last.seconds - PEAK_SECONDS]
        found = []
        for name, state in last.states.items():
            past = [one.states[name] for one in peaks if name in one.states]
            first = next(one.states[name] for one in self._scrapes if name in one.states)
            found.append(
                Replica(
                    max(one.used_blocks for one in past) / self._usable,
                    max(one.waiting for one in past),
                    _recent_mean(state.prompt_tokens, first.prompt_tokens),
                    _recent_mean(state.output_tokens, first.output_tokens),
                )
            )
        return found


def _recent_mean(now: Distribution, before: Distribution) -> float:
    count = now.count - before.count
    return (now.total - before.total) / count if count else 0.0


class WvaV1(DesiredSignal):
    """Spare cache and spare queue of the pods that are not saturated: up or down by one, nothing while pods start."""

    def __init__(self, name: str, plan: FleetPlan, behavior: Behavior | None) -> None:
        super().__init__(name, plan, behavior or Behavior())
        self._controller = _Controller(plan)

    def observe(self, view: FleetView) -> None:
        if self._controller.is_due(view):
            self._controller.want(self._decide(view, self._controller.collector.replicas()))

    def replicas(self, view: FleetView) -> int:
        return self.follow(view, self._controller.desired)

    def _decide(self, view: FleetView, pods: list[Replica]) -> int | None:
        current, desired = view.spec_replicas, self._controller.desired
        if not pods:
            return desired
        if desired is not None and desired != current:
            return desired
        if len(pods) != current:
            return current
        return current + saturation_step(pods)


def saturation_step(pods: list[Replica]) -> int:
    """+1, 0 or -1 replicas by v1's rule."""
    free = [one for one in pods if one.kv_ratio < KV_THRESHOLD and one.queue < QUEUE_THRESHOLD]
    if not free:
        return 1
    kv_load = sum(one.kv_ratio for one in free) / len(free)
    queue_load = sum(one.queue for one in free) / len(free)
    if KV_THRESHOLD - kv_load < KV_SPARE_TRIGGER or QUEUE_THRESHOLD - queue_load < QUEUE_SPARE_TRIGGER:
        return 1
    if len(free) < 2:
        return 0
    more = len(free) / (len(free) - 1)
    safe = (
        KV_THRESHOLD - kv_load * more >= KV_SPARE_TRIGGER and QUEUE_THRESHOLD - queue_load * more >= QUEUE_SPARE_TRIGGER
    )
    return -1 if safe else 0


class WvaV2(DesiredSignal):
    """Tokens wanted against tokens that the pods can hold before they queue, which the controller learns.

    A waiting request counts with its prompt; the newest code adds the output to it.
    """

    def __init__(self, name: str, plan: FleetPlan, behavior: Behavior | None) -> None:
        super().__init__(name, plan, behavior or Behavior())
        self._controller = _Controller(plan)
        self._capacity_tokens = plan.spec.usable_blocks * plan.spec.block_tokens
        self._batch_tokens = plan.spec.max_num_batched_tokens
        self._batch_requests = plan.spec.max_num_seqs
        self._observed: dict[str, deque[float]] = {}

    def observe(self, view: FleetView) -> None:
        if self._controller.is_due(view):
            self._controller.want(self._decide(view, self._controller.collector.replicas()))

    def replicas(self, view: FleetView) -> int:
        return self.follow(view, self._controller.desired)

    def _decide(self, view: FleetView, pods: list[Replica]) -> int | None:
        if not pods:
            return self._controller.desired
        prompts = statistics.fmean(one.prompt_tokens for one in pods)
        outputs = statistics.fmean(one.output_tokens for one in pods)
        in_use = sum(one.kv_ratio for one in pods) * self._capacity_tokens
        queued = sum(one.queue * one.prompt_tokens for one in pods) + view.gateway_requests * (prompts + outputs)
        per_replica = statistics.median(self._capacity(one) for one in pods)
        if per_replica <= 0:
            return view.spec_replicas
        starting = max(status_replicas(view) - ready_replicas(view), 0)
        return view.spec_replicas + capacity_change(in_use + queued, per_replica, len(pods), starting)

    def _capacity(self, pod: Replica) -> float:
        """Tokens that a pod can serve: the memory's, or fewer where it was seen to queue below that."""
        by_memory = self._capacity_tokens * KV_THRESHOLD
        return min(by_memory, self._by_compute(pod) or by_memory)

    def _by_compute(self, pod: Replica) -> float:
        observed = self._observed.setdefault(_bucket(pod.output_tokens), deque(maxlen=_HISTORY))
        in_use = pod.kv_ratio * self._capacity_tokens
        if pod.queue >= QUEUE_THRESHOLD and in_use > 0:
            observed.append(in_use)
            return in_use
        if observed:
            return statistics.fmean(observed)
        prompt, output = pod.prompt_tokens, pod.output_tokens
        if output <= 0:
            return 0.0
        requests = min(self._batch_tokens * output / (prompt + output), self._batch_requests)
        return requests * (prompt + output / 2)


def capacity_change(demand_tokens: float, replica_tokens: float, ready: int, starting: int) -> int:
    """Replicas to add, or below 0 to take away, by v2's thresholds. The last one is kept."""
    missing = demand_tokens / SCALE_UP_THRESHOLD - (ready + starting) * replica_tokens
    if missing > 0:
        return math.ceil(missing / replica_tokens)
    spare = ready * replica_tokens - demand_tokens / SCALE_DOWN_BOUNDARY
    return -min(int(spare / replica_tokens), ready + starting - 1) if spare > 0 else 0


def _bucket(output_tokens: float) -> str:
    if output_tokens < _SHORT_OUTPUT:
        return "short"
    return "medium" if output_tokens < _MEDIUM_OUTPUT else "long"


class _Controller:
    """Scrapes, the clock of the reconciliations, and what the last one wanted."""

    def __init__(self, plan: FleetPlan) -> None:
        self._low, self._high = max(1, plan.min_replicas), plan.max_replicas
        self.desired: int | None = None
        self.collector = Collector(plan.spec.usable_blocks)
        self._prometheus = Prometheus()
        self._next = 0.0

    def want(self, replicas: int | None) -> None:
        """Notes a decision, within the bounds of the autoscaler, which the controller knows."""
        self.desired = None if replicas is None else max(self._low, min(replicas, self._high))

    def is_due(self, view: FleetView) -> bool:
        """Takes a look, and says whether the controller reconciles after it."""
        scrape = self._prometheus.look(view)
        if scrape is None:
            return False
        self.collector.add(scrape)
        if view.now_seconds < self._next:
            return False
        self._next = view.now_seconds + RECONCILE_SECONDS
        return True
