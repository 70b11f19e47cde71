"""Runs inside the engine, as a vLLM plugin of its own: lets the agent rest while a file is there."""

import functools
import importlib
import os
from pathlib import Path
from typing import Any

ENTRY_POINT = "vllm_switch:register"
VARIABLE = "KVGAUGE_TEST_REST"


def register() -> None:
    agent: Any = importlib.import_module("kvgauge_agent.daemon").Agent
    if hasattr(agent.tick, "__wrapped__"):
        return
    tick, rests = agent.tick, Path(os.environ[VARIABLE])

    @functools.wraps(tick)
    def tick_unless_resting(self: Any) -> None:
        if not rests.exists():
            tick(self)

    agent.tick = tick_unless_resting
