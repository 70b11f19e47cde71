"""The value that makes an autoscaler take a number of replicas in spite of its dead band.

HPA follows a metric of a workload with target AverageValue 1: ``ratio = value / replicas``; while it lies between
``1 - down`` and ``1 + up`` nothing happens, else there shall be ``ceil(value)``. At the usual tolerance of 0.1 the step
from 10 to 11 is swallowed. A value that passes is looked for around the number wanted.
"""

import math


def value_for(required: int, replicas: int, up_ratio: float, down_ratio: float) -> int:
    """Thousandths of replicas to publish so that an autoscaler with these tolerances, whose workload has `replicas`,
    takes `required`; never one that leads to less.

    One sync can give any larger number beyond the band. Within it the least that passes is one too many or more: from
    20 with a tolerance of 0.1 to 23, and from there down to 21 in a second step. Where there is no way down from the
    least that passes but from a somewhat larger one, that is taken as long as it costs no more pods for a while than it
    saves from then on: from 100 to 112 and then 101, but from 100 to 111 where 110 are required, and there it stays.

    What arithmetic cannot give: fewer by so little that no value between `required - 1` and `required` passes. Then
    nothing happens, and what is too many is less than `down_ratio` of the replicas.
    """
    exact = 1000 * required
    if replicas <= 0 or required == replicas:
        return exact
    if required > replicas:
        passing = _least_above((1 + up_ratio) * replicas)
        if exact >= passing:
            return exact
        least = math.ceil(passing / 1000)
        returning = max(math.floor((required - 1) / (1 - down_ratio) + 1e-9) + 1, least)
        return 1000 * returning if returning - least <= least - required else passing
    passing = _most_below((1 - down_ratio) * replicas)
    return min(exact, passing) if passing > exact - 1000 else exact


def _least_above(replicas: float) -> int:
    # Floating point may put the bound on either side of a thousandth; one more is always beyond it.
    return math.floor(replicas * 1000 + 1e-6) + 1


def _most_below(replicas: float) -> int:
    return math.ceil(replicas * 1000 - 1e-6) - 1
