"""How many requests may run together, so that few of them lose their place in the pool.

In a paged engine a request that does not fit yet waits, which costs a little time; one that is already in and finds no
block for its next token makes the engine throw the last one out, and all its work is done again. So two chances are
bounded, and a batch of alike requests that begin together must fit as a whole.

What n requests at random moments of their lives hold is a sum of n alike independent sizes. It passes the pool's end
upwards by growth, as opposed to by an admission, as often as a process with drift crosses a level: drift times density
there (Rice's formula). Each request grows by g slots in its life, so per request there are g f(M) crossings, f the
density of the sum and M the pool. With little growth for each prompt that is rare however full the pool is, since
admission waits; with long outputs it is not.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvgauge.advise.lengths import Lengths
from kvgauge.advise.residing import Resident

PREEMPTED_RATIO = 0.01
"""Share of requests that may be thrown out once or more."""
FULL_RATIO = 0.3
"""Share of time for which the pool may be too full for all to be in at once."""
_FULL_DEVIATIONS = 0.5244
"""Standard deviations that a normal variable exceeds with FULL_RATIO."""
_VICTIMS = 1.8
"""Different requests thrown out for each crossing: the others grow on while the sum stays near the pool's end. Measured
on simulated engines: 2.2 where the moments are exact, which gives the share within a factor of 1.5 (root mean square)
over 16 mixes in which 0.2 to 6 % were preempted; from histograms, which show a little too much spread, 1.8."""
_MOST_REQUESTS = 1 << 20


@dataclass(frozen=True, slots=True)
class SafeRequests:
    """How many may run together: the least of the bounds, but never fewer than fit with each at its largest."""

    requests: int
    by_preemptions: int
    """At which PREEMPTED_RATIO of the requests are thrown out."""
    by_room: int
    """At which the pool is too full for all for FULL_RATIO of the time."""
    by_together: int
    """That fit when all begin at once."""
    preempted_ratio: float
    """Share of requests that would be thrown out at `requests`."""


def safe_requests(resident: Resident, pool_slots: float, longest_slots: float | None = None) -> SafeRequests:
    """The number for one pool of `pool_slots` that sequences may hold: a null block is not among them.

    `longest_slots`: what a request of max_model_len holds at most; as many as fit of these are always safe.
    """
    together = _whole(pool_slots / resident.together_slots)
    room = _largest(_whole(pool_slots / resident.mean_slots), lambda n: _full_slots(resident, n) <= pool_slots)
    steady = _largest(room, lambda n: preempted_ratio(resident, n, pool_slots) <= PREEMPTED_RATIO)
    worst = _whole(pool_slots / longest_slots) if longest_slots else 0
    certain = min(together, _whole(pool_slots / resident.largest_slots))
    requests = max(min(together, steady), certain, worst)
    return SafeRequests(requests, steady, room, together, preempted_ratio(resident, requests, pool_slots))


def preempted_ratio(resident: Resident, requests: int, pool_slots: float) -> float:
    """Share of requests that are thrown out at least once, with `requests` in flight all the time: crossings per
    request (see above), and `_VICTIMS` for each."""
    if requests < 1:
        return 0.0
    deviation = math.sqrt(requests * resident.variance_slots2)
    margin = pool_slots - requests * resident.mean_slots
    if deviation < 1e-9 * pool_slots:
        return 0.0 if margin >= 0 else 1.0
    skewness = resident.third_slots3 * requests / deviation**3
    return min(_VICTIMS * resident.growth_slots * _density(margin / deviation, skewness) / deviation, 1.0)


def _full_slots(resident: Resident, requests: int) -> float:
    """Slots that `requests` exceed for FULL_RATIO of the time (Cornish-Fisher, first correction)."""
    deviation = math.sqrt(requests * resident.variance_slots2)
    z = _FULL_DEVIATIONS
    skewness = resident.third_slots3 * requests / deviation**3 if deviation else 0.0
    # For very skewed sums the expansion overshoots; the mean must fit in any case.
    return requests * resident.mean_slots + max(z + (z * z - 1) * skewness / 6, 0.0) * deviation


def _density(z: float, skewness: float) -> float:
    """Density at z of a standardised sum: Pearson's type III, a shifted gamma, which has the given skewness; normal
    where there is none, or less than none, which makes the upper tail lighter than is reckoned."""
    if skewness < 1e-3:
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    shape = 4 / skewness**2
    root = math.sqrt(shape)
    place = shape + z * root
    if place <= 0:
        return 0.0
    return math.exp((shape - 1) * math.log(place) - place - math.lgamma(shape)) * root


def _whole(requests: float) -> int:
    # A quotient of floats that ought to be whole may lie a hair below.
    return min(max(math.floor(requests + 1e-9), 0), _MOST_REQUESTS)


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest n up to `most` for which `holds`, which fails from some n on."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True)
class Running:
    """One running request, or several alike: slots held now, and tokens that it will still generate."""

    held_slots: float
    remaining_tokens: float
    requests: float = 1.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the running batch will come to if nobody is admitted any more."""

    peak_slots: float
    exhaustion_steps: float
    """Engine steps until the pool is full; infinite if it will not be."""


