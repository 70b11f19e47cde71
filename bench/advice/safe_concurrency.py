"""What the safe concurrency is worth: `python -m bench.advice.safe_concurrency [--mix NAME ...] [--seed N]`.

One simulated engine, a closed loop that keeps n requests in flight, 3,000 requests of a mix. First the engine is
watched at a modest n, the way a sidecar would: its length histograms and, once a second, its active tokens and running
requests. The advice stands on these alone. Then n is swept around the advice: throughput against the best of all n
tried, however much that one preempts, and the share of requests preempted once or more.
"""

import argparse
import csv
import gzip
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.table import Figure, report
from kvgauge.advise.residing import Footprint, moments_from_histograms
from kvgauge.advise.safety import SafeRequests, safe_requests
from kvgauge.observe.records import Histogram
from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.spec import EngineSpec, FinishedRequest, Request
from kvgauge.simulate.tally import Distribution

TRACES = Path(__file__).parents[3] / "shared/traces"
REQUESTS = 3_000
SETTLED = 500
"""Requests that finish before throughput is timed."""
GRID = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.45, 1.6, 2.0)
MOST_SHORTFALL_PERCENT = 5.0
MOST_PREEMPTED_PER_1000 = 20.0

Lengths = Sequence[tuple[int, int]]
"""(prompt, output) tokens of each request, in order of arrival."""


@dataclass(frozen=True, slots=True)
class Mix:
    name: str
    pool_tokens: int
    max_model_len: int
    lengths: Lengths


@dataclass(frozen=True, slots=True)
class Outcome:
    """One closed loop."""

    in_flight: int
    requests_per_second: float
    preempted_per_1000: float
    preemptions_per_1000: float
    """Events: a request can be preempted several times."""


@dataclass(frozen=True, slots=True)
class Result:
    """The advice for one mix, and what it is worth."""

    mix: Mix
    advice: SafeRequests
    shortfall_percent: float
    """Of throughput, against the best in-flight number tried."""
    preempted_per_1000: float
    preemptions_per_1000: float
    best: Outcome
    meets: tuple[int, int] | None
    """The smallest and largest in-flight numbers tried that meet both bounds; None: none does."""


def engine_spec(pool_tokens: int, max_model_len: int) -> EngineSpec:
    """Qwen3-32B in bf16 on one H100 (48k tokens of cache) or on two (350k), by its pool."""
    cards = 2 if pool_tokens > 100_000 else 1
    return EngineSpec(
        num_blocks=pool_tokens // 16,
        max_model_len=max_model_len,
        kv_bytes_per_token=262_144 // cards,
        weights_bytes=65_500_000_000 // cards,
        parameters=32_800_000_000 // cards,
        bandwidth_bytes_per_second=0.72 * 3.35e12,
        flops_per_second=0.52 * 989e12,
        max_num_seqs=2048,
    )


def trace(name: str, start: int = 0) -> Lengths:
    with gzip.open(TRACES / f"{name}.csv.gz", "rt") as file:
        rows = [(int(row["prompt_tokens"]), int(row["output_tokens"])) for row in csv.DictReader(file)]
    return [(max(prompt, 1), max(output, 1)) for prompt, output in rows[start : start + REQUESTS]]


def _drawn(seed: int, prompt: Callable[[random.Random], float], output: Callable[[random.Random], float]) -> Lengths:
    draw = random.Random(seed)
    return [(max(round(prompt(draw)), 1), max(round(output(draw)), 1)) for _ in range(REQUESTS)]


def _bell(draw: random.Random, mean: float, deviation: float, reach: float) -> float:
    while True:
        value = draw.gauss(mean, deviation)
        if abs(value - mean) <= reach:
            return value


def mixes(seed: int = 1) -> Iterator[Mix]:
    """Public traces from their beginning, and drawn lengths."""
    small, large = 48_000, 350_000
    yield Mix("azure conv", small, 40_960, trace("azure_conv_2023"))
    yield Mix("azure code", small, 40_960, trace("azure_code_2023"))
    yield Mix("mooncake synthetic", large, 262_144, trace("mooncake_synth_fast25"))
    yield Mix("servegen m-large", large, 40_960, trace("servegen_mlarge_day1_6h"))
    llm_d = _drawn(seed, lambda draw: _bell(draw, 4000, 300, 500), lambda draw: _bell(draw, 1000, 80, 100))
    yield Mix("llm-d 4000/1000", large, 40_960, llm_d)
    reasoning = _drawn(seed, lambda _: 500, lambda draw: min(draw.lognormvariate(math.log(1500), 1.2), 32_000))
    yield Mix("reasoning, heavy tail", large, 40_960, reasoning)
    yield Mix("equal 1500/600", large, 40_960, [(1500, 600)] * REQUESTS)
    chat = _drawn(
        seed,
        lambda draw: min(draw.lognormvariate(math.log(150), 0.8), 4000),
        lambda draw: min(draw.lognormvariate(math.log(200), 0.7), 2000),
    )
    yield Mix("short chat", small, 40_960, chat)


