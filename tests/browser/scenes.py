"""Ticks that no recorded page shows: several GPUs and ranks, nothing known, a load over the limit."""

from dataclasses import replace

from kvgauge.advise import Advice, History, LengthSummary, advise
from kvgauge.assess import Assessment, ComponentPrediction, EngineFlags, GpuAssessment, PoolAssessment, Waste, assess
from kvgauge.observe.records import GpuReading, Observation, RankReading, SourceState
from kvgauge.publish.families import Snapshot
from tests.support.facts import ENGINE, GIB, RANK, observation, source

START_SECONDS = 1_700_000_000.0
MODEL = "example/Model-70B"
_SAFE = 96


def several_gpus_and_ranks(
    gpus: int = 4,
    ranks: int = 2,
    wall_seconds: float = START_SECONDS,
    load_ratio: float | None = 1.25,
    active_tokens: int | None = 96_000,
) -> Snapshot:
    """A data-parallel pod, by default over its limit, with nearly all facts known."""
    demand = round(_SAFE * load_ratio) if load_ratio is not None else _SAFE
    running, waiting = min(demand, _SAFE), max(demand - _SAFE, 0)
    readings = tuple(_rank(str(rank), running // ranks, 0 if rank else waiting) for rank in range(ranks))
    seen = Observation(
        wall_seconds=wall_seconds,
        monotonic_seconds=0.0,
        gpus=tuple(_gpu(gpu) for gpu in range(gpus)),
        engine=replace(ENGINE, model=MODEL, model_path=None, ranks=readings),
        model=None,
        sources=(source("nvml"), source("engine"), source("model")),
    )
    assessment = Assessment(
        observation=seen,
        tp=gpus // ranks,
        pp=1,
        dp=ranks,
        pools=tuple(_pool(str(rank), active_tokens) for rank in range(ranks)),
        gpus=tuple(_judged(gpu) for gpu in range(gpus)),
    )
    return Snapshot(assessment, _advice(wall_seconds, load_ratio, running, waiting))


def nothing_finished_yet() -> Snapshot:
    """Ten requests run, none has finished, and one of the longest is all that surely fits."""
    seen = observation()
    history = History()
    history.remember(seen)
    assessment = assess(seen, EngineFlags())
    return Snapshot(assessment, advise(assessment, history))


def nothing_known() -> Snapshot:
    """Every source down, so that every fact has to be shown as unknown."""
    sources = tuple(
        SourceState(name, False, None, None, "refused", f"{name} cannot be reached", {"refused": 3})
        for name in ("nvml", "engine", "model")
    )
    seen = Observation(START_SECONDS, 0.0, (), None, None, sources)
    advice = Advice(
        wall_seconds=START_SECONDS,
        valid=False,
        safe_concurrency=None,
        limits={},
        binding_limit=None,
        load_ratio=None,
        kv_usage_ratio=None,
        kv_exhaustion_seconds=None,
        running=None,
        waiting=None,
        age_seconds=None,
        explanation=("The engine's figures are missing or too old to advise from.",),
        terms={},
        prompt_tokens=None,
        output_tokens=None,
    )
    return Snapshot(Assessment(seen, None, 1, 1, (), (), {"model": "model cannot be reached"}), advice)


def hostile_names(text: str) -> Snapshot:
    """A tick whose every free text is `text`."""
    scene = several_gpus_and_ranks(gpus=1, ranks=1)
    assessment, seen = scene.assessment, scene.assessment.observation
    engine = seen.engine
    if engine is None:
        raise AssertionError("the scene lost its engine")
    seen = replace(
        seen,
        gpus=tuple(replace(gpu, name=text, driver=text, mig=text) for gpu in seen.gpus),
        engine=replace(engine, model=text, version=text, kv_dtype=None, missing={"kv_dtype": text}),
        sources=tuple(replace(state, up=False, reason=text, message=text) for state in seen.sources),
    )
    assessment = replace(assessment, observation=seen, missing={text: text})
    return Snapshot(assessment, replace(scene.advice, explanation=(text,), limits={text: 3}, terms={text: text}))


def _rank(rank: str, running: int, waiting: int) -> RankReading:
    return replace(
        RANK,
        rank=rank,
        model=MODEL,
        capacity_tokens=120_000,
        active_tokens=96_000,
        reclaimable_tokens=14_000,
        free_tokens=10_000,
        live_tokens=95_200,
        running=running,
        waiting=waiting,
        swapped=0,
        preemptions_total=7.0,
    )


def _pool(rank: str, active_tokens: int | None) -> PoolAssessment:
    return PoolAssessment(
        rank=rank,
        model=MODEL,
        kv_bytes_per_token=163_840,
        state_bytes_per_request=0,
        block_tokens=16,
        capacity_tokens=120_000,
        predicted_capacity_tokens=123_600,
        active_tokens=active_tokens,
        reclaimable_tokens=14_000,
        free_tokens=None if active_tokens is None else 106_000 - active_tokens,
        live_tokens=None if active_tokens is None else active_tokens - 800,
        live_tokens_method="measured",
        usage_ratio=None if active_tokens is None else active_tokens / 120_000,
        waste=(Waste("block_tail", "measured", 800 * 163_840), Waste("stranded", "estimated", 3 * GIB // 4)),
    )


def _gpu(gpu: int) -> GpuReading:
    return GpuReading(
        gpu=gpu,
        uuid=_uuid(gpu),
        name="NVIDIA H200",
        driver="575.57.08",
        mig="",
        total_bytes=140 * GIB,
        used_bytes=(126 + gpu) * GIB,
        free_bytes=(14 - gpu) * GIB,
        reserved_bytes=GIB // 2,
        engine_bytes=None,
        missing={"engine_bytes": "the driver does not tell processes in this container"},
    )


def _uuid(gpu: int) -> str:
    return f"GPU-{gpu:08d}-1111-2222-3333-444444444444"


def _judged(gpu: int) -> GpuAssessment:
    sizes = {"weights": 66, "kv_pool": 52, "activations": 5, "graphs": 2, "context": 1, "page_tables": 1}
    parts = tuple(
        ComponentPrediction(name, size * GIB, size * GIB, size * GIB, 50 * GIB if name == "kv_pool" else None, "a rule")
        for name, size in sizes.items()
    )
    total = ComponentPrediction("total", 125 * GIB, 127 * GIB, 128 * GIB, (126 + gpu) * GIB, "the driver")
    return GpuAssessment(gpu, _uuid(gpu), parts, total)


def _advice(wall_seconds: float, load_ratio: float | None, running: int, waiting: int) -> Advice:
    return Advice(
        wall_seconds=wall_seconds,
        valid=True,
        safe_concurrency=_SAFE,
        limits={"kv": _SAFE, "kv_worst_case": 6, "max_num_seqs": 512, "token_rate": 140},
        binding_limit="kv",
        load_ratio=load_ratio,
        kv_usage_ratio=0.9,
        kv_exhaustion_seconds=42.0,
        running=running,
        waiting=waiting,
        age_seconds=0.1,
        explanation=(f"{_SAFE} requests may run together: more of 2368 slots each would not fit the KV pool.",),
        terms={"capacity_tokens": 240_000, "trend_tokens_per_second": 1200.5, "lengths_from": "window"},
        prompt_tokens=LengthSummary(1900.0, 1700.0, 4200.0, None),
        output_tokens=LengthSummary(460.0, 400.0, 1200.0, 1900.0),
    )
