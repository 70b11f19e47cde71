"""Where an engine ceases to keep up, as predicted and as simulated: `python -m bench.advice.knee [--case NAME ...]`.

One simulated engine, Poisson arrivals at a constant rate, requests of one mix. The knee is the largest rate at which
the queue does not grow: found by bisection, each rate judged by several drawn loads together. The prediction has the
mix's lengths and the engine's step cost, and has seen nothing of the engine.
"""

import argparse
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from bench.table import Figure, report
from kvgauge.advise.attaining import Attainment
from kvgauge.advise.demand import Demand, thinned
from kvgauge.advise.lengths import Lengths, whole_lengths
from kvgauge.advise.residing import Footprint, resident
from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.spec import EngineSpec, Request

REQUESTS = 4_000
SEEDS = (1, 2, 3)
GROWTH_RATIO = 0.01
"""Of the requests that arrive, so many may join the queue for good: less cannot be told from chance."""
STEPS = 7
RANGE = (0.7, 1.3)
"""Times the prediction: where the knee is looked for."""
MOST_ERROR_PERCENT = 10.0
_LOOK_EVERY = 20

Mix = Callable[[random.Random], tuple[int, int]]
"""Draws (prompt, output) tokens of one request."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    spec: EngineSpec
    mix: Mix


@dataclass(frozen=True, slots=True)
class Knee:
    """Rates in requests per second."""

    case: Case
    predicted: float
    simulated: float
    preempted_per_request: float
    """A little above the knee: how much of it is memory."""

    @property
    def error_percent(self) -> float:
        """Of the prediction; above 0 it promises too much."""
        return 100 * (self.predicted / self.simulated - 1)


ONE_H100 = EngineSpec(
    num_blocks=3_001,
    max_model_len=40_960,
    kv_bytes_per_token=262_144,
    weights_bytes=65_500_000_000,
    parameters=32_800_000_000,
    bandwidth_bytes_per_second=0.72 * 3.35e12,
    flops_per_second=0.52 * 989e12,
)
"""Qwen3-32B on one H100: 48 thousand tokens of cache."""
TWO_H100 = replace(
    ONE_H100,
    num_blocks=21_876,
    kv_bytes_per_token=131_072,
    weights_bytes=32_750_000_000,
    parameters=16_400_000_000,
)
"""The same on two: 350 thousand."""
SMALL = EngineSpec(
    num_blocks=25_001,
    max_model_len=65_536,
    kv_bytes_per_token=131_072,
    weights_bytes=16_060_000_000,
    parameters=8_030_000_000,
    bandwidth_bytes_per_second=2.41e12,
    flops_per_second=515e12,
    attention_flop_per_pair=524_288.0,
)
"""Llama-3.1-8B on one H100, attention of prefills counted."""
A100 = replace(SMALL, num_blocks=8_001, bandwidth_bytes_per_second=1.2e12, flops_per_second=160e12)
"""The same on an A100 of 40 GB."""


def lognormal(median_tokens: float, sigma: float, most_tokens: int) -> Callable[[random.Random], int]:
    """Draws one length."""
    return lambda draw: max(1, min(round(draw.lognormvariate(math.log(median_tokens), sigma)), most_tokens))


def uniform(least_tokens: int, most_tokens: int) -> Callable[[random.Random], int]:
    """Draws one length."""
    return lambda draw: draw.randint(least_tokens, most_tokens)


def mix(prompt: Callable[[random.Random], int], output: Callable[[random.Random], int]) -> Mix:
    """Prompt and output that do not depend on each other."""
    return lambda draw: (prompt(draw), output(draw))


LLM_D = mix(uniform(3500, 4500), uniform(900, 1100))
CHAT = mix(lognormal(150, 0.8, 4000), lognormal(200, 0.7, 2000))
CONVERSATION = mix(lognormal(1000, 1.0, 14_000), lognormal(180, 0.6, 1000))
CODE = mix(lognormal(1800, 0.8, 7400), lognormal(18, 0.9, 400))
REASONING = mix(uniform(500, 500), lognormal(1500, 1.0, 16_000))
DECODE = mix(uniform(20, 100), uniform(400, 1500))
LONG = mix(uniform(8000, 40_000), uniform(200, 800))
PREFILL = mix(uniform(4000, 16_000), uniform(1, 20))

CASES: Sequence[Case] = (
    Case("llm-d on two H100 (memory)", TWO_H100, LLM_D),
    Case("llm-d on one H100 (memory, 11 at a time)", ONE_H100, LLM_D),
    Case("conversation on one H100 (memory)", ONE_H100, CONVERSATION),
    Case("short chat on one H100 (memory)", ONE_H100, CHAT),
    Case("reasoning on two H100 (memory, heavy tail)", TWO_H100, REASONING),
    Case("decode on one H100 (memory, all growth)", ONE_H100, DECODE),
    Case("decode, 8B (max_num_seqs)", SMALL, DECODE),
    Case("code on two H100 (prefill)", TWO_H100, CODE),
    Case("long prompts, 8B with attention (prefill)", SMALL, PREFILL),
    Case("long context, 8B with attention (memory)", SMALL, LONG),
    Case("conversation, 8B with attention (both)", SMALL, CONVERSATION),
    Case("conversation, 8B on A100 with attention (both)", A100, CONVERSATION),
)


HELD_OUT: Sequence[Case] = (
    Case("summaries on two H100", TWO_H100, mix(lognormal(6000, 0.6, 30_000), lognormal(300, 0.5, 2000))),
    Case(
        "agents, 8B on A100, steps of 2048",
        replace(A100, max_num_batched_tokens=2048),
        mix(lognormal(3000, 0.7, 20_000), lognormal(120, 0.8, 2000)),
    ),
    Case("short chat, 8B, 64 at a time", replace(SMALL, max_num_seqs=64), CHAT),
    Case("reasoning, 8B on A100", A100, mix(lognormal(300, 0.5, 3000), lognormal(900, 0.8, 8000))),
    Case("two kinds on one H100", ONE_H100, lambda draw: (draw.choice((200, 6000)), draw.choice((50, 800)))),
    Case("blocks of 128 on two H100", replace(TWO_H100, block_tokens=128, num_blocks=2735), CONVERSATION),
)
"""Made up after the prediction was settled on the others."""


def demand_of(spec: EngineSpec, requests: Sequence[tuple[int, int]]) -> Demand:
    """What a sidecar that knows every length would tell."""
    prompts, outputs = _lengths([prompt for prompt, _ in requests]), _lengths([output for _, output in requests])
    return Demand(
        arrived_total=None,
        prompts=prompts,
        outputs=outputs,
        computed_ratio=1.0,
        resident=resident(prompts, outputs, Footprint(spec.block_tokens)),
        pool_slots=float(spec.usable_blocks * spec.block_tokens),
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        cost=spec.step_cost,
        slo_ttft_seconds=None,
        slo_tpot_seconds=None,
        finished=float(len(requests)),
    )


def _lengths(tokens: Sequence[int]) -> Lengths:
    found = whole_lengths(tokens)
    assert found is not None
    return thinned(found)


def drawn(case: Case, seed: int, count: int = REQUESTS) -> tuple[list[tuple[int, int]], list[float]]:
    """(prompt, output) of each request, and the times between arrivals at one request a second. The same for every
    rate, so that a higher one is the same load in less time."""
    draw = random.Random(f"{case.name} {seed}")
    lengths = [case.mix(draw) for _ in range(count)]
    return lengths, [draw.expovariate(1.0) for _ in range(count)]


def growth_ratio(case: Case, requests_per_second: float, seed: int, count: int = REQUESTS) -> tuple[float, float]:
    """(share of the arrivals that the queue grows by, preemptions for each finished request). The queue is compared
    between the third and the last sixth of the arrivals, each as a mean over it."""
    lengths, gaps = drawn(case, seed, count)
    engine = PagedEngine(case.spec)
    now = 0.0
    looks: list[int] = []
    for number, ((prompt, output), gap) in enumerate(zip(lengths, gaps, strict=True)):
        now += gap / requests_per_second
        engine.advance(now)
        engine.submit(Request(now, prompt, output))
        if number >= count // 3 and number % _LOOK_EVERY == 0:
            looks.append(engine.state().waiting)
    part = len(looks) // 4
    state = engine.state()
    grown = fmean(looks[-part:]) - fmean(looks[:part])
    return grown / (count / 2), state.preemptions_total / max(state.finished_total, 1)


def knee(case: Case, *, seeds: Sequence[int] = SEEDS, count: int = REQUESTS, steps: int = STEPS) -> Knee:
    """The prediction and the largest rate that is sustained, to (RANGE's width) / 2^steps of the prediction."""
    predicted = Attainment(demand_of(case.spec, drawn(case, seeds[0], count)[0])).saturation_per_second()
    low, high = (predicted * factor for factor in RANGE)
    preempted = 0.0
    for _ in range(steps):
        middle = (low + high) / 2
        found = [growth_ratio(case, middle, seed, count) for seed in seeds]
        if fmean(grown for grown, _ in found) <= GROWTH_RATIO:
            low = middle
        else:
            high, preempted = middle, fmean(each for _, each in found)
    return Knee(case, predicted, (low + high) / 2, preempted)


def figures(knees: Sequence[Knee]) -> list[Figure]:
    """Errors without their sign."""
    return [Figure(one.case.name, "%", MOST_ERROR_PERCENT, abs(one.error_percent)) for one in knees]


def notes(knees: Sequence[Knee]) -> list[str]:
    """The rates, a line for each case."""
    lines = ["", "requests/s predicted, simulated, error; preemptions a request just above the knee"]
    lines += [
        f"{one.case.name}: {one.predicted:.3g}, {one.simulated:.3g}, {one.error_percent:+.1f} %; "
        f"{one.preempted_per_request:.2f}"
        for one in knees
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.advice.knee")
    parser.add_argument("--case", action="append", help="only cases that have this in their name (may be repeated)")
    parser.add_argument("--seed", type=int, default=1, help="first of the three seeds (default 1)")
    options = parser.parse_args()
    wanted: list[str] | None = options.case
    cases = [case for case in (*CASES, *HELD_OUT) if wanted is None or any(part in case.name for part in wanted)]
    if not cases:
        parser.error(f"--case: no case has any of {wanted} in its name")
    seeds = range(options.seed, options.seed + len(SEEDS))
    knees = [knee(case, seeds=seeds) for case in cases]
    report("saturation rate", figures(knees), notes(knees))


if __name__ == "__main__":
    main()
