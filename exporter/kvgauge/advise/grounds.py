"""What advice stands on: lengths, what a running request holds, and each limit on how many may run together.

It changes slowly and takes half a millisecond to reckon, so it is kept for some seconds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kvgauge.advise.demand import thinned
from kvgauge.advise.history import History
from kvgauge.advise.learning import Learned
from kvgauge.advise.lengths import Lengths
from kvgauge.advise.pools import Pool
from kvgauge.advise.residing import Resident, resident
from kvgauge.advise.safety import FULL_RATIO, PREEMPTED_RATIO, SafeRequests, safe_requests
from kvgauge.advise.stepping import StepModel
from kvgauge.advise.working import SATURATION_RATIO, Work, work_of

_SOONEST_SECONDS = 5.0
_LATEST_SECONDS = 30.0
_MOVED_RATIO = 0.05
_FEWEST_SEEN = 20.0
"""Requests that must have taken part in what is held on average, for it to say something of others."""


@dataclass(frozen=True, slots=True)
class Case:
    """What the grounds follow from, the past apart."""

    pools: tuple[Pool, ...]
    longest_tokens: int | None
    """max_model_len."""
    max_num_seqs: int | None
    """Of one rank."""
    slo_ttft_seconds: float | None
    slo_tpot_seconds: float | None


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit on concurrency, in whole requests. A limit that is not `binding_candidate` is for information."""

    name: str
    requests: int
    binding_candidate: bool
    why: str


@dataclass(frozen=True, slots=True)
class Grounds:
    """All of it. Figures are those of the pod but for `work`, which is one rank's."""

    case: Case
    at_seconds: float
    finished: float
    """The history's count then."""
    learned: Learned | None
    resident: Resident | None
    safe: SafeRequests | None
    """Of the first rank's pool; None where only the worst case is promised."""
    limits: tuple[Limit, ...]
    work: Work | None
    steps: StepModel
    observed_slots: float | None
    """What a running request was seen to hold on average, where that is used."""
    computed_ratio: float
    outputs: Lengths | None
    """The learned ones in few points."""
    prompt_tokens: float
    """Means; 0 while no lengths are known."""
    output_tokens: float
    to_come_tokens: float
    """What a running request still generates on average: half of E[o^2] / E[o]."""

    @property
    def binding(self) -> Limit | None:
        """The smallest limit; None where there is none to bind."""
        candidates = [limit for limit in self.limits if limit.binding_candidate]
        return min(candidates, key=lambda limit: limit.requests, default=None)


def grounds_for(case: Case, history: History, at_seconds: float) -> Grounds:
    """The last grounds while they hold, else new ones."""
    last = history.grounds
    if last is not None and last.case == case and not _is_due(last, history, at_seconds):
        return last
    history.grounds = found = _reckon(case, history, at_seconds)
    if found.learned is not None:
        history.note(found.learned.prompts, found.learned.outputs, found.resident)
    return found


def _is_due(last: Grounds, history: History, at_seconds: float) -> bool:
    age, moved = at_seconds - last.at_seconds, history.finished - last.finished
    if age < 0 or moved < 0 or (history.change is not None and history.change.at_seconds > last.at_seconds):
        return True
    seen = last.learned.finished_in_window if last.learned is not None else 0.0
    return age >= _LATEST_SECONDS or (age >= _SOONEST_SECONDS and moved > _MOVED_RATIO * seen)


def _reckon(case: Case, history: History, at_seconds: float) -> Grounds:
    longest = float(case.longest_tokens) if case.longest_tokens is not None else float("inf")
    learned = history.learned(longest)
    steps, computed_ratio = history.steps.model(), history.computed_ratio()
    held, observed = (None, None) if learned is None else _held(case, learned, history)
    work = None
    if learned is not None and steps.cost is not None:
        work = work_of(steps.cost, learned.prompts, learned.outputs, computed_ratio)
    output = learned.outputs.mean if learned is not None else 0.0
    safe = None
    # Where no longest length is known there is no worst case to promise.
    if learned is not None and held is not None and (learned.sure or case.longest_tokens is None):
        safe = _safe(case, case.pools[0], learned, held)
    return Grounds(
        case=case,
        at_seconds=at_seconds,
        finished=history.finished,
        learned=learned,
        resident=held,
        safe=safe,
        limits=tuple(_limits(case, learned, held, safe, work)),
        work=work,
        steps=steps,
        observed_slots=observed,
        computed_ratio=computed_ratio,
        outputs=thinned(learned.outputs) if learned is not None else None,
        prompt_tokens=learned.prompts.mean if learned is not None else 0.0,
        output_tokens=output,
        to_come_tokens=learned.outputs.moment(2) / output / 2 if learned is not None else 0.0,
    )


