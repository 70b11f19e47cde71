"""Runs inside the engine, as a vLLM plugin of its own: lets the agent fail at one place after the other."""

import functools
import importlib
from typing import Any

ENTRY_POINT = "vllm_saboteur:register"
# Module, class or "" for the module itself, function, and the number of calls that still go well in each process.
PLACES = (
    ("kvgauge_agent.vllm", "", "hook_worker", 0),
    ("kvgauge_agent.vllm", "", "_preempted", 0),
    ("kvgauge_agent.allocator", "AllocatorPart", "collect", 1),
    ("kvgauge_agent.vllm_groups", "Groups", "facts", 2),
    ("kvgauge_agent.vllm_scheduler", "SchedulerPart", "collect", 10),
    ("kvgauge_agent.vllm_scheduler", "SchedulerPart", "stepped", 800),
    ("kvgauge_agent.daemon", "Agent", "tick", 14),
)
SECRET = "the text of a request"


class SabotageError(Exception):
    """Stands for any error of the agent's."""


def register() -> None:
    for module_name, class_name, name, calls in PLACES:
        owner: Any = importlib.import_module(module_name)
        if class_name:
            owner = getattr(owner, class_name)
        original = getattr(owner, name)
        if not hasattr(original, "__wrapped__"):
            setattr(owner, name, _failing(original, calls))


def _failing(original: Any, calls: int) -> Any:
    left = calls

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise SabotageError(SECRET)
        return original(*args, **kwargs)

    return function
