"""One demand for a fleet: what its pods tell, each counted by the requests that it stands on."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from kvgauge.advise.demand import Demand, thinned
from kvgauge.advise.lengths import Lengths
from kvgauge.advise.residing import Resident
from kvmodel.latency import StepCost

_Known = TypeVar("_Known", int, float)


def pooled(demands: Sequence[Demand]) -> Demand | None:
    """The mean pod; None without any pod whose requests have finished. What a pod can do is that of the first one
    that tells, but for the step cost: pods of one workload are alike, and each has measured it."""
    told = [demand for demand in demands if demand.finished > 0]
    if not told:
        return None
    weights = [demand.finished for demand in told]
    costs = [demand.cost for demand in told if demand.cost is not None]
    residents = [(demand.resident, demand.finished) for demand in told if demand.resident is not None]
    return replace(
        told[0],
        arrived_total=None,
        prompts=_mixed([demand.prompts for demand in told], weights),
        outputs=_mixed([demand.outputs for demand in told], weights),
        computed_ratio=_mean([demand.computed_ratio for demand in told], weights),
        resident=_usual_resident(residents) if residents else None,
        pool_slots=_first(demand.pool_slots for demand in told),
        max_num_seqs=_first(demand.max_num_seqs for demand in told),
        max_num_batched_tokens=_first(demand.max_num_batched_tokens for demand in told),
        slo_ttft_seconds=_first(demand.slo_ttft_seconds for demand in told),
        slo_tpot_seconds=_first(demand.slo_tpot_seconds for demand in told),
        cost=_usual_cost(costs) if costs else None,
        finished=math.fsum(weights),
    )


def _first(values: Iterable[_Known | None]) -> _Known | None:
    return next((value for value in values if value is not None), None)


def _mixed(lengths: Sequence[Lengths], weights: Sequence[float]) -> Lengths:
    whole = math.fsum(weights)
    pairs = sorted(
        (point, share * weight / whole)
        for each, weight in zip(lengths, weights, strict=True)
        for point, share in zip(each.points, each.shares, strict=True)
    )
    return thinned(Lengths(tuple(point for point, _ in pairs), tuple(share for _, share in pairs), whole))


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / math.fsum(weights)


def _usual_resident(residents: Sequence[tuple[Resident, float]]) -> Resident:
    weights = [weight for _, weight in residents]

    def mean(value: Callable[[Resident], float]) -> float:
        return _mean([value(resident) for resident, _ in residents], weights)

    return Resident(
        mean_slots=mean(lambda each: each.mean_slots),
        variance_slots2=mean(lambda each: each.variance_slots2),
        third_slots3=mean(lambda each: each.third_slots3),
        prompt_slots=mean(lambda each: each.prompt_slots),
        growth_slots=mean(lambda each: each.growth_slots),
        together_slots=mean(lambda each: each.together_slots),
        largest_slots=max(resident.largest_slots for resident, _ in residents),
        requests=math.fsum(weights),
    )


def _usual_cost(costs: Sequence[StepCost]) -> StepCost:
    def mean(value: Callable[[StepCost], float]) -> float:
        return math.fsum(map(value, costs)) / len(costs)

    return StepCost(
        fixed_seconds=mean(lambda cost: cost.fixed_seconds),
        kv_token_seconds=mean(lambda cost: cost.kv_token_seconds),
        token_seconds=mean(lambda cost: cost.token_seconds),
        pair_seconds=mean(lambda cost: cost.pair_seconds),
        sequence_seconds=mean(lambda cost: cost.sequence_seconds),
    )
