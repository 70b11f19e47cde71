"""How many requests may run together, which limit says so, and how near the pod is to it.

A first method, on means: every request is counted at the mean length of those that finished lately, rounded up to
blocks. It is right for alike requests and optimistic for heavy tails.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kvgauge.advise.demand import Demand
from kvgauge.advise.history import History, quantile
from kvgauge.assess import Assessment, PoolAssessment
from kvgauge.observe.records import Histogram, Observation

HEADROOM_RATIO = 0.05
"""Share of the pool that the advice leaves alone, for what means do not show."""

_KEEPS_A_BLOCK = frozenset({"vllm"})
"""Engines whose stated capacity holds a block that no request gets: vLLM's null block."""

HORIZON_SECONDS = 3600.0
"""A minute's trend says nothing about what lies further ahead than this."""


@dataclass(frozen=True, slots=True)
class LengthSummary:
    """Lengths of finished requests, in tokens."""

    mean: float
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit on concurrency, in whole requests. A limit that is not `binding_candidate` is for information."""

    name: str
    requests: int
    binding_candidate: bool
    why: str


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
    kv_exhaustion_seconds: float | None
    """Seconds until the pool is full at the present trend; infinite when that is over HORIZON_SECONDS away
    (in JSON null, as when it is not known; the explanation says which)."""
    running: int | None
    waiting: int | None
    age_seconds: float | None
    explanation: tuple[str, ...]
    terms: Mapping[str, int | float | str | None]
    prompt_tokens: LengthSummary | None
    output_tokens: LengthSummary | None
    demand: Demand | None = None
    """What a fleet is reckoned with; None while no length is known."""


@dataclass(frozen=True, slots=True)
class _Pod:
    """Sums over the ranks; the pool of a pod with several is as good as one only because routers balance them."""

    capacity_tokens: int
    active_tokens: int
    block_tokens: int
    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class _RequestSize:
    """Slots that one request is counted with, and a sentence that says why."""

    safe_tokens: int
    """For what may run together."""
    demand_tokens: int
    """For what is asked for now."""
    why: str


def advise(assessment: Assessment, history: History, *, max_num_seqs: int | None = None) -> Advice:
    """Advice from one assessment and the recent past. `max_num_seqs` is the engine's own cap per rank, if told."""
    observation = assessment.observation
    engine = observation.engine
    if engine is None:
        return _invalid(observation, "The engine's figures are missing or too old to advise from.")
    if engine.asleep:
        return _invalid(observation, "The engine is asleep: its KV pool is given back.")
    pod = _pod(assessment)
    if pod is None:
        return _invalid(
            observation, "The engine does not tell its KV capacity, occupancy or queue, so no limit can be computed."
        )
    lengths = history.lengths()
    prompt, output = (_summary(lengths[0]), _summary(lengths[1])) if lengths is not None else (None, None)
    size = _request_size(pod, prompt, output, lengths, engine.max_model_len)
    if size is None:
        return _invalid(
            observation, "No request has finished yet and max_model_len is not known: a request can be of any size."
        )
    limits = _limits(pod, assessment, size.safe_tokens, engine.max_model_len, max_num_seqs)
    candidates = [limit for limit in limits if limit.binding_candidate]
    binding = min(candidates, key=lambda limit: limit.requests)
    usable_tokens = math.floor(pod.capacity_tokens * (1 - HEADROOM_RATIO))
    if binding.name == "max_num_seqs":
        load_ratio = (pod.running + pod.waiting) / binding.requests
    else:
        held_tokens = max(pod.running * size.demand_tokens, pod.active_tokens)
        load_ratio = (held_tokens + pod.waiting * size.demand_tokens) / usable_tokens
    trend = history.trend_tokens_per_second()
    exhaustion = _exhaustion_seconds(pod, trend)
    return Advice(
        wall_seconds=observation.wall_seconds,
        valid=True,
        safe_concurrency=binding.requests,
        limits={limit.name: limit.requests for limit in limits},
        binding_limit=binding.name,
        load_ratio=load_ratio,
        kv_exhaustion_seconds=exhaustion,
        running=pod.running,
        waiting=pod.waiting,
        age_seconds=_engine_age(observation),
        explanation=(
            f"{binding.requests} requests may run together: {binding.why}",
            size.why,
            f"{pod.running} run and {pod.waiting} wait, which is {load_ratio:.0%} of what is safe.",
            _outlook(exhaustion),
        ),
        terms={
            "capacity_tokens": pod.capacity_tokens,
            "usable_tokens": usable_tokens,
            "headroom_ratio": HEADROOM_RATIO,
            "active_tokens": pod.active_tokens,
            "block_tokens": pod.block_tokens,
            "tokens_per_request": size.safe_tokens,
            "demand_tokens_per_request": size.demand_tokens,
            "mean_prompt_tokens": prompt.mean if prompt is not None else None,
            "mean_output_tokens": output.mean if output is not None else None,
            "finished_requests": lengths[1].count if lengths is not None else 0,
            "lengths_from": lengths[2] if lengths is not None else None,
            "max_model_len_tokens": engine.max_model_len,
            "trend_tokens_per_second": trend,
        },
        prompt_tokens=prompt,
        output_tokens=output,
    )


def _engine_age(observation: Observation) -> float | None:
    return next((state.age_seconds for state in observation.sources if state.source == "engine"), None)


