"""A fleet of simulated engines behind a router, under an autoscaler: what happens to each request, and what it costs.

One virtual clock. Between two events of the slow world (a scrape, an autoscaler's sync, a pod that becomes ready) only
requests arrive; engines run on their own and are looked at when a request could finish in them, because the router
counts the requests in flight.

Rules of the slow world:
- a request goes to the ready pod with the fewest requests in flight, of equals to the oldest; without a ready pod it
  waits at the gateway;
- a new pod is ready after the start-up time, give or take 5 %;
- scale-in takes pods that are not ready first, then by the signal's own order (the newest, or the emptiest where the
  pod-deletion cost is kept); a pod that is taken out serves what it has and gets no more;
- a pod costs from its creation until its last request is done.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.spec import EngineSpec, FinishedRequest, Request
from kvgauge.simulate.state import EngineState

_SYNC_SECONDS = 15.0
_SCRAPE_SECONDS = 5.0
_START_UP_SPREAD = 0.05


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What a fleet is made of and how it is judged."""

    spec: EngineSpec
    slo_ttft_seconds: float
    slo_tpot_seconds: float
    start_up_seconds: float = 120.0
    min_replicas: int = 1
    max_replicas: int = 24
    initial_replicas: int = 1
    warm_up_seconds: float = 300.0
    """Left out of the result: requests that arrive before, and what pods cost before."""
    seed: int = 1


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod as the signal sees it. `state` is that of the last scrape that went well, None before the first."""

    name: str
    created_seconds: float
    ready: bool
    deleting: bool
    state: EngineState | None
    in_flight: int
    """Requests that the gateway knows to be in it, now."""


@dataclass(frozen=True, slots=True)
class FleetView:
    """What a signal may look at."""

    now_seconds: float
    spec_replicas: int
    pods: Sequence[PodView]
    plan: FleetPlan
    latencies: Sequence[tuple[float, float, float | None]]
    """(when it finished, TTFT, TPOT) of requests that finished within the last minutes, in order."""
    gateway_requests: int
    """Requests that wait at the gateway because no pod is ready."""


class Signal(Protocol):
    """Decides how many replicas there should be."""

    name: str
    scrape_seconds: float
    """How often it wants to look."""
    emptiest_first: bool
    """Whether it sees to it that scale-in takes the emptiest pod."""

    def observe(self, view: FleetView) -> None:
        """One look at the fleet, for what needs a past."""

    def replicas(self, view: FleetView) -> int:
        """Replicas wanted, asked every 15 s: the whole of the autoscaler's work, its own limits included."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at one moment, for a plot."""

    seconds: float
    arrived: int
    ready: int
    replicas: int
    running: int
    waiting: int
    kv_ratio: float


@dataclass(frozen=True, slots=True)
class FleetResult:
    """How it went, from the end of the warm-up to the end of the load."""

    signal: str
    seed: int
    requests: int
    attainment_ratio: float
    ttft_attainment_ratio: float
    tpot_attainment_ratio: float
    mean_replicas: float
    gpu_hours: float
    preempted_per_1000: float
    changes_per_hour: float
    flips_per_hour: float
    ttft_p99_seconds: float
    samples: tuple[Sample, ...] = field(default=(), repr=False)


class UnservedError(Exception):
    """Requests are left long after the end of the load. The message is one line."""


class _Pod:
    __slots__ = ("created", "deleting", "engine", "gone", "last_finish", "name", "ready", "ready_at", "seen", "version")

    def __init__(
        self,
        name: str,
        spec: EngineSpec,
        created: float,
        ready_at: float,
        on_finish: Callable[[FinishedRequest], None],
    ) -> None:
        def finish(done: FinishedRequest) -> None:
            self.last_finish = done.finished_seconds
            on_finish(done)

        self.name = name
        self.engine = PagedEngine(spec, finish)
        self.last_finish = created
        self.created = created
        self.ready_at = ready_at
        self.ready = False
        self.deleting = False
        self.gone: float | None = None
        self.seen: EngineState | None = None
        self.version = 0


def _in_flight(pod: "_Pod") -> int:
    return pod.engine.in_flight_requests


