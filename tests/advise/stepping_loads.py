"""Simulated engines to learn from: loads, and the readings that their pages would give."""

import random
from collections.abc import Callable, Iterator

from kvgauge.observe.records import RankReading
from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.reading import reading_of
from kvgauge.simulate.spec import EngineSpec, Request
from kvgauge.simulate.state import EngineState
from kvmodel.latency import StepCost

SPEC = EngineSpec(
    num_blocks=25_000,
    max_model_len=65_536,
    kv_bytes_per_token=131_072,
    weights_bytes=16_060_000_000,
    parameters=8_030_000_000,
    bandwidth_bytes_per_second=2.41e12,
    flops_per_second=515e12,
    attention_flop_per_pair=524_288.0,
)
"""An 8B model on an H100."""


def mixed(chance: random.Random) -> tuple[float, float, float]:
    """(seconds to the next request, prompt, output)."""
    return chance.expovariate(6), chance.lognormvariate(6.7, 0.8), chance.lognormvariate(5, 0.7)


def prefill_heavy(chance: random.Random) -> tuple[float, float, float]:
    return chance.expovariate(2.2), chance.uniform(4_000, 16_000), chance.uniform(1, 20)


def decode_heavy(chance: random.Random) -> tuple[float, float, float]:
    return chance.expovariate(3), chance.uniform(20, 100), chance.uniform(400, 1_500)


def mostly_idle(chance: random.Random) -> tuple[float, float, float]:
    return chance.expovariate(0.2), chance.uniform(100, 2_000), chance.uniform(50, 400)


def bursty(chance: random.Random) -> tuple[float, float, float]:
    """Sixty at once, three times a minute."""
    wait = 20.0 if chance.random() < 1 / 60 else 0.0
    return wait, chance.uniform(200, 3_000), chance.uniform(50, 400)


Load = Callable[[random.Random], tuple[float, float, float]]


def requests(load: Load, seconds: float, seed: int = 1, shared_blocks: int = 0) -> Iterator[Request]:
    """Prompts that are long enough begin with the same `shared_blocks` blocks of 512 tokens."""
    chance, at = random.Random(seed), 0.0
    while True:
        wait, prompt, output = load(chance)
        at += wait
        if at > seconds:
            return
        tokens = min(max(int(prompt), 1), 30_000)
        prefix = tuple(range(shared_blocks)) if tokens > 512 * shared_blocks else ()
        yield Request(at, tokens, min(max(int(output), 1), 4_000), prefix_blocks=prefix)


def readings(
    load: Load,
    minutes: float,
    every: Callable[[random.Random], float] = lambda _: 1.0,
    spec: EngineSpec = SPEC,
    seed: int = 1,
) -> Iterator[tuple[float, RankReading]]:
    """(seconds, reading), at the times that `every` spaces."""
    engine, chance, at = PagedEngine(spec), random.Random(seed + 1), 0.0
    for request in requests(load, 60 * minutes, seed, shared_blocks=2 if spec.prefix_caching else 0):
        engine.submit(request)
    while at < 60 * minutes:
        at += every(chance)
        engine.advance(at)
        yield at, reading(engine.state(), spec)


def reading(state: EngineState, spec: EngineSpec = SPEC) -> RankReading:
    """What a page would tell of the engine."""
    return reading_of(state, spec, "m").ranks[0]


def wrong(cost: StepCost, memory: float, compute: float) -> StepCost:
    """A roofline that is off: the engine takes `memory` and `compute` times what it says."""
    return cost.scaled(1 / memory, 1 / compute)
