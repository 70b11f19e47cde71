"""Has a method of the engine's followed by one of ours, which can neither change its result nor raise into it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from kvgauge_agent.log import reason, say_once


def call_after(owner: object, name: str, then: Callable[[Any, Any], None], what: str) -> None:
    """Replaces method `name` of class `owner` by one that calls `then(self, result)` behind it.

    A second call for the same owner and name changes nothing. The first exception of `then` is logged as the end of
    `what`, and it is not called again in this process. Raises AttributeError where the class has no such method.
    """
    original = getattr(owner, name)
    if getattr(original, "followed_by_kvgauge", False):
        return
    active = True

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal active
        result = original(self, *args, **kwargs)
        if active:
            try:
                then(self, result)
            except Exception as error:
                active = False
                say_once(f"{what} is off: {reason(error)}")
        return result

    method.followed_by_kvgauge = True  # type: ignore[attr-defined]
    setattr(owner, name, method)
