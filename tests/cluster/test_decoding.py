"""Lines and items come out as they are in the bytes, however these are cut; what is no list raises ValueError."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.cluster.decoding import JsonObject, bounded_lines, take_items

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(['"items":[', "]", "}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["items", "a", "metadata"]), inner),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from(["items", "kind", "metadata"]), VALUES)


def taken(page: bytes) -> tuple[list[object], JsonObject]:
    items: list[object] = []
    metadata = asyncio.run(take_items(page, items.append))
    return items, metadata


@given(st.lists(st.binary(max_size=30), max_size=20), st.integers(0, 40))
def test_lines_are_those_of_the_bytes(chunks: list[bytes], most_bytes: int) -> None:
    async def chunked() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def read() -> list[bytes | None]:
        return [line async for line in bounded_lines(chunked(), most_bytes)]

    *lines, _ = b"".join(chunks).split(b"\n")
    assert asyncio.run(read()) == [line if len(line) <= most_bytes else None for line in lines]


@given(st.lists(OBJECTS, max_size=20), st.text(), st.booleans(), st.booleans())
def test_items_are_those_of_the_list(items: list[object], token: str, compact: bool, metadata_first: bool) -> None:
    metadata = {"continue": token, "resourceVersion": '"items":['}
    page: dict[str, object] = {"kind": "PodList", "metadata": metadata, "items": items}
    if not metadata_first:
        page = {"items": items, "metadata": metadata}
    text = json.dumps(page, separators=(",", ":") if compact else None)
    assert taken(text.encode()) == (items, metadata)


@given(st.binary(max_size=60) | OBJECTS.map(lambda thing: json.dumps(thing, separators=(",", ":")).encode()))
def test_nothing_but_value_errors(page: bytes) -> None:
    with suppress(ValueError):
        taken(page)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"[]",
        b'{"items":[]}',
        b'{"metadata":{},"items":7}',
        b'{"metadata":{},"items":[{"a":1}',
        b'{"metadata":{},"items":[{"a":1},',
        b'{"metadata":{},"items":[{"a":1}}',
        b'{"metadata":{},"items":[{"a":' + b"[" * 200_000,
        b"[" * 200_000,
        b"\xff",
    ],
)
def test_what_is_no_list(page: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        taken(page)


def test_no_items_is_an_empty_list() -> None:
    assert taken(b'{"metadata":{},"items":null}') == ([], {})
    assert taken(b'{"metadata":{},"items":[]}') == ([], {})


def test_others_run_between_the_items_of_a_page() -> None:
    page = json.dumps({"metadata": {}, "items": [{}] * 500}, separators=(",", ":")).encode()

    async def turns() -> int:
        loop, count = asyncio.get_running_loop(), 0

        def turn() -> None:
            nonlocal count
            count += 1
            loop.call_soon(turn)

        loop.call_soon(turn)
        await take_items(page, lambda _: None)
        return count

    assert asyncio.run(turns()) >= 50
