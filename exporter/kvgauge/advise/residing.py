"""What a request holds in the pool: at a length, at a random moment of its life, and beside others that began with it.

At a random moment long requests are met more often than short ones: each counts by how long it stays, its output. With
prompt s and output o, independent, and after k of o steps, it has s + k tokens: the last sampled one is never written.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

from kvgauge.advise.lengths import Lengths, lengths_of
from kvgauge.observe.records import Histogram
from kvmodel.engines.contract import PlanGroup

_SHARING_RATIO = 0.8
"""Alike requests that hold less than this of what they should hold must be sharing it."""
_MIXED_RATIO = 0.5
"""Variance over squared mean from which on outputs are too mixed for a batch to keep in step."""
_RENEWAL_STEPS = 32
_HELD_WHATEVER_ITS_LENGTH = frozenset({"state", "cross"})
_MOST_ENDS = 8


@dataclass(frozen=True, slots=True)
class Window:
    """Layers that keep only the last tokens."""

    tokens: int
    slots_per_token: float = 1.0


@dataclass(frozen=True, slots=True)
class Footprint:
    """Slots of the pool that a request of a given length holds, in the unit of the pool's capacity.

    One full-attention group is the default: one slot for each token, in whole blocks. Where vLLM splits a hybrid into
    groups that draw on the same blocks, growth counts the full groups and there is a `Window` for each sliding one.
    """

    block_tokens: int = 1
    slots_per_token: float = 1.0
    """For layers that keep every token."""
    windows: tuple[Window, ...] = ()
    state_slots: float = 0.0
    """Whatever its length."""

    def slots_at(self, tokens: int) -> float:
        """Slots held once `tokens` are stored. A window's blocks are dropped when their last token leaves it (vLLM
        0.32: ceil(T/b) - floor(max(0, T - W)/b) blocks)."""
        block = self.block_tokens
        blocks = -(-tokens // block)
        held = self.slots_per_token * blocks
        for window in self.windows:
            held += window.slots_per_token * (blocks - max(tokens - window.tokens, 0) // block)
        return held * block + self.state_slots

    def most_slots(self, tokens: int) -> float:
        """The most it held on the way to `tokens`: where a window does not begin with a block it has one more."""
        block = self.block_tokens
        blocks = -(-tokens // block)
        held = self.slots_per_token * blocks
        for window in self.windows:
            held += window.slots_per_token * min(blocks, -(-window.tokens // block) + (1 if block > 1 else 0))
        return held * block + self.state_slots

    def usual_slots(self, tokens: float) -> float:
        """Slots at about this length, whatever the place within a block: half a block more on average."""
        half = (self.block_tokens - 1) / 2
        held = self.slots_per_token * (tokens + half) + self.state_slots
        for window in self.windows:
            held += window.slots_per_token * min(tokens + half, window.tokens + 2 * half)
        return held


def footprint_from_bytes(
    bytes_per_slot: float, growth_bytes_per_token: float, state_bytes_per_request: float, block_tokens: int
) -> Footprint:
    """The footprint where only bytes are known: those of one slot of the pool, those that one more token adds, and
    those that a request has whatever its length. Windows are among the latter, as if they were always full."""
    return Footprint(
        block_tokens,
        slots_per_token=growth_bytes_per_token / bytes_per_slot,
        state_slots=state_bytes_per_request / bytes_per_slot,
    )


def footprint_from_groups(groups: Sequence[PlanGroup], slots_per_block: float) -> Footprint | None:
    """The footprint where the engine's groups are known and draw on one pool of blocks, each worth `slots_per_block`
    of the pool's slots: its capacity over its blocks, the null block counted in both.

    A group takes whole blocks of its own, so groups of several block sizes are reckoned in the smallest with what the
    others may round up to beyond it. None where groups have pools of their own, or none counts tokens.
    """
    counted = [(group, group.block_tokens) for group in groups if group.kind not in _HELD_WHATEVER_ITS_LENGTH]
    sizes = [size for _, size in counted if size is not None]
    if not sizes or len(sizes) < len(counted) or any(group.num_blocks is not None for group in groups):
        return None
    block = min(sizes)
    growth = constant = 0.0
    windows: dict[int, float] = {}
    for group, size in zip([group for group, _ in counted], sizes, strict=True):
        slots_per_token = slots_per_block / size
        constant += slots_per_token * (size - math.gcd(size, block))
        if group.window_tokens is None:
            growth += slots_per_token
        else:
            tokens = group.window_tokens if size == block else -(-group.window_tokens // size) * size
            windows[tokens] = windows.get(tokens, 0.0) + slots_per_token
    held = sum(group.blocks_per_request or 1 for group in groups if group.kind in _HELD_WHATEVER_ITS_LENGTH)
    return Footprint(block, growth, tuple(Window(*each) for each in windows.items()), constant + held * slots_per_block)


@dataclass(frozen=True, slots=True)
class Resident:
    """One running request, in slots of the pool: what is to be known of it to say how many fit."""

    mean_slots: float
    """At a random moment."""
    variance_slots2: float
    third_slots3: float
    """Third central moment."""
    prompt_slots: float
    """When its prompt is stored, on average."""
    growth_slots: float
    """From then to its end, on average."""
    together_slots: float
    """The most that each holds on average, at the same moment, of many that began together."""
    largest_slots: float
    """The most that any holds, as far as is known: as many as fit of these never meet the pool's end."""
    requests: float
    """Finished requests that it stands on."""


