"""Asks every sidecar once an interval what it advises.

One light task for each pod, each at its own moment within the interval. A pod cannot make us fetch anything else: its
address is its IP and never loopback, redirects are not followed, and answers are bounded in time and size.
"""

import asyncio
import ipaddress
import random
import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp

from kvgauge import __version__
from kvgauge.cluster.durations import Durations
from kvgauge.cluster.reading import MAX_BODY_BYTES, ReadingError, read
from kvgauge.cluster.records import Pod, PodKey
from kvgauge.cluster.store import Store
from kvgauge.logs import logger

LONGEST_PAUSE_SECONDS = 15.0
"""Between two polls of a pod that does not answer."""
MOST_AT_ONCE = 1000
_PATH = "/v1/advice"
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": f"kvgauge/{__version__}"}
_CHUNK_BYTES = 64 * 1024
# A pod may fail for weeks; powers of two leave floating point after a thousand.
_MOST_DOUBLINGS = 20


class Poller:
    """Follows the pods of a store and keeps their readings. `outcomes` counts polls by outcome, ``ok`` or a reason;
    `durations` has how long each took, answered or not."""

    def __init__(
        self,
        store: Store,
        *,
        interval_seconds: float = 1.0,
        timeout_seconds: float = 1.0,
        stale_after_seconds: float = 10.0,
        allow_loopback: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._interval_seconds = interval_seconds
        self._timeout_seconds = timeout_seconds
        self._stale_after_seconds = stale_after_seconds
        self._allow_loopback = allow_loopback
        self._clock = clock
        self._tasks: dict[tuple[PodKey, str, str], asyncio.Task[None]] = {}
        self._random = random.Random()  # noqa: S311 - it spreads moments
        self.outcomes: Counter[str] = Counter()
        self.durations = Durations()

    async def run(self) -> None:
        """Polls until cancelled."""
        connector = aiohttp.TCPConnector(limit=MOST_AT_ONCE, keepalive_timeout=4 * self._interval_seconds + 15)
        async with aiohttp.ClientSession(
            connector=connector,
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=self._timeout_seconds),
        ) as session:
            try:
                while True:
                    self._follow(session)
                    await asyncio.sleep(self._interval_seconds)
            finally:
                for task in self._tasks.values():
                    task.cancel()
                await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _follow(self, session: aiohttp.ClientSession) -> None:
        """One task for each pod that can tell; a pod with another uid or address is another one."""
        wanted = {
            (pod.key, pod.uid, pod.address): pod
            for state in self._store.pods()
            if (pod := state.pod).address is not None and pod.phase == "Running" and not pod.deleting
        }
        for gone in self._tasks.keys() - wanted.keys():
            self._tasks.pop(gone).cancel()
        for key in wanted.keys() - self._tasks.keys():
            self._tasks[key] = asyncio.create_task(self._poll_always(session, wanted[key]))

    async def _poll_always(self, session: aiohttp.ClientSession, pod: Pod) -> None:
        if not self._may_ask(pod):
            self._fail(pod, "address")
            return
        url = f"{pod.address}{_PATH}"
        failures = 0
        due = self._clock() + self._random.uniform(0, self._interval_seconds)
        while True:
            await asyncio.sleep(due - self._clock())
            began = self._clock()
            try:
                await self._poll(session, pod, url)
                failures = 0
            except ReadingError as error:
                failures += 1
                self._fail(pod, error.reason)
            except Exception as error:
                failures += 1
                self._fail(pod, "internal")
                logger.warning("a poll failed in a way that was not foreseen: %s", type(error).__name__)
            self.durations.add(self._clock() - began)
            pause = pause_seconds(self._interval_seconds, failures)
            # Late polls are not made up for.
            due = max(due + pause * (self._random.uniform(0.8, 1.2) if failures > 1 else 1.0), self._clock())

    async def _poll(self, session: aiohttp.ClientSession, pod: Pod, url: str) -> None:
        try:
            async with session.get(url, allow_redirects=False) as response:
                if response.status == 503:
                    raise ReadingError("stale")
                if response.status != 200:
                    raise ReadingError("http_status")
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise ReadingError("content_encoding")
                body = await _bounded(response)
        except aiohttp.ClientConnectorError:
            raise ReadingError("refused") from None
        except TimeoutError:
            raise ReadingError("timeout") from None
        except (aiohttp.ClientError, ValueError, OSError):
            raise ReadingError("protocol") from None
        reading = read(body, self._clock(), time.time(), self._stale_after_seconds)
        self._store.put_reading(pod.key, pod.uid, reading)
        self.outcomes["ok"] += 1

    def _fail(self, pod: Pod, reason: str) -> None:
        self.outcomes[reason] += 1
        self._store.put_failure(pod.key, pod.uid, reason)

    def _may_ask(self, pod: Pod) -> bool:
        try:
            address = ipaddress.ip_address(urlsplit(pod.address or "").hostname or "")
        except ValueError:
            return False
        # An IPv4 address in IPv6 clothes is what it is beneath them.
        address = getattr(address, "ipv4_mapped", None) or address
        if address.is_loopback:
            return self._allow_loopback
        return not (address.is_link_local or address.is_unspecified or address.is_multicast)


def pause_seconds(interval_seconds: float, failures: int) -> float:
    """From one poll to the next after so many failures in a row: the second and each further one doubles it."""
    doubled: float = interval_seconds * 2 ** min(max(failures - 1, 0), _MOST_DOUBLINGS)
    return max(min(doubled, LONGEST_PAUSE_SECONDS), interval_seconds)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    announced = response.content_length
    if announced is not None and announced > MAX_BODY_BYTES:
        # Closed instead of read to its end.
        response.close()
        raise ReadingError("body_too_large")
    body = b""
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            response.close()
            raise ReadingError("body_too_large")
    return body
