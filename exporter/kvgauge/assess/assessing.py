"""One pure function from facts to judgement: predicted against actual, and what is wasted."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kvgauge.assess.allocators import allocators, worker_place
from kvgauge.assess.records import Assessment, ComponentPrediction, GpuAssessment, PoolAssessment
from kvgauge.assess.waste import ESTIMATED, MEASURED, Pool, usual_tokens, wastes
from kvgauge.observe.merging import books_of, head_of
from kvgauge.observe.records import AgentReading, EngineReading, GpuReading, ModelReading, Observation, RankReading
from kvmodel import Architecture, EnginePlan, MemoryPrediction, ModelError, plan_pool, predict_memory
from kvmodel import weights_bytes_per_gpu as weights_bytes_on_each

# Engines whose pool is laid out by vLLM's rules.
_VLLM = frozenset({"vllm"})
# Reserve all of a request's length when it starts, and tell only that: TGI.
_TELLS_RESERVATION_ONLY = frozenset({"tgi"})


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """Flags of the engine, where somebody gave them to us. None: not told; what the engine or its agent tells holds,
    else the engine version's default is assumed."""

    tp: int | None = None
    pp: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool = False


def assess(observation: Observation, flags: EngineFlags) -> Assessment:
    """Judges one observation. What cannot be predicted is absent, with the reason in `missing`; nothing is raised."""
    engine, model, gpus = observation.engine, observation.model, observation.gpus
    flags = _resolved(flags, engine, gpus)
    missing: dict[str, str] = {}
    if flags.tp is None:
        missing["tp"] = f"{len(gpus)} GPUs are visible and --tp does not say how many share the model"
    if model is None:
        missing["model"] = next((state.message or "" for state in observation.sources if state.source == "model"), "")
    prediction = None
    if engine is not None and model is not None and flags.tp is not None:
        prediction = _predict(engine, model, gpus, flags, missing)
    pools: tuple[PoolAssessment, ...] = ()
    if engine is not None:
        pools = tuple(_pool(rank, engine, observation.agent, model, flags, prediction) for rank in engine.ranks)
    return Assessment(
        observation=observation,
        tp=flags.tp,
        pp=flags.pp or 1,
        dp=len(pools) or 1,
        pools=pools,
        gpus=tuple(_gpu(gpu, prediction, _measured(gpu, observation, pools)) for gpu in gpus),
        missing=missing,
        allocators=allocators(observation.agent, gpus),
        max_num_seqs=flags.max_num_seqs,
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


def _predict(
    engine: EngineReading,
    model: ModelReading,
    gpus: tuple[GpuReading, ...],
    flags: EngineFlags,
    missing: dict[str, str],
) -> MemoryPrediction | None:
    totals = [gpu.total_bytes for gpu in gpus if gpu.total_bytes is not None]
    tp = flags.tp or 1
    if engine.engine not in _VLLM:
        missing["memory"] = f"how {engine.engine} shares out a GPU's memory is not predicted here"
    elif model.weights is None:
        missing["memory"] = model.missing.get("weights", "the model's weights were not read")
    elif not totals:
        missing["memory"] = "no GPU's memory size is known"
    elif engine.gpu_memory_utilization is None:
        missing["memory"] = "the engine does not tell gpu_memory_utilization"
    elif (flags.pp or 1) > 1:
        missing["memory"] = "the share of a pipeline stage is not predicted"
    else:
        try:
            return predict_memory(
                model.architecture,
                weights_bytes_per_gpu=weights_bytes_on_each(model.weights, model.architecture, tp),
                gpu_total_bytes=min(totals),
                gpu_memory_utilization=engine.gpu_memory_utilization,
                engine_version=_release(engine.version),
                tp=tp,
                max_model_len=engine.max_model_len,
                max_num_seqs=flags.max_num_seqs,
                max_num_batched_tokens=flags.max_num_batched_tokens,
                enforce_eager=flags.enforce_eager,
                kv_cache_bytes=engine.kv_cache_bytes,
            )
        except ModelError as error:
            missing["memory"] = str(error)
    return None


def _pool(
    rank: RankReading,
    engine: EngineReading,
    agent: AgentReading | None,
    model: ModelReading | None,
    flags: EngineFlags,
    prediction: MemoryPrediction | None,
) -> PoolAssessment:
    missing = dict(rank.missing)
    per_token, per_request = _bytes_per_token(model, engine, flags.tp, missing)
    plan = _plan(rank, engine, model, flags, prediction, missing)
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
            tp=flags.tp,
            token_bytes=per_token,
            plan=plan,
            live_tokens=live_tokens,
            live_method=method,
        ),
        missing,
    )
    usage = rank.usage_ratio
    if rank.active_tokens is not None and rank.capacity_tokens:
        usage = rank.active_tokens / rank.capacity_tokens
    return PoolAssessment(
        rank=rank.rank,
        model=rank.model,
        kv_bytes_per_token=per_token,
        state_bytes_per_request=per_request,
        block_tokens=rank.block_tokens,
        capacity_tokens=rank.capacity_tokens,
        # Planned without a predicted pool, it is only the engine's own number of blocks said again.
        predicted_capacity_tokens=None
        if plan is None or "predicted_capacity_tokens" in missing
        else plan.capacity_tokens,
        active_tokens=rank.active_tokens,
        reclaimable_tokens=rank.reclaimable_tokens,
        free_tokens=rank.free_tokens,
        live_tokens=live_tokens,
        live_tokens_method=method,
        usage_ratio=usage,
        waste=waste,
        missing=missing,
    )


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


