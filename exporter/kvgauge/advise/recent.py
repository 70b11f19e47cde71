"""The last minute, tick by tick: the trend of the pool, how many requests come, how long a token takes."""

import math
from collections import deque

from kvgauge.advise.looking import Look

MINUTE_SECONDS = 60.0
_BURST_SECONDS = 15.0
_LEAST_SECONDS = 10.0
_MOST_TICKS = 700
_LASTING_SECONDS = 10.0
_STANDARD_ERRORS = 6.0


class Trend:
    """Least-squares slope over the last minute, from sums."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()
        self._sums = [0.0] * 5
        self._base = 0.0

    def clear(self) -> None:
        self._points.clear()
        self._sums = [0.0] * 5

    def add(self, at_seconds: float, slots: float) -> None:
        if not self._points:
            self._base = at_seconds
        self._points.append((at_seconds, slots))
        self._count(at_seconds, slots, 1.0)
        while at_seconds - self._points[0][0] > MINUTE_SECONDS or len(self._points) > _MOST_TICKS:
            self._count(*self._points.popleft(), -1.0)
        if at_seconds - self._base > 60 * MINUTE_SECONDS:
            # Sums of times far from their base lose digits.
            points = list(self._points)
            self.clear()
            self._base = points[0][0]
            self._points.extend(points)
            for point in points:
                self._count(*point, 1.0)

    def slots_per_second(self) -> float | None:
        """None before ten seconds were seen."""
        points = self._points
        if len(points) < 3 or points[-1][0] - points[0][0] < _LEAST_SECONDS:
            return None
        spread, product, _ = self._moments()
        return product / spread if spread > 0 else None

    def is_clear(self) -> bool:
        """Whether the slope is more than _STANDARD_ERRORS of its own standard errors; neighbouring points are not
        independent, which is why there are so many."""
        spread, product, deviation = self._moments()
        count = len(self._points)
        if count < 3 or spread <= 0:
            return False
        slope = product / spread
        left = max(deviation - slope * product, 0.0)
        return slope * slope * spread * (count - 2) > _STANDARD_ERRORS**2 * left

    def _moments(self) -> tuple[float, float, float]:
        """Sums of squares of the times, of products, of squares of the slots, about their means."""
        count = max(len(self._points), 1)
        time, slots, square, product, slots2 = self._sums
        return square - time * time / count, product - time * slots / count, slots2 - slots * slots / count

    def _count(self, at_seconds: float, slots: float, sign: float) -> None:
        time = at_seconds - self._base
        for place, value in enumerate((time, slots, time * time, time * slots, slots * slots)):
            self._sums[place] += sign * value


class Arrivals:
    """Requests that ever came: those that ended and those that are here. Never falls, whatever the engine does."""

    def __init__(self) -> None:
        self._offset = 0.0
        self._highest: float | None = None
        self._lower_since: float | None = None
        self._ticks: deque[tuple[float, float]] = deque()

    @property
    def total(self) -> float | None:
        return self._highest

    def restart(self) -> None:
        """The engine counts anew from here on."""
        self._offset = self._highest or 0.0
        self._lower_since = None

    def add(self, look: Look) -> None:
        """One tick."""
        here = look.in_flight
        if look.finished is None or here is None:
            return
        now, seen = look.at_seconds, self._offset + look.finished + here
        highest = seen if self._highest is None else max(self._highest, seen)
        if seen >= highest:
            self._lower_since = None
        elif self._lower_since is None:
            self._lower_since = now
        elif now - self._lower_since >= _LASTING_SECONDS:
            # Not counters read in the wrong moment, but requests that left without being counted.
            self._offset += highest - seen
            self._lower_since = None
        self._highest = highest
        self._ticks.append((now, highest))
        while now - self._ticks[0][0] > MINUTE_SECONDS or len(self._ticks) > _MOST_TICKS:
            self._ticks.popleft()

    def per_second(self) -> float | None:
        """Over the last minute, or over its last quarter where more came in it than chance explains. None before ten
        seconds were seen."""
        if not self._ticks:
            return None
        (first, before), (now, total) = self._ticks[0], self._ticks[-1]
        if now - first < _LEAST_SECONDS:
            return None
        rate = (total - before) / (now - first)
        if now - first > _BURST_SECONDS:
            at, lately = next((at, count) for at, count in self._ticks if now - at <= _BURST_SECONDS)
            came = total - lately
            if now > at and came > 0:
                rate = max(rate, (came - 2 * math.sqrt(came)) / (now - at))
        return rate


class Damper:
    """Takes the noise out of a ratio without delaying bursts: within what chance makes of so many requests it moves
    with a time constant, beyond at once; down it always takes its time."""

    def __init__(self, time_constant_seconds: float = 30.0, deviations: float = 2.5) -> None:
        self._time_constant_seconds = time_constant_seconds
        self._deviations = deviations
        self._value: float | None = None
        self._at_seconds = 0.0

    def clear(self) -> None:
        self._value = None

    def follow(self, ratio: float, requests: float, at_seconds: float) -> float:
        """The damped value, after `ratio` was seen with so many requests here."""
        before, elapsed = self._value, at_seconds - self._at_seconds
        self._at_seconds = at_seconds
        if before is None or elapsed < 0 or ratio > before * (1 + self._deviations / math.sqrt(max(requests, 1.0))):
            self._value = ratio
        else:
            self._value = ratio + (before - ratio) * math.exp(-elapsed / self._time_constant_seconds)
        return self._value
