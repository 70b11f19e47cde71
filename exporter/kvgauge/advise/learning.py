"""Which lengths advice stands on: those that finished lately, older ones, or what means and running requests tell.

Under `ENOUGH` finished requests a distribution says little of its tail. So many are always stood on where they can be
had: what the window lacks is made up from the memory of recent hours, or from all since the engine's start.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvgauge.advise.lengths import Lengths, kaplan_meier, lengths_of, unfinished_ages
from kvgauge.advise.looking import Look, difference, quantile, scaled, weighted
from kvgauge.observe.records import Histogram

ENOUGH = 50.0
_LONGER_RATIO = 1.5
_AGES = 8
_GUESSED_POINTS = 8


@dataclass(frozen=True, slots=True)
class LengthSummary:
    """Lengths of finished requests, in tokens."""

    mean: float
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Counted:
    """Prompt and output lengths of the same finished requests."""

    prompts: Histogram
    outputs: Histogram

    @property
    def requests(self) -> float:
        """Finished requests; fewer where one of the two was counted a moment later."""
        return min(self.outputs.count, self.prompts.count)

    def fits(self, other: "Counted") -> bool:
        """Whether both count into the same buckets."""
        return self.prompts.bounds == other.prompts.bounds and self.outputs.bounds == other.outputs.bounds

    def plus(self, other: "Counted", weight: float = 1.0) -> "Counted":
        """Both together; `other` only where its buckets are these."""
        if not self.fits(other):
            return self
        return Counted(
            weighted(self.prompts, other.prompts, weight),
            weighted(self.outputs, other.outputs, weight),
        )

    def times(self, weight: float) -> "Counted":
        return Counted(scaled(self.prompts, weight), scaled(self.outputs, weight))


@dataclass(frozen=True, slots=True)
class Learned:
    """Lengths, and what they stand on."""

    prompts: Lengths
    outputs: Lengths
    least: tuple[Lengths, Lengths] | None
    """Prompts and outputs at their least spread, where they are known from buckets."""
    prompt_summary: LengthSummary
    output_summary: LengthSummary
    source: str
    """`window`, `memory`, `lifetime`, two of them joined by +, `agent`, `means` or `occupancy`."""
    finished: float
    """Requests that they stand on."""
    finished_in_window: float
    censored: int = 0
    """Running requests that are longer already than such requests were before, and count as such."""

    @property
    def sure(self) -> bool:
        """Whether enough finished to say something of the tail."""
        return self.finished >= ENOUGH


def counted(look: Look) -> Counted | None:
    """All since the engine's start."""
    return None if look.prompts is None or look.outputs is None else Counted(look.prompts, look.outputs)


def between(newer: Look, older: Look) -> Counted | None:
    """What finished between two looks at an engine that has not restarted."""
    new, old = counted(newer), counted(older)
    if new is None or old is None or not new.fits(old):
        return None
    return Counted(difference(new.prompts, old.prompts), difference(new.outputs, old.outputs))


def stood_on(window: Counted, memory: Counted | None, lifetime: Counted | None) -> tuple[Counted, str, float]:
    """(lengths, where from, requests): of the window, made up to `ENOUGH` from what is older. `lifetime` is what
    finished before the window."""
    seen = window.requests
    if seen >= ENOUGH:
        return window, "window", seen
    lacking = ENOUGH - seen
    older = [(memory, "memory"), (lifetime, "lifetime")]
    known = [(each, name) for each, name in older if each is not None and each.requests > 0 and each.fits(window)]
    for each, name in known:
        if each.requests >= lacking:
            names = f"window+{name}" if seen else name
            return window.plus(each, lacking / each.requests), names, seen + each.requests
    for each, _ in known:
        window = window.plus(each)
    names = "+".join([*(["window"] if seen else []), *(name for _, name in known)])
    return window, names or "window", window.requests


def from_counts(
    found: Counted,
    source: str,
    finished: float,
    in_window: float,
    running_ages: Sequence[float],
    longest_tokens: float,
) -> Learned | None:
    """From histograms; `running_ages` are tokens generated so far by running requests that are to be counted as longer
    than that. None when nothing finished."""
    prompts = lengths_of(found.prompts, longest_tokens)
    outputs = lengths_of(found.outputs, longest_tokens)
    if prompts is None or outputs is None:
        return None
    likely, least = outputs
    if running_ages:
        likely = kaplan_meier(likely, running_ages, longest_tokens) or likely
        least = kaplan_meier(least, running_ages, longest_tokens) or least
    return Learned(
        prompts=prompts[0],
        outputs=likely,
        least=(prompts[1], least),
        prompt_summary=_summary(found.prompts),
        output_summary=_summary(found.outputs),
        source=source,
        finished=finished,
        finished_in_window=in_window,
        censored=len(running_ages),
    )


