"""JSON as the API server sends it, taken apart without holding up the event loop: lines of a watch, items of a list."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

JsonObject = Mapping[str, object]

_ITEMS = '"items":['
"""Cannot stand inside a string, where its quotes would be escaped, and nothing before a list's items has such a key."""
_GAP = re.compile(r"[\s,]*")
ITEMS_PER_TURN = 8
"""Parsed before others may run: 8 pods of 16 KiB are about 4 ms, a page of 500 would be 200 ms."""


async def bounded_lines(chunks: AsyncIterator[bytes], most_bytes: int) -> AsyncGenerator[bytes | None, None]:
    """Lines without their ends; None for one longer than `most_bytes`. What no end follows is no line."""
    rest = bytearray()
    too_long = False
    async for chunk in chunks:
        *ended, tail = chunk.split(b"\n")
        for part in ended:
            rest += part
            yield None if too_long or len(rest) > most_bytes else bytes(rest)
            rest.clear()
            too_long = False
        rest += tail
        if too_long or len(rest) > most_bytes:
            rest.clear()
            too_long = True


def parsed(text: str | bytes) -> JsonObject:
    """Raises ValueError."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


async def take_items(page: bytes, take: Callable[[object], None]) -> JsonObject:
    """Hands each item of a list to `take`, one after the other; returns the list's metadata. Raises ValueError, then
    some items may have been taken."""
    text = page.decode()
    head, found, _ = text.partition(_ITEMS)
    position = len(head) + len(found)
    if found:
        decode = json.JSONDecoder().raw_decode
        position = _after_gap(text, position)
        taken = 0
        while text[position : position + 1] == "{":
            try:
                item, position = decode(text, position)
            except RecursionError:
                raise ValueError("nested too deeply") from None
            take(item)
            position = _after_gap(text, position)
            taken += 1
            if taken % ITEMS_PER_TURN == 0:
                await asyncio.sleep(0)
    # What is left around the items, an empty list among it.
    envelope = parsed(text[: len(head) + len(found)] + text[position:])
    metadata, items = envelope.get("metadata"), envelope.get("items")
    if not isinstance(metadata, dict) or not isinstance(items, list | None):
        raise ValueError("no list")
    for item in items or ():
        take(item)
    return metadata


def _after_gap(text: str, position: int) -> int:
    gap = _GAP.match(text, position)
    return gap.end() if gap else position
