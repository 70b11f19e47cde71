"""Answers that are nearly right: values, labels or lines of a good one made odd. And what holds of a reading anyway."""

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import strategies as st

from kvgauge.observe.records import EngineReading

LONG = "x" * 5000
HOSTILE_TEXTS = (LONG, "a\nb", '<script>alert("1")</script>', "\\", '"', "{}", "\u202e", "None", "NaN", "-1", "")
ODD_NUMBERS = (0, -1, -0.5, 1.06, 66.7, 1e300, -1e300, 10**400, 2**53 + 1, math.nan, math.inf, -math.inf)
ODD_VALUES: tuple[object, ...] = (
    *HOSTILE_TEXTS,
    *ODD_NUMBERS,
    None,
    True,
    False,
    [],
    {},
    [None],
    [[]],
    {"a": {}},
    [1, "x", {}],
)
ODD_SAMPLES = ("NaN", "+Inf", "-Inf", "-1", "1e300", "-nan(ind)", "", "abc", "1 2 3", "66.7", "0")


@st.composite
def mutated_json(draw: st.DrawFn, good: object) -> Any:
    """`good`, an object or an array, with up to three of its values, at any depth, replaced or left out."""
    answer = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(answer))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        if draw(st.booleans()):
            holder[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
        else:
            del holder[key]
    return answer


@st.composite
def mutated_page(draw: st.DrawFn, good: str) -> bytes:
    """`good` with some lines given another value or label, dropped or doubled, and perhaps cut off anywhere."""
    lines = good.splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        name, _, value = lines[at].rpartition(" ")
        kind = draw(st.sampled_from(("value", "label", "drop", "double", "bytes")))
        if kind == "value":
            lines[at] = f"{name} {draw(st.sampled_from(ODD_SAMPLES))}"
        elif kind == "label":
            text = draw(st.sampled_from(HOSTILE_TEXTS)).replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
            before, quote, after = name.partition('="')
            lines[at] = f"{before}{quote}{text}{after[after.find(chr(34)) :]} {value}" if quote else lines[at]
        elif kind == "drop":
            lines[at] = ""
        elif kind == "double":
            lines.append(lines[at])
        else:
            lines[at] += draw(st.text(max_size=10))
    page = "\n".join([*lines, ""]).encode(errors="replace")
    return page[: draw(st.integers(0, len(page)))] if draw(st.booleans()) else page


def assert_sound(reading: EngineReading, *secrets: str) -> None:
    """No number is negative, NaN or infinite, no text endless, no secret anywhere; what is None has a reason."""
    for where, value in _walk(dataclasses.asdict(reading), reading.engine):
        if isinstance(value, int | float) and not isinstance(value, bool):
            # The last bucket of a histogram has no bound.
            assert value >= 0, where
            assert math.isfinite(value) or ".bounds" in where, where
        if isinstance(value, str):
            assert len(value) <= 512, where
    for secret in secrets:
        assert secret not in repr(reading)
    for rank in reading.ranks:
        unexplained = {
            field.name
            for field in dataclasses.fields(rank)
            if getattr(rank, field.name) is None and not rank.missing.get(field.name)
        }
        assert not unexplained
        slots = (rank.active_tokens, rank.reclaimable_tokens or 0, rank.free_tokens)
        if rank.capacity_tokens is not None and None not in slots:
            assert sum(part for part in slots if part is not None) == rank.capacity_tokens
        if rank.usage_ratio is not None:
            assert rank.usage_ratio <= 1


def _places(answer: object) -> Iterator[tuple[Any, Any]]:
    items: list[tuple[object, object]] = []
    if isinstance(answer, dict):
        items = list(answer.items())
    elif isinstance(answer, list):
        items = list(enumerate(answer))
    for key, value in items:
        yield answer, key
        yield from _places(value)


def _walk(value: object, where: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(key, f"{where}.keys")
            yield from _walk(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _walk(item, where)
    else:
        yield where, value
