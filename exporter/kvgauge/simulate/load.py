"""A synthetic load with quiet and bursty minutes: the same seed gives the same requests, for ever."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from kvgauge.simulate.spec import Request


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of time with one mean rate of arrivals."""

    seconds: float
    requests_per_second: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """A lognormal distribution of token counts: half of them are below `median_tokens`."""

    median_tokens: float
    sigma: float
    """Standard deviation of the logarithm; 0 makes all lengths equal."""

    def draw(self, source: random.Random, largest: int) -> int:
        """One length, from 1 to `largest`."""
        return max(1, min(round(source.lognormvariate(math.log(self.median_tokens), self.sigma)), largest))


# Sized for the pool of the embedded device, 476,000 tokens: the burst asks for more than it can hold, the quiet minute
# for a handful of requests at a time, with moments of none.
DEMO_PHASES = (Phase(15, 4.0), Phase(45, 10.0), Phase(20, 2.0), Phase(60, 0.25))
# Prompts of a chat with some history and answers of a few hundred tokens; the tails reach max_model_len.
DEMO_PROMPTS = Lengths(median_tokens=1400, sigma=0.8)
DEMO_OUTPUTS = Lengths(median_tokens=420, sigma=0.7)


@dataclass(frozen=True, slots=True)
class SyntheticLoad:
    """An endless sequence of requests in order of arrival, from time 0: iterate over it, as often as you like.

    The phases repeat; each time round their lengths and rates vary by up to `spread_ratio` either way. Arrivals are
    Poisson within a phase. Prompts take at most three quarters of `max_model_len`, outputs at most what is left of it.
    Raises ValueError when no request could ever come.
    """

    seed: int
    max_model_len: int
    phases: tuple[Phase, ...] = DEMO_PHASES
    prompts: Lengths = DEMO_PROMPTS
    outputs: Lengths = DEMO_OUTPUTS
    spread_ratio: float = 0.15

    def __post_init__(self) -> None:
        if self.max_model_len < 2:
            raise ValueError(f"max_model_len must be at least 2, not {self.max_model_len}")
        if not 0 <= self.spread_ratio < 1:
            raise ValueError(f"spread_ratio must be from 0 to below 1, not {self.spread_ratio}")
        if not any(phase.seconds > 0 and phase.requests_per_second > 0 for phase in self.phases):
            raise ValueError(f"phases must have one with seconds and requests_per_second above 0, not {self.phases}")

    def __iter__(self) -> Iterator[Request]:
        source = random.Random(self.seed)  # noqa: S311 - a load that can be repeated, not a secret
        begin = 0.0
        for phase in itertools.cycle(self.phases):
            end = begin + phase.seconds * self._vary(source)
            rate = phase.requests_per_second * self._vary(source)
            yield from self._arrivals(source, begin, end, rate)
            begin = end

    def _vary(self, source: random.Random) -> float:
        return source.uniform(1 - self.spread_ratio, 1 + self.spread_ratio)

    def _arrivals(self, source: random.Random, begin: float, end: float, rate: float) -> Iterator[Request]:
        if rate <= 0:
            return
        at = begin + source.expovariate(rate)
        while at < end:
            prompt = self.prompts.draw(source, self.max_model_len * 3 // 4)
            output = self.outputs.draw(source, self.max_model_len - prompt)
            yield Request(at, prompt, output)
            at += source.expovariate(rate)
