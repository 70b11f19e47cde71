"""What the fleet page remembers: since when a workload stands as it does, and the load of the past quarter of an hour.

Nothing scales by it, and a restart forgets it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from kvgauge.cluster.fleet import Fleet, Now, Owner
from kvgauge.cluster.fleet_records import FleetPoint, Standing

LOOK_SECONDS = 10.0
PAST_SECONDS = 900.0
MOST_REMEMBERED = 500
"""Workloads whose load is kept; of more only since when they stand as they do."""


def _points() -> deque[FleetPoint]:
    return deque(maxlen=int(PAST_SECONDS / LOOK_SECONDS))


@dataclass(slots=True)
class _Seen:
    """What is kept of one workload, or of all."""

    standing: Standing
    since_seconds: float
    points: deque[FleetPoint] = field(default_factory=_points)


class FleetPast:
    """Looks at the fleet every LOOK_SECONDS, from when `ready` on. Of a workload it knows by its owner; by None all."""

    def __init__(
        self, fleet: Fleet, *, ready: Callable[[], bool] = lambda: True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fleet = fleet
        self._ready = ready
        self._clock = clock
        self._seen: dict[Owner | None, _Seen] = {}
        self._began_seconds: float | None = None

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            if self._ready():
                self.remember(await self._fleet.soon())
            await asyncio.sleep(LOOK_SECONDS)

    def remember(self, now: Now) -> None:
        """One look at the fleet."""
        now_seconds = self._clock()
        if self._began_seconds is None:
            self._began_seconds = now_seconds
        self._remember(None, now.standing(), now_seconds, _point_of_all(now))
        for owner, figures in now.workloads.items():
            self._remember(owner, figures.standing, now_seconds, _point_of(now, owner))
        for gone in self._seen.keys() - now.workloads.keys() - {None}:
            del self._seen[gone]

    def watched_seconds(self) -> float | None:
        """For how long there were looks; None before the first."""
        return None if self._began_seconds is None else round(self._clock() - self._began_seconds, 1)

    def standing_seconds(self, owner: Owner | None, standing: Standing) -> float | None:
        """For how long it stands so, as far as it was seen; None before the first look at it."""
        seen = self._seen.get(owner)
        if seen is None:
            return None
        return round(self._clock() - seen.since_seconds, 1) if seen.standing == standing else 0.0

    def points(self, owner: Owner | None) -> list[FleetPoint]:
        """Oldest first."""
        seen = self._seen.get(owner)
        return [] if seen is None else list(seen.points)

    def _remember(self, owner: Owner | None, standing: Standing, now_seconds: float, point: FleetPoint) -> None:
        seen = self._seen.get(owner)
        if seen is None:
            seen = self._seen[owner] = _Seen(standing, now_seconds)
        if seen.standing != standing:
            seen.standing, seen.since_seconds = standing, now_seconds
        if owner is None or len(self._seen) <= MOST_REMEMBERED + 1:
            seen.points.append(point)


def _point_of_all(now: Now) -> FleetPoint:
    totals = now.totals()
    return FleetPoint(
        wall_seconds=now.wall_seconds,
        load_ratio_sum=totals.load_ratio_sum,
        pods_telling=totals.pods["telling"],
        pods_silent=totals.pods["silent"],
    )


def _point_of(now: Now, owner: Owner) -> FleetPoint:
    figures = now.workloads[owner]
    return FleetPoint(
        wall_seconds=now.wall_seconds,
        load_ratio_sum=figures.load_ratio_sum,
        pods_telling=figures.pods_telling,
        pods_silent=figures.pods_silent,
    )
