"""One pure function from facts to judgement: predicted against actual, and what is wasted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kvgauge.assess.allocators import allocators, worker_place
from kvgauge.assess.forecasting import (
    KV_POOL,
    RULES,
    Memo,
    MemoryForecast,
    MemoryQuestion,
    PoolForecast,
    PoolQuestion,
    forecast_memory,
    forecast_pool,
)
from kvgauge.assess.knobs import KnobForecast, KnobQuestion, forecast_knobs
from kvgauge.assess.records import Assessment, ComponentPrediction, GpuAssessment, PoolAssessment
from kvgauge.assess.speed import StepForecast, StepQuestion, forecast_steps
from kvgauge.assess.waste import ESTIMATED, MEASURED, Pool, usual_tokens, wastes
from kvgauge.observe.merging import books_of, head_of
from kvgauge.observe.records import AgentReading, EngineReading, GpuReading, ModelReading, Observation, RankReading
from kvmodel import Architecture

# Reserve all of a request's length when it starts, and tell only that: TGI.
_TELLS_RESERVATION_ONLY = frozenset({"tgi"})
# Hybrid models have a pool for each kind of layer, and the engine's own figure is of the fullest.
_TELLS_FULLEST_POOL = frozenset({"sglang"})


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """Flags of the engine, where somebody gave them to us. None: not told; what the engine or its agent tells holds,
    else the engine version's default is assumed."""

    tp: int | None = None
    pp: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool = False


def assess(observation: Observation, flags: EngineFlags, memo: Memo | None = None) -> Assessment:
    """Judges one observation. What cannot be predicted is absent, with the reason in `missing`; nothing is raised.
    `memo` keeps forecasts from tick to tick, and changes nothing but the time this takes."""
    engine, model, gpus = observation.engine, observation.model, observation.gpus
    memo = memo or Memo()
    flags = _resolved(flags, engine, gpus)
    missing: dict[str, str] = {}
    if flags.tp is None:
        missing["tp"] = f"{len(gpus)} GPUs are visible and --tp does not say how many share the model"
    if model is None:
        missing["model"] = next((state.message or "" for state in observation.sources if state.source == "model"), "")
    forecast, kind, steps = MemoryForecast(), "", StepForecast(None, "the engine is not read")
    pools: tuple[PoolAssessment, ...] = ()
    knobs = KnobForecast((), "the engine is not read")
    if engine is not None:
        kind, gpu = _kind(engine, observation.agent), _smallest(gpus)
        memory_question = _memory_question(kind, engine, model, gpu, flags)
        if memory_question is not None:
            forecast = memo.answer(forecast_memory, memory_question)
            if forecast.why_not:
                missing["memory"] = forecast.why_not
        questions = [_pool_question(kind, engine, rank, model, gpu, flags, forecast) for rank in engine.ranks]
        pools = tuple(
            _pool(rank, engine, observation.agent, model, flags.tp, memo.answer(forecast_pool, question))
            for rank, question in zip(engine.ranks, questions, strict=True)
        )
        knobs = _knobs(memory_question, questions, memo)
        steps = memo.answer(forecast_steps, _step_question(kind, engine, model, gpu, flags))
    if steps.why_not:
        missing["step_cost"] = steps.why_not
    if knobs.why_not:
        missing["knobs"] = knobs.why_not
    return Assessment(
        observation=observation,
        tp=flags.tp,
        pp=flags.pp or 1,
        dp=len(pools) or 1,
        pools=pools,
        gpus=tuple(_gpu(gpu, forecast, _measured(gpu, observation, pools)) for gpu in gpus),
        missing=missing,
        allocators=allocators(observation.agent, gpus),
        max_num_seqs=flags.max_num_seqs,
        max_num_batched_tokens=flags.max_num_batched_tokens,
        kind=kind,
        step_cost=steps.cost,
        knobs=knobs.knobs,
    )


def _resolved(flags: EngineFlags, engine: EngineReading | None, gpus: Sequence[GpuReading]) -> EngineFlags:
    """A flag, else what the engine or its agent tells; a single GPU is shared by nobody."""
    return replace(
        flags,
        tp=flags.tp or (engine.tp if engine is not None else None) or (1 if len(gpus) <= 1 else None),
        pp=flags.pp or (engine.pp if engine is not None else None) or 1,
        max_num_seqs=flags.max_num_seqs or (engine.max_num_seqs if engine is not None else None),
        max_num_batched_tokens=flags.max_num_batched_tokens
        or (engine.max_num_batched_tokens if engine is not None else None),
    )


