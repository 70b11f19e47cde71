"""How many pods are needed: one rule for all workloads, from what the pods' sidecars say.

The arrivals of the last half hour are brought to the level that is due when a pod ordered now is ready, and played
against one fleet size after the other, in the model of `attaining`. The answer is the smallest fleet in which few
requests would miss what was promised. What has been seen counts less the older it is. A backlog that the fleet would
not work off by itself asks for more. Fewer pods are only asked for when an even safer fleet would have been small
enough for minutes, and never while a pod is silent.

`advise_fleet` is a pure function of `FleetFacts`; `FleetHistory` collects them.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kvgauge.advise.arrivals import BIN_SECONDS, Arrivals, arrivals_of, moved
from kvgauge.advise.attaining import STEPS, Attainment
from kvgauge.advise.demand import Demand

SLOW_RATIO = 0.075
"""Share of requests that the model may see miss the time per output token."""
SEEN_RATIO = 0.33
"""Share of these that really miss, behind a router that evens the load out (simulated fleets); what the engines' pages
show corrects it."""
LEAST_CORRECTION, MOST_CORRECTION = 0.5, 3.0
_DOUBT_RATIO, _DOUBT_REQUESTS = 0.01, 10.0
"""Misses that are as likely chance as not, which hold the correction near 1."""
LATE_RATIO = 0.025
"""Share that it may see wait too long or find no room: near that point little more load makes all of them late."""
SAFER_RATIO = 0.6
"""What may be shed must leave a fleet with so much less of either."""
HOLD_SECONDS = 260.0
"""For how long the smaller fleet must have been enough."""
GROWN_SECONDS = 540.0
"""After more pods were asked for, none is shed for so long: a start costs as much as these minutes."""
SHED_RATIO = 0.15
"""Share of the pods from which on shedding is worth it; by fewer the next burst would bring them back."""
HALF_LIFE_SECONDS = 600.0
WINDOW_SECONDS = 1800.0
READY_SLACK_SECONDS = 30.0
"""From the wish for a pod to its creation: an autoscaler looks every 15 s."""
MOST_AHEAD = 1.25
"""The level that is due is at most so many times that of now: what a trend says beyond that is hope."""
MOST_GROWTH = 4.0
DRAIN_SECONDS = 60.0
"""A backlog is to be worked off in this time."""
_DRAIN_LOAD = 0.9
_USUAL_WAITING = 2
"""Requests that may wait in each pod without being a backlog."""
_TARGET_LOAD_RATIO = 0.85
LEAST_FINISHED = 30
"""Requests from which on their lengths say something."""
_LEAST_SECONDS = 45.0
"""Before this much was seen, nothing is changed."""
_MOST_REPLICAS = 1000
_FULL_BIN_SECONDS = 0.97 * BIN_SECONDS
_MOST_SLOW = 0.9
"""Even where prefill never ends, those that come last decode in peace."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the safer fleet would have been at one time."""

    seconds: float
    replicas: int


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """A workload at one moment."""

    seconds: float
    """On the clock of the wishes."""
    replicas: int
    """Pods that are asked for at present."""
    starting: int
    silent: int
    """Pods that should tell and do not."""
    waiting: int
    demand: Demand | None
    """Of the mean pod, `pooling.pooled`."""
    counts: Sequence[float]
    """Arrivals in bins of BIN_SECONDS, oldest first; those that silent pods got made up for."""
    ready: Sequence[int]
    """Pods that were ready, bin by bin."""
    judged: float
    """Requests of this time whose time per output token is known, and, in `slow`, those that missed the promise."""
    slow: float
    start_up_seconds: float
    since_growth_seconds: float = math.inf
    """How long ago more pods were asked for than before."""
    load_ratio: float | None = None
    """Sum over the pods, for when no model can be made."""


@dataclass(frozen=True, slots=True)
class FleetAdvice:
    """How many pods there should be, and why. `wishes` is to be handed in the next time."""

    replicas: int
    wishes: tuple[Wish, ...]
    terms: Mapping[str, float | int | None]
    explanation: tuple[str, ...]