def moments_from_histograms(
    prompts: Histogram,
    outputs: Histogram,
    footprint: Footprint,
    *,
    longest_tokens: float = math.inf,
    observed_mean_slots: float | None = None,
) -> Resident | None:
    """What a running request holds, from the lengths of finished ones. None when none finished.

    `observed_mean_slots`: active slots over running requests, both averaged over time. It corrects for what two
    histograms cannot show: prompts and outputs that depend on each other, prefixes that are shared.
    """
    prompt, output = lengths_of(prompts, longest_tokens), lengths_of(outputs, longest_tokens)
    if prompt is None or output is None:
        return None
    least = prompt[1], output[1]
    return resident(prompt[0], output[0], footprint, least, observed_mean_slots=observed_mean_slots)


def resident(
    prompts: Lengths,
    outputs: Lengths,
    footprint: Footprint,
    least: tuple[Lengths, Lengths] | None = None,
    *,
    observed_mean_slots: float | None = None,
) -> Resident:
    """What a running request holds. `least` are prompts and outputs at their least spread, where they differ."""
    ages = _age_moments(outputs)
    first, second, third = (prompts.moment(power) for power in (1, 2, 3))
    variance = second - first**2 + ages[1]
    third_central = third - 3 * first * second + 2 * first**3 + ages[2]
    mean, variance, third_central = _in_slots(footprint, prompts, ages, variance, third_central)
    output = outputs.mean
    prompt_slots = footprint.usual_slots(first)
    growth = max(footprint.usual_slots(first + output - 1) - prompt_slots, 0.0)
    together, alike = _together(*(least or (prompts, outputs)), footprint)
    # All lengths in one bucket each are taken for equal, as a page could not show it better. Were they not, the mean
    # would still fit, and of n requests about one in 2n at most be thrown out.
    largest = together if alike else footprint.most_slots(round(prompts.points[-1] + outputs.points[-1] - 1))
    ratio = observed_mean_slots / mean if observed_mean_slots else 1.0
    if not alike or ratio < _SHARING_RATIO:
        together *= ratio
    return Resident(
        mean_slots=mean * ratio,
        # Between sizes that all change in proportion (the square) and sizes of which there are more or fewer large
        # ones (unchanged): the ratio does not tell which, and no trace looked at is at either end.
        variance_slots2=max(variance, 0.0) * ratio,
        third_slots3=third_central * ratio,
        prompt_slots=prompt_slots * min(ratio, 1.0),
        growth_slots=growth,
        together_slots=together,
        largest_slots=largest,
        requests=outputs.count,
    )


