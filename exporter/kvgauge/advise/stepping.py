"""How long the engine's steps take: what a roofline says of them, corrected by what is seen.

While requests run without a break, the time that passes is that of the engine's steps, and the page counts what was in
them. Over a window of such time,

    elapsed = memory scale x (fixed x steps + kv_token x resident tokens read + sequence x decodes)
            + compute scale x (token x tokens computed + pair x pairs of a prefilled token and a position before it)

so that two numbers follow by least squares, both near 1 where the roofline is right. Windows count by their length,
older ones less and less; a few imaginary ones that say 1 (ridge regression) decide what the load leaves open, such as
the cost of a prompt where there are none. How many these are follows from how well the windows agree. Without a
roofline, the same sums give a straight line through steps and tokens, once the load has varied enough to tell one from
the other.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from kvgauge.advise.stepping_records import Counters, StepRecord, Window, counters_of, mean_position_of
from kvgauge.observe.records import Observation, RankReading
from kvmodel.latency import StepCost

HALF_LIFE_SECONDS = 300.0
"""Busy time after which a window counts half: an engine at rest forgets nothing."""
WINDOW_SECONDS = 10.0
"""What a step or a prompt in progress at either end leaves in doubt is small against this."""
LONGEST_WINDOW_SECONDS = 60.0
SHORTEST_WINDOW_SECONDS = 0.9
LONGEST_GAP_SECONDS = 30.0
"""Between two readings: what was resident in a longer time is not known."""
SHORTEST_GAP_SECONDS = 0.05
"""Two readings nearer than this are one, seen twice."""
FACTS_HALF_LIFE_SECONDS = 60.0

LEAST_SCALE, MOST_SCALE = 0.3, 3.0
_PRIOR_SPREAD = 0.25
"""Usual error of a roofline, as a share: it says how much evidence the imaginary windows are."""
_USUAL_VARIANCE = 0.004
"""Square of a window's relative error times its seconds, before windows have shown their own: 2 % in 10 s."""
_USUAL_WINDOWS = 2.0
_LEAST_SHARE, _MOST_SHARE = 0.5 / MOST_SCALE, 2 / LEAST_SCALE
"""Of a window's time that the roofline accounts for: outside, it is not an engine at work that was counted."""
_SURE_SECONDS = 30.0
"""Evidence from which on a window far off the line counts less: an outlier is only one against something."""
_OUTLIER_RATIO = 0.1
_LINE_SECONDS = 60.0
_LEAST_SPREAD = 0.01
"""1 - the square of the cosine between steps and tokens: with less of it the load is too even to tell them apart."""
_MANY_DECODING = 8
"""Of requests that come and go by chance, eight on average are none at a time in 3,000."""
_CHUNK_TOKENS = 8192.0

_BARE = StepCost(1.0, 0.0, 1.0)
"""What stands for the roofline where there is none: the scales are then seconds themselves."""


@dataclass(frozen=True, slots=True)
class StepModel:
    """What is known of the engine's steps. Rates and shares are of one data-parallel rank, over the last minute or two,
    idle time included; they are None before anything was seen."""

    cost: StepCost | None
    why_not: str | None
    """Why there is no cost."""
    memory_scale: float | None
    """By how much fixed time and traffic take longer than the roofline says; None without one."""
    compute_scale: float | None
    """Likewise of computing tokens."""
    busy_seconds: float
    """Busy time that the cost stands on, what is old counted less; 0: it is the roofline's alone."""
    error_ratio: float | None
    """Root mean square of what a window of 10 s is off by, as a share; None before anything was seen."""
    busy_ratio: float | None = None
    """Share of the time in which steps ran, as the cost has it."""
    prefill_ratio: float | None = None
    """Share of the time that prefilled tokens took."""
    tokens_per_second: float | None = None
    """Tokens computed, prompts and decodes."""
    prefill_tokens_per_second: float | None = None
    """Prompt tokens that the engine could compute if it did nothing else, at the prompt lengths seen."""


def reading_seconds(observation: Observation) -> float:
    """When the engine's reading in `observation` was taken, on the monotonic clock: a reading that is repeated because
    a newer one failed keeps its time."""
    age = next((state.age_seconds for state in observation.sources if state.source == "engine"), None)
    return observation.monotonic_seconds - (age or 0.0)


