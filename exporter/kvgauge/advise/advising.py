"""How many requests may run together, which limit says so, and how near the pod is to it.

The limits: `kv`, so that few requests lose their place in the pool, whatever lengths they turn out to have;
`state_slots`; `max_num_seqs`; `latency`, where objectives are given; and `token_rate`, beyond which more requests in
flight only wait for each other. The smallest binds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvgauge.advise.demand import Demand, thinned
from kvgauge.advise.grounds import Case, Grounds, Limit, grounds_for
from kvgauge.advise.history import History
from kvgauge.advise.learning import LengthSummary
from kvgauge.advise.loading import HEADROOM_RATIO, HORIZON_SECONDS, Load, Presence, exhaustion_seconds, load_of
from kvgauge.advise.pools import pools_of
from kvgauge.advise.served import Served, served_by
from kvgauge.advise.stepping import reading_seconds
from kvgauge.advise.wording import sentences
from kvgauge.assess import Assessment
from kvgauge.observe.records import Observation

__all__ = ["HEADROOM_RATIO", "HORIZON_SECONDS", "Advice", "LengthSummary", "Limit", "advise"]

Terms = dict[str, int | float | str | None]


@dataclass(frozen=True, slots=True)
class Advice:
    """How many requests may run together, which limit says so, and how near the pod is to it: all data-parallel ranks
    together. Fields are None where they cannot be known."""

    wall_seconds: float
    """Unix time of the tick that it stands on."""
    valid: bool
    safe_concurrency: int | None
    limits: Mapping[str, int]
    """Each limit, in requests; kv_worst_case is for information and never binds."""
    binding_limit: str | None
    load_ratio: float | None
    kv_usage_ratio: float | None
    """Slots that sequences hold, of the pool's."""
    kv_exhaustion_seconds: float | None
    """Seconds until the pool is full, by its trend or by what those that run will grow to; infinite when that is over
    HORIZON_SECONDS away (in JSON null, as when it is not known; the explanation says which)."""
    running: int | None
    waiting: int | None
    age_seconds: float | None
    explanation: tuple[str, ...]
    terms: Mapping[str, int | float | str | None]
    prompt_tokens: LengthSummary | None
    output_tokens: LengthSummary | None
    demand: Demand | None = None
    """What a fleet is reckoned with; None while no length is known."""
    served: Served | None = None
    """What was served so far; None while the engine is not seen."""


def advise(
    assessment: Assessment,
    history: History,
    *,
    max_num_seqs: int | None = None,
    slo_ttft_seconds: float | None = None,
    slo_tpot_seconds: float | None = None,
) -> Advice:
    """Advice from one assessment and the recent past, which is to have been told of this tick's observation first.

    `max_num_seqs` is the engine's own cap per rank, if told; objectives are those of one request. What takes long to
    reckon is kept in `history` for some seconds.
    """
    observation = assessment.observation
    engine = observation.engine
    if engine is None:
        return _invalid(observation, "The engine's figures are missing or too old to advise from.")
    served = served_by(history.arrivals.total, history.token_seconds, slo_tpot_seconds)
    if engine.asleep:
        return _invalid(observation, "The engine is asleep: its KV pool is given back.", served)
    history.steps.observe(
        engine.ranks, reading_seconds(observation), assessment.step_cost, assessment.max_num_batched_tokens
    )
    presence = _presence(assessment)
    pools = pools_of(assessment, history.memo)
    if presence is None or not pools:
        return _invalid(
            observation,
            "The engine does not tell its KV capacity, occupancy or queue, so no limit can be computed.",
            served,
        )
    case = Case(pools, engine.max_model_len, max_num_seqs, slo_ttft_seconds, slo_tpot_seconds)
    grounds = grounds_for(case, history, observation.monotonic_seconds)
    binding = grounds.binding
    if binding is None or (grounds.learned is None and engine.max_model_len is None):
        return _invalid(
            observation,
            "No request has finished yet and max_model_len is not known: a request can be of any size.",
            served,
        )
    load = load_of(presence, grounds, binding, history)
    ratio = history.damper.follow(load.ratio, presence.running + presence.queued, observation.monotonic_seconds)
    exhaustion = exhaustion_seconds(presence, grounds, history)
    learned = grounds.learned
    return Advice(
        wall_seconds=observation.wall_seconds,
        valid=True,
        safe_concurrency=binding.requests,
        limits={limit.name: limit.requests for limit in grounds.limits},
        binding_limit=binding.name,
        load_ratio=ratio,
        kv_usage_ratio=presence.active_tokens / presence.capacity_tokens,
        kv_exhaustion_seconds=exhaustion,
        running=presence.running,
        waiting=presence.waiting,
        age_seconds=_engine_age(observation),
        explanation=sentences(presence, grounds, binding, load, ratio, exhaustion, history),
        terms=_terms(presence, grounds, load, history),
        prompt_tokens=learned.prompt_summary if learned is not None else None,
        output_tokens=learned.output_summary if learned is not None else None,
        demand=_demand(grounds, assessment, history),
        served=served,
    )


def _engine_age(observation: Observation) -> float | None:
    return next((state.age_seconds for state in observation.sources if state.source == "engine"), None)


def _invalid(observation: Observation, why: str, served: Served | None = None) -> Advice:
    return Advice(
        wall_seconds=observation.wall_seconds,
        valid=False,
        safe_concurrency=None,
        limits={},
        binding_limit=None,
        load_ratio=None,
        kv_usage_ratio=None,
        kv_exhaustion_seconds=None,
        running=None,
        waiting=None,
        age_seconds=_engine_age(observation),
        explanation=(why,),
        terms={},
        prompt_tokens=None,
        output_tokens=None,
        served=served,
    )


