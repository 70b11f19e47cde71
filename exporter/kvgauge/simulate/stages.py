"""Synthetic loads in stages: a rate for so many seconds, steady, rising or with the time of day."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal, Protocol, Self

from kvgauge.simulate.load import Lengths
from kvgauge.simulate.spec import Request

Arrivals = Literal["constant", "poisson"]

MAX_REQUESTS = 5_000_000
"""Most requests of one load."""
MAX_TOKENS = 10_000_000
"""Longest prompt or output."""
MAX_RATE = 100_000.0
"""Most requests per second, on average over a stage."""
_MAX_SECONDS = 366 * 86400.0


class Stage(Protocol):
    """A stretch of time with its own course of the arrival rate."""

    @property
    def seconds(self) -> float:
        """How long it lasts."""

    @property
    def expected_requests(self) -> float:
        """Mean number of arrivals."""

    def seconds_until(self, expected: float) -> float:
        """Seconds into the stage at which `expected` arrivals have come on average; 0 <= expected <= all of them."""

    def scaled(self, scale: float) -> Self:
        """The same with its rates times `scale`."""


@dataclass(frozen=True, slots=True)
class Steady:
    """One rate. Raises ValueError for a time or a rate that cannot be."""

    seconds: float
    requests_per_second: float

    def __post_init__(self) -> None:
        _check_time(self.seconds)
        _check_rate("requests_per_second", self.requests_per_second)

    @property
    def expected_requests(self) -> float:
        """Rate times time."""
        return self.seconds * self.requests_per_second

    def seconds_until(self, expected: float) -> float:
        """Seconds into the stage."""
        return min(expected / self.requests_per_second, self.seconds) if expected else 0.0

    def scaled(self, scale: float) -> Self:
        """The same at `scale` times the rate."""
        return replace(self, requests_per_second=scale * self.requests_per_second)


@dataclass(frozen=True, slots=True)
class Ramp:
    """From one rate to another in a straight line. Raises ValueError for a time or a rate that cannot be."""

    seconds: float
    begin_requests_per_second: float
    end_requests_per_second: float

    def __post_init__(self) -> None:
        _check_time(self.seconds)
        _check_rate("begin_requests_per_second", self.begin_requests_per_second)
        _check_rate("end_requests_per_second", self.end_requests_per_second)

    @property
    def expected_requests(self) -> float:
        """The mean of both rates, times time."""
        return self.seconds * (self.begin_requests_per_second + self.end_requests_per_second) / 2

    def seconds_until(self, expected: float) -> float:
        """Seconds into the stage: the root of `begin t + slope t^2 / 2 = expected`, in a form that does not cancel."""
        slope = (self.end_requests_per_second - self.begin_requests_per_second) / self.seconds
        root = math.sqrt(max(self.begin_requests_per_second**2 + 2 * slope * expected, 0.0))
        return min(2 * expected / (self.begin_requests_per_second + root), self.seconds) if expected else 0.0

    def scaled(self, scale: float) -> Self:
        """The same with both rates times `scale`."""
        begin, end = scale * self.begin_requests_per_second, scale * self.end_requests_per_second
        return replace(self, begin_requests_per_second=begin, end_requests_per_second=end)


@dataclass(frozen=True, slots=True)
class Sine:
    """A mean rate and a swing about it, as over a day: it begins at the mean, on the way up.

    Raises ValueError for a time, a rate or a swing that cannot be.
    """

    seconds: float
    requests_per_second: float
    amplitude_ratio: float
    """The swing as a share of the mean, 0 to 1: 0.5 goes from half of it to one and a half."""
    period_seconds: float = 86400.0
    shift_ratio: float = 0.0
    """Where in the period it begins: 0.25 at the peak, 0.75 in the valley."""

    def __post_init__(self) -> None:
        _check_time(self.seconds)
        _check_rate("requests_per_second", self.requests_per_second)
        if not 0 <= self.amplitude_ratio <= 1:
            raise ValueError(f"amplitude_ratio must be from 0 to 1, not {self.amplitude_ratio}")
        if not 1 <= self.period_seconds <= _MAX_SECONDS:
            raise ValueError(f"period_seconds must be from 1 to a year, not {self.period_seconds}")
        if not 0 <= self.shift_ratio <= 1:
            raise ValueError(f"shift_ratio must be from 0 to 1, not {self.shift_ratio}")

    @property
    def expected_requests(self) -> float:
        """The integral of the rate."""
        return self._expected(self.seconds)

    def seconds_until(self, expected: float) -> float:
        """Seconds into the stage, by Newton's steps, as the integral has no inverse to write down; halved down where
        they leave the bracket, since the rate may touch 0."""
        if not expected:
            return 0.0
        low, high = 0.0, self.seconds
        at = min(expected / self.requests_per_second, high)
        for _ in range(60):
            over = self._expected(at) - expected
            if abs(over) < 1e-9:
                break
            low, high = (low, at) if over > 0 else (at, high)
            rate = self._rate(at)
            at = at - over / rate if rate > 0 else low
            if not low < at < high:
                at = (low + high) / 2
        return at

    def scaled(self, scale: float) -> Self:
        """The same at `scale` times the mean rate, its swing in proportion."""
        return replace(self, requests_per_second=scale * self.requests_per_second)

    def _rate(self, at: float) -> float:
        turn = 2 * math.pi * (at / self.period_seconds + self.shift_ratio)
        return self.requests_per_second * (1 + self.amplitude_ratio * math.sin(turn))

    def _expected(self, until: float) -> float:
        turn = 2 * math.pi / self.period_seconds
        begin = 2 * math.pi * self.shift_ratio
        swing = (math.cos(begin) - math.cos(begin + turn * until)) / turn
        return self.requests_per_second * max(until + self.amplitude_ratio * swing, 0.0)


class TokenCounts(Protocol):
    """A distribution of prompt or output lengths."""

    def draw(self, source: random.Random) -> int:
        """One length in tokens, at least 1."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same length. Raises ValueError for one that cannot be."""

    tokens: int

    def __post_init__(self) -> None:
        _check_bounds(self.tokens, self.tokens)

    def draw(self, source: random.Random) -> int:  # noqa: ARG002 - others need it
        """The length."""
        return self.tokens


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every length of a range alike, its ends included. Raises ValueError for a range that cannot be."""

    least_tokens: int
    most_tokens: int

    def __post_init__(self) -> None:
        _check_bounds(self.least_tokens, self.most_tokens)

    def draw(self, source: random.Random) -> int:
        """One length."""
        return source.randint(self.least_tokens, self.most_tokens)


@dataclass(frozen=True, slots=True)
class Normal:
    """A bell whose tails are laid onto the bounds. Raises ValueError for parameters that cannot be."""

    mean_tokens: float
    deviation_tokens: float
    least_tokens: int = 1
    most_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        _check_bounds(self.least_tokens, self.most_tokens)
        _check_middle("mean_tokens", self.mean_tokens)
        if not 0 <= self.deviation_tokens <= MAX_TOKENS:
            raise ValueError(f"deviation_tokens must be from 0 to {MAX_TOKENS}, not {self.deviation_tokens}")

    def draw(self, source: random.Random) -> int:
        """One length."""
        drawn = round(source.gauss(self.mean_tokens, self.deviation_tokens))
        return min(max(drawn, self.least_tokens), self.most_tokens)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Many short and a few long ones: half are below the median. Raises ValueError for parameters that cannot be."""

    median_tokens: float
    sigma: float
    """Standard deviation of the logarithm."""
    least_tokens: int = 1
    most_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        _check_bounds(self.least_tokens, self.most_tokens)
        _check_middle("median_tokens", self.median_tokens)
        # e^(5 x 8) would be no length any more; measured mixes have 0.5 to 2.
        if not 0 <= self.sigma <= 5:
            raise ValueError(f"sigma must be from 0 to 5, not {self.sigma}")

    def draw(self, source: random.Random) -> int:
        """One length."""
        return max(self.least_tokens, Lengths(self.median_tokens, self.sigma).draw(source, self.most_tokens))


