"""How requests come: counts in short bins, how bursty they are, and what level they are at now.

Bursts and levels are told apart by what is usual: a level has moved when the last minutes' rate lies outside of what
the bursts of the past half hour make of the old one. Variance is taken from differences of neighbouring counts, which a
slow change does not touch; that of minutes from the median of their squares, which a rare jump does not either.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

BIN_SECONDS = 5.0
_MINUTE_BINS = 12
_RISE_BINS = (4, 6, 9, 12, 24)
"""How far back a rise is looked for: a short look sees only a large one."""
_FALL_BINS = (24, 36)
_TREND_BINS = 36
_RISE_DEVIATIONS = 2.0
_FALL_DEVIATIONS = 1.5
_TREND_DEVIATIONS = 2.0
_NORMAL_MEDIAN = 2.2
"""Mean square over median square of a normal variable."""
_UNKNOWN_BURSTS = 3.0
"""How much burstier minutes are taken to be than ten seconds before enough of them were seen."""
_LOCAL_BINS = 12


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What the counts say. Rates are requests per second."""

    minute_rate: float
    """Over the last minute."""
    least_rate: float
    """The level is at least this, as far as bursts allow to say."""
    most_rate: float
    """And at most this; infinite before enough was seen."""
    trend: float
    """Change of the level per second where it rises beyond doubt, less one standard error; else 0."""
    burstiness: float
    """Variance over mean of counts of ten seconds: 1 for arrivals by chance alone."""
    minute_burstiness: float
    """The same of minutes."""


def arrivals_of(counts: Sequence[float]) -> Arrivals:
    """What bins of BIN_SECONDS, oldest first, say. None of them: nothing comes."""
    number = len(counts)
    if not number:
        return Arrivals(0.0, 0.0, math.inf, 0.0, 1.0, 1.0)
    sums = [0.0]
    for count in counts:
        sums.append(sums[-1] + count)
    mean_rate = sums[-1] / (number * BIN_SECONDS)
    ten_seconds = _burstiness(sums, 2, robust=False) or 1.0
    minute = max(_burstiness(sums, _MINUTE_BINS, robust=True) or _UNKNOWN_BURSTS * ten_seconds, ten_seconds)
    exponent = min(math.log(minute / ten_seconds) / math.log(6), 1.0)

    def deviation(bins: int, rate: float) -> float:
        """Standard error of a rate seen over so many bins."""
        seconds = bins * BIN_SECONDS
        return math.sqrt(max(rate, mean_rate / 2) * ten_seconds * (seconds / 10) ** exponent / seconds)

    def rate_over(bins: int) -> float:
        return (sums[-1] - sums[-1 - bins]) / (bins * BIN_SECONDS)

    least, most = 0.0, math.inf
    for bins in _RISE_BINS:
        if number >= bins:
            rate = rate_over(bins)
            least = max(least, rate - _RISE_DEVIATIONS * deviation(bins, rate))
    for bins in _FALL_BINS:
        if number >= bins:
            rate = rate_over(bins)
            most = min(most, rate + _FALL_DEVIATIONS * deviation(bins, rate))
    trend = _trend(counts, ten_seconds * 18**exponent)
    return Arrivals(rate_over(min(_MINUTE_BINS, number)), least, max(most, least), trend, ten_seconds, minute)


def moved(counts: Sequence[float], least_rate: float, most_rate: float, most_growth: float) -> list[float]:
    """The counts as they would come at a level between the two rates: each is scaled by what its own two minutes miss
    or exceed, up to `most_growth` times. Bursts keep their shape."""
    sums = [0.0]
    for count in counts:
        sums.append(sums[-1] + count)
    scaled = []
    for place, count in enumerate(counts):
        begin, end = max(place - _LOCAL_BINS, 0), min(place + _LOCAL_BINS + 1, len(counts))
        local = (sums[end] - sums[begin]) / ((end - begin) * BIN_SECONDS)
        scale = 1.0
        if 0 < local < least_rate:
            scale = min(least_rate / local, most_growth)
        elif local > most_rate:
            scale = most_rate / local
        scaled.append(count * scale)
    return scaled


def _burstiness(sums: Sequence[float], bins: int, *, robust: bool) -> float | None:
    """Variance over mean of counts of so many bins, from the differences of neighbouring ones, at least 1 (by chance
    alone). None where there are too few."""
    mean = sums[-1] / (len(sums) - 1) * bins
    changes = [sums[place + 2 * bins] - 2 * sums[place + bins] + sums[place] for place in range(len(sums) - 2 * bins)]
    if len(changes) < 12 or mean <= 0:
        return None
    # What all of them change by is a trend and no burst.
    usual_change = statistics.median(changes)
    squares = [(change - usual_change) ** 2 / 2 for change in changes]
    usual = _NORMAL_MEDIAN * statistics.median_low(squares) if robust else statistics.fmean(squares)
    return max(usual / mean, 1.0)


def _trend(counts: Sequence[float], burstiness: float) -> float:
    """Least squares over the last minutes, as requests per second each second."""
    last = counts[-_TREND_BINS:]
    if len(last) < _TREND_BINS:
        return 0.0
    middle, mean = (_TREND_BINS - 1) / 2, sum(last) / _TREND_BINS
    spread = sum((place - middle) ** 2 for place in range(_TREND_BINS))
    slope = sum((place - middle) * (count - mean) for place, count in enumerate(last)) / spread
    error = math.sqrt(max(mean, 1e-9) * burstiness / spread)
    return (slope - error) / BIN_SECONDS**2 if slope > _TREND_DEVIATIONS * error else 0.0
