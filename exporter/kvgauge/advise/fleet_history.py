"""What was seen of a workload's pods, as much of it as the fleet rule needs."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kvgauge.advise.arrivals import BIN_SECONDS
from kvgauge.advise.demand import Demand
from kvgauge.advise.fleet import WINDOW_SECONDS, FleetFacts
from kvgauge.advise.pooling import pooled
from kvgauge.advise.served import Served

SILENT_SECONDS = 15.0
"""A ready pod that has told nothing for so long is silent."""
USUAL_START_UP_SECONDS = 120.0
_POOL_SECONDS = 60.0
_YOUNG_REQUESTS = 100
"""As long as fewer have finished, their lengths are looked at anew each time."""
_MOST_MADE_UP = 4.0
"""So many times as much as was told is believed to have come, at most: little that was told says little."""


@dataclass(frozen=True, slots=True)
class PodReport:
    """What one pod told last. Times are on the caller's clock."""

    name: str
    ready: bool
    read_seconds: float | None
    """When it told; None: never so far."""
    demand: Demand | None = None
    arrived_total: float | None = None
    """Requests that ever came to it."""
    judged_total: float | None = None
    """Requests that finished and whose time per output token is known."""
    slow_total: float | None = None
    """Those of them that took longer for it than promised."""
    waiting: int = 0
    load_ratio: float | None = None


class Told(Protocol):
    """What a sidecar told, wherever it is kept."""

    @property
    def demand(self) -> Demand | None: ...
    @property
    def served(self) -> Served | None: ...
    @property
    def waiting(self) -> int | None: ...
    @property
    def load_ratio(self) -> float | None: ...


def report_of(name: str, ready: bool, read_seconds: float | None, told: Told) -> PodReport:
    """The report of a pod whose sidecar told that, at `read_seconds`."""
    served = told.served
    return PodReport(
        name,
        ready,
        read_seconds,
        demand=told.demand,
        arrived_total=served.arrived_total if served is not None else None,
        judged_total=served.judged_total if served is not None else None,
        slow_total=served.slow_total if served is not None else None,
        waiting=told.waiting or 0,
        load_ratio=told.load_ratio,
    )


@dataclass(slots=True)
class _Pod:
    """What is remembered of a pod. Not a number: that reading is still to come, and begins what is counted."""

    first_seconds: float
    new: bool
    """Whether its beginning was seen: it came after the first look, and was not ready then."""
    ready_seconds: float
    """Since when it is ready; infinite before."""
    read_seconds: float = math.nan
    arrived: float = math.nan
    judged: float = math.nan
    slow: float = math.nan