class _Loop:
    """Keeps `in_flight` requests in the engine; the mix begins again when it is through, so that none drain."""

    def __init__(self, mix: Mix, in_flight: int) -> None:
        self._lengths = mix.lengths
        self._sent = 0
        self.finished_seconds: list[float] = []
        self.preempted = 0
        self.engine = PagedEngine(engine_spec(mix.pool_tokens, mix.max_model_len), self._on_finish)
        for _ in range(in_flight):
            self._send(0.0)

    def _send(self, at_seconds: float) -> None:
        prompt, output = self._lengths[self._sent % len(self._lengths)]
        self._sent += 1
        self.engine.submit(Request(at_seconds, prompt, output))

    def _on_finish(self, finished: FinishedRequest) -> None:
        if len(self.finished_seconds) < REQUESTS:
            self.preempted += finished.preemptions > 0
            self.finished_seconds.append(finished.finished_seconds)
        self._send(finished.finished_seconds)

    @property
    def done(self) -> bool:
        return len(self.finished_seconds) >= REQUESTS


def closed_loop(mix: Mix, in_flight: int) -> Outcome:
    loop = _Loop(mix, in_flight)
    clock = 0.0
    while not loop.done:
        clock += 5.0
        loop.engine.advance(clock)
    times = loop.finished_seconds
    return Outcome(
        in_flight,
        (REQUESTS - SETTLED) / (times[REQUESTS - 1] - times[SETTLED - 1]),
        1e3 * loop.preempted / REQUESTS,
        1e3 * loop.engine.state().preemptions_total / loop.engine.state().finished_total,
    )


def _histogram(lengths: Distribution) -> Histogram:
    return Histogram(lengths.bounds, tuple(map(float, lengths.cumulative)), lengths.total)


def advice_from_watching(mix: Mix, in_flight: int) -> SafeRequests:
    """The advice of one who sees the engine's page each second while `in_flight` requests run."""
    loop = _Loop(mix, in_flight)
    spec = loop.engine.spec
    clock = active = running = 0.0
    while not loop.done:
        clock += 1.0
        loop.engine.advance(clock)
        if len(loop.finished_seconds) >= SETTLED:
            state = loop.engine.state()
            active += state.used_blocks * spec.block_tokens
            running += state.running
    state = loop.engine.state()
    footprint = Footprint(spec.block_tokens)
    resident = moments_from_histograms(
        _histogram(state.prompt_tokens),
        _histogram(state.output_tokens),
        footprint,
        longest_tokens=spec.max_model_len,
        observed_mean_slots=active / running,
    )
    assert resident is not None
    longest = footprint.most_slots(spec.max_model_len)
    return safe_requests(resident, spec.usable_blocks * spec.block_tokens, longest)


def result(mix: Mix) -> Result:
    """Watches at half of what the mean length would allow, takes the advice, and tries numbers around it."""
    mean = sum(prompt + output for prompt, output in mix.lengths) / len(mix.lengths)
    advice = advice_from_watching(mix, max(round(0.5 * mix.pool_tokens / mean), 1))
    tried = sorted({max(round(advice.requests * factor), 1) for factor in GRID})
    outcomes = [closed_loop(mix, in_flight) for in_flight in tried]
    best = max(outcomes, key=lambda outcome: outcome.requests_per_second)

    def shortfall(outcome: Outcome) -> float:
        return 100 * (1 - outcome.requests_per_second / best.requests_per_second)

    own = next(outcome for outcome in outcomes if outcome.in_flight == advice.requests)
    meets = [
        outcome.in_flight
        for outcome in outcomes
        if shortfall(outcome) <= MOST_SHORTFALL_PERCENT and outcome.preempted_per_1000 <= MOST_PREEMPTED_PER_1000
    ]
    return Result(
        mix,
        advice,
        shortfall(own),
        own.preempted_per_1000,
        own.preemptions_per_1000,
        best,
        (meets[0], meets[-1]) if meets else None,
    )


def figures(results: Sequence[Result]) -> list[Figure]:
    found = []
    for one in results:
        name = one.mix.name
        found += [
            Figure(f"{name}: throughput short of the best", "%", MOST_SHORTFALL_PERCENT, one.shortfall_percent),
            Figure(f"{name}: preempted per 1000", "", MOST_PREEMPTED_PER_1000, one.preempted_per_1000),
        ]
    return found


def notes(results: Sequence[Result]) -> list[str]:
    """What the figures stand on, a line for each mix."""
    lines = ["", "advised n (by preemptions, by room, together); n tried that meet both; preemptions; best n"]
    for one in results:
        advice = one.advice
        meets = f"{one.meets[0]}-{one.meets[1]} meet both" if one.meets else "no n tried meets both"
        lines.append(
            f"{one.mix.name}: {advice.requests} ({advice.by_preemptions}, {advice.by_room}, {advice.by_together}); "
            f"{meets}; {1e3 * advice.preempted_ratio:.1f} preempted per 1000 expected, "
            f"{one.preemptions_per_1000:.1f} events; best {one.best.in_flight} "
            f"with {one.best.preempted_per_1000:.0f} preempted per 1000"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.advice.safe_concurrency")
    parser.add_argument("--mix", action="append", help="only this mix (may be given several times)")
    parser.add_argument("--seed", type=int, default=1, help="of the drawn lengths (default 1)")
    options = parser.parse_args()
    wanted: list[str] | None = options.mix
    results = [result(mix) for mix in mixes(options.seed) if wanted is None or mix.name in wanted]
    report("safe concurrency", figures(results), notes(results))


if __name__ == "__main__":
    main()
