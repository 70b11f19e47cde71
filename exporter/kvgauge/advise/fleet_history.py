"""What was seen of a workload's pods, as much of it as the fleet rule needs."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from kvgauge.advise.arrivals import BIN_SECONDS
from kvgauge.advise.demand import Demand
from kvgauge.advise.fleet import WINDOW_SECONDS, FleetFacts
from kvgauge.advise.pooling import pooled

SILENT_SECONDS = 15.0
"""A ready pod that has told nothing for so long is silent."""
USUAL_START_UP_SECONDS = 120.0
_POOL_SECONDS = 60.0
_LATE_SECONDS = 60.0
"""Arrivals that come to light after a gap in the readings are spread over it, as far back as this."""


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


@dataclass(slots=True)
class _Pod:
    first_seconds: float
    was_ready: bool
    read_seconds: float
    arrived: float
    judged: float = 0.0
    slow: float = 0.0


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
        self._start_ups: deque[float] = deque(maxlen=8)
        self._demand: Demand | None = None
        self._pooled_seconds = -math.inf

    def remember(self, pods: Sequence[PodReport], now_seconds: float) -> None:
        """One look at the pods. Arrivals count from a pod's first reading on, or from its start where that was seen."""
        self._reach(now_seconds)
        for pod in pods:
            self._remember_pod(pod, now_seconds)
        self._ready[-1] = sum(pod.ready for pod in pods)
        gone = self._pods.keys() - {pod.name for pod in pods}
        for name in gone:
            del self._pods[name]
        if now_seconds - self._pooled_seconds >= _POOL_SECONDS or self._demand is None:
            self._demand = pooled([pod.demand for pod in pods if pod.demand is not None]) or self._demand
            self._pooled_seconds = now_seconds

    def facts(self, pods: Sequence[PodReport], replicas: int, now_seconds: float) -> FleetFacts:
        """The workload now, with `replicas` pods asked for at present."""
        ready = [pod for pod in pods if pod.ready]
        silent = [pod for pod in ready if pod.read_seconds is None or now_seconds - pod.read_seconds > SILENT_SECONDS]
        telling = len(ready) - len(silent)
        # A router gives a silent pod as much as the others.
        share = len(ready) / telling if telling else 1.0
        bins = self._whole_bins(now_seconds)
        loads = [pod.load_ratio for pod in ready if pod.load_ratio is not None and pod not in silent]
        return FleetFacts(
            seconds=now_seconds,
            replicas=replicas,
            starting=max(replicas - len(ready), 0),
            silent=len(silent),
            waiting=sum(pod.waiting for pod in ready if pod not in silent),
            demand=self._demand,
            counts=[count * share for count in bins],
            ready=list(self._ready)[: len(bins)],
            judged=math.fsum(self._judged),
            slow=math.fsum(self._slow),
            start_up_seconds=max(self._start_ups, default=USUAL_START_UP_SECONDS),
            load_ratio=math.fsum(loads) * share if loads else None,
        )

    def _whole_bins(self, now_seconds: float) -> list[float]:
        """The bins that are over."""
        bins = list(self._bins)
        return bins if now_seconds >= (self._newest + 1) * BIN_SECONDS else bins[:-1]

    def _remember_pod(self, pod: PodReport, now_seconds: float) -> None:
        known = self._pods.get(pod.name)
        if known is None:
            known = self._pods[pod.name] = _Pod(now_seconds, pod.ready, math.nan, math.nan)
        elif pod.ready and not known.was_ready:
            known.was_ready, known.arrived, known.read_seconds = True, 0.0, now_seconds - BIN_SECONDS
            self._start_ups.append(now_seconds - known.first_seconds)
        arrived = pod.arrived_total
        if arrived is None or pod.read_seconds is None or pod.read_seconds == known.read_seconds:
            return
        if not math.isnan(known.arrived):
            # A total that fell is that of an engine that has started anew.
            new = arrived - known.arrived if arrived >= known.arrived else arrived
            self._count(new, max(known.read_seconds, pod.read_seconds - _LATE_SECONDS), pod.read_seconds)
        known.read_seconds, known.arrived = pod.read_seconds, arrived
        judged, slow = pod.judged_total, pod.slow_total
        if judged is not None and slow is not None:
            if judged >= known.judged:
                self._judged[-1] += judged - known.judged
                self._slow[-1] += max(slow - known.slow, 0.0)
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