def _age_moments(outputs: Lengths) -> tuple[float, float, float]:
    """Mean, variance and third central moment of the tokens generated and stored so far, at a random moment: of an
    output o, each of 0 .. o-1 for one step."""
    first = second = third = 0.0
    for tokens, share in zip(outputs.points, outputs.shares, strict=True):
        last = tokens - 1
        first += share * tokens * last / 2
        second += share * tokens * last * (2 * tokens - 1) / 6
        third += share * (tokens * last) ** 2 / 4
    steps = outputs.mean
    first, second, third = first / steps, second / steps, third / steps
    return first, second - first**2, third - 3 * first * second + 2 * first**3


def _in_slots(
    footprint: Footprint, prompts: Lengths, ages: tuple[float, float, float], variance: float, third: float
) -> tuple[float, float, float]:
    """Moments of the length become those of the slots. Windows bend the line, so there prompts are taken one by one,
    each at the mean age; what a window does to the spread of the age itself is left out."""
    age, age_variance, age_third = ages
    slope = footprint.slots_per_token
    if not footprint.windows:
        return footprint.usual_slots(prompts.mean + age), slope**2 * variance, slope**3 * third
    slots = [footprint.usual_slots(prompt + age) for prompt in prompts.points]
    mean = math.fsum(map(mul, slots, prompts.shares))
    offs = [held - mean for held in slots]
    return (
        mean,
        math.fsum([off**2 * share for off, share in zip(offs, prompts.shares, strict=True)]) + slope**2 * age_variance,
        math.fsum([off**3 * share for off, share in zip(offs, prompts.shares, strict=True)]) + slope**3 * age_third,
    )


def _together(prompts: Lengths, outputs: Lengths, footprint: Footprint) -> tuple[float, bool]:
    """(the most that each holds on average when all begin together, whether all are alike). Whoever ends is followed by
    another: that the pool is fullest then is what makes alike requests different from mixed ones."""
    alike = len(prompts.points) == 1 and len(outputs.points) == 1
    if alike:
        return footprint.most_slots(round(prompts.points[0] + outputs.points[0] - 1)), True
    return footprint.usual_slots(prompts.mean + _oldest_mean_age(outputs)), False


def _oldest_mean_age(outputs: Lengths) -> float:
    """The highest mean age that places in a batch reach which all began at once: a renewal equation,
    a(t) = t P(o > t) + sum of p(o) a(t - o) over all o <= t, up to twice the mean output; later it is near its limit,
    the mean age at a random moment."""
    mean, second = outputs.mean, outputs.moment(2)
    if second - mean**2 > _MIXED_RATIO * mean**2:
        return (second / mean - 1) / 2
    step = 2 * mean / _RENEWAL_STEPS
    ends = [0.0] * (_RENEWAL_STEPS + 2)
    for point, share in zip(outputs.points, outputs.shares, strict=True):
        place = point / step
        below = int(place)
        if below <= _RENEWAL_STEPS:
            # An end between two steps counts partly for each, so that the mean output stays what it is.
            ends[below] += share * (below + 1 - place)
            ends[below + 1] += share * (place - below)
    ages = [0.0]
    alive = 1.0 - ends[0]
    for number in range(1, _RENEWAL_STEPS + 1):
        alive -= ends[number]
        renewed = sum(map(mul, ends[1 : number + 1], reversed(ages)))
        # Those who end within the first half step begin anew at once.
        ages.append((number * step * alive + renewed) / (1.0 - ends[0]))
    # The moments before many end are the ones that steps would miss.
    stride = -(-len(outputs.points) // _MOST_ENDS)
    moments = [point for point in outputs.points[::stride] if point <= 2 * mean]
    return max(*ages, *(_mean_age_before(end, outputs, ages, step) for end in moments))


def _mean_age_before(end: float, outputs: Lengths, ages: list[float], step: float) -> float:
    total = 0.0
    for point, share in zip(outputs.points, outputs.shares, strict=True):
        if point >= end:
            total += share * (end - 1)
        else:
            place = (end - point) / step
            below = min(int(place), _RENEWAL_STEPS - 1)
            total += share * (ages[below] + (place - below) * (ages[below + 1] - ages[below]))
    return total
