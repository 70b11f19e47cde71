"""What `stepping` counts: an engine's counters at one moment, what was done between two, and what is kept of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvgauge.observe.records import Histogram, RankReading
from kvmodel.latency import StepCost

_PRIOR_FIGURES = 5
_SUMS = 5
_MOST_FIGURE = 1e30


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What a learner knows, in a form that JSON can hold: `dataclasses.asdict` writes it, `read` reads it."""

    prior: tuple[float, ...] = ()
    """The roofline that the sums stand on, in StepCost's order; empty: none."""
    sums: tuple[float, ...] = (0.0,) * _SUMS
    squares: float = 0.0
    windows: float = 0.0
    busy_seconds: float = 0.0

    @classmethod
    def read(cls, stored: object) -> "StepRecord | None":
        """The record that `stored`, a parsed JSON object, is; None for anything else."""
        if not isinstance(stored, Mapping):
            return None
        prior, sums = _figures(stored.get("prior")), _figures(stored.get("sums"))
        rest = _figures([stored.get(name) for name in ("squares", "windows", "busy_seconds")])
        if prior is None or sums is None or rest is None or len(prior) not in {0, _PRIOR_FIGURES} or len(sums) != _SUMS:
            return None
        return cls(prior, sums, *rest)


def _figures(stored: object) -> tuple[float, ...] | None:
    """Finite numbers that are not negative; None where one is not."""
    if not isinstance(stored, Sequence) or isinstance(stored, str | bytes):
        return None
    found = [
        float(each)
        for each in stored
        if isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each <= _MOST_FIGURE
    ]
    return tuple(found) if len(found) == len(stored) else None


@dataclass(frozen=True, slots=True)
class Counters:
    """One rank at one moment. Counts are since the engine's start."""

    steps: float | None
    decodes: float
    """Tokens computed by decoding."""
    decode_seconds: float
    """Their times since the token before, added up."""
    prefills: float
    """Prompt tokens computed, of prompts that are complete."""
    under_way: float | None
    """Prompt tokens computed of prompts that are not: what is held and was released, beyond what is counted. Right but
    for a constant; None where it cannot be had."""
    repeats: float
    """Requests that lost what was computed, or found it in a cache, in one number that changes when either does."""
    finished: float | None
    running: int
    waiting: int
    resident: float
    preemptions: float

    def under_way_before(self, chunk_tokens: float) -> float:
        """Prompt tokens under way that were computed before the present step, whose part is `chunk_tokens` at most."""
        return max((self.under_way or 0.0) - chunk_tokens, 0.0)

    def under_way_now(self, chunk_tokens: float) -> float:
        """Prompt tokens that the present step has computed, as likely at its beginning as at its end."""
        return min(max(self.under_way or 0.0, 0.0), chunk_tokens) / 2

    def restarted_since(self, before: "Counters") -> bool:
        """Whether the engine has begun to count anew, or counts otherwise than before."""
        if (self.steps is None) is not (before.steps is None):
            return True
        return (
            (self.steps or 0.0) < (before.steps or 0.0)
            or self.decodes < before.decodes
            or (self.finished or 0.0) < (before.finished or 0.0)
            or self.preemptions < before.preemptions
        )


def counters_of(rank: RankReading) -> Counters | None:
    """None where the rank does not tell what its steps are made of."""
    tokens, between = rank.step_tokens, rank.inter_token_seconds
    prompts = rank.prompt_computed_tokens_total
    if rank.running is None or (tokens is None and between is None):
        return None
    if between is not None and prompts is not None:
        decodes, decode_seconds, prefills = between.count, between.total, prompts
    elif tokens is not None and rank.generation_tokens_total is not None:
        # Versions that do not tell what was computed: what the steps held, and of that what was generated.
        decodes, decode_seconds = rank.generation_tokens_total, 0.0
        prefills = max(tokens.total - decodes, 0.0)
    else:
        return None
    resident = _resident(rank)
    finished = rank.finished_total
    if finished is None and rank.output_lengths is not None:
        finished = rank.output_lengths.count
    preemptions, hits = rank.preemptions_total or 0.0, rank.prefix_hits_tokens_total or 0.0
    return Counters(
        steps=None if tokens is None else tokens.count,
        decodes=decodes,
        decode_seconds=decode_seconds,
        prefills=prefills,
        under_way=_under_way(rank, resident, decodes + prefills),
        repeats=preemptions + hits,
        finished=finished,
        running=rank.running,
        waiting=(rank.waiting or 0) + (rank.swapped or 0),
        resident=resident or 0.0,
        preemptions=preemptions,
    )


def _resident(rank: RankReading) -> float | None:
    """Tokens that a step reads: of slots in use, all but half a block for each sequence."""
    if rank.live_tokens is not None:
        return float(rank.live_tokens)
    if rank.active_tokens is None:
        return None
    return max(rank.active_tokens - (rank.running or 0) * ((rank.block_tokens or 1) - 1) / 2, 0.0)