@dataclass(frozen=True, slots=True)
class StagedLoad:
    """Stages one after another, from second 0. Raises ValueError where no request comes, or too many.

    "constant" spaces arrivals evenly for the rate, the first at once; "poisson" lets them come by chance, both through
    the expected number of arrivals up to a moment, which steps by one or by an exponential draw. Lengths have a source
    of chance of their own, so they stay the same whatever the arrivals. The same seed gives the same requests.
    """

    stages: tuple[Stage, ...]
    prompts: TokenCounts
    outputs: TokenCounts
    arrivals: Arrivals = "constant"
    seed: int = 1
    cut_seconds: float | None = None
    """Where the load ends, if before its stages do."""

    def __post_init__(self) -> None:
        if self.arrivals not in {"constant", "poisson"}:
            raise ValueError(f"arrivals must be constant or poisson, not {self.arrivals!r}")
        if self.cut_seconds is not None and not self.cut_seconds > 0:
            raise ValueError(f"cut_seconds must be above 0, not {self.cut_seconds}")
        expected = sum(stage.expected_requests for stage in self.stages)
        if not 0 < expected <= MAX_REQUESTS:
            raise ValueError(f"stages must bring up to {MAX_REQUESTS} requests, not {expected:g}")
        total = sum(stage.seconds for stage in self.stages)
        if total > _MAX_SECONDS:
            raise ValueError(f"stages must last a year at most, not {total:g} seconds")

    @property
    def duration_seconds(self) -> float:
        """All stages together, or up to the cut."""
        total = sum(stage.seconds for stage in self.stages)
        return total if self.cut_seconds is None else min(total, self.cut_seconds)

    def scaled(self, scale: float) -> "StagedLoad":
        """The same with all rates times `scale`. Raises ValueError where that is too many requests."""
        return replace(self, stages=tuple(stage.scaled(scale) for stage in self.stages))

    def requests(self) -> Iterator[Request]:
        """The requests in order of arrival, drawn anew each time, always the same ones."""
        source = random.Random(f"lengths {self.seed}")  # noqa: S311 - a load that can be repeated, not a secret
        end = math.inf if self.cut_seconds is None else self.cut_seconds
        for at in takewhile(lambda at: at < end, _arrivals(self.stages, self.arrivals, self.seed)):
            yield Request(at, self.prompts.draw(source), self.outputs.draw(source))


