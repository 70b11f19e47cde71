"""Histograms as an engine keeps them: fixed upper bounds, counts, and the sum of what was observed."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram at one moment: cumulative counts at rising upper bounds, the last bound +Inf."""

    bounds: tuple[float, ...]
    cumulative: tuple[int, ...]
    total: float
    """Sum of the observed values, in the unit of the bounds."""

    @property
    def count(self) -> int:
        """Number of observations."""
        return self.cumulative[-1]


class Tally:
    """A growing histogram. `bounds` are the finite upper bounds, rising; a value equal to a bound falls under it."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._all_bounds = (*bounds, float("inf"))
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value` as seen `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def observe_line(self, first: float, slope: float, steps: int, times: int) -> None:
        """Count `first`, `first + slope`, ... (`steps` values, rising) as seen `times` times each."""
        self._total += times * (steps * first + slope * steps * (steps - 1) / 2)
        done = 0
        while done < steps:
            bucket = bisect_left(self._bounds, first + done * slope)
            upto = steps
            if slope > 0 and bucket < len(self._bounds):
                upto = min(max(int((self._bounds[bucket] - first) / slope) + 1, done + 1), steps)
            self._counts[bucket] += times * (upto - done)
            done = upto

    def snapshot(self) -> Distribution:
        """What was observed so far."""
        return Distribution(self._all_bounds, tuple(accumulate(self._counts)), self._total)


def bounds_1_2_5(largest: int) -> tuple[float, ...]:
    """The bounds 1, 2, 5, 10, 20, ... up to `largest`, as vLLM 0.32 builds them for counts of tokens."""
    bounds: list[float] = []
    decade = 1
    while decade <= largest:
        bounds.extend(float(decade * digit) for digit in (1, 2, 5) if decade * digit <= largest)
        decade *= 10
    return tuple(bounds)
