"""The recent past, as much of it as advice needs: request lengths over a window, and the trend of occupancy."""

import itertools
import math
from collections import deque
from dataclasses import dataclass

from kvgauge.observe.records import Histogram, Observation

LENGTH_WINDOW_SECONDS = 600.0
_LENGTH_STEP_SECONDS = 5.0
TREND_WINDOW_SECONDS = 60.0
_TREND_LEAST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Lengths:
    monotonic_seconds: float
    prompt: Histogram
    output: Histogram


class History:
    """Remembers what earlier ticks saw. Owned by the loop; a restart of the engine empties it."""

    def __init__(self, length_window_seconds: float = LENGTH_WINDOW_SECONDS) -> None:
        self._length_window_seconds = length_window_seconds
        self._lengths: deque[_Lengths] = deque()
        self._newest: _Lengths | None = None
        self._active: deque[tuple[float, int]] = deque()

    def remember(self, observation: Observation) -> None:
        """Adds one tick. A tick without an engine is skipped: nothing was seen, so nothing is known of it."""
        engine = observation.engine
        if engine is None:
            return
        now = observation.monotonic_seconds
        active = [rank.active_tokens for rank in engine.ranks if rank.active_tokens is not None]
        if active:
            self._active.append((now, sum(active)))
        while self._active and now - self._active[0][0] > TREND_WINDOW_SECONDS:
            self._active.popleft()
        prompts = [rank.prompt_lengths for rank in engine.ranks if rank.prompt_lengths is not None]
        outputs = [rank.output_lengths for rank in engine.ranks if rank.output_lengths is not None]
        if prompts and outputs:
            self._remember_lengths(_Lengths(now, _summed(prompts), _summed(outputs)))

    def lengths(self) -> tuple[Histogram, Histogram, str] | None:
        """(prompt lengths, output lengths, where from): of the requests that finished within the window, or, while
        none did, of all since the engine's start. None when no request ever finished."""
        if self._newest is None or not self._newest.output.count:
            return None
        oldest = self._lengths[0]
        if self._newest.output.count > oldest.output.count and self._newest.prompt.count > oldest.prompt.count:
            return (
                _difference(self._newest.prompt, oldest.prompt),
                _difference(self._newest.output, oldest.output),
                "window",
            )
        return self._newest.prompt, self._newest.output, "lifetime"

    def trend_tokens_per_second(self) -> float | None:
        """Least-squares slope of the active tokens over the last minute; None before ten seconds were seen."""
        if len(self._active) < 3 or self._active[-1][0] - self._active[0][0] < _TREND_LEAST_SECONDS:
            return None
        mean_time = sum(time for time, _ in self._active) / len(self._active)
        mean_tokens = sum(tokens for _, tokens in self._active) / len(self._active)
        spread = sum((time - mean_time) ** 2 for time, _ in self._active)
        return sum((time - mean_time) * (tokens - mean_tokens) for time, tokens in self._active) / spread

    def _remember_lengths(self, seen: _Lengths) -> None:
        if self._newest is not None and _went_back(self._newest, seen):
            self._lengths.clear()
            self._active.clear()
        self._newest = seen
        if not self._lengths or seen.monotonic_seconds - self._lengths[-1].monotonic_seconds >= _LENGTH_STEP_SECONDS:
            self._lengths.append(seen)
        while seen.monotonic_seconds - self._lengths[0].monotonic_seconds > self._length_window_seconds:
            self._lengths.popleft()


def quantile(histogram: Histogram, share: float) -> float | None:
    """The value below which `share` of the observations lie, linear within its bucket, as PromQL's
    histogram_quantile; in the last bucket the highest finite bound. None when the histogram is empty."""
    rank = share * histogram.count
    if not histogram.count:
        return None
    lower, below = 0.0, 0.0
    for bound, cumulative in zip(histogram.bounds, histogram.cumulative, strict=True):
        if cumulative >= rank:
            inside = cumulative - below
            return (
                lower if math.isinf(bound) else lower + (bound - lower) * ((rank - below) / inside if inside else 0.0)
            )
        lower, below = bound, cumulative
    return lower


def _summed(histograms: list[Histogram]) -> Histogram:
    """The sum over ranks; ranks of one engine have the same buckets, and one that has others is left out."""
    first = histograms[0]
    alike = [histogram for histogram in histograms if histogram.bounds == first.bounds]
    cumulative = tuple(sum(column) for column in zip(*(histogram.cumulative for histogram in alike), strict=True))
    return Histogram(first.bounds, cumulative, sum(histogram.total for histogram in alike))


def _difference(newer: Histogram, older: Histogram) -> Histogram:
    cumulative = tuple(
        itertools.starmap(lambda new, old: new - old, zip(newer.cumulative, older.cumulative, strict=True))
    )
    return Histogram(newer.bounds, cumulative, newer.total - older.total)


def _went_back(older: _Lengths, newer: _Lengths) -> bool:
    return any(
        new.bounds != old.bounds
        or new.total < old.total
        or any(itertools.starmap(lambda a, b: a < b, zip(new.cumulative, old.cumulative, strict=True)))
        for new, old in ((newer.prompt, older.prompt), (newer.output, older.output))
    )
