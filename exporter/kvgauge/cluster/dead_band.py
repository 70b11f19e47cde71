"""The value that makes an autoscaler take a number of replicas in spite of its dead band.

HPA follows a metric of a workload with target AverageValue 1: ``ratio = value / replicas``; while it lies between
``1 - down`` and ``1 + up`` nothing happens, else there shall be ``ceil(value)``. At the usual tolerance of 0.1 the step
from 10 to 11 is swallowed. A value that passes is looked for around the number wanted.
"""

import math


def value_for(required: int, replicas: int, up_ratio: float, down_ratio: float) -> int:
    """Thousandths of replicas to publish so that an autoscaler with these tolerances, whose workload has `replicas`,
    takes `required`; never one that leads to less.

    More is always reached, in two steps where one is too small to pass: from 20 with a tolerance of 0.1 to 23, which is
    the least that passes, and from there down to 21. Fewer by so little that no value between `required - 1` and
    `required` passes cannot be had: nothing happens, and up to `down_ratio` of the replicas are too many.
    """
    exact = 1000 * required
    if replicas <= 0 or required == replicas:
        return exact
    if required > replicas:
        passing = _least_above((1 + up_ratio) * replicas)
        if exact >= passing:
            return exact
        # Not the least that passes, where there would be no way from it to the very number.
        return max(passing, 1000 * (math.floor((required - 1) / (1 - down_ratio) + 1e-9) + 1))
    passing = _most_below((1 - down_ratio) * replicas)
    return min(exact, passing) if passing > exact - 1000 else exact


def _least_above(replicas: float) -> int:
    # Floating point may put the bound on either side of a thousandth; one more is always beyond it.
    return math.floor(replicas * 1000 + 1e-6) + 1


def _most_below(replicas: float) -> int:
    return math.ceil(replicas * 1000 - 1e-6) - 1
