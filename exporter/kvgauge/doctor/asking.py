"""Questions to the API server: each bounded in time and size, all together too, and every refusal an answer."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient

from kvgauge.cluster.decoding import JsonObject
from kvgauge.cluster.writing import TROUBLE, in_a_word
from kvgauge.doctor.findings import words

ANSWER_SECONDS = 4.0
ALL_SECONDS = 18.0
MAX_BODY_BYTES = 16 << 20
_AT_ONCE = 8
_MOST_TOLD_BYTES = 1024
Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came. `status` is that of HTTP, 0 where nothing came; `why` is the server's message, or why nothing came."""

    status: int
    document: JsonObject
    why: str = ""
    path: str = ""
    """What was asked, as `kubectl get --raw` takes it; without the query."""

    @property
    def good(self) -> bool:
        return self.status == 200

    @property
    def refused(self) -> bool:
        """By the rules of who may read what."""
        return self.status in (401, 403)

    @property
    def items(self) -> list[JsonObject]:
        """Of a list."""
        found = self.document.get("items")
        return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    @property
    def cut(self) -> bool:
        """There are more items than were asked for."""
        return bool(part(self.document, "metadata").get("continue"))


class Asker:
    """One client, and the time that is left for all of its questions."""

    def __init__(self, client: ApiClient, seconds: float = ALL_SECONDS) -> None:
        self._client = client
        self._deadline = time.monotonic() + seconds
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def get(self, path: str, query: Query = ()) -> Answer:
        """The JSON at a path. Never raises over what the server does."""
        async with self._room:
            return replace(await self._bounded(path, query), path=path)

    async def _bounded(self, path: str, query: Query) -> Answer:
        left = min(ANSWER_SECONDS, self._deadline - time.monotonic())
        if left <= 0:
            return Answer(0, {}, "no time was left to ask")
        try:
            async with asyncio.timeout(left):
                return await self._get(path, query)
        except TimeoutError:
            return Answer(0, {}, f"no answer within {left:.2g} s")
        except TROUBLE as error:
            return Answer(0, {}, "no connection" if isinstance(error, aiohttp.ClientError) else in_a_word(error))

    async def _get(self, path: str, query: Query) -> Answer:
        method, url, headers, _, _ = await self._client.param_serialize(
            "GET",
            path,
            query_params=list(query),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        answer = await self._client.call_api(method, url, headers, _preload_content=False)
        response: aiohttp.ClientResponse = answer.response
        try:
            body = await _bounded(response.content)
        finally:
            response.close()
        try:
            told = json.loads(body)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            # Of what stands between us and who should answer: mostly it says why.
            said = words(body[:_MOST_TOLD_BYTES].decode(errors="replace"))
            why = f"the answer is no JSON: {said}" if said else "the answer is empty"
            return Answer(0 if response.status == 200 else response.status, {}, why)
        why = "" if response.status == 200 else words(told.get("message")) or f"HTTP {response.status}"
        return Answer(response.status, told, why)


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ValueError("larger than is read")
    return bytes(body)


def part(thing: Mapping[str, Any], *names: str) -> JsonObject:
    """An object inside an object; empty where there is none."""
    found: object = thing
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, dict) else {}


def text(thing: Mapping[str, Any], name: str) -> str:
    """Empty where there is none."""
    found = thing.get(name)
    return found if isinstance(found, str) else ""


def parts(thing: Mapping[str, Any], name: str) -> list[JsonObject]:
    """A list of objects; empty where there is none."""
    found = thing.get(name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