class Fleet:
    """Runs one load under one signal. Deterministic: the same plan, load and signal give the same result."""

    def __init__(
        self,
        plan: FleetPlan,
        signal: Signal,
        *,
        scrape: Callable[[str, float], bool] = lambda _name, _now: True,
        keep_samples: bool = False,
    ) -> None:
        """`scrape` says whether a pod's page can be read at that time."""
        self._plan = plan
        self._signal = signal
        self._scrape = scrape
        self._keep_samples = keep_samples
        self._random = random.Random(plan.seed)  # noqa: S311 - repeatable, not secret
        self._pods: list[_Pod] = []
        self._all: list[_Pod] = []
        self._replicas = 0
        self._entries = 0
        # Of each finished request: when it came, TTFT, TPOT, preemptions.
        self._finished: list[tuple[float, float, float | None, int]] = []
        self._latencies: deque[tuple[float, float, float | None]] = deque()
        self._gateway: deque[Request] = deque()
        self._held: dict[int, float] = {}
        self._due: list[tuple[float, int, int, _Pod]] = []
        self._changes: list[tuple[float, int]] = []
        self._samples: list[Sample] = []
        self._arrived = 0

    def run(
        self,
        requests: Iterable[Request],
        duration_seconds: float,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> FleetResult:
        """Serves the requests, in order of arrival; those after `duration_seconds` are left out. The autoscaler works
        until then, and the requests that are left are served to their end. `on_progress` is told the time at each of
        the autoscaler's syncs. Raises UnservedError when requests are left a day later."""
        for _ in range(self._plan.initial_replicas):
            self._start(0.0, ready_at=0.0)
        self._replicas = self._plan.initial_replicas
        self._become_ready(0.0)
        feed = iter(requests)
        upcoming = next(feed, None)
        next_sync, next_look = _SYNC_SECONDS, self._signal.scrape_seconds
        now = 0.0
        while now < duration_seconds:
            ready_at = min((pod.ready_at for pod in self._pods if not pod.ready), default=math.inf)
            event = min(next_sync, next_look, ready_at, duration_seconds)
            while upcoming is not None and upcoming.arrival_seconds < event:
                self._route(upcoming, upcoming.arrival_seconds)
                upcoming = next(feed, None)
            now = event
            self._become_ready(now)
            if now >= next_look:
                self._look(now)
                next_look += self._signal.scrape_seconds
            if now >= next_sync:
                self._sync(now)
                next_sync += _SYNC_SECONDS
                on_progress(now)
        self._drain(now)
        return self._result(duration_seconds)

    def _start(self, now: float, ready_at: float | None = None) -> None:
        spread = self._random.uniform(1 - _START_UP_SPREAD, 1 + _START_UP_SPREAD)
        pod_ready = now + self._plan.start_up_seconds * spread if ready_at is None else ready_at
        pod = _Pod(f"pod-{len(self._all) + 1}", self._plan.spec, now, pod_ready, self._finish)
        self._pods.append(pod)
        self._all.append(pod)

    def _become_ready(self, now: float) -> None:
        for pod in self._pods:
            if not pod.ready and pod.ready_at <= now:
                pod.engine.advance(now)
                pod.ready = True
        while self._gateway and any(pod.ready for pod in self._pods):
            held = self._gateway.popleft()
            late = replace(held, arrival_seconds=now)
            self._held[id(late)] = held.arrival_seconds
            self._hand_over(late, now)

    def _route(self, request: Request, now: float) -> None:
        self._arrived += 1
        if any(pod.ready for pod in self._pods):
            self._hand_over(request, now)
        else:
            self._gateway.append(request)

    def _hand_over(self, request: Request, now: float) -> None:
        due = self._due
        while due and due[0][0] < now:
            _, _, version, pod = heapq.heappop(due)
            if version == pod.version and pod.gone is None:
                self._advance(pod, now)
        best = min([pod for pod in self._pods if pod.ready], key=_in_flight)
        best.engine.advance(now)
        best.engine.submit(request)
        self._schedule(best)

    def _advance(self, pod: _Pod, now: float) -> None:
        pod.engine.advance(now)
        self._schedule(pod)

    def _schedule(self, pod: _Pod) -> None:
        pod.version += 1
        self._entries += 1
        finish = pod.engine.next_finish_seconds()
        if finish < math.inf:
            heapq.heappush(self._due, (finish, self._entries, pod.version, pod))

    def _finish(self, done: FinishedRequest) -> None:
        arrival = self._held.pop(id(done.request), done.request.arrival_seconds)
        ttft = done.first_token_seconds - arrival
        self._finished.append((arrival, ttft, done.tpot_seconds, done.preemptions))
        self._latencies.append((done.finished_seconds, ttft, done.tpot_seconds))

    def _bring_up_to(self, now: float) -> None:
        for pod in self._all:
            if pod.gone is None and (pod.ready or pod.deleting):
                self._advance(pod, now)
                if pod.deleting and pod.engine.in_flight_requests == 0:
                    pod.gone = pod.last_finish

    def _look(self, now: float) -> None:
        self._bring_up_to(now)
        for pod in self._pods:
            if pod.ready and self._scrape(pod.name, now):
                pod.seen = pod.engine.state()
        while self._latencies and self._latencies[0][0] < now - 300:
            self._latencies.popleft()
        if self._keep_samples:
            self._sample(now)
        self._signal.observe(self._view(now))

    def _view(self, now: float) -> FleetView:
        views = [
            PodView(pod.name, pod.created, pod.ready, pod.deleting, pod.seen, pod.engine.in_flight_requests)
            for pod in self._all
            if pod.gone is None
        ]
        return FleetView(now, self._replicas, views, self._plan, self._latencies, len(self._gateway))

    def _sync(self, now: float) -> None:
        self._bring_up_to(now)
        wanted = self._signal.replicas(self._view(now))
        wanted = max(self._plan.min_replicas, min(wanted, self._plan.max_replicas))
        if wanted == self._replicas:
            return
        self._changes.append((now, wanted - self._replicas))
        for _ in range(wanted - self._replicas):
            self._start(now)
        if wanted < self._replicas:
            for pod in self._victims(self._replicas - wanted):
                self._pods.remove(pod)
                pod.deleting = True
                if not pod.ready or pod.engine.in_flight_requests == 0:
                    pod.gone = now
        self._replicas = wanted

    def _victims(self, count: int) -> list[_Pod]:
        def order(pod: _Pod) -> tuple[bool, float, float]:
            load = float(pod.engine.in_flight_requests) if self._signal.emptiest_first else 0.0
            return pod.ready, load, -pod.ready_at

        return sorted(self._pods, key=order)[:count]

    def _drain(self, now: float) -> None:
        """Serves what is left, long past the end of the load."""
        end = now
        while any(pod.gone is None and pod.engine.in_flight_requests for pod in self._all) or self._gateway:
            end = min([end + 60, *(pod.ready_at for pod in self._pods if not pod.ready)])
            self._become_ready(end)
            self._bring_up_to(end)
            if end > now + 86_400:
                left = len(self._gateway) + sum(pod.engine.in_flight_requests for pod in self._all if pod.gone is None)
                raise UnservedError(f"{left} requests are left unserved a day after the end of the load")

    def _sample(self, now: float) -> None:
        states = [pod.seen for pod in self._pods if pod.seen is not None]
        used = sum(state.used_blocks for state in states)
        usable = self._plan.spec.usable_blocks * max(len(states), 1)
        self._samples.append(
            Sample(
                now,
                self._arrived,
                sum(pod.ready for pod in self._pods),
                self._replicas,
                sum(state.running for state in states),
                sum(state.waiting for state in states) + len(self._gateway),
                used / usable,
            )
        )

    def _result(self, duration: float) -> FleetResult:
        plan = self._plan
        begin = min(plan.warm_up_seconds, duration)
        hours = max(duration - begin, 1e-9) / 3600
        judged = [row for row in self._finished if row[0] >= begin]
        ttft_met = [ttft <= plan.slo_ttft_seconds for _, ttft, _, _ in judged]
        tpot_met = [tpot is None or tpot <= plan.slo_tpot_seconds for _, _, tpot, _ in judged]
        pod_seconds = sum(
            max(min(duration, math.inf if pod.gone is None else pod.gone) - max(pod.created, begin), 0.0)
            for pod in self._all
        )
        changes = [change for when, change in self._changes if when >= begin]
        flips = sum((before > 0) != (after > 0) for before, after in itertools.pairwise(changes))
        count = max(len(judged), 1)
        ttfts = sorted(row[1] for row in judged)
        return FleetResult(
            signal=self._signal.name,
            seed=plan.seed,
            requests=len(judged),
            attainment_ratio=sum(map(all, zip(ttft_met, tpot_met, strict=True))) / count,
            ttft_attainment_ratio=sum(ttft_met) / count,
            tpot_attainment_ratio=sum(tpot_met) / count,
            mean_replicas=pod_seconds / 3600 / hours,
            gpu_hours=pod_seconds / 3600,
            preempted_per_1000=1000 * sum(row[3] > 0 for row in judged) / count,
            changes_per_hour=len(changes) / hours,
            flips_per_hour=flips / hours,
            ttft_p99_seconds=ttfts[min(int(0.99 * len(ttfts)), len(ttfts) - 1)] if ttfts else 0.0,
            samples=tuple(self._samples),
        )
