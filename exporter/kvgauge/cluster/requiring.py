"""How many pods each workload needs: the fleet rule of `advise`, on what the sidecars say, round and round.

A pod whose advice is not valid is as silent as one that does not answer: it counts as full, and nothing is shed
meanwhile. Where nothing was seen yet, after a restart for instance, the rule keeps what there is.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kvgauge.advise.fleet import Wish, advise_fleet
from kvgauge.advise.fleet_history import FleetHistory, PodReport, report_of
from kvgauge.cluster.records import PodState, Required, Workload, WorkloadKey
from kvgauge.cluster.store import Store
from kvgauge.logs import logger

LOOK_SECONDS = 5.0
"""Between two looks at a workload."""


@dataclass(slots=True)
class _Fleet:
    """What is kept of one workload."""

    history: FleetHistory = field(default_factory=FleetHistory)
    wishes: tuple[Wish, ...] = ()
    told: dict[str, float] = field(default_factory=dict)
    """When each pod, by uid, last gave valid advice."""


class Requirer:
    """Keeps `Required` of every workload that has pods with a sidecar."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._fleets: dict[WorkloadKey, _Fleet] = {}

    async def run(self) -> None:
        """Looks at all workloads every LOOK_SECONDS, or as often as it can, until cancelled."""
        while True:
            began = self._clock()
            await self.look()
            await asyncio.sleep(max(began + LOOK_SECONDS - self._clock(), 0.1))

    async def look(self) -> None:
        """One round. The arithmetic runs in a thread, so that nobody waits for it."""
        pods: dict[WorkloadKey, list[PodState]] = defaultdict(list)
        for state in self._store.pods():
            if state.pod.workload is not None and not state.pod.deleting:
                pods[state.pod.workload].append(state)
        known = {workload.key: workload for workload in self._store.workloads()}
        for gone in self._fleets.keys() - known.keys():
            del self._fleets[gone]
        for key in known.keys() & (pods.keys() | self._fleets.keys()):
            fleet = self._fleets.setdefault(key, _Fleet())
            reports = [_report(state, fleet) for state in pods[key]]
            fleet.told = {
                state.pod.uid: fleet.told[state.pod.uid] for state in pods[key] if state.pod.uid in fleet.told
            }
            now_seconds, wall_seconds = self._clock(), time.time()
            try:
                required = await asyncio.to_thread(_look, fleet, known[key], reports, now_seconds, wall_seconds)
            except Exception:
                # Its last answer goes stale by itself, which is what everybody should see.
                logger.exception("the fleet rule failed for a workload")
                continue
            self._store.put_required(required)


def _report(state: PodState, fleet: _Fleet) -> PodReport:
    pod, reading = state.pod, state.reading
    # Names come again, as those of a StatefulSet's pods do; uids do not.
    if reading is None:
        return PodReport(pod.uid, pod.ready, None)
    if not reading.valid:
        return PodReport(pod.uid, pod.ready, fleet.told.get(pod.uid))
    fleet.told[pod.uid] = reading.read_seconds
    return report_of(pod.uid, pod.ready, reading.read_seconds, reading)


def _look(
    fleet: _Fleet, workload: Workload, reports: list[PodReport], now_seconds: float, wall_seconds: float
) -> Required:
    fleet.history.remember(reports, now_seconds)
    required = _required(fleet, workload, reports, now_seconds, wall_seconds)
    return replace(required, start_up_seconds=fleet.history.start_up_seconds)


def _required(
    fleet: _Fleet, workload: Workload, reports: list[PodReport], now_seconds: float, wall_seconds: float
) -> Required:
    if workload.spec_replicas == 0:
        why = "It is scaled to zero: no pod is there to tell of demand, so waking it is another's part."
        return Required(workload, 0, wall_seconds, now_seconds, {}, (why,))
    if not any(report.read_seconds is not None for report in reports) and not fleet.wishes:
        return Required(workload, None, wall_seconds, now_seconds, {}, ("None of its pods was ever heard.",))
    facts = fleet.history.facts(reports, workload.spec_replicas, now_seconds)
    advice = advise_fleet(facts, fleet.wishes)
    fleet.wishes = advice.wishes
    return Required(workload, advice.replicas, wall_seconds, now_seconds, advice.terms, advice.explanation)
