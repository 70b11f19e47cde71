"""Durations counted in buckets, for a histogram on a metrics page."""

from bisect import bisect_left
from itertools import accumulate

BOUNDS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Durations:
    """How many took how long."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_SECONDS) + 1)
        self.sum_seconds = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self.sum_seconds += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, how many took at most that long), ending with +Inf."""
        bounds = (*map(str, BOUNDS_SECONDS), "+Inf")
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
