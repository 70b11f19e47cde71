"""A sidecar's ticks beside a simulated engine; `python -m tests.advise.watching` prints what they cost and come to."""

import math
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace

from kvgauge.advise import Advice, History, advise
from kvgauge.assess import Assessment, EngineFlags, Memo, assess
from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.spec import EngineSpec, Request
from tests.advise.stepping_loads import SPEC, Load, mixed, reading, requests
from tests.support.facts import ENGINE, observation

SMALL = replace(SPEC, num_blocks=3_001, max_model_len=32_768)
"""The same with 48,000 slots."""


def chat(chance: random.Random) -> tuple[float, float, float]:
    """(seconds to the next request, prompt, output), at one request a second."""
    return chance.expovariate(1), chance.lognormvariate(6.5, 0.7), chance.lognormvariate(5.3, 0.6)


def at_rate(load: Load, factor: float) -> Load:
    """The same requests, so many times as often."""

    def faster(chance: random.Random) -> tuple[float, float, float]:
        wait, prompt, output = load(chance)
        return wait / factor, prompt, output

    return faster


class Watched:
    """One engine and its sidecar, without the reading in between."""

    def __init__(
        self, spec: EngineSpec = SMALL, slo_tpot_seconds: float | None = None, knows_cost: bool = True
    ) -> None:
        self.spec = spec
        self.engine = PagedEngine(spec)
        self.history = History()
        self.at = 0.0
        self._cost = spec.step_cost if knows_cost else None
        self._slo_tpot_seconds = slo_tpot_seconds
        self._memo = Memo()

    def assessment(self) -> Assessment:
        """What is seen now."""
        rank = reading(self.engine.state(), self.spec)
        seen = observation(at=self.at, engine=replace(ENGINE, ranks=(rank,), max_model_len=self.spec.max_model_len))
        # A fresh reading has no age.
        seen = replace(seen, sources=tuple(replace(state, age_seconds=0.0) for state in seen.sources))
        found = assess(seen, EngineFlags(max_num_seqs=self.spec.max_num_seqs), self._memo)
        return replace(found, step_cost=self._cost, max_num_batched_tokens=self.spec.max_num_batched_tokens)

    def tick(self, seconds: float = 1.0) -> Advice:
        """Lets the engine run, then looks."""
        self.at += seconds
        self.engine.advance(self.at)
        return self.advice(self.assessment())

    def advice(self, assessment: Assessment) -> Advice:
        self.history.remember(assessment.observation)
        return advise(
            assessment, self.history, max_num_seqs=self.spec.max_num_seqs, slo_tpot_seconds=self._slo_tpot_seconds
        )

    def offer(self, load: Load, seconds: float, seed: int = 1) -> None:
        """Requests from now on."""
        for request in requests(load, seconds, seed):
            self.engine.submit(replace(request, arrival_seconds=self.at + request.arrival_seconds))

    def ticks(self, load: Load, seconds: float, every: float = 1.0, seed: int = 1) -> Iterator[Advice]:
        """Advice while a load comes."""
        self.offer(load, seconds, seed)
        end = self.at + seconds
        while self.at < end - every / 2:
            yield self.tick(every)


class InFlight(Watched):
    """Keeps so many requests in the engine."""

    def __init__(self, load: Load, number: int, spec: EngineSpec = SMALL, seed: int = 1) -> None:
        super().__init__(spec)
        self._load = load
        self._chance = random.Random(seed)
        self.engine = PagedEngine(spec, lambda done: self._send(done.finished_seconds))
        for _ in range(number):
            self._send(0.0)

    def _send(self, at: float) -> None:
        _, prompt, output = self._load(self._chance)
        self.engine.submit(Request(at, min(max(int(prompt), 1), 16_000), min(max(int(output), 1), 4_000)))


def longer_chat(chance: random.Random) -> tuple[float, float, float]:
    """Outputs 1.6 times as long: most of them lie in the same bucket."""
    wait, prompt, output = chat(chance)
    return wait, prompt, 1.6 * output


def long_outputs(chance: random.Random) -> tuple[float, float, float]:
    return chance.expovariate(1), chance.uniform(50, 400), chance.uniform(800, 2_000)


def long_prompts(chance: random.Random) -> tuple[float, float, float]:
    return chance.expovariate(1), chance.uniform(2_000, 8_000), chance.uniform(5, 40)