def _invalid(observation: Observation, why: str) -> Advice:
    return Advice(
        wall_seconds=observation.wall_seconds,
        valid=False,
        safe_concurrency=None,
        limits={},
        binding_limit=None,
        load_ratio=None,
        kv_exhaustion_seconds=None,
        running=None,
        waiting=None,
        age_seconds=_engine_age(observation),
        explanation=(why,),
        terms={},
        prompt_tokens=None,
        output_tokens=None,
    )


def _pod(assessment: Assessment) -> _Pod | None:
    engine = assessment.observation.engine
    ranks = engine.ranks if engine is not None else ()
    capacity = _sum([pool.capacity_tokens for pool in assessment.pools])
    active = _sum([pool.active_tokens for pool in assessment.pools])
    running = _sum([rank.running for rank in ranks])
    waiting = _sum([rank.waiting for rank in ranks])
    if not capacity or active is None or running is None or waiting is None:
        return None
    block_tokens = max((pool.block_tokens or 1 for pool in assessment.pools), default=1)
    return _Pod(capacity, active, block_tokens, running, waiting)


def _sum(values: list[int | None]) -> int | None:
    """None as soon as one part is unknown: a sum without it would be a smaller number, not an unknown one."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _summary(lengths: Histogram) -> LengthSummary:
    return LengthSummary(
        mean=lengths.total / lengths.count,
        p50=quantile(lengths, 0.5),
        p95=quantile(lengths, 0.95),
        p99=quantile(lengths, 0.99),
    )


def _request_size(
    pod: _Pod,
    prompt: LengthSummary | None,
    output: LengthSummary | None,
    lengths: tuple[Histogram, Histogram, str] | None,
    max_model_len: int | None,
) -> _RequestSize | None:
    if prompt is not None and output is not None and lengths is not None:
        tokens = _blocks_up(prompt.mean + output.mean, pod.block_tokens)
        span = "lately" if lengths[2] == "window" else "since the engine started"
        return _RequestSize(
            tokens,
            tokens,
            f"The {lengths[1].count:.0f} requests that finished {span} had {prompt.mean:.0f} prompt and "
            f"{output.mean:.0f} output tokens on average: {tokens} slots each.",
        )
    if max_model_len is None:
        return None
    # Those that run show only how far they have come; to take that for their size would promise too much.
    longest = _blocks_up(max_model_len, pod.block_tokens)
    if pod.running and pod.active_tokens:
        so_far = _blocks_up(pod.active_tokens / pod.running, pod.block_tokens)
        return _RequestSize(
            longest,
            so_far,
            f"No request has finished yet, so only what is safe at max_model_len is promised; those running hold "
            f"{so_far} slots each so far, and the load is at least what they hold.",
        )
    return _RequestSize(longest, longest, "No request was seen yet, so each is counted at max_model_len.")


def _blocks_up(tokens: float, block_tokens: int) -> int:
    return max(math.ceil(tokens / block_tokens), 1) * block_tokens


def _limits(
    pod: _Pod,
    assessment: Assessment,
    request_tokens: int,
    max_model_len: int | None,
    max_num_seqs: int | None,
) -> list[Limit]:
    engine = assessment.observation.engine
    reserves = engine is not None and engine.engine in _KEEPS_A_BLOCK
    kv = sum(_fitting(pool, request_tokens, 1 - HEADROOM_RATIO, reserves) for pool in assessment.pools)
    informative = []
    if max_model_len is not None:
        longest = _blocks_up(max_model_len, pod.block_tokens)
        worst = sum(_fitting(pool, longest, 1.0, reserves) for pool in assessment.pools)
        informative.append(Limit("kv_worst_case", worst, False, "every request at max_model_len"))
        # What fits whatever comes is safe; the headroom must not promise less.
        kv = max(kv, worst)
    limits = [Limit("kv", kv, True, f"more of {request_tokens} slots each would not fit the KV pool."), *informative]
    if max_num_seqs is not None:
        seqs = max_num_seqs * len(assessment.pools)
        limits.append(Limit("max_num_seqs", seqs, True, "the engine batches no more (max_num_seqs)."))
    return limits


def _fitting(pool: PoolAssessment, request_tokens: int, share: float, reserves: bool) -> int:
    """Whole requests in one rank's pool, without the block that some engines keep for themselves."""
    usable = (pool.capacity_tokens or 0) - ((pool.block_tokens or 0) if reserves else 0)
    return max(math.floor(usable * share / request_tokens), 0)


def _exhaustion_seconds(pod: _Pod, trend_tokens_per_second: float | None) -> float | None:
    if trend_tokens_per_second is None:
        return None
    free_tokens = pod.capacity_tokens - pod.active_tokens
    if trend_tokens_per_second * HORIZON_SECONDS <= free_tokens:
        return math.inf
    return free_tokens / trend_tokens_per_second


def _outlook(exhaustion_seconds: float | None) -> str:
    if exhaustion_seconds is None:
        return "The trend of the KV pool is not known yet."
    if math.isinf(exhaustion_seconds):
        return "The KV pool is not filling."
    if exhaustion_seconds < 1:
        return "The KV pool is full."
    return f"At the present trend the KV pool is full in {exhaustion_seconds:.0f} s."
