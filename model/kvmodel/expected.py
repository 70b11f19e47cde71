"""Live bytes: what one running request holds of the cache on average, for the lengths that requests really have.

The third of three answers. The ideal of one sequence at any length is `Architecture.bytes_at`; what an engine makes of
its memory is an `EnginePlan`; this is what stands in the cache while requests of given lengths run.

A request of `s` prompt and `o` output tokens is met in proportion to the time it runs, hence to `o`, and then holds a
length between `s` and `s + o`, each as likely: the mean length is `E[o(s + o/2)] / E[o]`, not the mean of `s + o`.
Every output token takes one step; the token written in a step counts for half of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from kvmodel.architecture import Architecture
from kvmodel.engines.contract import EnginePlan
from kvmodel.errors import ModelError, show

Lengths = Sequence[tuple[int, int, float]]
"""(prompt tokens, output tokens, weight) of requests, weighted by how often they arrive."""

_LONGEST_TOKENS = 2**24


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
        time_at[prompt + output] = time_at.get(prompt + output, 0.0) + output * weight
    return _distribution(plan.engine, [(tokens, time) for tokens, time in sorted(time_at.items())], plan.held_bytes)


def lengths_of_histogram(
    prompts: Iterable[tuple[float, float]], outputs: Iterable[tuple[float, float]]
) -> list[tuple[int, int, float]]:
    """Lengths of two independent histograms of (upper bound, count in the bucket): each bucket's middle stands for it.

    An unbounded last bucket (`inf`) stands for its lower bound. Raises ModelError with field `prompts` or `outputs`.
    """
    middles = {}
    for name, buckets in (("prompts", prompts), ("outputs", outputs)):
        lower, found = 0.0, []
        for bound, count in buckets:
            if math.isnan(bound) or bound < lower or math.isnan(count) or count < 0:
                raise ModelError(name, "is not a histogram of rising bounds and counts")
            if count:
                found.append((round(lower if math.isinf(bound) else (lower + bound) / 2), float(count)))
            lower = bound
        middles[name] = found
    return [(s, o, m * n) for s, m in middles["prompts"] for o, n in middles["outputs"]]


def _expected(label: str, lengths: Lengths, held: Callable[[int], float]) -> ExpectedBytes:
    return _distribution(label, list(enumerate(_time_by_length(lengths))), held)


def _distribution(label: str, time_at: list[tuple[int, float]], held: Callable[[int], float]) -> ExpectedBytes:
    sizes = [(float(held(tokens)), tokens, time) for tokens, time in time_at if time > 0]
    if not sizes:
        raise ModelError("lengths", "hold no request with output")
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
        longest_tokens=sizes[-1][1],
        _steps=tuple(steps.items()),
    )


def _time_by_length(lengths: Lengths) -> list[float]:
    """Steps spent at each length. A step from `t` to `t + 1` tokens counts half for either."""
    checked = [_checked(entry) for entry in lengths]
    changes = [0.0] * (max((s + o for s, o, _ in checked), default=0) + 2)
    for prompt, output, weight in checked:
        if output:
            # Halves of `output` steps: those that begin at prompt..prompt+output-1, and end one further.
            for first in (prompt, prompt + 1):
                changes[first] += weight / 2
                changes[first + output] -= weight / 2
    time_at = [max(0.0, time) for time in accumulate(changes)]
    smallest = min((weight for _, output, weight in checked if output and weight), default=0.0) / 4
    # What rounding leaves where nothing runs is less than any request's share.
    return [time if time >= smallest else 0.0 for time in time_at]


def _checked(entry: tuple[int, int, float]) -> tuple[int, int, float]:
    if len(entry) != 3:
        raise ModelError("lengths", "an entry is not (prompt tokens, output tokens, weight)")
    prompt, output, weight = entry
    for value in (prompt, output):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LONGEST_TOKENS:
            raise ModelError("lengths", f"{show(value)} is not a number of tokens")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise ModelError("lengths", f"{show(weight)} is not a weight")
    return prompt, output, float(weight)
