"""How many requests would miss what was promised, at a rate of arrivals and a number of engines.

A model of one continuously batching engine behind a router that evens the load out, in closed form:

- *decoding.* Requests that come at rate l keep l t E[o] sequences decoding, t the time of a step. A step reads the
  weights (f), the resident tokens and computes one token for each, so t = f / (1 - l w) with w the seconds that a
  request's decoding adds to all steps together, and t = f / (1 - l (w + E[p])) with the prefills p of others between.
- *time per output token.* Of a request with o tokens, o t pass anyway; it misses when the prefills that come in during
  its own time exceed what the promise leaves. These are a compound Poisson sum, taken as a gamma distribution with the
  same mean and variance. Requests with few tokens miss by chance at any load, which no mean shows.
- *time to first token.* The wait of an M/G/1 queue, exponential beyond its mean (Pollaczek-Khinchine), and the
  request's own prefill.
- *memory.* The number in the pool is Poisson (a queue with a server for each), their sizes are those of `Resident`; the
  share of time in which they do not fit.

Behind a router that counts the requests in flight, n engines get almost equal numbers: what is left of the variance of
the number in one of them is 1/n of it.
"""

import math
from dataclasses import dataclass

from kvgauge.advise.demand import Demand
from kvgauge.advise.lengths import Lengths

STEPS = 20
_FULLEST = 0.97
"""Share of an engine's time from which on it does not keep up."""
_OWN_PREFILL_RATIO = 0.3
"""Share of a request's own prefill in which those of others that came later delay it. Simulated engines: 0 to 0.5."""
_CHUNK_TOKENS = 8192.0
_REGROWN_RATIO = 0.5
"""Share of what sequences grow at saturation that is thrown out and computed again."""


@dataclass(frozen=True, slots=True)
class Misses:
    """Shares of requests, 0..1."""

    slow: float
    """Whose tokens take longer than promised: every one counts for itself."""
    late: float
    """Whose first token is late or that find no room: the sign of an engine that does not keep up."""