def forecast(running: Sequence[Running], pool_slots: float, slots_per_token: float = 1.0) -> Forecast:
    """Peak and end of the pool, with each request growing until its predicted end.

    Source: the Past-Future scheduler (LightLLM, arXiv 2507.10150): with requests sorted by remaining output, longest
    first, the peak is the largest over i of (slots held by the first i) + i times the i-th remainder.
    """
    held = count = peak = 0.0
    soonest = math.inf
    until = math.inf
    batch = sorted(running, key=lambda request: request.remaining_tokens, reverse=True)
    for place, request in enumerate(batch):
        held += request.held_slots * request.requests
        count += request.requests
        peak = max(peak, held + count * slots_per_token * request.remaining_tokens)
        # These, and none else, run from the end of the one that ends before them until the end of this one.
        until = request.remaining_tokens
        began = batch[place + 1].remaining_tokens if place + 1 < len(batch) else 0.0
        if held + count * slots_per_token * until > pool_slots:
            soonest = max((pool_slots - held) / (count * slots_per_token), began)
    return Forecast(peak, soonest)


def running_requests(
    tokens: Sequence[tuple[int, int]], outputs: Lengths, running: int, longest_tokens: float = math.inf
) -> list[Running]:
    """From each request's (prompt, held) tokens: what it will still generate is the mean remainder of those outputs
    that were longer. Where not all of `running` are told of, each stands for as many."""
    if not tokens:
        return []
    weight = max(running / len(tokens), 1.0)
    return [
        Running(held, min(outputs.remaining(max(held - prompt, 0)), max(longest_tokens - held, 0.0)), weight)
        for prompt, held in tokens
    ]


def typical_requests(active_slots: float, running: int, outputs: Lengths, steps: int = 8) -> list[Running]:
    """The same where only sums are known: ages as at a random moment, and the slots shared out equally but for age."""
    if running < 1:
        return []
    ages = _typical_ages(outputs, steps)
    base = active_slots / running - math.fsum(ages) / steps
    # Where the batch is younger than usual, ages can't be: all shrink by what the active slots leave for them.
    scale = 1.0 if base > 0 else active_slots / running * steps / max(math.fsum(ages), 1e-9)
    return [Running(max(base, 0.0) + age * scale, outputs.remaining(age * scale), running / steps) for age in ages]


def _typical_ages(outputs: Lengths, steps: int) -> list[float]:
    """Middles of `steps` equally likely parts of the age at a random moment, whose density is P(o > age) / E[o]."""
    pairs = sorted(zip(outputs.points, outputs.shares, strict=True))
    mean = outputs.mean
    ages: list[float] = []
    passed, begin, alive = 0.0, 0.0, 1.0
    for point, share in pairs:
        mass = (point - begin) * alive / mean
        while len(ages) < steps and passed + mass >= (len(ages) + 0.5) / steps:
            ages.append(begin + ((len(ages) + 0.5) / steps - passed) * mean / alive)
        passed += mass
        begin, alive = point, alive - share
    return ages + [begin] * (steps - len(ages))