class StepLearner:
    """Learns from consecutive readings of an engine, all its ranks together. Owned by the loop."""

    def __init__(self, record: StepRecord | None = None) -> None:
        """`record` is what an earlier learner knew; it is used if it was about the same roofline."""
        record = record or StepRecord()
        self._prior: tuple[float, ...] = record.prior
        # x = memory part / elapsed, y = compute part / elapsed: sums of xx, xy, yy, x, y, each by elapsed.
        self._sums = list(record.sums)
        self._squares = record.squares
        self._windows = record.windows
        self._busy_seconds = record.busy_seconds
        self._last: dict[str, tuple[float, Counters]] = {}
        self._open: dict[str, Window] = {}
        self._lately = Window()
        self._cost = StepCost(*record.prior) if record.prior else None
        self._chunk_tokens = _CHUNK_TOKENS
        self._positioned_seconds = -math.inf
        self._mean_position = 0.0
        self._scales: tuple[float, float] | None = None
        self._calibrated: StepCost | None = None
        self._solve()

    def observe(
        self,
        ranks: Iterable[RankReading],
        at_seconds: float,
        prior: StepCost | None,
        max_num_batched_tokens: int | None = None,
    ) -> None:
        """One reading, taken at `at_seconds`. `prior` is what the roofline says; another one than before begins anew.
        None: it cannot be asked, perhaps only now, so one that was known stays."""
        if prior is not None and prior is not self._cost:
            key = _key_of(prior)
            self._cost = prior
            if key != self._prior:
                self._forget(key)
        self._chunk_tokens = float(max_num_batched_tokens or _CHUNK_TOKENS)
        for rank in ranks:
            self._observe_rank(rank, at_seconds)

    def record(self) -> StepRecord:
        """What was learned, for after a restart."""
        return StepRecord(
            self._prior,
            tuple(self._sums),
            self._squares,
            self._windows,
            self._busy_seconds,
        )

    def model(self) -> StepModel:
        """What is known now."""
        cost, lately = self._calibrated, self._lately
        scales = self._scales if self._cost is not None and cost is not None else None
        busy, prefill, tokens, rate = _facts(lately, cost, self._chunk_tokens)
        return StepModel(
            cost=cost,
            why_not=self._why_not() if cost is None else None,
            memory_scale=scales[0] if scales is not None else None,
            compute_scale=scales[1] if scales is not None else None,
            busy_seconds=self._busy_seconds,
            error_ratio=math.sqrt(self._variance() / WINDOW_SECONDS) if self._windows > 0 else None,
            busy_ratio=busy,
            prefill_ratio=prefill,
            tokens_per_second=tokens,
            prefill_tokens_per_second=rate,
        )

    def _forget(self, key: tuple[float, ...]) -> None:
        self._prior = key
        self._sums = [0.0] * 5
        self._squares = self._windows = self._busy_seconds = 0.0
        self._open.clear()
        self._solve()

    def _observe_rank(self, rank: RankReading, at_seconds: float) -> None:
        now = counters_of(rank)
        before = self._last.get(rank.rank)
        if before is not None and 0 <= at_seconds - before[0] < SHORTEST_GAP_SECONDS:
            return
        self._last.pop(rank.rank, None)
        if now is not None:
            self._last[rank.rank] = (at_seconds, now)
        if now is None or before is None:
            self._end(rank.rank, before)
            return
        elapsed = at_seconds - before[0]
        if elapsed > LONGEST_GAP_SECONDS or elapsed < 0 or now.restarted_since(before[1]):
            self._end(rank.rank, before)
            return
        piece = Window.between(
            before[1], now, elapsed, chunk_tokens=self._chunk_tokens, position=self._position(rank, at_seconds)
        )
        self._remember(piece)
        if not _is_busy(before[1], now, elapsed, piece):
            self._end(rank.rank, before)
            return
        window = self._open.get(rank.rank)
        if window is None:
            # The present step's part of a prompt will be counted as done in this window, and half of it was before.
            window = self._open[rank.rank] = Window(prefills=-before[1].under_way_now(self._chunk_tokens))
        window.add(piece)
        if (window.elapsed >= WINDOW_SECONDS and window.steps > 0) or window.elapsed >= LONGEST_WINDOW_SECONDS:
            self._learn(window)
            self._open[rank.rank] = Window()

    def _position(self, rank: RankReading, at_seconds: float) -> float:
        """Of prompts by their lengths, which change slowly: looked at once in a while."""
        if not 0 <= at_seconds - self._positioned_seconds < WINDOW_SECONDS:
            self._positioned_seconds = at_seconds
            self._mean_position = mean_position_of(rank)
        return self._mean_position

    def _remember(self, piece: Window) -> None:
        self._lately.fade(0.5 ** (piece.elapsed / FACTS_HALF_LIFE_SECONDS))
        self._lately.add(piece)

    def _end(self, rank: str, last: tuple[float, Counters] | None) -> None:
        """Ends a time without a break, and learns from what is left of it."""
        window = self._open.pop(rank, None)
        if window is not None and last is not None:
            window.prefills += last[1].under_way_now(self._chunk_tokens)
            self._learn(window)

    def _learn(self, window: Window) -> None:
        if window.elapsed < SHORTEST_WINDOW_SECONDS or window.steps <= 0:
            return
        if window.preempted:
            # What was computed a second time is not counted.
            return
        # What was found in a cache is counted before the prompt that it belongs to.
        window.prefills = max(window.prefills, 0.0)
        if window.tokens <= 0:
            return
        cost = self._cost or _BARE
        x, y = (part / window.elapsed for part in window.parts(cost))
        if self._cost is not None and not _LEAST_SHARE <= x + y <= _MOST_SHARE:
            return
        weight = window.elapsed
        off = 1 - (self._scales[0] * x + self._scales[1] * y) if self._scales is not None else 0.0
        if self._busy_seconds >= _SURE_SECONDS and self._scales is not None:
            usual = max(_OUTLIER_RATIO, 3 * math.sqrt(self._variance() / weight))
            weight *= min(1.0, usual / abs(off)) if off else 1.0
        fade = 0.5 ** (window.elapsed / HALF_LIFE_SECONDS)
        for at, value in enumerate((x * x, x * y, y * y, x, y)):
            self._sums[at] = self._sums[at] * fade + weight * value
        self._busy_seconds = self._busy_seconds * fade + weight
        self._solve()
        if self._scales is not None:
            off = 1 - (self._scales[0] * x + self._scales[1] * y)
            self._squares = self._squares * fade + weight * off * off
            self._windows = self._windows * fade + 1
            self._solve()

    def _variance(self) -> float:
        """Of one second's window: square of its relative error."""
        return (self._squares + _USUAL_WINDOWS * _USUAL_VARIANCE) / (self._windows + _USUAL_WINDOWS)

    def _corrected(self) -> tuple[float, float]:
        xx, xy, yy, x, y = self._sums
        ridge = self._variance() / _PRIOR_SPREAD**2
        xx, yy, x, y = xx + ridge, yy + ridge, x + ridge, y + ridge
        determinant = xx * yy - xy * xy
        a, b = (x * yy - y * xy) / determinant, (y * xx - x * xy) / determinant
        if not LEAST_SCALE <= a <= MOST_SCALE:
            a = _bounded(a)
            b = (y - a * xy) / yy
        if not LEAST_SCALE <= b <= MOST_SCALE:
            b = _bounded(b)
            a = _bounded((x - b * xy) / xx)
        return a, b

    def _line(self) -> tuple[float, float] | None:
        """(seconds of a step, seconds of a token); None while they cannot be told apart."""
        xx, xy, yy, x, y = self._sums
        determinant = xx * yy - xy * xy
        if self._busy_seconds < _LINE_SECONDS or not determinant > _LEAST_SPREAD * xx * yy:
            return None
        fixed, token = (x * yy - y * xy) / determinant, (y * xx - x * xy) / determinant
        return (fixed, token) if fixed > 0 and token > 0 else None

    def _solve(self) -> None:
        """Scales and cost from the sums."""
        self._scales = self._corrected() if self._prior else self._line()
        self._calibrated = None
        if self._scales is not None:
            a, b = self._scales
            self._calibrated = (self._cost or _BARE).scaled(a, b)

    def _why_not(self) -> str:
        if self._busy_seconds < _LINE_SECONDS:
            return "no roofline of model and card is known, and too little busy time was seen to do without"
        return "no roofline of model and card is known, and the load was too even to tell steps from tokens"