def _kind(engine: EngineReading, agent: AgentReading | None) -> str:
    """The engine whose rules hold: of one that wraps others, the one that its agent says runs inside."""
    if engine.engine in RULES or agent is None:
        return engine.engine
    inside = {process.engine for process in agent.engine_processes} & RULES.keys()
    return inside.pop() if len(inside) == 1 else engine.engine


def _smallest(gpus: Sequence[GpuReading]) -> GpuReading | None:
    """The GPU that limits a group of them; one of unknown size only where there is no other."""
    return min(gpus, key=lambda gpu: float("inf") if gpu.total_bytes is None else gpu.total_bytes, default=None)


def _memory_question(
    kind: str, engine: EngineReading, model: ModelReading | None, gpu: GpuReading | None, flags: EngineFlags
) -> MemoryQuestion | None:
    if model is None or flags.tp is None:
        return None
    return MemoryQuestion(
        kind=kind,
        version=engine.version,
        model=model,
        tp=flags.tp,
        pp=flags.pp or 1,
        num_ranks=len(engine.ranks),
        gpu_total_bytes=gpu.total_bytes if gpu is not None else None,
        gpu_name=gpu.name if gpu is not None else "",
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_model_len=engine.max_model_len,
        max_num_seqs=flags.max_num_seqs,
        max_num_batched_tokens=flags.max_num_batched_tokens,
        kv_cache_bytes=engine.kv_cache_bytes,
        enforce_eager=flags.enforce_eager,
    )


def _pool_question(
    kind: str,
    engine: EngineReading,
    rank: RankReading,
    model: ModelReading | None,
    gpu: GpuReading | None,
    flags: EngineFlags,
    forecast: MemoryForecast,
) -> PoolQuestion:
    return PoolQuestion(
        kind=kind,
        version=engine.version,
        model=model,
        tp=flags.tp,
        gpu_total_bytes=gpu.total_bytes if gpu is not None else None,
        gpu_name=gpu.name if gpu is not None else "",
        kv_bytes=engine.kv_cache_bytes or forecast.kv_pool_bytes,
        num_blocks_override=engine.num_blocks_override,
        max_model_len=engine.max_model_len,
        max_num_seqs=flags.max_num_seqs,
        max_num_batched_tokens=flags.max_num_batched_tokens,
        kv_dtype=engine.kv_dtype,
        prefix_caching=engine.prefix_caching,
        capacity_tokens=rank.capacity_tokens,
        block_tokens=rank.block_tokens,
        num_blocks=rank.num_blocks,
    )


def _knobs(memory: MemoryQuestion | None, pools: Sequence[PoolQuestion], memo: Memo) -> KnobForecast:
    """Of one rank: the others run with the same flags."""
    if memory is None:
        return KnobForecast((), "the model's architecture or the tensor parallelism is not known")
    if not pools:
        return KnobForecast((), "the engine tells no pool")
    return memo.answer(forecast_knobs, KnobQuestion(memory, pools[0]))


def _step_question(
    kind: str, engine: EngineReading, model: ModelReading | None, gpu: GpuReading | None, flags: EngineFlags
) -> StepQuestion:
    return StepQuestion(
        kind=kind,
        model=model,
        gpu_name=gpu.name if gpu is not None else None,
        mig=gpu.mig if gpu is not None else "",
        tp=flags.tp,
        pp=flags.pp or 1,
        kv_dtype=engine.kv_dtype,
    )


def _pool(
    rank: RankReading,
    engine: EngineReading,
    agent: AgentReading | None,
    model: ModelReading | None,
    tp: int | None,
    forecast: PoolForecast,
) -> PoolAssessment:
    missing = {**rank.missing, **forecast.missing}
    live_tokens, method = _live_tokens(rank, engine, model, missing)
    head = head_of(rank.rank, engine, agent)
    waste = wastes(
        Pool(
            engine=engine,
            rank=rank,
            head=head,
            books=books_of(head),
            architecture=model.architecture if model is not None else None,
            kv_dtype=engine.kv_dtype or "auto",
            tp=tp,
            token_bytes=forecast.token_bytes,
            plan=forecast.plan,
            live_tokens=live_tokens,
            live_method=method,
        ),
        missing,
    )
    return PoolAssessment(
        rank=rank.rank,
        model=rank.model,
        kv_bytes_per_token=forecast.token_bytes,
        state_bytes_per_request=forecast.request_bytes,
        block_tokens=rank.block_tokens,
        capacity_tokens=rank.capacity_tokens,
        predicted_capacity_tokens=forecast.capacity_tokens,
        active_tokens=rank.active_tokens,
        reclaimable_tokens=rank.reclaimable_tokens,
        free_tokens=rank.free_tokens,
        live_tokens=live_tokens,
        live_tokens_method=method,
        usage_ratio=_usage_ratio(rank, engine),
        waste=waste,
        missing=missing,
    )