def _held(case: Case, learned: Learned, history: History) -> tuple[Resident, float | None]:
    """What a running request holds, by its lengths, and corrected by what was seen where that can be believed."""
    footprint = case.pools[0].footprint
    seen = history.occupancy()
    if seen is None or seen.mean_slots <= 0 or not seen.settled:
        bare = resident(learned.prompts, learned.outputs, footprint, learned.least)
        # They may be younger than they will be, never older.
        if seen is None or seen.mean_slots <= bare.mean_slots or seen.requests < _FEWEST_SEEN:
            return bare, None
    corrected = resident(
        learned.prompts, learned.outputs, footprint, learned.least, observed_mean_slots=seen.mean_slots
    )
    return corrected, seen.mean_slots


def _safe(case: Case, pool: Pool, learned: Learned, held: Resident) -> SafeRequests:
    """Of one rank: the least of its pools."""
    longest = case.longest_tokens
    found = safe_requests(held, pool.slots, pool.footprint.most_slots(longest) if longest is not None else None)
    for footprint, slots in pool.beside:
        other = resident(learned.prompts, learned.outputs, footprint, learned.least)
        most = footprint.most_slots(longest) if longest is not None else None
        found = min(found, safe_requests(other, slots, most), key=lambda each: each.requests)
    return found


def _limits(
    case: Case, learned: Learned | None, held: Resident | None, safe: SafeRequests | None, work: Work | None
) -> Iterator[Limit]:
    ranks = len(case.pools)
    worst = None
    if case.longest_tokens is not None:
        worst = sum(_worst(pool, case.longest_tokens) for pool in case.pools)
    if safe is not None and learned is not None and held is not None:
        each = {pool: safe if pool == case.pools[0] else _safe(case, pool, learned, held) for pool in set(case.pools)}
        yield Limit("kv", sum(each[pool].requests for pool in case.pools), True, _why_kv(safe, held))
    elif worst is not None:
        yield Limit("kv", worst, True, "that many fit the KV pool even if each grows to max_model_len.")
    if worst is not None:
        yield Limit("kv_worst_case", worst, False, "every request at max_model_len.")
    rooms = [pool.state_requests for pool in case.pools if pool.state_requests is not None]
    if rooms:
        yield Limit("state_slots", sum(rooms), True, "there is no room for the state of more.")
    if case.max_num_seqs is not None:
        seqs = case.max_num_seqs * ranks
        yield Limit("max_num_seqs", seqs, True, "the engine batches no more (max_num_seqs).")
    if work is None or learned is None or not learned.sure:
        return
    latency = _latency(case, work)
    if latency is not None:
        yield Limit("latency", latency[0] * ranks, True, latency[1])
    yield Limit(
        "token_rate",
        work.saturating() * ranks,
        True,
        f"with that many the engine already ends {SATURATION_RATIO:.0%} of the requests per second that it ever can; "
        f"more would mostly wait for each other.",
    )


def _latency(case: Case, work: Work) -> tuple[int, str] | None:
    """(requests of one rank, why) for the objectives that were given."""
    found: list[tuple[int, str]] = []
    if case.slo_tpot_seconds is not None:
        found.append(
            (
                work.within_tpot(case.slo_tpot_seconds),
                f"with more, a token would take over {case.slo_tpot_seconds:g} s (slo_tpot).",
            )
        )
    if case.slo_ttft_seconds is not None:
        found.append(
            (
                work.within_ttft(case.slo_ttft_seconds),
                f"with more, the first token would take over {case.slo_ttft_seconds:g} s (slo_ttft).",
            )
        )
    return min(found, default=None)


def _worst(pool: Pool, longest_tokens: int) -> int:
    fitting = [int(pool.slots / pool.footprint.most_slots(longest_tokens))]
    fitting += [int(slots / footprint.most_slots(longest_tokens)) for footprint, slots in pool.beside]
    return min(fitting)


def _why_kv(safe: SafeRequests, held: Resident) -> str:
    size = f"of {held.mean_slots:.0f} slots each on average"
    if safe.requests == min(safe.by_together, safe.by_preemptions):
        if safe.by_together <= safe.by_preemptions:
            return f"more {size} would not fit the KV pool when they come together."
        if safe.by_preemptions == safe.by_room:
            return f"with more {size} the KV pool would be too full for all for over {FULL_RATIO:.0%} of the time."
        return f"with more {size} over {PREEMPTED_RATIO:.0%} of them would lose their place in the KV pool."
    return "that many fit the KV pool whatever their lengths."