def _arrivals(stages: Sequence[Stage], kind: Arrivals, seed: int) -> Iterator[float]:
    source = random.Random(f"arrivals {seed}")  # noqa: S311 - a load that can be repeated, not a secret
    begin_seconds, begin_expected = 0.0, 0.0
    latest = 0.0
    expected = 0.0 if kind == "constant" else source.expovariate(1)
    for stage in stages:
        end_expected = begin_expected + stage.expected_requests
        while expected < end_expected:
            into = stage.seconds_until(max(expected - begin_expected, 0.0))
            # Rounding must not send time backwards.
            latest = max(latest, begin_seconds + into)
            yield latest
            expected += 1 if kind == "constant" else source.expovariate(1)
        begin_seconds += stage.seconds
        begin_expected = end_expected


def _check_time(seconds: float) -> None:
    if not 0 < seconds <= _MAX_SECONDS:
        raise ValueError(f"seconds must be above 0 and at most a year, not {seconds}")


def _check_rate(name: str, rate: float) -> None:
    if not 0 <= rate <= MAX_RATE:
        raise ValueError(f"{name} must be from 0 to {MAX_RATE:g}, not {rate}")


def _check_middle(name: str, tokens: float) -> None:
    if not 1 <= tokens <= MAX_TOKENS:
        raise ValueError(f"{name} must be from 1 to {MAX_TOKENS}, not {tokens}")


def _check_bounds(least: int, most: int) -> None:
    if not 1 <= least <= most <= MAX_TOKENS:
        raise ValueError(f"tokens must be from 1 to {MAX_TOKENS}, the least first, not {least} to {most}")
