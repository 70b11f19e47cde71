"""One line for each thing that went wrong, and no exception that reaches the engine."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable

logger = logging.getLogger("kvgauge_agent")

_said: set[str] = set()


def say_once(message: str) -> None:
    """Logs a warning, the first time only."""
    if message not in _said:
        _said.add(message)
        logger.warning("kvgauge agent of process %d: %s", os.getpid(), message)


def reason(error: BaseException) -> str:
    """What went wrong and where, without the error's own text: that may quote a request."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def guarded(what: str, function: Callable[..., object], *arguments: object) -> bool:
    """Calls the function; whether it went well. What it raises is logged once, as the end of `what`."""
    try:
        function(*arguments)
    except Exception as error:
        say_once(f"{what} is off: {reason(error)}")
        return False
    return True
