"""Observations to test with: an engine with one full-attention model on one GPU, and changes of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvgauge.observe.records import (
    EngineReading,
    GpuReading,
    Histogram,
    ModelReading,
    Observation,
    RankReading,
    SourceState,
)
from kvmodel import Weights, read_architecture
from tests.model.known import LLAMA_8B

GIB = 1 << 30

LLAMA_8B_PARAMETERS = 8_030_261_248

RANK = RankReading(
    rank="0",
    model="llama",
    capacity_tokens=16_000,
    block_tokens=16,
    num_blocks=1_000,
    used_blocks=500,
    active_tokens=8_000,
    reclaimable_tokens=None,
    free_tokens=8_000,
    live_tokens=None,
    usage_ratio=500 / 999,
    running=10,
    waiting=0,
    swapped=None,
    preemptions_total=0.0,
    prompt_tokens_total=1.0,
    generation_tokens_total=1.0,
    prefix_queries_tokens_total=None,
    prefix_hits_tokens_total=None,
    prompt_lengths=None,
    output_lengths=None,
)
ENGINE = EngineReading(
    engine="vllm",
    version="0.19.0",
    model="llama",
    model_path="/models/llama",
    max_model_len=8192,
    kv_dtype="auto",
    gpu_memory_utilization=0.95,
    kv_cache_bytes=None,
    num_blocks_override=None,
    prefix_caching=True,
    asleep=False,
    started_seconds=1.0,
    ranks=(RANK,),
)
GPU = GpuReading(
    gpu=0,
    uuid="GPU-1",
    name="NVIDIA H100 80GB HBM3",
    driver="580",
    mig="",
    total_bytes=round(79.19 * GIB),
    used_bytes=76 * GIB,
    free_bytes=round(3.19 * GIB),
    reserved_bytes=None,
    engine_bytes=None,
)


def model(**config: object) -> ModelReading:
    architecture = read_architecture({**LLAMA_8B, **config})
    weights = Weights(2 * LLAMA_8B_PARAMETERS, LLAMA_8B_PARAMETERS, {"BF16": LLAMA_8B_PARAMETERS}, 291, ("m",))
    return ModelReading("/models/llama", architecture, weights)


def source(name: str, *, up: bool = True, age_seconds: float | None = 0.5) -> SourceState:
    return SourceState(name, up, age_seconds, 0.01, None if up else "refused", None if up else "no connection")


def observation(
    *,
    at: float = 1000.0,
    engine: EngineReading | None = ENGINE,
    gpus: Sequence[GpuReading] = (GPU,),
    with_model: ModelReading | None = None,
    **rank: Any,
) -> Observation:
    """One tick; keywords that are fields of RankReading change the engine's one rank."""
    if rank and engine is not None:
        engine = replace(engine, ranks=(replace(RANK, **rank),))
    return Observation(
        wall_seconds=1_700_000_000 + at,
        monotonic_seconds=at,
        gpus=tuple(gpus),
        engine=engine,
        model=with_model,
        sources=(
            source("nvml", up=bool(gpus)),
            source("engine", up=engine is not None),
            source("model", up=with_model is not None),
        ),
    )


def histogram(values: Sequence[float], bounds: Sequence[float] = (10, 100, 1000, float("inf"))) -> Histogram:
    cumulative = tuple(float(sum(value <= bound for value in values)) for bound in bounds)
    return Histogram(tuple(bounds), cumulative, float(sum(values)))
