"""An Event on a pod when KV pressure begins there and another when it ends.

New Events are written, no series: a pod has at most one pair in five minutes, and each has figures of its own.
"""

import asyncio
import math
import time
from dataclasses import dataclass, field

from kubernetes.aio.client import ApiClient, EventsV1Api, EventsV1Event, V1ObjectMeta, V1ObjectReference

from kvgauge.cluster.leading import Leading, own_name
from kvgauge.cluster.pressure import Bounds, Pressure, judge, tell
from kvgauge.cluster.records import Pod, PodState, Reading, is_fresh
from kvgauge.cluster.store import Store
from kvgauge.cluster.writing import TROUBLE, WRITE_SECONDS, Budget, Clock, Refusals, in_a_word, micro_time, status_of
from kvgauge.logs import logger

BEGUN = "KVPressure"
ENDED = "KVPressureEnded"
CONTROLLER = "kvgauge.dev/aggregator"

_NO_SUCH_NAMESPACE = 404
_MAX_NAME = 253
_MAX_INSTANCE = 128


@dataclass(frozen=True, slots=True)
class Rate:
    """How often; in seconds unless the name says otherwise."""

    interval_seconds: float = 2.0
    pod_seconds: float = 300.0
    """Least time between two beginnings that are told of one pod. An end is told if its beginning was."""
    events_per_second: float = 0.5
    """Of the whole cluster, in the long run."""
    burst: int = 20
    pause_seconds: float = 10.0
    """After a write that failed."""


@dataclass(slots=True)
class _Watched:
    pressure: Pressure = field(default_factory=Pressure)
    told_on: bool = False
    began_seconds: float | None = None
    """When the pressure began whose beginning was told."""
    told_seconds: float = -math.inf
    """When a beginning was told last."""


class PressureTeller:
    """Watches all pods, and tells while this replica leads.

    A replica that does not lead watches too and takes for told what it sees, since the leader tells it. So one that
    becomes the leader goes on where the other stopped; what changes while none leads is not told.
    """

    def __init__(
        self,
        client: ApiClient,
        store: Store,
        leadership: Leading,
        bounds: Bounds | None = None,
        rate: Rate | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._api = EventsV1Api(client)
        self._store = store
        self._leadership = leadership
        self._bounds = bounds or Bounds()
        self._rate = rate or Rate()
        self._clock = clock
        self._budget = Budget(self._rate.events_per_second, self._rate.burst, clock)
        self._refusals = Refusals("events", clock=clock)
        self._instance = own_name()[:_MAX_INSTANCE]
        self._watched: dict[str, _Watched] = {}
        self._quiet_until = -math.inf
        self._troubled = False

    async def look(self) -> int:
        """Looks once at all pods; the number of Events written."""
        now = self._clock()
        states = [state for state in self._store.pods() if not state.pod.deleting]
        self._watched = {state.pod.uid: self._judged(state, now) for state in states}
        if not self._leadership.is_leader:
            for watched in self._watched.values():
                watched.told_on, watched.began_seconds = watched.pressure.on, watched.pressure.since_seconds
            return 0
        return 0 if now < self._quiet_until else await self._tell_all(states, now)

    def _judged(self, state: PodState, now: float) -> _Watched:
        watched = self._watched.get(state.pod.uid) or _Watched()
        watched.pressure = judge(watched.pressure, state.reading, self._bounds, now)
        return watched

    async def _tell_all(self, states: list[PodState], now: float) -> int:
        due = [state for state in states if self._is_due(state, now)]
        due.sort(key=lambda state: self._watched[state.pod.uid].pressure.since_seconds or now)
        count = 0
        for state in due:
            if state.reading is None or not self._leadership.is_leader or not self._budget.take():
                break
            outcome = await self._tell(state.pod, state.reading, self._watched[state.pod.uid])
            if outcome is None:
                break
            count += outcome
        return count

    def _is_due(self, state: PodState, now: float) -> bool:
        """A pod that is silent, or says the opposite by now, has no figures that fit. Pressure that is over before it
        may be told is not told."""
        watched = self._watched[state.pod.uid]
        if watched.pressure.turning_seconds is not None:
            return False
        if watched.pressure.on == watched.told_on or not is_fresh(state.reading, now, self._bounds.stale_seconds):
            return False
        if self._refusals.forbids(state.pod.key.namespace):
            return False
        return not watched.pressure.on or now - watched.told_seconds >= self._rate.pod_seconds

    async def _tell(self, pod: Pod, reading: Reading, watched: _Watched) -> bool | None:
        """Whether an Event was written; None: no more for now."""
        pressure = watched.pressure
        lasted = None
        if not pressure.on and pressure.since_seconds is not None and watched.began_seconds is not None:
            lasted = pressure.since_seconds - watched.began_seconds
        written = True
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                event = _event(pod, pressure.on, tell(pressure, reading, lasted), self._instance)
                await self._api.create_namespaced_event(pod.key.namespace, event, field_manager="kvgauge")
        except TROUBLE as error:
            if self._refusals.note(pod.key.namespace, error):
                return False
            if status_of(error) != _NO_SUCH_NAMESPACE:
                self._pause(error)
                return None
            written = False
        self._troubled = False
        watched.told_on = pressure.on
        if pressure.on:
            watched.began_seconds, watched.told_seconds = pressure.since_seconds, self._clock()
        return written

    def _pause(self, error: Exception) -> None:
        if not self._troubled:
            logger.warning("events: not written (%s); tried again", in_a_word(error))
        self._troubled = True
        self._quiet_until = self._clock() + self._rate.pause_seconds


async def tell_pressure(
    client: ApiClient,
    store: Store,
    leadership: Leading,
    bounds: Bounds | None = None,
    rate: Rate | None = None,
    clock: Clock = time.monotonic,
) -> None:
    """Until it is cancelled."""
    rate = rate or Rate()
    teller = PressureTeller(client, store, leadership, bounds, rate, clock)
    while True:
        await teller.look()
        await asyncio.sleep(rate.interval_seconds)


def _event(pod: Pod, on: bool, message: str, instance: str) -> EventsV1Event:
    now = micro_time()
    suffix = f".{time.time_ns():x}"
    return EventsV1Event(
        metadata=V1ObjectMeta(
            name=pod.key.name[: _MAX_NAME - len(suffix)].rstrip("-.") + suffix, namespace=pod.key.namespace
        ),
        event_time=now,
        type="Warning" if on else "Normal",
        reason=BEGUN if on else ENDED,
        action="Watching",
        note=message,
        regarding=V1ObjectReference(
            kind="Pod", api_version="v1", namespace=pod.key.namespace, name=pod.key.name, uid=pod.uid
        ),
        reporting_controller=CONTROLLER,
        reporting_instance=instance,
    )
