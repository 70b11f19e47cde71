"""Sizes as people print them: which unit and which rounding turn a number of bytes into "1.1 G".

GB is 10**9 bytes and GiB 2**30, but articles and tools write one and mean the other; a reader who compares a figure
here with one printed elsewhere needs to be told which it was.
"""

import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal

from kvmodel.errors import ModelError, show

_PRINTED = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([KMGT]?)(iB|B)?\s*", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_ROUNDINGS = (("nearest", ROUND_HALF_UP), ("down", ROUND_FLOOR), ("up", ROUND_CEILING))


@dataclass(frozen=True, slots=True)
class PrintedSize:
    """How a printed size stands for an exact one."""

    unit_bytes: int
    """1000 or 1024 to a power, whichever the figure really counts in."""
    unit: str
    """The unit's own name, such as GiB."""
    rounding: str
    """`exact`, or rounded to the `nearest`, `down` or `up`."""


def recognise_printed(size_bytes: int, printed: str) -> PrintedSize | None:
    """The unit and rounding under which `size_bytes` prints as `printed`; None where none does.

    `1.1 G`, `0.1 MB`, `512M` and `36 GiB` are sizes; a unit without "i" is tried in powers of 1000, then of 1024, and
    exact values come before rounded ones. Raises ModelError (field `printed` or `size_bytes`).
    """
    if isinstance(size_bytes, bool) or not isinstance(size_bytes, int) or not 0 <= size_bytes < 2**80:
        raise ModelError("size_bytes", f"{show(size_bytes)} is not a number of bytes")
    matched = _PRINTED.fullmatch(printed) if isinstance(printed, str) else None
    if matched is None:
        raise ModelError("printed", f"{show(printed)} is not a size such as 1.1 GB")
    prefix = matched[2].upper()
    value = Decimal(matched[1])
    quantum = Decimal(1).scaleb(int(value.as_tuple().exponent))
    bases = (1024,) if (matched[3] or "").lower() == "ib" else (1000, 1024)
    units = [(base ** _POWERS[prefix], f"{prefix}{'i' if prefix and base == 1024 else ''}B") for base in bases]
    for unit_bytes, unit in units:
        if value * unit_bytes == size_bytes:
            return PrintedSize(unit_bytes, unit, "exact")
    for name, rounding in _ROUNDINGS:
        for unit_bytes, unit in units:
            if (Decimal(size_bytes) / unit_bytes).quantize(quantum, rounding) == value:
                return PrintedSize(unit_bytes, unit, name)
    return None