def advise_fleet(facts: FleetFacts, wishes: Sequence[Wish] = ()) -> FleetAdvice:
    """The rule. `wishes` are those of the answer before."""
    if len(facts.counts) * BIN_SECONDS < _LEAST_SECONDS:
        return _held(facts, wishes, "Too little was seen so far to change anything.")
    if facts.demand is None or facts.demand.finished < LEAST_FINISHED:
        return _held(facts, wishes, f"Fewer than {LEAST_FINISHED} requests have finished so far: nothing is changed.")
    model = _model(facts.demand)
    if model is None:
        return _by_load(facts, wishes)
    seen = arrivals_of(facts.counts)
    due = min(
        seen.least_rate + seen.trend * (facts.start_up_seconds + READY_SLACK_SECONDS),
        MOST_AHEAD * max(seen.least_rate, seen.minute_rate),
    )
    replay = _Replay(model, moved(facts.counts, due, seen.most_rate, MOST_GROWTH), facts.demand.slo_ttft_seconds)
    ranks = facts.demand.ranks
    correction = _correction(facts, _Replay(model, facts.counts, None), ranks)
    replay.correct(correction)
    needed = _smallest(lambda pods: replay.excess(pods * ranks) <= 1, facts.replicas)
    safer = max(needed, _smallest(lambda pods: replay.excess(pods * ranks) <= SAFER_RATIO, needed))
    backlog = max(facts.waiting - _USUAL_WAITING * facts.replicas, 0)
    drain = (seen.minute_rate + backlog / DRAIN_SECONDS) * model.work_seconds / (_DRAIN_LOAD * ranks)
    by_backlog = min(max(math.ceil(drain - 0.05), 1), _MOST_REPLICAS) if backlog else 1
    replicas, kept = _settled(facts, wishes, max(needed, by_backlog), max(safer, by_backlog))
    terms: dict[str, float | int | None] = {
        "arrivals_per_second": seen.minute_rate,
        "least_level_per_second": seen.least_rate,
        "most_level_per_second": seen.most_rate if math.isfinite(seen.most_rate) else None,
        "trend_per_second2": seen.trend,
        "due_level_per_second": due,
        "burstiness": seen.burstiness,
        "minute_burstiness": seen.minute_burstiness,
        "slow_correction_ratio": correction,
        "prefill_seconds_per_request": model.prefill_seconds,
        "decode_seconds_per_request": model.decode_seconds,
        "slow_alone_ratio": model.alone.slow,
        "late_alone_ratio": model.alone.late,
        "start_up_seconds": facts.start_up_seconds,
        "replicas_by_replay": needed,
        "replicas_by_backlog": by_backlog,
        "replicas_to_shed_to": safer,
        "backlog_requests": backlog,
        "replicas_starting": facts.starting,
        "pods_silent": facts.silent,
    }
    return FleetAdvice(replicas, kept, terms, _words(facts, seen, needed, by_backlog, replicas))


