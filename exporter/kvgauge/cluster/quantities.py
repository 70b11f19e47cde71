"""Numbers as Kubernetes writes them: whole, or in thousandths, which is what an autoscaler reads."""

import math

MOST_MILLI = 9_200_000_000_000_000
"""Autoscalers reckon in thousandths of a 64-bit integer; nothing beyond this is handed out."""
_NOISE_MILLI = 1e-6


def milli(value: float, *, up: bool) -> int | None:
    """`value` in thousandths, rounded up for what stands for load and down for what stands for capacity. None for what
    no quantity can hold."""
    if not math.isfinite(value) or abs(value) > MOST_MILLI / 1000:
        return None
    exact = value * 1000
    nearest = round(exact)
    # What only floating point left over or took away is no reason for another thousandth.
    if abs(exact - nearest) <= _NOISE_MILLI * max(abs(exact), 1.0):
        return nearest
    return math.ceil(exact) if up else math.floor(exact)


def quantity(thousandths: int) -> str:
    """A Kubernetes quantity: ``"42"`` or ``"1500m"``."""
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"
