"""Whether the mix of requests has changed: what finished lately against what finished before.

Two looks at lengths, each at a chance of about one in 10^5 to see what is not there: the largest distance between the
two distributions (Kolmogorov and Smirnov), which sees other shapes, and the difference of the exact means, which sees
what stays within one bucket. Requests that run show a change before they finish, by what they hold.
"""

import math

from kvgauge.advise.residing import Resident
from kvgauge.observe.records import Histogram

LEAST_RECENT, LEAST_BEFORE = 20.0, 50.0
"""Finished requests on either side."""
_DISTANCE = 2.5
_LEAST_DISTANCE = 0.1
_DEVIATIONS = 5.0
_LEAST_CHANGE = 0.15
_FEW = 2
"""Requests that may be giants by chance."""


def lengths_drift(what: str, recent: Histogram, before: Histogram, deviation_tokens: float | None) -> str | None:
    """A sentence's part that says how the lengths changed; None where they did not, or too few tell.

    `deviation_tokens`: standard deviation of these lengths, as far as it is known."""
    if recent.count < LEAST_RECENT or before.count < LEAST_BEFORE or recent.bounds != before.bounds:
        return None
    new, old = recent.total / recent.count, before.total / before.count
    pooled = math.sqrt(1 / recent.count + 1 / before.count)
    distance = max(
        abs(one / recent.count - other / before.count)
        for one, other in zip(recent.cumulative, before.cumulative, strict=True)
    )
    differs = distance > max(_DISTANCE * pooled, _LEAST_DISTANCE)
    if not differs and deviation_tokens is not None:
        # Where a few giants alone lift the mean, nothing is said of the others.
        lately = _without_giants(recent) if new > old else new
        change = abs(lately - old) if (lately > old) == (new > old) else 0.0
        differs = change > max(_DEVIATIONS * deviation_tokens * pooled, _LEAST_CHANGE * old)
    return f"{what}, {old:.0f} tokens on average before and {new:.0f} now" if differs else None


def resident_drift(recent_slots: float, before_slots: float, running: float, resident: Resident | None) -> str | None:
    """Likewise of what a running request holds on average, which the present lengths must allow at some moment: no less
    than prompts alone, no more than a batch that began together."""
    if resident is None or running < _FEW:
        return None
    margin = 2 * math.sqrt(resident.variance_slots2 / running)
    most, least = 1.1 * resident.together_slots + margin, 0.9 * resident.prompt_slots - margin
    # What prefixes save or blocks add is in both.
    scale = before_slots / resident.mean_slots if resident.mean_slots else 1.0
    if least * min(scale, 1.0) <= recent_slots <= most * max(scale, 1.0):
        return None
    return f"what a running request holds, {before_slots:.0f} slots on average before and {recent_slots:.0f} now"


def _without_giants(histogram: Histogram) -> float:
    """The mean without the highest bucket, where that holds few: they count as its upper bound."""
    below, lower, bound = 0.0, 0.0, math.inf
    for bound, count in zip(histogram.bounds, histogram.cumulative, strict=True):
        if count >= histogram.count:
            break
        below, lower = count, bound
    giants = histogram.count - below
    if giants > _FEW or not below:
        return histogram.total / histogram.count
    longest = bound if math.isfinite(bound) else max(2 * lower, histogram.total / giants)
    return max(histogram.total - giants * longest, 0.0) / below