class _Replay:
    """The arrivals, played against fleets of engines."""

    def __init__(self, model: Attainment, counts: Sequence[float], patience_seconds: float | None) -> None:
        self._model = model
        number = len(counts)
        work = model.work_seconds
        # Decoding spreads a burst over the time that requests stay; prefill takes it as it comes.
        follow = min(BIN_SECONDS / max(model.residence_seconds, BIN_SECONDS), 1.0)
        level = counts[0]
        self._counts = counts
        self._rates: list[float] = []
        for count in counts:
            level += follow * (count - level)
            mixed = (count * model.prefill_seconds + level * model.decode_seconds) / work
            self._rates.append(mixed / BIN_SECONDS)
        self._ahead = [*self._rates[1:], self._rates[-1]]
        fade = 0.5 ** (BIN_SECONDS / HALF_LIFE_SECONDS)
        self._weights = [count * fade ** (number - 1 - place) for place, count in enumerate(counts)]
        self._whole = math.fsum(self._weights)
        self._patience = patience_seconds or math.inf
        self._found: dict[int, float] = {}
        self._correction = 1.0

    def correct(self, correction: float) -> None:
        """Slow requests are so many times as many as the model has them."""
        self._correction = correction

    def slow_requests(self, engines: Sequence[int]) -> float:
        """Those that really miss with so many engines, bin by bin, all counted alike: of few that the model has, a
        third; of an engine that does not keep up, all."""
        slow_at: list[float] = []
        total, number, per_rate = 0.0, 0, 0.0
        for count, rate, ahead, there in zip(self._counts, self._rates, self._ahead, engines, strict=True):
            if not count or not there:
                continue
            if there != number:
                number = there
                slow_at, per_rate = self._model.table(number)[0], STEPS / self._model.most_per_second / number
            place = (rate + ahead) / 2 * per_rate
            below = int(place)
            share = 1.0
            if below < STEPS:
                share = slow_at[below] + (slow_at[below + 1] - slow_at[below]) * (place - below)
            total += count * share * (SEEN_RATIO + (1 - SEEN_RATIO) * share)
        return total

    def excess(self, engines: int) -> float:
        """The larger of the shares of requests that miss, over what is allowed: above 1 the fleet is too small."""
        if engines not in self._found:
            self._found[engines] = self._excess(engines)
        return self._found[engines]

    def _excess(self, engines: int) -> float:
        if not self._whole:
            return 0.0
        # What an engine misses even without a load is nothing that more of them would change.
        slow_at, late_at = ([share - shares[0] for share in shares] for shares in self._model.table(engines))
        work, prefill = self._model.work_seconds, 2 * self._model.prefill_seconds
        # Rates are looked up in a table of steps; a backlog counts as the rate that would bring it in one bin.
        steps = STEPS / self._model.most_per_second
        per_backlog = steps / (BIN_SECONDS * work)
        per_rate = steps / engines
        seconds = work * BIN_SECONDS / engines
        slow = late = backlog = 0.0
        for rate, ahead, weight in zip(self._rates, self._ahead, self._weights, strict=True):
            after = backlog + rate * seconds - _FULL_BIN_SECONDS
            after = max(after, 0.0)
            if weight:
                # Whoever waits for its first token is disturbed by those that come later, not by those before it.
                place = (rate + ahead) / 2 * per_rate
                below = int(place)
                slow += weight * (
                    min(slow_at[below] + (slow_at[below + 1] - slow_at[below]) * (place - below), _MOST_SLOW)
                    if below < STEPS
                    else _MOST_SLOW
                )
                place = rate * per_rate + backlog * per_backlog
                below = int(place)
                if after + prefill > self._patience or below >= STEPS:
                    late += weight
                else:
                    late += weight * (late_at[below] + (late_at[below + 1] - late_at[below]) * (place - below))
            backlog = after
        return max(self._correction * slow / SLOW_RATIO, late / LATE_RATIO) / self._whole


@functools.lru_cache(maxsize=8)
def _model(demand: Demand) -> Attainment | None:
    """The tables of one mix serve as long as it does not change."""
    try:
        return Attainment(demand)
    except ValueError:
        return None


def _correction(facts: FleetFacts, replay: "_Replay", ranks: int) -> float:
    """How many times as many requests were slow as the model has for the fleet that there was."""
    if not facts.judged:
        return 1.0
    expected = replay.slow_requests([ready * ranks for ready in facts.ready])
    doubt = _DOUBT_RATIO * facts.judged + _DOUBT_REQUESTS
    return min(max((facts.slow + doubt) / (expected + doubt), LEAST_CORRECTION), MOST_CORRECTION)


