"""Perfect foresight as a baseline: what a schedule made from all arrivals in advance needs."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from kvgauge.simulate.fleet import FleetPlan, FleetView
from kvgauge.simulate.spec import EngineSpec, Request

BIN_SECONDS = 15.0
"""As fine as the syncs."""
KEEP_SECONDS = 60.0
"""How long after its arrival work is still there: a pod that is not needed is kept that long."""


@dataclass(frozen=True, slots=True)
class Work:
    """What arrives in one bin of time, by what it costs an engine. Sums over its requests."""

    requests: int = 0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    token_steps: float = 0.0
    """Resident tokens summed over decode steps: o (s + o / 2) of each request."""
    prefill_seconds: float = 0.0

    def plus(self, request: Request, spec: EngineSpec) -> "Work":
        """With one request more."""
        prompt, output = request.prompt_tokens, request.output_tokens
        return Work(
            self.requests + 1,
            self.prompt_tokens + prompt,
            self.output_tokens + output,
            self.token_steps + output * (prompt + output / 2),
            self.prefill_seconds + spec.step_cost.prefill_seconds(prompt, 0.0, spec.max_num_batched_tokens),
        )


class Clairvoyant:
    """A schedule made from all arrivals in advance: the fewest replicas that hold the work as a fluid.

    Every quarter of a minute is sized alone, at its own mean lengths, for memory, TPOT and arithmetic, `share` of the
    first two being used; pods are started one start-up time and one sync before they are needed, and kept for a minute
    after. It heeds no TTFT: neither queueing within the quarter nor the length of single requests.
    """

    scrape_seconds = 15.0
    emptiest_first = True

    def __init__(self, name: str, plan: FleetPlan, requests: Sequence[Request], share: float) -> None:
        self.name = name
        self._plan = plan
        self._lead_seconds = plan.start_up_seconds * 1.05 + 15.0
        self._needs = fluid_schedule(requests, plan, share)

    def observe(self, view: FleetView) -> None:
        """Knows it all."""

    def replicas(self, view: FleetView) -> int:
        first = max(int((view.now_seconds - KEEP_SECONDS) / BIN_SECONDS), 0)
        last = int((view.now_seconds + self._lead_seconds) / BIN_SECONDS)
        need = max(self._needs[first : last + 1], default=0)
        return max(self._plan.min_replicas, min(need, self._plan.max_replicas))


def fluid_schedule(requests: Sequence[Request], plan: FleetPlan, share: float) -> list[int]:
    """Replicas that each bin of time needs. Prefix hits are not taken into account."""
    bins: list[Work] = []
    for request in requests:
        number = int(request.arrival_seconds / BIN_SECONDS)
        bins.extend([Work()] * (number + 1 - len(bins)))
        bins[number] = bins[number].plus(request, plan.spec)
    return [fluid_replicas(work, plan, share) for work in bins]


def fluid_replicas(work: Work, plan: FleetPlan, share: float) -> int:
    """The fewest replicas on which one bin's work is sustainable; never more than the plan's largest fleet."""
    if not work.requests:
        return 0
    candidates = range(1, plan.max_replicas)
    return bisect_left(candidates, True, key=lambda count: fits(work, count, plan, share)) + 1


def fits(work: Work, replicas: int, plan: FleetPlan, share: float) -> bool:
    """Whether each of `replicas` engines sustains its part of a bin's work.

    The length of a step follows from itself: as many requests are decoded as arrive while one is served. With rate r,
    t = fixed + r t (o token + o (s + o / 2) read), stretched by the time that prefills take.
    """
    spec, cost = plan.spec, plan.spec.step_cost
    per_second = 1 / (BIN_SECONDS * replicas)
    free = 1 - per_second * (
        work.prefill_seconds
        + cost.kv_token_seconds * work.token_steps
        + (cost.token_seconds + cost.sequence_seconds) * work.output_tokens
    )
    if free <= 0:
        return False
    step_seconds = cost.fixed_seconds / free
    running = per_second * work.output_tokens * step_seconds
    mean_prefill = work.prefill_seconds / work.requests
    resident = per_second * (work.token_steps * step_seconds + work.prompt_tokens * mean_prefill)
    return (
        step_seconds <= share * plan.slo_tpot_seconds
        and resident <= share * spec.usable_blocks * spec.block_tokens
        and running <= spec.max_num_seqs
    )