class FleetHistory:
    """Remembers the arrivals of one workload in bins, how long its pods take to start, and their mean demand."""

    def __init__(self) -> None:
        self._pods: dict[str, _Pod] = {}
        self._bins: deque[float] = deque()
        # Beside each bin: pods that were ready, requests that were judged in it, and those of them that were slow.
        self._ready: deque[int] = deque()
        self._judged: deque[float] = deque()
        self._slow: deque[float] = deque()
        self._newest = 0
        """Number of the newest bin, counted from the clock's zero."""
        self._begun = False
        self._start_ups: deque[float] = deque(maxlen=8)
        self._demand: Demand | None = None
        self._pooled_seconds = -math.inf
        self._replicas: int | None = None
        self._grown_seconds = -math.inf

    def remember(self, pods: Sequence[PodReport], now_seconds: float) -> None:
        """One look at the pods. Arrivals count from a pod's first reading on, or from its start where that was seen."""
        self._reach(now_seconds)
        for pod in pods:
            self._remember_pod(pod, now_seconds)
        self._begun = True
        self._ready[-1] = sum(pod.ready for pod in pods)
        gone = self._pods.keys() - {pod.name for pod in pods}
        for name in gone:
            del self._pods[name]
        young = self._demand is None or self._demand.finished < _YOUNG_REQUESTS
        if young or now_seconds - self._pooled_seconds >= _POOL_SECONDS:
            self._demand = pooled([pod.demand for pod in pods if pod.demand is not None]) or self._demand
            self._pooled_seconds = now_seconds

    @property
    def start_up_seconds(self) -> float | None:
        """The longest of the last starts seen, from a pod's coming to its being ready; None before one was."""
        return max(self._start_ups, default=None)

    def facts(self, pods: Sequence[PodReport], replicas: int, now_seconds: float) -> FleetFacts:
        """The workload now, with `replicas` pods asked for at present."""
        if self._replicas is not None and replicas > self._replicas:
            self._grown_seconds = now_seconds
        self._replicas = replicas
        ready = [pod for pod in pods if pod.ready]
        silent = [pod for pod in ready if pod.read_seconds is None or now_seconds - pod.read_seconds > SILENT_SECONDS]
        telling = len(ready) - len(silent)
        # A router gives a silent pod as much as the others.
        share = len(ready) / telling if telling else 1.0
        bins = self._whole_bins(now_seconds)
        made_up = self._made_up(ready, now_seconds)
        loads = [
            pod.load_ratio
            for pod in ready
            if pod not in silent and pod.load_ratio is not None and math.isfinite(pod.load_ratio)
        ]
        return FleetFacts(
            seconds=now_seconds,
            replicas=replicas,
            starting=max(replicas - len(ready), 0),
            silent=len(silent),
            waiting=sum(pod.waiting for pod in ready if pod not in silent),
            demand=self._demand,
            counts=[count * scale for count, scale in zip(bins, made_up, strict=False)],
            ready=list(self._ready)[: len(bins)],
            judged=math.fsum(count * scale for count, scale in zip(self._judged, made_up, strict=True)),
            slow=math.fsum(count * scale for count, scale in zip(self._slow, made_up, strict=True)),
            start_up_seconds=USUAL_START_UP_SECONDS if self.start_up_seconds is None else self.start_up_seconds,
            since_growth_seconds=now_seconds - self._grown_seconds,
            load_ratio=math.fsum(loads) * share if loads else None,
        )

    def _whole_bins(self, now_seconds: float) -> list[float]:
        """The bins that are over."""
        bins = list(self._bins)
        return bins if now_seconds >= (self._newest + 1) * BIN_SECONDS else bins[:-1]

    def _made_up(self, ready: Sequence[PodReport], now_seconds: float) -> list[float]:
        """By what to multiply each bin's counts so that those pods are in it that have not told of that time yet. Only
        the time since their last reading: before it they have told."""
        scales = [1.0] * len(self._bins)
        known = [self._told_until(pod, now_seconds) for pod in ready]
        first = self._newest - len(self._bins) + 1
        for place in range(max(int(min(known, default=now_seconds) // BIN_SECONDS) - first, 0), len(self._bins)):
            end = min((first + place + 1) * BIN_SECONDS, now_seconds)
            seconds = end - (first + place) * BIN_SECONDS
            untold = math.fsum(min(max(end - told, 0.0) / seconds, 1.0) for told in known) if seconds > 0 else 0.0
            pods = self._ready[place]
            scales[place] = min(pods / max(pods - untold, 1e-9), _MOST_MADE_UP) if 0 < untold <= pods else 1.0
        return scales

    def _told_until(self, pod: PodReport, now_seconds: float) -> float:
        """Up to when a ready pod's arrivals are known: to its last reading, or to when it began to get any."""
        known = self._pods.get(pod.name)
        if known is None:
            return now_seconds
        return max(known.ready_seconds if pod.read_seconds is None else pod.read_seconds, known.ready_seconds)

    def _remember_pod(self, pod: PodReport, now_seconds: float) -> None:
        known = self._pods.get(pod.name)
        if known is None:
            new = self._begun and not pod.ready
            known = self._pods[pod.name] = _Pod(now_seconds, new, now_seconds if pod.ready else math.inf)
        elif pod.ready and math.isinf(known.ready_seconds):
            known.ready_seconds = now_seconds
            if known.new:
                self._start_ups.append(now_seconds - known.first_seconds)
                known.arrived = known.judged = known.slow = 0.0
                known.read_seconds = now_seconds - BIN_SECONDS
        # A reading that was overtaken by a later one says nothing new.
        if pod.read_seconds is None or pod.read_seconds <= known.read_seconds:
            return
        if pod.arrived_total is not None:
            # A total that fell begins anew: how much of it came since, its new beginning does not tell.
            if pod.arrived_total > known.arrived:
                self._count(pod.arrived_total - known.arrived, known.read_seconds, pod.read_seconds)
            known.read_seconds, known.arrived = pod.read_seconds, pod.arrived_total
        judged, slow = pod.judged_total, pod.slow_total
        if judged is not None and slow is not None:
            if judged > known.judged:
                self._judged[-1] += judged - known.judged
                self._slow[-1] += min(max(slow - known.slow, 0.0), judged - known.judged)
            known.judged, known.slow = judged, slow

    def _count(self, arrivals: float, begin_seconds: float, end_seconds: float) -> None:
        """Spreads arrivals evenly over the bins of a stretch of time."""
        whole = end_seconds - begin_seconds
        if arrivals <= 0 or whole <= 0:
            return
        # A reading at the very end of a bin is of that bin.
        for number in range(int(begin_seconds // BIN_SECONDS), math.ceil(end_seconds / BIN_SECONDS)):
            begin, end = max(number * BIN_SECONDS, begin_seconds), min((number + 1) * BIN_SECONDS, end_seconds)
            place = len(self._bins) - 1 - (self._newest - number)
            if 0 <= place < len(self._bins):
                self._bins[place] += arrivals * (end - begin) / whole

    def _reach(self, now_seconds: float) -> None:
        """Bins that have begun by now; the last one is whole at its end."""
        number = math.ceil(now_seconds / BIN_SECONDS) - 1
        if not self._bins:
            self._newest = number - 1
        while self._newest < number:
            self._newest += 1
            self._bins.append(0.0)
            self._judged.append(0.0)
            self._slow.append(0.0)
            self._ready.append(self._ready[-1] if self._ready else 0)
        while len(self._bins) > WINDOW_SECONDS / BIN_SECONDS:
            for each in (self._bins, self._judged, self._slow, self._ready):
                each.popleft()
