"""Answers of the API server that are remembered for some seconds; the same question is asked once at a time."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kvgauge.cluster.access import Denied

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Keeping:
    """For how many seconds an answer is given again without asking, and for how many more where asking fails."""

    seconds: float
    grace_seconds: float = 0.0


@dataclass(slots=True)
class _Answer(Generic[T]):
    told: T
    until: float
    at_most_until: float


class Remembered(Generic[T]):
    """Of more than `most` answers those that were asked for longest ago are forgotten."""

    def __init__(
        self,
        keeping: Callable[[T], Keeping],
        *,
        most: int,
        retry_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keeping = keeping
        self._most = most
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._answers: OrderedDict[bytes, _Answer[T]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[T]] = {}

    async def get(self, key: bytes, ask: Callable[[], Awaitable[T]]) -> T:
        """Raises what `ask` raises. Whoever is cancelled leaves the others their question."""
        known = self._answers.get(key)
        if known is not None and self._clock() < known.until:
            return known.told
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(key, ask))
            asking.add_done_callback(lambda task: self._asked(key, task))
        return await asyncio.shield(asking)

    async def _ask(self, key: bytes, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            told = await ask()
        except Denied:
            known = self._answers.get(key)
            now = self._clock()
            if known is None or now >= known.at_most_until:
                raise
            # Until the next try nobody waits for an API server that may not even refuse.
            known.until = min(now + self._retry_seconds, known.at_most_until)
            return known.told
        keeping = self._keeping(told)
        until = self._clock() + keeping.seconds
        self._answers[key] = _Answer(told, until, until + keeping.grace_seconds)
        self._answers.move_to_end(key)
        while len(self._answers) > self._most:
            self._answers.popitem(last=False)
        return told

    def _asked(self, key: bytes, task: "asyncio.Task[T]") -> None:
        del self._asking[key]
        if not task.cancelled():
            # Nobody may be left to take it, and it is nothing to log.
            task.exception()