def _presence(assessment: Assessment) -> Presence | None:
    engine = assessment.observation.engine
    ranks = engine.ranks if engine is not None else ()
    capacity = _sum([pool.capacity_tokens for pool in assessment.pools])
    active = _sum([pool.active_tokens for pool in assessment.pools])
    running = _sum([rank.running for rank in ranks])
    waiting = _sum([rank.waiting for rank in ranks])
    if not capacity or active is None or running is None or waiting is None:
        return None
    block_tokens = max((pool.block_tokens or 1 for pool in assessment.pools), default=1)
    swapped = sum(rank.swapped or 0 for rank in ranks)
    return Presence(capacity, active, block_tokens, running, waiting, swapped)


def _sum(values: list[int | None]) -> int | None:
    """None as soon as one part is unknown: a sum without it would be a smaller number, not an unknown one."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _terms(presence: Presence, grounds: Grounds, load: Load, history: History) -> Terms:
    """Every number that the advice stands on. Tokens are slots of the pool."""
    learned, held, safe, work = grounds.learned, grounds.resident, grounds.safe, grounds.work
    case, steps = grounds.case, grounds.steps
    change = history.change
    found: Terms = {
        "capacity_tokens": presence.capacity_tokens,
        "usable_tokens": sum(pool.slots for pool in case.pools),
        "ranks": len(case.pools),
        "window_groups": case.pools[0].windows,
        "active_tokens": presence.active_tokens,
        "block_tokens": presence.block_tokens,
        "swapped": presence.swapped,
        "max_model_len_tokens": case.longest_tokens,
        "max_num_seqs": case.max_num_seqs,
        "slo_ttft_seconds": case.slo_ttft_seconds,
        "slo_tpot_seconds": case.slo_tpot_seconds,
        "lengths_from": learned.source if learned is not None else None,
        "finished_requests": learned.finished if learned is not None else 0,
        "finished_in_window": learned.finished_in_window if learned is not None else 0,
        "window_seconds": history.window_seconds,
        "running_counted_as_longer": learned.censored if learned is not None else 0,
        "mix_changed_seconds_ago": grounds.at_seconds - change.at_seconds if change is not None else None,
        "mean_prompt_tokens": grounds.prompt_tokens if learned is not None else None,
        "mean_output_tokens": grounds.output_tokens if learned is not None else None,
        "prompt_computed_ratio": grounds.computed_ratio,
        "tokens_per_request": load.request_slots,
        "tokens_per_request_seen": grounds.observed_slots,
        "demand_tokens": load.demand_slots,
        "safe_tokens": load.safe_slots,
        "load_by_slots_ratio": load.by_slots_ratio,
        "load_by_requests_ratio": load.by_requests_ratio,
        "load_by_rate_ratio": load.by_rate_ratio,
        "load_now_ratio": load.ratio,
        "arrivals_per_second": load.arrivals_per_second,
        "safe_requests_per_second": load.safe_requests_per_second,
        "trend_tokens_per_second": history.trend_tokens_per_second(),
        "seconds_per_token": history.seconds_per_token(),
    }
    if held is not None:
        found |= {
            "request_deviation_tokens": math.sqrt(held.variance_slots2),
            "request_prompt_tokens": held.prompt_slots,
            "request_growth_tokens": held.growth_slots,
            "request_together_tokens": held.together_slots,
            "request_largest_tokens": held.largest_slots,
        }
    if safe is not None:
        found |= {
            "safe_by_preemptions": safe.by_preemptions,
            "safe_by_room": safe.by_room,
            "safe_by_together": safe.by_together,
            "preempted_ratio": safe.preempted_ratio,
        }
    else:
        found["headroom_ratio"] = HEADROOM_RATIO
    if work is not None:
        found |= {
            "step_fixed_seconds": work.fixed_seconds,
            "prefill_seconds": work.prefill_seconds,
            "decode_seconds": work.decode_seconds,
            "step_memory_scale_ratio": steps.memory_scale,
            "step_compute_scale_ratio": steps.compute_scale,
            "step_error_ratio": steps.error_ratio,
            "step_seen_seconds": steps.busy_seconds,
            "busy_ratio": steps.busy_ratio,
            "prefill_ratio": steps.prefill_ratio,
        }
    return found


def _demand(grounds: Grounds, assessment: Assessment, history: History) -> Demand | None:
    learned, case = grounds.learned, grounds.case
    if learned is None or grounds.outputs is None:
        return None
    last = history.demand
    if last is not None and last[0] is grounds:
        return replace(last[1], arrived_total=history.arrivals.total)
    found = Demand(
        arrived_total=history.arrivals.total,
        prompts=thinned(learned.prompts),
        outputs=grounds.outputs,
        computed_ratio=grounds.computed_ratio,
        resident=grounds.resident,
        pool_slots=case.pools[0].slots,
        max_num_seqs=case.max_num_seqs,
        max_num_batched_tokens=assessment.max_num_batched_tokens,
        cost=grounds.steps.cost,
        slo_ttft_seconds=case.slo_ttft_seconds,
        slo_tpot_seconds=case.slo_tpot_seconds,
        finished=learned.finished,
        ranks=len(case.pools),
    )
    history.demand = grounds, found
    return found
