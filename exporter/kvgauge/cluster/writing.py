"""What the parts share that write to the API server: how a failure is told, where writing is forbidden, how often."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import aiohttp
from kubernetes.aio.client.exceptions import ApiException, OpenApiException
from kubernetes.aio.config.config_exception import ConfigException

from kvgauge.logs import logger

Clock = Callable[[], float]
"""Monotonic seconds."""

WRITE_SECONDS = 4.0
"""Bound on a write. Less than what lies between the end of leading and the end of the lease, so that a write that began
while leading is over before another leads."""
TROUBLE = (OpenApiException, ConfigException, aiohttp.ClientError, OSError, ValueError)
"""What a call of the official client may raise when the API server is away, slow, refuses or answers nonsense, or when
the client's token is just being replaced."""

_FORBIDDEN = (401, 403)


def in_a_word(error: Exception) -> str:
    """Reason of a failure for a log line. Nothing of what a server sent beyond its status."""
    status = status_of(error)
    return f"HTTP {status}" if status else type(error).__name__


def status_of(error: Exception) -> int:
    """HTTP status; 0 where there was no answer."""
    return int(error.status or 0) if isinstance(error, ApiException) else 0


def micro_time() -> datetime:
    """Now, for a field of type MicroTime. The client leaves the fraction out where it is 0, and the API server refuses
    a MicroTime without one."""
    now = datetime.now(UTC)
    return now if now.microsecond else now + timedelta(microseconds=1)


class Refusals:
    """Namespaces that forbid a kind of write. One is left alone for a while and then tried again, since permissions
    are given late; of all refusals in a namespace only the first is logged."""

    def __init__(self, what: str, *, retry_seconds: float = 600.0, clock: Clock = time.monotonic) -> None:
        self._what = what
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._until: dict[str, float] = {}

    def forbids(self, namespace: str) -> bool:
        return self._clock() < self._until.get(namespace, float("-inf"))

    def note(self, namespace: str, error: Exception) -> bool:
        """Whether that was a refusal."""
        if status_of(error) not in _FORBIDDEN:
            return False
        if namespace not in self._until:
            logger.warning(
                "%s: not allowed in namespace %s (%s); left off there", self._what, namespace, in_a_word(error)
            )
        self._until[namespace] = self._clock() + self._retry_seconds
        return True


class Budget:
    """A token bucket: `burst` at once, then `per_second`."""

    def __init__(self, per_second: float, burst: int, clock: Clock = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._left = float(burst)
        self._at_seconds = clock()

    def take(self) -> bool:
        """Whether one more may be had; if so it is taken."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at_seconds) * self._per_second)
        self._at_seconds = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
