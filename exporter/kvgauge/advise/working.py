"""What a request costs an engine in time, and what follows from it: how many are worth running at once.

With n requests in flight, of E[o] output tokens each, a step computes n decodes and, on average, the part n / E[o] of
one request's prefill: a token takes tau(n) = f + n W / E[o] seconds, where f is what every step takes whatever is in
it and W = P + D all that one request adds to steps: prefill P, decodes D. So n / (E[o] tau(n)) requests end each
second, fewer than 1 / W however many there are.
"""

import math
from dataclasses import dataclass

from kvgauge.advise.lengths import Lengths
from kvmodel.latency import StepCost

SATURATION_RATIO = 0.85
"""Share of the most requests per second beyond which more in flight mostly wait for each other."""
_MOST_REQUESTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Work:
    """One request's work on one rank, on average."""

    fixed_seconds: float
    """Of every step."""
    prefill_seconds: float
    """P: computing the part of its prompt that is not cached."""
    decode_seconds: float
    """D: its decodes, and reading what they attend to."""
    output_tokens: float
    prefill_variation: float
    """Variance over squared mean of P."""

    @property
    def request_seconds(self) -> float:
        """W."""
        return self.prefill_seconds + self.decode_seconds

    def token_seconds(self, requests: float) -> float:
        """tau(n)."""
        return self.fixed_seconds + requests * self.request_seconds / self.output_tokens

    def requests_per_second(self, requests: float) -> float:
        """That end, with so many in flight all the time."""
        return requests / (self.output_tokens * self.token_seconds(requests))

    def in_flight_at(self, requests_per_second: float) -> float:
        """The inverse (Little's law); infinite where it is more than can end."""
        idle = 1 - requests_per_second * self.request_seconds
        return math.inf if idle <= 0 else requests_per_second * self.output_tokens * self.fixed_seconds / idle

    def saturating(self) -> int:
        """Requests in flight with which SATURATION_RATIO of the most that can end do. At least 1."""
        return _whole(self.in_flight_at(SATURATION_RATIO / self.request_seconds))

    def within_tpot(self, slo_seconds: float) -> int:
        """The most in flight with which a token takes no longer: tau(n) <= SLO. At least 1, since with none there is
        nothing to be faster."""
        return _whole((slo_seconds - self.fixed_seconds) * self.output_tokens / self.request_seconds)

    def within_ttft(self, slo_seconds: float) -> int:
        """The most in flight with which a prompt waits for others and is computed in that time on average: with share u
        of the time in prefill, and chance arrivals, the wait is u / (1 - u) x (1 + c^2) / 2 x P (Pollaczek and
        Khinchine). At least 1."""
        prefill = self.prefill_seconds
        room = slo_seconds - prefill - self.fixed_seconds
        if room <= 0 or prefill <= 0:
            return 1 if prefill > 0 else _MOST_REQUESTS
        busy = room / (room + (1 + self.prefill_variation) / 2 * prefill)
        return _whole(self.in_flight_at(busy / prefill))


def work_of(cost: StepCost, prompts: Lengths, outputs: Lengths, computed_ratio: float) -> Work | None:
    """The work of requests of these lengths; the cached part of a prompt stands at its beginning. None where a request
    would cost nothing."""
    prompt, prompt2 = prompts.moment(1), prompts.moment(2)
    output, output2 = outputs.moment(1), outputs.moment(2)
    computed = prompt * computed_ratio
    # Positions from the cached part to the end, each attending to all before it.
    pairs = prompt2 * computed_ratio * (1 - computed_ratio / 2)
    prefill = cost.token_seconds * computed + cost.pair_seconds * pairs
    read_tokens = output * prompt + (output2 - output) / 2
    decode = output * (cost.token_seconds + cost.sequence_seconds) + cost.kv_token_seconds * read_tokens
    if not prefill + decode > 0:
        return None
    variation = max(prompt2 / prompt**2 - 1, 0.0)
    return Work(cost.fixed_seconds, prefill, decode, output, variation)


def _whole(requests: float) -> int:
    return max(math.floor(min(requests, _MOST_REQUESTS)), 1)