class Attainment:
    """The model for one kind of engine and one mix of requests. Raises ValueError without a step cost, with one by
    which requests take no time, and without a pool."""

    def __init__(self, demand: Demand) -> None:
        cost, pool = demand.cost, demand.pool_slots
        if cost is None or pool is None:
            raise ValueError("demand has no step cost or no pool")
        self._demand = demand
        self._pool_slots = pool
        self._cost = cost
        self._step_seconds = cost.fixed_seconds
        cached = 1.0 - demand.computed_ratio
        self._prefills = Lengths(
            tuple(cost.prefill_seconds(tokens, cached * tokens, math.inf) for tokens in demand.prompts.points),
            demand.prompts.shares,
            demand.prompts.count,
        )
        self.prefill_seconds = self._prefills.mean
        """Of one request, on average, beyond the steps that run anyway."""
        self._prefill_seconds2 = self._prefills.moment(2)
        prompt, output, output2 = demand.prompts.mean, demand.outputs.mean, demand.outputs.moment(2)
        self._output_tokens = output
        held = output * prompt + output2 / 2
        if demand.resident is not None:
            self._mean_slots = demand.resident.mean_slots
            self._variance_slots2 = demand.resident.variance_slots2
        else:
            self._mean_slots = held / output
            spread = output * demand.prompts.moment(2) + prompt * output2 + demand.outputs.moment(3) / 3
            self._variance_slots2 = max(spread / output - self._mean_slots**2, 0.0)
        per_token = cost.token_seconds + cost.sequence_seconds
        self.decode_seconds = cost.kv_token_seconds * held + per_token * output
        """That one request's decoding adds to steps that run anyway, on average."""
        chunk = demand.max_num_batched_tokens or _CHUNK_TOKENS
        self._step_per_chunk = self._step_seconds / (chunk * cost.token_seconds) if cost.token_seconds else 0.0
        self.work_seconds = self.prefill_seconds + self.decode_seconds
        if self.work_seconds <= 0:
            raise ValueError("by the step cost of demand requests take no time")
        self.residence_seconds = 1.5 * output * self._step_seconds
        """How long a request decodes, at about a third of the load that an engine can bear."""
        self.most_per_second = _FULLEST / self.work_seconds
        """Arrivals of one engine from which on it does not keep up."""
        self._tables: dict[int, tuple[list[float], list[float]]] = {}
        self.alone = self._at(1e-6 * self.most_per_second, 1)
        """Misses of requests that have an engine to themselves: no number of engines helps these."""

    def misses(self, requests_per_second: float, engines: int) -> Misses:
        """Misses when each of `engines` engines gets that rate."""
        place = requests_per_second / self.most_per_second * STEPS
        if place >= STEPS:
            return Misses(1.0, 1.0)
        slow, late = self.table(engines)
        below = int(place)
        part = place - below
        return Misses(*(each[below] + (each[below + 1] - each[below]) * part for each in (slow, late)))

    def saturation_per_second(self) -> float:
        """The rate of arrivals above which one engine's queue grows without end.

        An engine has so many slots of its pool, places in its batch and tokens in each step, and a request takes some
        of each in every one of its steps. At rate l steps take t = f / (1 - l w), and l is the rate at which l t times
        what a request takes is all there is. For the pool (Nie, Si and Zhou 2026, arXiv 2605.04595) two things more. A
        prompt is admitted when it fits as a whole, so that about half of the next one stays empty. And what sequences
        grow by while others wait is taken from those admitted last, which compute it again: all growth where there
        always is a queue, none where there never is one, so half of it is taken (simulated engines: 0.6 to 1.05 of all
        growth far beyond saturation).
        """
        demand, cost = self._demand, self._cost
        prompts, output = demand.prompts, self._output_tokens
        room = max(self._pool_slots - prompts.moment(2) / prompts.mean / 2, self._mean_slots)
        again = _REGROWN_RATIO * output * (cost.token_seconds + cost.pair_seconds * self._mean_slots)
        limits = [self._rate_that_fills(room, output * self._mean_slots, again)]
        if demand.max_num_seqs is not None:
            limits.append(self._rate_that_fills(demand.max_num_seqs, output))
        chunk = demand.max_num_batched_tokens or _CHUNK_TOKENS
        limits.append(self._rate_that_fills(chunk, demand.computed_ratio * prompts.mean + output))
        return min(limits)

    def _rate_that_fills(self, whole: float, taken: float, more_seconds: float = 0.0) -> float:
        """Arrivals a second whose requests, each taking `taken` in all its steps together, fill `whole` in every step;
        each adds `more_seconds` to the steps beyond its usual work."""
        return 1 / (self._step_seconds * taken / whole + self.work_seconds + more_seconds)

    def table(self, engines: int) -> tuple[list[float], list[float]]:
        """(slow, late) at 0, 1, ... STEPS of so many parts of `most_per_second` for each engine."""
        found = self._tables.get(engines)
        if found is None:
            slow, late = [self.alone.slow], [self.alone.late]
            for step in range(1, STEPS + 1):
                missed = self._at(self.most_per_second * step / STEPS, engines)
                # More load never makes it better; where a formula says so it has left its range.
                slow.append(max(missed.slow, slow[-1]))
                late.append(max(missed.late, late[-1]))
            found = self._tables[engines] = slow, late
        return found

    def _at(self, rate: float, engines: int) -> Misses:
        busy = rate * self.work_seconds
        # As many decode as steps that carry prefills keep; the step without one is what a token takes at least.
        decoding = self._step_seconds * (1 + rate * self.decode_seconds / (1 - busy))
        step = self._step_seconds / (1 - busy)
        wait = 0.0
        if self.prefill_seconds > 0:
            wait = busy / (1 - busy) * self._prefill_seconds2 / (2 * self.prefill_seconds) / math.sqrt(engines)
        late = self._late(rate, busy, decoding, wait)
        no_room = self._no_room(rate, step, engines)
        return Misses(self._slow(rate, decoding, wait, engines), 1 - (1 - late) * (1 - no_room))

    def _late(self, rate: float, busy: float, decoding: float, wait: float) -> float:
        promised = self._demand.slo_ttft_seconds
        if promised is None:
            return 0.0
        total = 0.0
        stretch = (1 + self._step_per_chunk) / (1 - rate * self.decode_seconds)
        for seconds, share in zip(self._prefills.points, self._prefills.shares, strict=True):
            left = promised - seconds * stretch - decoding
            if left <= 0:
                total += share
            elif wait > 0:
                total += share * busy * math.exp(-left * busy / wait)
        return min(total, 1.0)

    def _slow(self, rate: float, decoding: float, wait: float, engines: int) -> float:
        promised = self._demand.slo_tpot_seconds
        if promised is None:
            return 0.0
        own = _OWN_PREFILL_RATIO * (self.prefill_seconds + wait)
        mean = self.prefill_seconds
        spread = self._prefill_seconds2 - mean * mean * (1 - 1 / engines)
        total = 0.0
        for tokens, share in zip(self._demand.outputs.points, self._demand.outputs.shares, strict=True):
            gaps = tokens - 1
            if gaps < 1:
                continue
            window = gaps * promised + own
            total += share * _gamma_tail(rate * window * mean, rate * window * spread, gaps * (promised - decoding))
        return min(total, 1.0)

    def _no_room(self, rate: float, step: float, engines: int) -> float:
        present = rate * (step * self._output_tokens + self.prefill_seconds)
        mean = present * self._mean_slots
        spread = present * (self._variance_slots2 + self._mean_slots**2 / engines)
        full = _normal_tail(self._pool_slots - mean, spread)
        most = self._demand.max_num_seqs
        return full if most is None else max(full, _normal_tail(most + 0.5 - present, present / engines))


def _normal_tail(margin: float, variance: float) -> float:
    """P(X > mean + margin) of a normal variable."""
    if variance <= 0:
        return 0.0 if margin >= 0 else 1.0
    return 0.5 * math.erfc(margin / math.sqrt(2 * variance))


def _gamma_tail(mean: float, variance: float, value: float) -> float:
    """P(X > value) of a gamma variable (Wilson and Hilferty 1931: its cube root is nearly normal)."""
    if value <= 0:
        return 1.0
    if mean <= 0 or variance <= 0:
        return 0.0 if mean <= value else 1.0
    shape = mean * mean / variance
    z = ((value / mean) ** (1 / 3) - (1 - 1 / (9 * shape))) * 3 * math.sqrt(shape)
    return 0.5 * math.erfc(z / math.sqrt(2))