def _is_busy(before: Counters, now: Counters, elapsed: float, piece: Window) -> bool:
    """Whether requests ran all the time, as far as two readings can tell.

    Surely so if fewer ended than were there at first: one of those is still there. Else probably, if very many decode
    and the time between tokens agrees: rare is the moment at which all of them have ended.
    """
    if not before.running or not now.running:
        return False
    present = before.running + before.waiting
    if now.finished is not None and before.finished is not None and now.finished - before.finished < present:
        return True
    if not piece.decodes or piece.decode_seconds < _MANY_DECODING * elapsed:
        return False
    return piece.decode_seconds / piece.decodes * piece.steps >= 0.9 * elapsed


def _facts(
    lately: Window, cost: StepCost | None, chunk_tokens: float
) -> tuple[float | None, float | None, float | None, float | None]:
    """(share of time busy, share of time in prefill, tokens/s, prefill tokens/s if alone)."""
    elapsed = lately.elapsed
    if elapsed <= 0:
        return None, None, None, None
    tokens_per_second = max(lately.tokens, 0.0) / elapsed
    if cost is None:
        return None, None, tokens_per_second, None
    busy = min(max(sum(lately.parts(cost)), 0.0) / elapsed, 1.0)
    one = cost.token_seconds + lately.position * cost.pair_seconds
    prefill = min(max(lately.prefills, 0.0) * one / elapsed, 1.0)
    one += cost.fixed_seconds / chunk_tokens
    return busy, prefill, tokens_per_second, 1 / one if one > 0 else None


def _bounded(scale: float) -> float:
    return min(max(scale, LEAST_SCALE), MOST_SCALE)


def _key_of(cost: StepCost | None) -> tuple[float, ...]:
    if cost is None:
        return ()
    return (
        cost.fixed_seconds,
        cost.kv_token_seconds,
        cost.token_seconds,
        cost.pair_seconds,
        cost.sequence_seconds,
    )


__all__ = ["StepLearner", "StepModel", "StepRecord", "reading_seconds"]