def _usage_ratio(rank: RankReading, engine: EngineReading) -> float | None:
    if rank.active_tokens is None or not rank.capacity_tokens:
        return rank.usage_ratio
    usage_ratio = rank.active_tokens / rank.capacity_tokens
    if rank.usage_ratio is not None and engine.engine in _TELLS_FULLEST_POOL:
        # The tokens are those of full attention. A pool of windows or states that is fuller stops admission first.
        return max(usage_ratio, rank.usage_ratio)
    return usage_ratio


def _live_tokens(
    rank: RankReading, engine: EngineReading, model: ModelReading | None, missing: dict[str, str]
) -> tuple[int | None, str | None]:
    """Slots that hold a token, and how that is known."""
    if rank.live_tokens is not None:
        return rank.live_tokens, MEASURED
    estimate = None
    if rank.reserved_tokens is None:
        tail_tokens = _expected_tail_tokens(rank, model)
        if tail_tokens is not None and rank.active_tokens is not None:
            estimate = rank.active_tokens - tail_tokens
    elif engine.engine in _TELLS_RESERVATION_ONLY:
        estimate = _expected_held_tokens(rank)
    if estimate is None:
        missing.setdefault("live_tokens", "not measured, and with several cache groups not to be estimated")
        return None, None
    missing.pop("live_tokens", None)
    return estimate, ESTIMATED


def _expected_tail_tokens(rank: RankReading, model: ModelReading | None) -> int | None:
    """Slots behind the last token of each running sequence: (block - 1) / 2 of them on average, since a length is as
    likely to end anywhere in its block. With several cache groups a block is no fixed number of tokens: None."""
    if rank.running is None or rank.active_tokens is None or not rank.block_tokens or rank.num_blocks is None:
        return None
    architecture: Architecture | None = model.architecture if model is not None else None
    if architecture is not None and not architecture.is_uniform_full_attention:
        return None
    if architecture is None and rank.capacity_tokens != rank.num_blocks * rank.block_tokens:
        return None
    return min(round(rank.running * (rank.block_tokens - 1) / 2), rank.active_tokens)


def _expected_held_tokens(rank: RankReading) -> int | None:
    """Of what is reserved, the slots that hold a token: those that run are half way through their output on average,
    by the mean lengths of those that have finished."""
    tokens = usual_tokens(rank)
    if rank.running is None or tokens is None or rank.reserved_tokens is None:
        return None
    return min(rank.running * tokens, rank.reserved_tokens)


def _measured(gpu: GpuReading, observation: Observation, pools: Sequence[PoolAssessment]) -> dict[str, int]:
    """What the engine measured or stated of this GPU, by component: its worker's own figures before the engine's, and
    a pool whose slots and their bytes are known before none."""
    engine, agent = observation.engine, observation.agent
    found: dict[str, int] = {}
    # Data-parallel ranks have a GPU (or a group) each, with pools of one size.
    pool = pools[0] if pools else None
    if pool is not None and pool.capacity_tokens and pool.kv_bytes_per_token and not pool.state_bytes_per_request:
        found[KV_POOL] = pool.capacity_tokens * pool.kv_bytes_per_token
    if engine is not None:
        found |= engine.memory_bytes
    for process in agent.engine_processes if agent is not None else ():
        if process.memory_bytes and worker_place(process, observation.gpus) == (gpu.gpu, gpu.uuid):
            found |= process.memory_bytes
    return found


def _gpu(gpu: GpuReading, forecast: MemoryForecast, measured: Mapping[str, int]) -> GpuAssessment:
    components = tuple(
        ComponentPrediction(
            component, part.low_bytes, part.expected_bytes, part.high_bytes, measured.get(component), part.source
        )
        for component, part in forecast.components.items()
    )
    total, whole = None, forecast.total
    if whole is not None:
        total = ComponentPrediction(
            "total", whole.low_bytes, whole.expected_bytes, whole.high_bytes, gpu.used_bytes, "the driver"
        )
    missing = {} if total is not None else {"memory": forecast.why_not or "not predicted"}
    return GpuAssessment(gpu.gpu, gpu.uuid, components, total, missing, measured)
