"""How near a pod is to what is safe: the load ratio, and when its pool will be full."""

import math
from dataclasses import dataclass

from kvgauge.advise.grounds import Grounds, Limit
from kvgauge.advise.history import History
from kvgauge.advise.safety import forecast, running_requests, typical_requests

HEADROOM_RATIO = 0.05
"""Share of the pool that is left alone while too little is known of lengths to say what is safe."""
CLEARING_SECONDS = 60.0
"""In which a queue ought to be worked off."""
HORIZON_SECONDS = 3600.0
"""A minute's trend says nothing about what lies further ahead than this."""
_BY_RATE = frozenset({"latency", "token_rate"})
_DEVIATIONS = 2.0
_WORTH_A_LOOK = 2.0


@dataclass(frozen=True, slots=True)
class Presence:
    """What is in the pod now: sums over the ranks. The pool of a pod with several is as good as one only because
    routers balance them."""

    capacity_tokens: int
    active_tokens: int
    block_tokens: int
    running: int
    waiting: int
    swapped: int
    """Started, and now waiting outside the pool."""

    @property
    def queued(self) -> int:
        return self.waiting + self.swapped


@dataclass(frozen=True, slots=True)
class Load:
    """Demand over safe capacity, measured in each way that there is."""

    ratio: float
    by_slots_ratio: float | None
    by_requests_ratio: float
    by_rate_ratio: float | None
    request_slots: float
    """What a waiting request is counted with."""
    demand_slots: float
    safe_slots: float
    arrivals_per_second: float | None
    safe_requests_per_second: float | None


def load_of(presence: Presence, grounds: Grounds, binding: Limit, history: History) -> Load:
    """In the unit of the limit that binds.

    Where requests per second can be reckoned, no less than the share of those that come, of those that would end with
    as many in flight as is safe: in flight are few for long, and then many at once, while the pods needed grow with
    what comes. Requests that wait are to be worked off in CLEARING_SECONDS.
    """
    slots, demand, safe_slots, size = _by_slots(presence, grounds, binding)
    requests = (presence.running + presence.queued) / max(binding.requests, 1)
    rate, arrivals, safe_rate = _by_rate(presence, grounds, binding, history)
    if binding.name in _BY_RATE and rate is not None:
        ratio = rate
    else:
        ratio = slots if binding.name in ("kv", "state_slots") else requests
        if binding.name == "state_slots":
            ratio = max(ratio, requests)
        ratio = max(ratio, rate or 0.0)
    return Load(ratio, slots, requests, rate, size, demand, safe_slots, arrivals, safe_rate)


def _by_slots(presence: Presence, grounds: Grounds, binding: Limit) -> tuple[float, float, float, float]:
    """(ratio, slots wanted, slots safe, slots of one request)."""
    held, running = grounds.resident, presence.running
    if held is None:
        size = _size_so_far(presence, grounds)
        expected = float(presence.active_tokens)
    else:
        size = held.mean_slots
        # They will be as large as usual; where they are larger already by more than chance, they count as they are.
        chance = _DEVIATIONS * math.sqrt(running * held.variance_slots2) if grounds.safe is not None else 0.0
        expected = max(running * size, presence.active_tokens - chance)
    demand = expected + presence.queued * size
    if grounds.safe is None or held is None:
        safe = presence.capacity_tokens * (1 - HEADROOM_RATIO)
    else:
        kv = next((limit.requests for limit in grounds.limits if limit.name == "kv"), binding.requests)
        safe = max(kv, 1) * size
    return demand / safe, demand, safe, size


def _size_so_far(presence: Presence, grounds: Grounds) -> float:
    """Before anything finished: those that run show only how far they have come."""
    block = presence.block_tokens
    if presence.running and presence.active_tokens:
        return max(math.ceil(presence.active_tokens / presence.running / block), 1) * block
    longest = grounds.case.longest_tokens
    return float(longest if longest is not None else block)


def _by_rate(
    presence: Presence, grounds: Grounds, binding: Limit, history: History
) -> tuple[float | None, float | None, float | None]:
    """(ratio, requests that come, requests that would end with all that is safe), the last two each second."""
    arrivals, work = history.arrivals.per_second(), grounds.work
    if work is None or grounds.learned is None or not grounds.learned.sure:
        return None, arrivals, None
    ranks = len(grounds.case.pools)
    safe = ranks * work.requests_per_second(max(binding.requests / ranks, 1.0))
    if arrivals is None:
        return None, None, safe
    return (arrivals + presence.queued / CLEARING_SECONDS) / safe, arrivals, safe


def exhaustion_seconds(presence: Presence, grounds: Grounds, history: History) -> float | None:
    """Seconds until the pool is full: by the present trend, or by what those that run will grow to, whichever is
    sooner. Infinite when that is over HORIZON_SECONDS away; None before either is known."""
    trend = history.trend_tokens_per_second()
    rising = trend if trend is not None and history.trend_is_clear() else 0.0
    free = presence.capacity_tokens - presence.active_tokens
    grown = _grown_seconds(presence, grounds, history)
    if trend is None:
        return grown if math.isfinite(grown) else None
    steady = free / rising if rising * HORIZON_SECONDS > free else 0.0 if free <= 0 else math.inf
    return min(steady, grown)


def _grown_seconds(presence: Presence, grounds: Grounds, history: History) -> float:
    """Seconds until those that run have filled the pool, if nobody is admitted (Past-Future)."""
    outputs, running = grounds.outputs, presence.running
    if outputs is None or not running:
        return math.inf
    per_token = grounds.case.pools[0].footprint.slots_per_token
    pool = sum(each.slots for each in grounds.case.pools)
    # Where what is to come on average leaves much room, no closer look is needed.
    if presence.active_tokens + _WORTH_A_LOOK * running * per_token * grounds.to_come_tokens <= pool:
        return math.inf
    step = history.seconds_per_token()
    if step is None and grounds.work is not None:
        step = grounds.work.token_seconds(running / len(grounds.case.pools))
    if step is None:
        return math.inf
    longest = float(grounds.case.longest_tokens or math.inf)
    batch = running_requests(history.running_tokens, outputs, running, longest) or typical_requests(
        presence.active_tokens, running, outputs
    )
    seconds = forecast(batch, pool, per_token).exhaustion_steps * step
    return seconds if seconds <= HORIZON_SECONDS else math.inf