def cost_of_ticks(every: float, minutes: float = 20) -> tuple[float, float, float]:
    """(mean, 99th percentile, worst) processor milliseconds of remembering and advising, after ten minutes."""
    watched, spent = Watched(), []
    watched.offer(at_rate(mixed, 0.5), 60 * (minutes + 10))
    while watched.at < 60 * (minutes + 10):
        watched.at += every
        watched.engine.advance(watched.at)
        seen = watched.assessment()
        began = time.thread_time()
        watched.advice(seen)
        if watched.at > 600:
            spent.append(1e3 * (time.thread_time() - began))
    spent.sort()
    return sum(spent) / len(spent), spent[int(0.99 * len(spent))], spent[-1]


def state_bytes(minutes: float = 15) -> int:
    """Memory that the history of a busy engine takes, at ten looks a second."""
    watched = Watched(replace(SPEC, max_model_len=131_072))
    watched.offer(mixed, 60 * minutes)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    watched.history = History()
    while watched.at < 60 * minutes:
        watched.at += 0.1
        watched.engine.advance(watched.at)
        watched.advice(watched.assessment())
    engine = watched.engine
    taken = tracemalloc.get_traced_memory()[0]
    watched.history = History()
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert engine is watched.engine
    assert before >= 0
    return taken - left


def noticed_after(before: Load, after: Load, minutes: float = 12) -> float:
    """Seconds from a change of the mix to the tick that knows of it; infinite if it takes five minutes."""
    watched = Watched()
    for _ in watched.ticks(before, 60 * minutes):
        pass
    changed = watched.at
    for _ in watched.ticks(after, 300, seed=2):
        change = watched.history.change
        if change is not None and change.at_seconds >= changed:
            return watched.at - changed
    return math.inf


def false_changes(load: Load, hours: float = 4) -> int:
    """Changes that were seen where there are none."""
    watched, found = Watched(), set()
    for _ in watched.ticks(load, 3600 * hours, every=5.0):
        if watched.history.change is not None:
            found.add(watched.history.change.at_seconds)
    return len(found)


def sum_of_loads(load: Load, total_rate: float, pods: int, spec: EngineSpec, seed: int) -> tuple[float, float, float]:
    """(sum over pods, mean in flight of one, spread of the sum) with the load spread over so many pods."""
    loads, here = [], []
    for pod in range(pods):
        watched = Watched(spec)
        advices = list(watched.ticks(at_rate(load, total_rate / pods), 1800, seed=seed + pod))[900:]
        loads.append([advice.load_ratio or 0.0 for advice in advices])
        here += [(advice.running or 0) + (advice.waiting or 0) for advice in advices]
    sums = [sum(each) for each in zip(*loads, strict=True)]
    mean = sum(sums) / len(sums)
    spread = math.sqrt(sum((each - mean) ** 2 for each in sums) / len(sums))
    return mean, sum(here) / len(here), spread


def main() -> None:
    say: Callable[[str], None] = print
    for every in (1.0, 5.0):
        mean, late, worst = cost_of_ticks(every)
        say(f"tick of {every:g} s: {mean:.3f} ms mean, {late:.3f} ms p99, {worst:.3f} ms worst")
    say(f"state: {state_bytes() / 1024:.0f} KiB")
    short = at_rate(chat, 3)
    say(f"longer outputs noticed after {noticed_after(short, long_outputs):.0f} s")
    say(f"1.6 times the outputs noticed after {noticed_after(short, at_rate(longer_chat, 3)):.0f} s")
    say(f"changes seen in 4 h of one mix: {false_changes(short)}")
    for name, load, rate, spec in (
        ("chat, 48,000 slots", chat, 16.0, SMALL),
        ("chat, 400,000 slots", chat, 40.0, SPEC),
        ("long prompts", long_prompts, 12.0, SPEC),
        ("long outputs", long_outputs, 2.0, SMALL),
    ):
        for pods in (2, 3, 4, 6):
            total, here, spread = sum_of_loads(load, rate, pods, spec, seed=10)
            say(
                f"{name}: {pods} pods, {here:.1f} in flight each, sum {total:.2f} +- {spread:.2f}, "
                f"needed at 0.85: {total / 0.85:.2f}"
            )


if __name__ == "__main__":
    main()
