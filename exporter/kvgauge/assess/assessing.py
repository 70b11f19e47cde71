"""One pure function from facts to judgement: predicted against actual, and what is wasted."""

import math
import re
from dataclasses import dataclass, replace

from kvgauge.assess.records import Assessment, ComponentPrediction, GpuAssessment, PoolAssessment, Waste
from kvgauge.observe.records import EngineReading, GpuReading, ModelReading, Observation, RankReading
from kvmodel import Architecture, MemoryPrediction, ModelError, plan_pool, predict_memory, weights_bytes_per_gpu


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """Flags of the engine that its pages do not tell. None: not told; the engine version's default is assumed."""

    tp: int | None = None
    pp: int = 1
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool = False


def assess(observation: Observation, flags: EngineFlags) -> Assessment:
    """Judges one observation. What cannot be predicted is absent, with the reason in `missing`; nothing is raised."""
    engine, model, gpus = observation.engine, observation.model, observation.gpus
    tp = flags.tp or (1 if len(gpus) <= 1 else None)
    missing: dict[str, str] = {}
    if tp is None:
        missing["tp"] = f"{len(gpus)} GPUs are visible and --tp does not say how many share the model"
    if model is None:
        missing["model"] = next((state.message or "" for state in observation.sources if state.source == "model"), "")
    flags = replace(flags, tp=tp)
    prediction = None
    if engine is not None and model is not None and tp is not None:
        prediction = _predict(engine, model, gpus, flags, missing)
    pools = () if engine is None else tuple(_pool(rank, engine, model, flags, prediction) for rank in engine.ranks)
    return Assessment(
        observation=observation,
        tp=tp,
        pp=flags.pp,
        dp=len(pools) or 1,
        pools=pools,
        gpus=tuple(_gpu(gpu, prediction, pools) for gpu in gpus),
        missing=missing,
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
    if model.weights is None:
        missing["memory"] = model.missing.get("weights", "the model's weights were not read")
    elif not totals:
        missing["memory"] = "no GPU's memory size is known"
    elif engine.gpu_memory_utilization is None:
        missing["memory"] = "the engine does not tell gpu_memory_utilization"
    elif flags.pp > 1:
        missing["memory"] = "the share of a pipeline stage is not predicted"
    else:
        try:
            return predict_memory(
                model.architecture,
                weights_bytes_per_gpu=weights_bytes_per_gpu(model.weights, model.architecture, tp),
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
    model: ModelReading | None,
    flags: EngineFlags,
    prediction: MemoryPrediction | None,
) -> PoolAssessment:
    missing = dict(rank.missing)
    per_token, per_request = _bytes_per_token(model, engine, flags.tp, missing)
    live_tokens, method = rank.live_tokens, "measured" if rank.live_tokens is not None else None
    waste: list[Waste] = []
    tail_tokens = _expected_tail_tokens(rank, model)
    if live_tokens is None and tail_tokens is not None and rank.active_tokens is not None:
        live_tokens, method = rank.active_tokens - tail_tokens, "estimated"
        missing.pop("live_tokens", None)
    elif live_tokens is None:
        missing.setdefault("live_tokens", "not measured, and with several cache groups not to be estimated")
    if live_tokens is not None and rank.active_tokens is not None and per_token is not None and method is not None:
        waste.append(Waste("block_tail", method, max(rank.active_tokens - live_tokens, 0) * per_token))
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
        predicted_capacity_tokens=_predicted_capacity(rank, engine, model, flags, prediction, missing),
        active_tokens=rank.active_tokens,
        reclaimable_tokens=rank.reclaimable_tokens,
        free_tokens=rank.free_tokens,
        live_tokens=live_tokens,
        live_tokens_method=method,
        usage_ratio=usage,
        waste=tuple(waste),
        missing=missing,
    )


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


def _predicted_capacity(
    rank: RankReading,
    engine: EngineReading,
    model: ModelReading | None,
    flags: EngineFlags,
    prediction: MemoryPrediction | None,
    missing: dict[str, str],
) -> int | None:
    """Slots that the pool should have: from the blocks or bytes asked for by flag, else from the predicted pool."""
    kv_bytes = engine.kv_cache_bytes or (prediction.kv_pool.expected_bytes if prediction is not None else None)
    blocks, tp = engine.num_blocks_override, flags.tp
    if model is None or tp is None or engine.max_model_len is None or not rank.block_tokens:
        missing["predicted_capacity_tokens"] = "the architecture, parallelism, block size or max_model_len is not known"
    elif kv_bytes is None and blocks is None:
        missing["predicted_capacity_tokens"] = "the bytes left for the pool could not be predicted"
    else:
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
            ).capacity_tokens
        except ModelError as error:
            missing["predicted_capacity_tokens"] = str(error)
    return None


def _release(version: str | None) -> str | None:
    """A version whose rules can be looked up. A development build calls itself 0.1.dev: the newest rules are meant."""
    match = re.match(r"v?0\.(\d+)", version or "")
    return None if match is None or int(match[1]) < 6 else version


def _gpu(gpu: GpuReading, prediction: MemoryPrediction | None, pools: tuple[PoolAssessment, ...]) -> GpuAssessment:
    if prediction is None:
        return GpuAssessment(gpu.gpu, gpu.uuid, (), None, {"memory": "not predicted"})
    actual: dict[str, int | None] = {}
    # Data-parallel ranks have a GPU (or a group) each, with pools of one size.
    pool = pools[0] if pools else None
    if pool is not None and pool.capacity_tokens and pool.kv_bytes_per_token and not pool.state_bytes_per_request:
        actual["kv_pool"] = pool.capacity_tokens * pool.kv_bytes_per_token
    components = tuple(
        ComponentPrediction(
            component, part.low_bytes, part.expected_bytes, part.high_bytes, actual.get(component), part.source
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
    return GpuAssessment(gpu.gpu, gpu.uuid, components, total)