def _settled(facts: FleetFacts, wishes: Sequence[Wish], needed: int, safer: int) -> tuple[int, tuple[Wish, ...]]:
    """More at once; fewer when the safer fleet was smaller for long enough."""
    kept = (*_kept(wishes, facts.seconds), Wish(facts.seconds, safer))
    if needed > facts.replicas:
        return needed, kept
    begin = facts.seconds - HOLD_SECONDS
    # Whoever has not looked for long enough cannot say that it was so for long enough.
    if facts.silent or facts.since_growth_seconds < GROWN_SECONDS or kept[0].seconds > begin:
        return facts.replicas, kept
    highest = max(needed, *(wish.replicas for wish in kept if wish.seconds >= begin))
    worth_it = facts.replicas - highest >= SHED_RATIO * facts.replicas
    return highest if worth_it else facts.replicas, kept


def _kept(wishes: Sequence[Wish], now_seconds: float) -> tuple[Wish, ...]:
    """Those of the time in which a smaller fleet must have been enough, and the last one before it, which shows that it
    is the whole of that time."""
    begin = now_seconds - HOLD_SECONDS
    past = [wish for wish in wishes if wish.seconds < now_seconds]
    before = [wish for wish in past if wish.seconds <= begin]
    return (*before[-1:], *(wish for wish in past if wish.seconds > begin))


def _by_load(facts: FleetFacts, wishes: Sequence[Wish]) -> FleetAdvice:
    """Without a step cost or lengths: the sum of the pods' load ratios over the share that each should have."""
    if facts.load_ratio is None:
        return _held(facts, wishes, "The pods tell neither speed nor load: nothing is changed.")
    needed = max(math.ceil(min(facts.load_ratio / _TARGET_LOAD_RATIO, _MOST_REPLICAS) - 1e-9), 1)
    replicas, kept = _settled(facts, wishes, needed, needed)
    words = f"The pods' load ratios add up to {facts.load_ratio:.2f}; at {_TARGET_LOAD_RATIO:.2f} each: {replicas}."
    terms = {"load_ratio": facts.load_ratio, "replicas_by_load": needed, "pods_silent": facts.silent}
    return FleetAdvice(replicas, kept, terms, (words, "No step cost is known, so speed is left out."))


def _held(facts: FleetFacts, wishes: Sequence[Wish], why: str) -> FleetAdvice:
    terms = {"pods_silent": facts.silent}
    return FleetAdvice(facts.replicas, _kept(wishes, facts.seconds), terms, (why,))


def _smallest(enough: Callable[[int], bool], guess: int) -> int:
    """The least number of pods that is enough; more always is. Looked for around `guess`."""
    high, step = min(max(guess, 1), _MOST_REPLICAS), 1
    if enough(high):
        low = high - 1
        while low > 0 and enough(low):
            high, low, step = low, max(low - 2 * step, 0), 2 * step
    else:
        low = high
        while high < _MOST_REPLICAS and not enough(high):
            low, high, step = high, min(high + step, _MOST_REPLICAS), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _words(facts: FleetFacts, seen: Arrivals, needed: int, by_backlog: int, replicas: int) -> tuple[str, ...]:
    level = f"between {seen.least_rate:.2f} and {seen.most_rate:.2f}" if math.isfinite(seen.most_rate) else "unsettled"
    words = [
        f"{seen.minute_rate:.2f} requests/s came in the last minute; the level is {level}.",
        f"Arrivals are {seen.burstiness:.1f} times as bursty as chance.",
        f"Played against the last {len(facts.counts) * BIN_SECONDS / 60:.0f} minutes, {needed} pods keep the promise.",
    ]
    if by_backlog > needed:
        words.append(f"{facts.waiting} requests wait: {by_backlog} pods work them off within a minute.")
    if replicas > max(needed, by_backlog):
        words.append(
            f"{facts.silent} pods are silent, so none is shed."
            if facts.silent
            else f"{replicas} are kept until {SHED_RATIO:.0%} fewer would have been safe for {HOLD_SECONDS:.0f} s."
        )
    return tuple(words)