def _under_way(rank: RankReading, resident: float | None, counted: float) -> float | None:
    """Every token that was computed is either still held or was released by a request that has finished, whose lengths
    are told: what of it is not counted belongs to prompts under way. Holds for pools of one group of full attention;
    the last token of a request is never stored."""
    prompts, outputs = rank.prompt_lengths, rank.output_lengths
    if resident is None or prompts is None or outputs is None or rank.num_blocks is None:
        return None
    if rank.block_tokens is None or rank.capacity_tokens != rank.num_blocks * rank.block_tokens:
        return None
    return resident + prompts.total + outputs.total - outputs.count - counted


def mean_position_of(rank: RankReading) -> float:
    """Tokens before a prompt token that is computed, on average: what a cache has stands before all of them."""
    hits, queries = rank.prefix_hits_tokens_total, rank.prefix_queries_tokens_total
    return mean_position(rank.prompt_lengths) * (1 + (min(hits / queries, 1.0) if hits and queries else 0.0))


def mean_position(lengths: Histogram | None) -> float:
    """Tokens before a prompt token, on average over all tokens of prompts of these lengths: E[s^2] / 2 E[s].

    Lengths are taken to lie amid their buckets and then scaled to their sum, which is exact for equal prompts and
    within a tenth for most mixes. 0 where no length is known."""
    if lengths is None or not lengths.count:
        return 0.0
    first = second = before = lower = 0.0
    for bound, cumulative in zip(lengths.bounds, lengths.cumulative, strict=True):
        upper = bound if math.isfinite(bound) else 2 * lower
        count = cumulative - before
        if count > 0:
            first += count * (lower + upper) / 2
            second += count * ((lower + upper) / 2) ** 2
        before, lower = cumulative, upper
    if first <= 0:
        return 0.0
    return second / first * (lengths.total / first) / 2


@dataclass(slots=True)
class Window:
    """What was done in some time: added up over steps."""

    elapsed: float = 0.0
    steps: float = 0.0
    resident: float = 0.0
    """Resident tokens, each counted for every step."""
    decodes: float = 0.0
    decode_seconds: float = 0.0
    prefills: float = 0.0
    position: float = 0.0
    """Mean number of tokens before a prompt token that was computed."""
    preempted: bool = False

    @property
    def tokens(self) -> float:
        """Tokens computed."""
        return self.decodes + self.prefills

    @property
    def pairs(self) -> float:
        """Pairs of a prompt token that was computed and a position before it."""
        return self.prefills * self.position

    @classmethod
    def between(
        cls, before: Counters, now: Counters, elapsed: float, *, chunk_tokens: float, position: float
    ) -> "Window":
        """What was done between two moments of a rank."""
        decodes, decode_seconds = now.decodes - before.decodes, now.decode_seconds - before.decode_seconds
        prefills = now.prefills - before.prefills
        if now.under_way is not None and before.under_way is not None and now.repeats == before.repeats:
            prefills += now.under_way_before(chunk_tokens) - before.under_way_before(chunk_tokens)
        if now.steps is not None and before.steps is not None:
            # Steps that only compute a part of a prompt are not counted by all.
            steps = max(now.steps - before.steps, (decodes + prefills) / chunk_tokens)
        else:
            # Each running request got a token with each step: the time between them is that of a step.
            steps = elapsed * decodes / decode_seconds if decode_seconds > 0 else 0.0
        return cls(
            elapsed=elapsed,
            steps=steps,
            resident=(before.resident + now.resident) / 2 * steps,
            decodes=decodes,
            decode_seconds=decode_seconds,
            prefills=prefills,
            position=position,
            preempted=now.preemptions > before.preemptions,
        )

    def add(self, other: "Window") -> None:
        self.elapsed += other.elapsed
        self.steps += other.steps
        self.resident += other.resident
        self.decodes += other.decodes
        self.decode_seconds += other.decode_seconds
        self.prefills += other.prefills
        self.position = other.position
        self.preempted |= other.preempted

    def fade(self, share: float) -> None:
        """Counts what was seen only by `share`."""
        self.elapsed *= share
        self.steps *= share
        self.resident *= share
        self.decodes *= share
        self.decode_seconds *= share
        self.prefills *= share

    def parts(self, cost: StepCost) -> tuple[float, float]:
        """Seconds that `cost` says it took: (steps, traffic and sequences, computing)."""
        memory = (
            cost.fixed_seconds * self.steps
            + cost.kv_token_seconds * self.resident
            + cost.sequence_seconds * self.decodes
        )
        return memory, cost.token_seconds * self.tokens + cost.pair_seconds * self.pairs