def _bytes_per_token(
    model: ModelReading | None, engine: EngineReading, tp: int | None, missing: dict[str, str]
) -> tuple[int | None, int | None]:
    if model is None or tp is None:
        missing["kv_bytes_per_token"] = "the model's architecture or the tensor parallelism is not known"
        return None, None
    architecture, kv_dtype = model.architecture, engine.kv_dtype or "auto"
    try:
        constant = architecture.window_bytes_per_sequence(kv_dtype, tp) + architecture.state_bytes_per_sequence(
            kv_dtype, tp
        )
        # Compressed caches add a fraction of a byte; a token is never promised for less than it takes.
        return math.ceil(architecture.growth_bytes_per_token(kv_dtype, tp)), constant
    except ModelError as error:
        missing["kv_bytes_per_token"] = str(error)
        return None, None


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


def _plan(
    rank: RankReading,
    engine: EngineReading,
    model: ModelReading | None,
    flags: EngineFlags,
    prediction: MemoryPrediction | None,
    missing: dict[str, str],
) -> EnginePlan | None:
    """vLLM's plan: from the blocks or bytes asked for by flag, or from the predicted pool. Else from the engine's own
    blocks, which predicts no capacity, and `missing` says so."""
    kv_bytes = engine.kv_cache_bytes or (prediction.kv_pool.expected_bytes if prediction is not None else None)
    blocks, tp = engine.num_blocks_override, flags.tp
    if engine.engine not in _VLLM:
        missing["predicted_capacity_tokens"] = f"the pool of {engine.engine} is not predicted here"
        return None
    if model is None or tp is None or engine.max_model_len is None or not rank.block_tokens:
        missing["predicted_capacity_tokens"] = "the architecture, parallelism, block size or max_model_len is not known"
        return None
    if kv_bytes is None and blocks is None:
        missing["predicted_capacity_tokens"] = "the bytes left for the pool could not be predicted"
        blocks = rank.num_blocks
        if blocks is None:
            return None
    try:
        return plan_pool(
            model.architecture,
            kv_bytes=None if blocks is not None else kv_bytes,
            num_blocks=blocks,
            block_tokens=rank.block_tokens,
            max_model_len=engine.max_model_len,
            kv_dtype=engine.kv_dtype or "auto",
            tp=tp,
            engine_version=_release(engine.version),
            max_num_batched_tokens=flags.max_num_batched_tokens,
            prefix_caching=engine.prefix_caching,
        )
    except ModelError as error:
        missing["predicted_capacity_tokens"] = str(error)
        return None


def _release(version: str | None) -> str | None:
    """A version whose rules can be looked up. A development build calls itself 0.1.dev: the newest rules are meant."""
    match = re.match(r"v?0\.(\d+)", version or "")
    return None if match is None or int(match[1]) < 6 else version


def _measured(gpu: GpuReading, observation: Observation, pools: Sequence[PoolAssessment]) -> dict[str, int]:
    """What the engine measured or stated of this GPU, by component: its worker's own figures before the engine's, and
    a pool whose slots and their bytes are known before none."""
    engine, agent = observation.engine, observation.agent
    found: dict[str, int] = {}
    # Data-parallel ranks have a GPU (or a group) each, with pools of one size.
    pool = pools[0] if pools else None
    if pool is not None and pool.capacity_tokens and pool.kv_bytes_per_token and not pool.state_bytes_per_request:
        found["kv_pool"] = pool.capacity_tokens * pool.kv_bytes_per_token
    if engine is not None:
        found |= engine.memory_bytes
    for process in agent.engine_processes if agent is not None else ():
        if process.memory_bytes and worker_place(process, observation.gpus) == (gpu.gpu, gpu.uuid):
            found |= process.memory_bytes
    return found


def _gpu(gpu: GpuReading, prediction: MemoryPrediction | None, measured: Mapping[str, int]) -> GpuAssessment:
    if prediction is None:
        return GpuAssessment(gpu.gpu, gpu.uuid, (), None, {"memory": "not predicted"}, measured)
    components = tuple(
        ComponentPrediction(
            component, part.low_bytes, part.expected_bytes, part.high_bytes, measured.get(component), part.source
        )
        for component, part in prediction.components.items()
    )
    total = ComponentPrediction(
        "total",
        prediction.total.low_bytes,
        prediction.total.expected_bytes,
        prediction.total.high_bytes,
        gpu.used_bytes,
        "the driver",
    )
    return GpuAssessment(gpu.gpu, gpu.uuid, components, total, measured_bytes=measured)