def from_means(newer: Look, older: Look) -> Learned | None:
    """From counters alone: tokens for each request that finished. Their spread is not told; that of an exponential
    length is taken. Of the window, else of all since the engine's start. None where too few finished for what was under
    way at either end not to matter."""
    if newer.finished is None or newer.prompt_tokens is None or newer.generated is None:
        return None
    found = newer.finished, newer.prompt_tokens, newer.generated
    before = older.finished, older.prompt_tokens, older.generated
    window = [new - (old or 0.0) for new, old in zip(found, before, strict=True)]
    for finished, prompt, output in (window, found):
        if finished >= ENOUGH and prompt > 0 and output > 0:
            return guessed(prompt / finished, output / finished, "means", finished)
    return None


def from_occupancy(newer: Look, older: Look, slots_per_token: float = 1.0) -> Learned | None:
    """From what running requests hold on average, and how many tokens are generated for each of a prompt: where a page
    does not even count requests. With exponential lengths a running request has its prompt and a mean output."""
    requests = newer.request_seconds - older.request_seconds
    if None in (newer.prompt_tokens, older.prompt_tokens, newer.generated, older.generated) or requests <= 0:
        return None
    prompt = (newer.prompt_tokens or 0.0) - (older.prompt_tokens or 0.0)
    output = (newer.generated or 0.0) - (older.generated or 0.0)
    held = (newer.slot_seconds - older.slot_seconds) / requests / slots_per_token
    if prompt <= 0 or output <= 0 or held < 2:
        return None
    mean_output = held * output / (prompt + output)
    return guessed(held - mean_output, mean_output, "occupancy", output / mean_output)


def from_running(sample: Sequence[tuple[int, int]], newer: Look, older: Look) -> Learned | None:
    """From the books of an agent, (prompt, held) tokens of running requests at several moments, where a page has no
    histograms. A running request is met more often the longer its output is, and half of that is still to come on
    average: with exponential outputs their mean is that of the tokens generated so far."""
    if len(sample) < ENOUGH or newer.generated is None or older.generated is None:
        return None
    prompts = [max(prompt, 1) for prompt, _ in sample]
    output = math.fsum([max(held - prompt, 0) for prompt, held in sample]) / len(sample) + 1.0
    learned = guessed(math.fsum(prompts) / len(prompts), output, "agent", (newer.generated - older.generated) / output)
    points = sorted(prompts)
    cells = min(24, len(points))
    runs = [points[cell * len(points) // cells : (cell + 1) * len(points) // cells] for cell in range(cells)]
    likely = Lengths(
        tuple([math.fsum(run) / len(run) for run in runs]),
        tuple([len(run) / len(points) for run in runs]),
        learned.finished,
    )
    return replace(learned, prompts=likely)


def guessed(prompt_tokens: float, output_tokens: float, source: str, finished: float) -> Learned:
    """Lengths of which only means are known: exponential ones."""
    return Learned(
        prompts=exponential(prompt_tokens, finished),
        outputs=exponential(output_tokens, finished),
        least=None,
        prompt_summary=LengthSummary(prompt_tokens, None, None, None),
        output_summary=LengthSummary(output_tokens, None, None, None),
        source=source,
        finished=finished,
        finished_in_window=finished,
    )


def exponential(mean_tokens: float, count: float) -> Lengths:
    """Equally likely parts of an exponential length of this mean."""
    raw = [-math.log(1 - (cell + 0.5) / _GUESSED_POINTS) for cell in range(_GUESSED_POINTS)]
    scale = max(mean_tokens - 1, 0.0) * _GUESSED_POINTS / math.fsum(raw)
    return Lengths(tuple([1 + scale * each for each in raw]), (1 / _GUESSED_POINTS,) * _GUESSED_POINTS, count)


def grown_ages(now: Sequence[float], then: Sequence[float]) -> list[float]:
    """Of the running requests' ages, those that are clearly higher than when the window began.

    In a steady state as many were under way then, as old: what they did since is counted among those that finished, and
    to count those of now as well would make every length longer."""
    before = sorted(then, reverse=True)
    return [
        age
        for place, age in enumerate(sorted(now, reverse=True))
        if place >= len(before) or age > _LONGER_RATIO * before[place] + 1
    ]


def ages_of(look: Look, drift_tokens: float, most_tokens: float) -> list[float]:
    """Likely tokens generated so far by the requests that run, from sums alone."""
    unfinished = look.unfinished_tokens
    if not look.running or unfinished is None:
        return []
    held = look.active if look.active is not None else math.inf
    generated = min(unfinished - drift_tokens, look.running * most_tokens, held)
    return list(unfinished_ages(generated, 0.0, look.running, _AGES))


def _summary(lengths: Histogram) -> LengthSummary:
    return LengthSummary(
        mean=lengths.total / lengths.count,
        p50=quantile(lengths, 0.5),
        p95=quantile(lengths, 0.95),
        p99=quantile(lengths, 0.99),
    )
