"""Live bytes: what one running request holds of the cache on average, for the lengths that requests really have.

The third of three answers. The ideal of one sequence at any length is `Architecture.bytes_at`; what an engine makes of
its memory is an `EnginePlan`; this is what stands in the cache while requests of given lengths run.

A request of `s` prompt and `o` output tokens is met in proportion to the time it runs, hence to `o`, and then holds a
length between `s` and `s + o`, each as likely: the mean length is `E[o(s + o/2)] / E[o]`, not the mean of `s + o`.
Every output token takes one step; the token written in a step counts for half of it. A request without output stands
at its length, and its weight is its share of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from kvmodel.architecture import Architecture
from kvmodel.engines.contract import EnginePlan
from kvmodel.errors import ModelError, show

Lengths = Sequence[tuple[int, int, float]]
"""(prompt tokens, output tokens, weight) of requests, weighted by how often they arrive."""

LONGEST_TOKENS = 2**24
_MOST_POINTS = 4096
"""Lengths at which bytes are counted; where requests run through more, a point stands for its neighbours."""


@dataclass(frozen=True, slots=True)
class ExpectedBytes:
    """The distribution, over time, of the bytes one running request holds on one GPU."""

    label: str
    """What is counted: `ideal`, or the engine whose blocks are."""
    mean_bytes: float
    standard_deviation_bytes: float
    mean_tokens: float
    standard_deviation_tokens: float
    longest_tokens: int
    _steps: tuple[tuple[float, float], ...]
    """(bytes, share of the time with at most that many), rising."""

    def quantile_bytes(self, share: float) -> float:
        """The least bytes that are held, or less, for this share of the time. Raises ModelError with field `share`."""
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ModelError("share", f"{show(share)} is not a number in 0..1")
        for held, reached in self._steps:
            if reached >= share - 1e-12:
                return held
        return self._steps[-1][0]


def expected_ideal_bytes(
    architecture: Architecture, lengths: Lengths, *, kv_dtype: str = "auto", tp: int = 1, encoder_tokens: int = 0
) -> ExpectedBytes:
    """Live bytes without block rounding: windows, state and an encoder's output included."""

    def held(tokens: int) -> float:
        return architecture.bytes_at(tokens, kv_dtype, tp, encoder_tokens=encoder_tokens)

    return _expected("ideal", lengths, held)


def expected_plan_bytes(plan: EnginePlan, lengths: Lengths) -> ExpectedBytes:
    """Live bytes in the engine's own blocks, groups and states.

    Where the engine reserves, a request holds the blocks of prompt and output from its start to its end.
    """
    if not plan.reserves:
        return _expected(plan.engine, lengths, plan.held_bytes)
    time_at: dict[int, float] = {}
    for prompt, output, weight in map(_checked, lengths):
        time_at[prompt + output] = time_at.get(prompt + output, 0.0) + (output or 1) * weight
    return _distribution(plan.engine, [(tokens, time) for tokens, time in sorted(time_at.items())], plan.held_bytes)


def _expected(label: str, lengths: Lengths, held: Callable[[int], float]) -> ExpectedBytes:
    return _distribution(label, _time_by_length(lengths), held)


def _distribution(label: str, time_at: list[tuple[int, float]], held: Callable[[int], float]) -> ExpectedBytes:
    sizes = [(float(held(tokens)), tokens, time) for tokens, time in time_at if time > 0]
    if not sizes:
        raise ModelError("lengths", "hold no request that runs")
    total = math.fsum(time for _, _, time in sizes)
    mean = math.fsum(size * time for size, _, time in sizes) / total
    mean_tokens = math.fsum(tokens * time for _, tokens, time in sizes) / total
    spread = math.fsum((size - mean) ** 2 * time for size, _, time in sizes) / total
    spread_tokens = math.fsum((tokens - mean_tokens) ** 2 * time for _, tokens, time in sizes) / total
    ordered = sorted((size, time) for size, _, time in sizes)
    reached = accumulate(time / total for _, time in ordered)
    steps = dict(zip((size for size, _ in ordered), reached, strict=True))
    return ExpectedBytes(
        label=label,
        mean_bytes=mean,
        standard_deviation_bytes=math.sqrt(spread),
        mean_tokens=mean_tokens,
        standard_deviation_tokens=math.sqrt(spread_tokens),
        longest_tokens=max(tokens for _, tokens, _ in sizes),
        _steps=tuple(steps.items()),
    )


def _time_by_length(lengths: Lengths) -> list[tuple[int, float]]:
    """(length, steps spent at it). A step from `t` to `t + 1` tokens counts half for either."""
    checked = [_checked(entry) for entry in lengths]
    found = [(prompt, weight) for prompt, output, weight in checked if not output]
    changes: dict[int, float] = {}
    for prompt, output, weight in checked:
        if output:
            # Halves of `output` steps: those that begin at prompt..prompt+output-1, and end one further.
            for first in (prompt, prompt + 1):
                changes[first] = changes.get(first, 0.0) + weight / 2
                changes[first + output] = changes.get(first + output, 0.0) - weight / 2
    edges = sorted(changes)
    # What rounding leaves where nothing runs is less than any request's share.
    smallest = min((weight for _, output, weight in checked if output and weight), default=0.0) / 4
    times = accumulate(changes[edge] for edge in edges)
    run = [(*span, time) for span, time in zip(pairwise(edges), times, strict=False) if time >= smallest]
    # Odd, so that a point is in the middle of those it stands for.
    step = -(-sum(after - first for first, after, _ in run) // _MOST_POINTS) | 1
    for first, after, time in run:
        found += _points(first, after, time, step)
    return found


def _points(first: int, after: int, time: float, step: int) -> Iterator[tuple[int, float]]:
    """Every `step`-th length of `first..after-1` with the time at those around it."""
    for start in range(first, after, step):
        end = min(start + step, after)
        yield (start + end - 1) // 2, time * (end - start)


def _checked(entry: tuple[int, int, float]) -> tuple[int, int, float]:
    if len(entry) != 3:
        raise ModelError("lengths", "an entry is not (prompt tokens, output tokens, weight)")
    prompt, output, weight = entry
    for value in (prompt, output):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LONGEST_TOKENS:
            raise ModelError("lengths", f"{show(value)} is not a number of tokens")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise ModelError("lengths", f"{show(weight)} is not a weight")
    return prompt, output, float(weight)
