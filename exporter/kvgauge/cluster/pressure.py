"""When KV pressure begins on a pod and when it ends, from what its sidecar said."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeGuard

from kvgauge.cluster.records import Reading, is_fresh

_KV_LIMITS = ("kv", "state_slots")
"""Limits that the pool sets. A load beyond another one is no pressure on it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """When pressure begins: any of the three, for the hold time. It ends when all that are known are on the other side
    of the bounds for its end, for that hold time. Between the bounds it stays what it is."""

    usage_ratio: float = 0.95
    usage_end_ratio: float = 0.85
    load_ratio: float = 1.0
    load_end_ratio: float = 0.9
    exhaustion_seconds: float = 60.0
    exhaustion_end_seconds: float = 180.0
    hold_seconds: float = 15.0
    hold_end_seconds: float = 60.0
    stale_seconds: float = 10.0
    """Age at which what a pod said is not believed any more."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """What is known of one pod. Times are `Reading.read_seconds`."""

    on: bool = False
    since_seconds: float | None = None
    """Since when it is so; None for a pod that was never under pressure."""
    turning_seconds: float | None = None
    """Since when the readings say the opposite, without a gap."""
    read_seconds: float = -math.inf
    """Of the last reading that was judged."""


def judge(before: Pressure, reading: Reading | None, bounds: Bounds, now_seconds: float) -> Pressure:
    """A change of `on` is a change to tell. A silent pod changes nothing, and what was turning begins anew. The same
    reading judged again changes nothing either: time passes by what readings say of themselves."""
    if not is_fresh(reading, now_seconds, bounds.stale_seconds):
        return replace(before, turning_seconds=None)
    pressed = _is_pressed(reading, before.on, bounds)
    if pressed is None or pressed == before.on:
        return replace(before, turning_seconds=None, read_seconds=reading.read_seconds)
    gap = reading.read_seconds - before.read_seconds > bounds.stale_seconds
    turning = reading.read_seconds if gap or before.turning_seconds is None else before.turning_seconds
    hold = bounds.hold_end_seconds if before.on else bounds.hold_seconds
    if reading.read_seconds - turning < hold:
        return replace(before, turning_seconds=turning, read_seconds=reading.read_seconds)
    return Pressure(pressed, turning, None, reading.read_seconds)


def _is_pressed(reading: Reading, on: bool, bounds: Bounds) -> bool | None:
    """None: nothing is told that would say so or otherwise."""
    usage = reading.kv_usage_ratio if _is_finite(reading.kv_usage_ratio) else None
    load = exhaustion = None
    # Usage is what the engine says; the others are advice, which says of itself when it can't be relied on.
    if reading.valid:
        load = reading.load_ratio if reading.binding_limit in _KV_LIMITS and _is_finite(reading.load_ratio) else None
        exhaustion = reading.kv_exhaustion_seconds
    if usage is None and load is None and exhaustion is None:
        return None
    if on:
        return (
            (usage is not None and usage > bounds.usage_end_ratio)
            or (load is not None and load > bounds.load_end_ratio)
            or (exhaustion is not None and exhaustion < bounds.exhaustion_end_seconds)
        )
    return (
        (usage is not None and usage >= bounds.usage_ratio)
        or (load is not None and load > bounds.load_ratio)
        or (exhaustion is not None and exhaustion < bounds.exhaustion_seconds)
    )


def tell(pressure: Pressure, reading: Reading, lasted_seconds: float | None = None) -> str:
    """A sentence of figures, and of nothing that a user wrote. `lasted_seconds`: how long what ended lasted."""
    said = "KV pressure" if pressure.on else "KV pressure ended"
    if lasted_seconds is not None:
        said += f" after {lasted_seconds:.0f} s"
    figures = ", ".join(_figures(reading))
    return f"{said}: {figures}." if figures else f"{said}."


def _figures(reading: Reading) -> Iterator[str]:
    if _is_finite(reading.kv_usage_ratio):
        yield f"{100 * reading.kv_usage_ratio:.0f} % of the pool in use"
    if reading.valid and _is_finite(reading.kv_exhaustion_seconds):
        yield f"full in {reading.kv_exhaustion_seconds:.0f} s at the present trend"
    if reading.valid and _is_finite(reading.load_ratio):
        yield f"load {reading.load_ratio:.2f} of what is safe"
    if reading.running is not None:
        yield f"{reading.running} running"
    if reading.waiting is not None:
        yield f"{reading.waiting} waiting"


def _is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
