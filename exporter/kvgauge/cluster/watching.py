"""Objects of one kind as the API server has them, kept in step by a list and then a watch.

The official client's watch is not used: it builds whole models of what is thrown away, and ends or loops where an
API server is away. What is known stays known through every failure; only a complete list replaces it.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

import aiohttp
from kubernetes.aio.client import ApiClient

from kvgauge.cluster.decoding import ITEMS_PER_TURN, JsonObject, bounded_lines, parsed, take_items
from kvgauge.cluster.writing import TROUBLE, Clock, in_a_word
from kvgauge.logs import logger

T = TypeVar("T")
Query = list[tuple[str, str]]

MAX_LINE_BYTES = 1 << 20
MAX_PAGE_BYTES = 64 << 20
_MAX_RETRY_AFTER_SECONDS = 300
_FORBIDDEN = 403
_NOT_FOUND = 404
_GONE = 410
_BUSY = (429, 503)
"""The API server, or what is before it, asks to come back later."""
_PASSING = (401, *_BUSY, 500, 502)
"""Answers to a request to watch that say nothing of the version to watch from."""


class RefusedError(Exception):
    """The API server does not have that kind (404) or does not show it to us (403)."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class _AnswerError(Exception):
    """A failure that the API server told, by HTTP or in a watch."""

    def __init__(self, status: int, *, keeps_place: bool, retry_after_seconds: float = 0.0) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.keeps_place = keeps_place
        """The watch can be taken up where it was, without a list."""
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Pace:
    """In seconds, but for the size of a page."""

    page_items: int = 500
    retry_seconds: float = 0.5
    """Pause after the first failure, about; it doubles with each further."""
    most_retry_seconds: float = 30.0
    connect_seconds: float = 10.0
    list_read_seconds: float = 30.0
    """A page's next bytes come within that."""
    watch_read_seconds: float = 100.0
    """A watch that tells nothing for so long is taken for half open. Bookmarks come about once a minute."""
    watch_seconds: int = 300
    """The API server ends a watch after that, or up to twice as long, so that not all end at once."""
    settled_seconds: float = 5.0
    """A watch that held for so long was no failure."""


@dataclass(slots=True)
class Counts:
    """What happened since the start."""

    lists: int = 0
    watches: int = 0
    events: int = 0
    bookmarks: int = 0
    failures: int = 0
    bad_objects: int = 0
    """Those that could not be read; each was left out alone."""


