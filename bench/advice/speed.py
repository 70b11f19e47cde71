"""How long the simulator and the sidecar's advice take: `python -m bench.advice.speed`."""

import gc
import random
import statistics
import time
import tracemalloc
from dataclasses import replace

from bench.advice.loads import EVALUATION
from bench.table import Figure, report
from kvgauge.advise import History, advise
from kvgauge.assess import EngineFlags, Memo, assess
from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.reading import observation_of, reading_of
from kvgauge.simulate.running import ADVISED, run_signals
from kvgauge.simulate.spec import Request

TICK_SECONDS = 1800
"""Of simulated time that the ticks are timed over, one a second."""


def simulated_seconds(name: str) -> tuple[float, int]:
    """(processor seconds of one run of a load under kvgauge, its requests)."""
    gc.collect()
    began = time.process_time()
    (run,) = run_signals(EVALUATION[name], [ADVISED])
    return time.process_time() - began, len(run.served.requests)


def ticks() -> tuple[list[float], float]:
    """(processor seconds of each tick of advice on an engine under load, bytes of state at the end)."""
    scenario = EVALUATION["conv"]
    spec = scenario.spec()
    draw = random.Random(1)
    engine = PagedEngine(spec)
    history, memo = History(), Memo()
    cost = spec.step_cost
    seconds: list[float] = []
    arrival = 0.0
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    held = before
    for second in range(1, TICK_SECONDS + 1):
        while arrival < second:
            engine.submit(Request(arrival, draw.randint(200, 3000), draw.randint(50, 600)))
            arrival += draw.expovariate(2.0)
        engine.advance(second)
        observation = observation_of(reading_of(engine.state(), spec, "m"), float(second))
        if second == TICK_SECONDS // 2:
            # Tracing slows every allocation: the second half is timed without it, on the same history.
            gc.collect()
            held = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
        began = time.process_time()
        history.remember(observation)
        assessment = replace(assess(observation, EngineFlags(tp=1), memo), step_cost=cost)
        advise(assessment, history, max_num_seqs=spec.max_num_seqs, slo_ttft_seconds=2.0, slo_tpot_seconds=0.08)
        if second > TICK_SECONDS // 2:
            seconds.append(time.process_time() - began)
    return seconds, held - before


def figures() -> list[Figure]:
    """The bounds on speed and state."""
    episode, _ = simulated_seconds("llm-d")
    large, requests = simulated_seconds("m-large")
    each, state = ticks()
    return [
        Figure("llm-d episode under kvgauge", "s", 2, episode),
        Figure(f"{requests:,} requests on up to 24 pods under kvgauge", "s", 30, large),
        Figure("an advice tick, mean", "ms", 2, 1e3 * statistics.fmean(each)),
        Figure("an advice tick, p99", "ms", 2, 1e3 * statistics.quantiles(each, n=100)[98]),
        Figure("state of the advice, engine and all", "MiB", 8, state / 2**20),
    ]


if __name__ == "__main__":
    report("advice: speed", figures())
