"""The one example that docs/concepts.md and docs/computing.md reckon with, put through the program itself.

Model, card, flags and what the engine measured of its own memory are those of a published start-up log (Llama-3.1-8B on
an H100, `tests.model.h100_startups`). The load on it and the driver's figure are chosen, and the pages say so.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from prometheus_client.parser import text_string_to_metric_families

from kvgauge.advise import History, advise
from kvgauge.assess import Assessment, EngineFlags, assess
from kvgauge.observe.merging import refined
from kvgauge.observe.records import (
    AgentReading,
    AllocatorReading,
    BlockGroupReading,
    EngineReading,
    Histogram,
    Observation,
    ProcessReading,
    RankReading,
    SchedulerReading,
    SourceState,
)
from kvgauge.publish.families import Snapshot
from kvgauge.publish.metrics import render
from tests.model.h100_startups import VLLM_019
from tests.support.facts import GIB, GPU, model

STARTUP = next(one for one in VLLM_019 if one.model == "Llama-3.1-8B-Instruct" and one.tp == 1)
BLOCK_TOKENS = 16
TOKEN_BYTES = 131_072
POOL_BYTES = int(STARTUP.pool * GIB)
BLOCKS = POOL_BYTES // (BLOCK_TOKENS * TOKEN_BYTES)
RUNNING, WAITING = 60, 30
PROMPT, OUTPUT, FINISHED = 4000, 2000, 200
USED_BLOCKS, CACHED_BLOCKS, TAIL_TOKENS = 18_000, 6_000, 430
BLOCKS_PER_SECOND = 140
TICKS = 21
DRIVER_BYTES = int(76.75 * GIB)

_INSTANCE = "pod-1"


def _lengths(tokens: int, bounds: tuple[float, ...]) -> Histogram:
    return Histogram(bounds, tuple(float(FINISHED * (tokens <= bound)) for bound in bounds), float(FINISHED * tokens))


def _books(used: int, steps: int) -> SchedulerReading:
    tail = TAIL_TOKENS
    live = used * BLOCK_TOKENS - tail
    block_bytes = BLOCK_TOKENS * TOKEN_BYTES
    return SchedulerReading(
        steps=steps,
        running=RUNNING,
        waiting=WAITING,
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
        max_model_len=8192,
        num_blocks=BLOCKS,
        null_blocks=1,
        used_blocks=used,
        cached_blocks=CACHED_BLOCKS,
        free_blocks=BLOCKS - 1 - used - CACHED_BLOCKS,
        live_tokens=live,
        tail_tokens=tail,
        kv_pool_bytes=POOL_BYTES,
        bytes_per_block=block_bytes,
        groups=(BlockGroupReading("full", BLOCK_TOKENS, 32, block_bytes, used, live, tail),),
    )


def _observation(second: int, *, with_agent: bool) -> Observation:
    used = USED_BLOCKS - BLOCKS_PER_SECOND * (TICKS - 1 - second)
    rank = RankReading(
        rank="0",
        model="llama",
        capacity_tokens=BLOCKS * BLOCK_TOKENS,
        block_tokens=BLOCK_TOKENS,
        num_blocks=BLOCKS,
        used_blocks=used,
        active_tokens=used * BLOCK_TOKENS,
        free_tokens=(BLOCKS - used) * BLOCK_TOKENS,
        running=RUNNING,
        waiting=WAITING,
        preemptions_total=3.0,
        prompt_lengths=_lengths(PROMPT, (2000.0, 5000.0, float("inf"))),
        output_lengths=_lengths(OUTPUT, (1000.0, 2000.0, float("inf"))),
        generation_tokens_total=float(FINISHED * OUTPUT + 60_000 + BLOCKS_PER_SECOND * BLOCK_TOKENS * second),
        finished_total=float(FINISHED),
    )
    memory = {
        "weights": int(STARTUP.weights * GIB),
        "activations": int(STARTUP.activations * GIB),
        "graphs": int(STARTUP.graphs * GIB),
        "kv_pool": POOL_BYTES,
    }
    engine = EngineReading(
        engine="vllm",
        version="0.19.0",
        model="llama",
        model_path="/models/llama",
        max_model_len=8192,
        kv_dtype="auto",
        gpu_memory_utilization=0.95,
        prefix_caching=True,
        asleep=False,
        started_seconds=1.0,
        ranks=(rank,),
    )
    allocator = AllocatorReading(
        0,
        GPU.uuid,
        allocated_bytes=int(73.4 * GIB),
        reserved_bytes=int(75.2 * GIB),
        requested_bytes=int(73.2 * GIB),
        inactive_split_bytes=GIB // 2,
        free_bytes=int(1.8 * GIB),
        largest_free_bytes=int(1.35 * GIB),
        snapshot_age_seconds=10.0,
    )
    process = ProcessReading(
        1, _INSTANCE, "scheduler", "vllm", 0.0, tp=1, pp=1, allocators=(allocator,), memory_bytes=memory,
        scheduler=_books(used, second),
    )  # fmt: skip
    agent = AgentReading((process,), _INSTANCE) if with_agent else None
    gpu = replace(GPU, used_bytes=DRIVER_BYTES, free_bytes=(GPU.total_bytes or 0) - DRIVER_BYTES, engine_bytes=76 * GIB)
    return Observation(
        wall_seconds=1_700_000_000.0 + second,
        monotonic_seconds=1000.0 + second,
        gpus=(replace(gpu, reserved_bytes=int(0.6 * GIB)),),
        engine=engine if agent is None else refined(engine, agent),
        model=model(),
        sources=tuple(
            SourceState(name, True, 0.5, 0.01, None, None, {}) for name in ("nvml", "engine", "agent", "model")
        ),
        agent=agent,
    )


@dataclass(frozen=True, slots=True)
class Example:
    """What the program makes of it."""

    snapshot: Snapshot
    samples: Mapping[str, float]
    """By the sample's name with its labels as it is written in the pages: without model, rank, gpu and uuid."""

    @property
    def assessment(self) -> Assessment:
        return self.snapshot.assessment


_PLACE = frozenset({"model", "rank", "gpu", "uuid"})


@functools.cache
def example() -> Example:
    """The last of some seconds of ticks. What only stands on the page where there is no agent is among the samples
    too."""
    without, snapshot = _shown(with_agent=False), _shown(with_agent=True)
    terms = {name: float(value) for name, value in snapshot.advice.terms.items() if isinstance(value, int | float)}
    return Example(snapshot, _samples(without) | _samples(snapshot) | terms)


def _shown(*, with_agent: bool) -> Snapshot:
    history, flags = History(), EngineFlags(tp=1, max_num_seqs=1024, max_num_batched_tokens=8192)
    snapshot = None
    for second in range(TICKS):
        observation = _observation(second, with_agent=with_agent)
        history.remember(observation)
        assessment = assess(observation, flags)
        advice = advise(assessment, history, max_num_seqs=assessment.max_num_seqs, slo_tpot_seconds=0.04)
        snapshot = Snapshot(assessment, advice)
    assert snapshot is not None
    return snapshot


def _samples(snapshot: Snapshot) -> dict[str, float]:
    return {
        name_of(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(render(snapshot)[0].decode())
        for sample in family.samples
    }


def name_of(name: str, labels: Mapping[str, str]) -> str:
    """A sample's name and what of its labels is not its place."""
    told = ", ".join(f'{key}="{value}"' for key, value in sorted(labels.items()) if key not in _PLACE)
    return f"{name}{{{told}}}" if told else name
