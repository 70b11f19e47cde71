"""Where the loop pins what the server shows: one finished tick, swapped in whole."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kvgauge.publish.families import Snapshot
from kvgauge.publish.metrics import render
from kvgauge.publish.views import HistoryPoint, history_point

HISTORY_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Published:
    """One tick with its pages, rendered once and served as they are."""

    snapshot: Snapshot
    text: bytes
    openmetrics: bytes
    published_at: float
    """On the board's clock."""


class Board:
    """Written by the loop's thread, read by the server's. A tick older than `stale_after_seconds` is not shown: a loop
    that stands still must look like one."""

    def __init__(self, stale_after_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stale_after_seconds = stale_after_seconds
        self._clock = clock
        self._published: Published | None = None
        self._history: deque[HistoryPoint] = deque()

    def publish(self, snapshot: Snapshot) -> None:
        """Renders and shows one tick."""
        text, openmetrics = render(snapshot)
        point = history_point(snapshot.assessment, snapshot.advice)
        self._history.append(point)
        while point.wall_seconds - self._history[0].wall_seconds > HISTORY_SECONDS:
            self._history.popleft()
        self._published = Published(snapshot, text, openmetrics, self._clock())

    def current(self) -> Published | None:
        """The tick to show; None before the first, and when the last is too old."""
        published = self._published
        if published is None or self._clock() - published.published_at > self._stale_after_seconds:
            return None
        return published

    def history(self, after_wall_seconds: float = 0.0) -> list[HistoryPoint]:
        """The past quarter of an hour, oldest first; only what is newer."""
        return [point for point in list(self._history) if point.wall_seconds > after_wall_seconds]