class Reflector(Generic[T]):
    """Reads `path`, such as ``/api/v1/pods``, and tells what is there.

    `project` makes an item of an object; None: it is not of interest. `replace` gets all items of a complete list,
    `put` one that is new or has changed, `drop` namespace ("" without one) and name of what is gone or no longer of
    interest, whether or not it was ever put.
    """

    def __init__(
        self,
        client: ApiClient,
        path: str,
        project: Callable[[JsonObject], T | None],
        *,
        replace: Callable[[list[T]], None],
        put: Callable[[T], None],
        drop: Callable[[str, str], None],
        label_selector: str | None = None,
        field_selector: str | None = None,
        pace: Pace | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.path = path
        self.counts = Counts()
        self.synced = False
        """Everything was known once. It stays true."""
        self._client = client
        self._project = project
        self._replace, self._put, self._drop = replace, put, drop
        selectors = (("labelSelector", label_selector), ("fieldSelector", field_selector))
        self._selectors: Query = [(name, text) for name, text in selectors if text]
        self._pace = pace or Pace()
        self._clock = clock
        self._version: str | None = None
        """resourceVersion up to which everything is known; None: a list is needed."""
        self._in_doubt = False
        """A change could not be read, so a list is needed after this watch."""
        self._in_step_seconds = -math.inf
        self._watch_seconds = math.inf
        """When the watch began; infinite before."""
        self._failures = 0
        self._interrupted = False

    def age_seconds(self) -> float:
        """Since the API server last told something or confirmed that there is nothing; infinite before the first."""
        return self._clock() - self._in_step_seconds

    async def run(self) -> NoReturn:
        """Until it is cancelled. Raises RefusedError; it may be called again after that."""
        while True:
            self._watch_seconds, before = math.inf, self._version
            reason, wait_seconds = "ended", 0.0
            try:
                if self._version is None:
                    await self._list()
                    before = self._version
                await self._watch()
                self._in_step_seconds = self._clock()
            except _AnswerError as error:
                if error.status in (_FORBIDDEN, _NOT_FOUND):
                    self._version = None
                    raise RefusedError(error.status) from None
                reason, wait_seconds = str(error), error.retry_after_seconds
                if not error.keeps_place:
                    self._version = None
            except TROUBLE as error:
                reason = in_a_word(error)
            if self._in_doubt:
                self._version, self._in_doubt = None, False
            held = self._clock() - self._watch_seconds >= self._pace.settled_seconds
            moved = self._version not in (None, before)
            await asyncio.sleep(max(wait_seconds, self._pause_seconds(reason, held=held, moved=moved)))

    def _pause_seconds(self, reason: str, *, held: bool, moved: bool) -> float:
        """`held`: the watch stood for a while, `moved`: it told news. A watch that ends at once, again and again,
        is tried as seldom as one that fails."""
        if held or moved:
            self._failures = 0
        if not (held and reason == "ended"):
            if not self._interrupted and reason != "ended":
                self._interrupted = True
                logger.warning("%s: watch interrupted (%s); trying again", self.path, reason)
            self._failures += 1
            self.counts.failures += reason != "ended"
        longest = self._pace.retry_seconds * 2.0 ** min(max(self._failures - 1, 0), 16)
        return min(longest, self._pace.most_retry_seconds) * random.uniform(0.5, 1.0)  # noqa: S311

    async def _list(self) -> None:
        items: list[T] = []

        def take(thing: object) -> None:
            item = self._projected(thing)
            if item is not None:
                items.append(item)

        metadata = await take_items(await self._page(""), take)
        while token := metadata.get("continue"):
            metadata = await take_items(await self._page(str(token)), take)
        version = metadata.get("resourceVersion")
        if not isinstance(version, str) or not version:
            raise ValueError("no resourceVersion")
        self._replace(items)
        self._version = version
        self._in_step_seconds = self._clock()
        self.synced = True
        self.counts.lists += 1

    async def _page(self, token: str) -> bytes:
        query = [("limit", str(self._pace.page_items)), *([("continue", token)] if token else [])]
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._pace.connect_seconds, sock_read=self._pace.list_read_seconds
        )
        response = await self._get(query, timeout)
        text = bytearray()
        try:
            async for chunk in response.content.iter_any():
                text += chunk
                if len(text) > MAX_PAGE_BYTES:
                    raise ValueError("page too long")
        finally:
            response.close()
        return bytes(text)

    async def _watch(self) -> None:
        ends = random.uniform(1.0, 2.0) * self._pace.watch_seconds  # noqa: S311
        query = [
            ("watch", "true"), ("allowWatchBookmarks", "true"), ("resourceVersion", self._version or ""),
            ("timeoutSeconds", str(max(1, int(ends)))),
        ]  # fmt: skip
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._pace.connect_seconds, sock_read=self._pace.watch_read_seconds
        )
        response = await self._get(query, timeout)
        self.counts.watches += 1
        self._watch_seconds = self._clock()
        if self._interrupted:
            self._interrupted = False
            logger.info("%s: watched again", self.path)
        try:
            async with aclosing(bounded_lines(response.content.iter_any(), MAX_LINE_BYTES)) as lines:
                async for line in lines:
                    self._take(line)
                    if self.counts.events % ITEMS_PER_TURN == 0:
                        await asyncio.sleep(0)
        finally:
            response.close()

    async def _get(self, query: Query, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        method, url, headers, _, _ = await self._client.param_serialize(
            "GET",
            self.path,
            query_params=[*query, *self._selectors],
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        answer = await self._client.call_api(method, url, headers, _request_timeout=timeout, _preload_content=False)
        response: aiohttp.ClientResponse = answer.response
        if response.status != 200:
            response.close()
            raise _AnswerError(
                response.status,
                keeps_place=response.status in _PASSING,
                retry_after_seconds=_retry_after_seconds(response.headers.get("Retry-After")),
            )
        return response

    def _take(self, line: bytes | None) -> None:
        """One line of a watch; None for one that was too long."""
        try:
            told = parsed(line) if line is not None else {}
        except ValueError:
            told = {}
        what, thing = told.get("type"), told.get("object")
        if not isinstance(thing, dict):
            self._in_doubt = True
            self._note_bad("a change that cannot be read")
            return
        if what == "ERROR":
            code = thing.get("code")
            raise _AnswerError(code if isinstance(code, int) else 0, keeps_place=code in _BUSY)
        metadata = thing.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
        if what == "BOOKMARK":
            self.counts.bookmarks += 1
        else:
            self.counts.events += 1
            self._change(what, thing)
        if isinstance(version, str) and version:
            self._version = version
        self._in_step_seconds = self._clock()

    def _change(self, what: object, thing: dict[str, object]) -> None:
        named = _named(thing)
        if named is None or what not in ("ADDED", "MODIFIED", "DELETED"):
            self._in_doubt = True
            self._note_bad("a change of nothing")
            return
        item = None if what == "DELETED" else self._projected(thing)
        if item is None:
            self._drop(*named)
        else:
            self._put(item)

    def _projected(self, thing: object) -> T | None:
        try:
            if not isinstance(thing, dict):
                raise TypeError("no object")
            return self._project(thing)
        except Exception as error:  # whatever one object does, the others are read
            self._note_bad(type(error).__name__)
            return None

    def _note_bad(self, why: str) -> None:
        self.counts.bad_objects += 1
        if self.counts.bad_objects == 1:
            logger.warning("%s: an object was left out (%s); further ones are only counted", self.path, why)


def _named(thing: JsonObject) -> tuple[str, str] | None:
    metadata = thing.get("metadata")
    if not isinstance(metadata, dict):
        return None
    namespace, name = metadata.get("namespace") or "", metadata.get("name")
    return (namespace, name) if isinstance(namespace, str) and isinstance(name, str) and name else None


def _retry_after_seconds(header: str | None) -> float:
    """Whole seconds, as the API server states them. What is no such number is none."""
    if header is None or not header.isascii() or not header.isdigit():
        return 0.0
    return float(min(int(header[:6]), _MAX_RETRY_AFTER_SECONDS))
