"""Tells an engine that has stopped stepping from an idle one.

An engine's HTTP server goes on answering when its scheduler hangs, with the figures of the last step. What must move
while requests run are its own counters of work; a page that stands still although it shows requests is not fresh.
"""

import time
from collections.abc import Callable

from kvgauge.observe.records import EngineReading, RankReading


class Pulse:
    """Remembers, for each rank, when the figures of work last moved."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, tuple[tuple[float, ...], float]] = {}

    def standing_seconds(self, reading: EngineReading) -> float:
        """For how long the rank that is worst off has not moved although it has requests; 0 when all move or rest.

        A rank whose engine publishes nothing that moves with its steps (`progress` is None) can't be judged.
        """
        now = self._clock()
        before, self._last = self._last, {}
        standing = 0.0
        for rank in reading.ranks:
            if rank.progress is None or reading.asleep or not _has_work(rank):
                continue
            figures, moved_at = before.get(rank.rank, (None, now))
            if figures != rank.progress:
                moved_at = now
            self._last[rank.rank] = (rank.progress, moved_at)
            standing = max(standing, now - moved_at)
        return standing


def _has_work(rank: RankReading) -> bool:
    return bool(rank.running) or bool(rank.waiting)
