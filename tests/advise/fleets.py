"""Demands, arrivals and facts of made-up workloads, for the tests of the fleet rule."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from kvgauge.advise.arrivals import BIN_SECONDS
from kvgauge.advise.demand import Demand
from kvgauge.advise.fleet import FleetFacts
from kvgauge.advise.lengths import Lengths
from kvgauge.advise.residing import Footprint, resident
from kvmodel.latency import StepCost

COST = StepCost(fixed_seconds=0.0166, kv_token_seconds=5.4e-8, token_seconds=6.4e-5)
"""A 32B model on two H100."""


def demand(
    prompts: Sequence[float] = (500.0, 1500.0, 4000.0),
    outputs: Sequence[float] = (50.0, 200.0, 700.0),
    **changes: object,
) -> Demand:
    """One engine's, its lengths equally likely; `changes` are fields of it."""
    prompt, output = (Lengths(tuple(each), (1 / len(each),) * len(each), 500.0) for each in (prompts, outputs))
    found = Demand(
        arrived_total=1000.0,
        prompts=prompt,
        outputs=output,
        computed_ratio=1.0,
        resident=resident(prompt, output, Footprint(16)),
        pool_slots=350_000.0,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        cost=COST,
        slo_ttft_seconds=2.0,
        slo_tpot_seconds=0.08,
        finished=500.0,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


DEMAND = demand()


def poisson(rate: float, seconds: float, seed: int | str = 1) -> list[float]:
    """Counts of arrivals by chance, bin by bin."""
    draw = random.Random(seed)
    counts = [0.0] * round(seconds / BIN_SECONDS)
    at = draw.expovariate(rate) if rate > 0 else math.inf
    while at < seconds:
        counts[int(at / BIN_SECONDS)] += 1
        at += draw.expovariate(rate)
    return counts


def facts(counts: Sequence[float], replicas: int = 1, seconds: float = 10_000.0, **changes: object) -> FleetFacts:
    """A workload without troubles; `changes` are fields of it."""
    found = FleetFacts(
        seconds=seconds,
        replicas=replicas,
        starting=0,
        silent=0,
        waiting=0,
        demand=DEMAND,
        counts=counts,
        ready=[replicas] * len(counts),
        judged=0.0,
        slow=0.0,
        start_up_seconds=120.0,
    )
    return replace(found, **changes)  # type: ignore[arg-type]
