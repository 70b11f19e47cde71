"""Runs inside the engine, as a vLLM plugin of its own: when each step ended and how many requests ran in it, and when
each tick of the agent began, all by one clock."""

import functools
import importlib
import os
import time
from pathlib import Path
from typing import Any

ENTRY_POINT = "vllm_timer:register"
RECORD = "KVGAUGE_TEST_TIMES"
TICK = "KVGAUGE_TEST_TICK_SECONDS"


def register() -> None:
    daemon: Any = importlib.import_module("kvgauge_agent.daemon")
    daemon.TICK_SECONDS = float(os.environ[TICK])
    agent = daemon.Agent
    scheduler: Any = importlib.import_module("vllm.v1.core.sched.scheduler").Scheduler
    if hasattr(agent.tick, "__wrapped__"):
        return
    tick, make_stats = agent.tick, scheduler.make_stats
    # Closed by the end of the process; only that of the scheduler has steps.
    file = (Path(os.environ[RECORD]) / str(os.getpid())).open("a", encoding="utf-8", buffering=1 << 16)

    @functools.wraps(tick)
    def timed_tick(self: Any) -> None:
        file.write(f"tick {time.perf_counter():.7f}\n")
        tick(self)

    @functools.wraps(make_stats)
    def timed_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        file.write(f"{len(self.running)} {time.perf_counter():.7f}\n")
        return make_stats(self, *args, **kwargs)

    agent.tick = timed_tick
    scheduler.make_stats = timed_step
