"""What the doctor says of one thing, and the words that it takes from others."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail", "skip"]
_MOST_CHARACTERS = 300
_GIB, _MIB = 1 << 30, 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `skip`: it could not be looked at, because something before it failed or is not there."""

    check: str
    status: Status
    found: str
    next: str | None = None
    """The command to type; every `warn` and `fail` has one."""

    def to_json(self) -> Mapping[str, str | None]:
        return {"check": self.check, "status": self.status, "found": self.found, "next": self.next}


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warn(check: str, found: str, command: str) -> Finding:
    return Finding(check, "warn", found, command)


def fail(check: str, found: str, command: str) -> Finding:
    return Finding(check, "fail", found, command)


def skip(check: str, why: str) -> Finding:
    return Finding(check, "skip", why)


def words(text: object) -> str:
    """What another side said, fit for a terminal: one line, printable, cut."""
    plain = " ".join(str(text).split()) if isinstance(text, str) else ""
    shown = "".join(letter if letter.isprintable() else "?" for letter in plain[: _MOST_CHARACTERS + 1])
    return shown if len(shown) <= _MOST_CHARACTERS else shown[: _MOST_CHARACTERS - 3] + "..."


def typed(text: object) -> str:
    """What another side said, as one word of a command: a name may hold what a shell would run."""
    return shlex.quote(words(text))


def since(seconds: float | None) -> str:
    """An age for people."""
    if seconds is None:
        return "an unknown time"
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def many(number: int, what: str, more: str | None = None) -> str:
    return f"{number} {what if number == 1 else more or what + 's'}"


def bytes_of(size: float | None) -> str:
    """A size for people."""
    if size is None:
        return "an unknown size"
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / _MIB:.1f} MiB"
