"""What an engine has served so far, in counts that a fleet adds up."""

import math
from dataclasses import dataclass

from kvgauge.observe.records import Histogram


@dataclass(frozen=True, slots=True)
class Served:
    """Counts of requests since the first tick. They fall only when the engine starts anew. None: not told."""

    arrived_total: float | None
    """That ever came: those that finished, run, wait or are swapped out."""
    judged_total: float | None
    """That finished and whose time per output token is known."""
    slow_total: float | None
    """Of these, those that took longer for it than the objective; None without one."""


def served_by(arrived_total: float | None, token_seconds: Histogram | None, slo_tpot_seconds: float | None) -> Served:
    """The counts, from the histogram of each request's time per output token."""
    if token_seconds is None:
        return Served(arrived_total, None, None)
    slow = None if slo_tpot_seconds is None else count_above(token_seconds, slo_tpot_seconds)
    return Served(arrived_total, token_seconds.count, slow)


def count_above(histogram: Histogram, value: float) -> float:
    """Observations above `value`: in its bucket, in proportion; all of the last bucket, which has no end."""
    lower, below = 0.0, 0.0
    for bound, cumulative in zip(histogram.bounds, histogram.cumulative, strict=True):
        if value <= bound:
            inside = cumulative - below
            share = 0.0 if math.isinf(bound) else (value - lower) / (bound - lower)
            return histogram.count - below - inside * share
        lower, below = bound, cumulative
    return 0.0
