"""Who listens on this host, and what the sidecar beside us is connected to: read from /proc, without asking anybody."""

import contextlib
import os
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

_LISTENS, _CONNECTED = "0A", "01"
_MOST_ROWS = 20_000
_MOST_PROCESSES = 4096
_MOST_FILES = 4096


@dataclass(frozen=True, slots=True)
class Neighbours:
    """TCP ports of this host (in a pod: of the pod)."""

    listening: tuple[int, ...] = ()
    of_the_sidecar: tuple[int, ...] = ()
    """Of those the ones that the sidecar's process is connected to, or serves itself: mostly its engine's."""


@dataclass(frozen=True, slots=True)
class _Row:
    local: int
    remote: int
    state: str
    inode: str


def neighbours(sidecar_port: int | None, proc: Path = Path("/proc")) -> Neighbours:
    """What can be read of it; nothing is an error. `sidecar_port` is where a sidecar listens, if on this host."""
    rows = [row for name in ("tcp", "tcp6") for row in _rows(proc / "net" / name)]
    listening = {row.local for row in rows if row.state == _LISTENS}
    found: set[int] = set()
    if sidecar_port in listening:
        own = _sockets_beside({row.inode for row in rows if row.state == _LISTENS and row.local == sidecar_port}, proc)
        held = [row for row in rows if row.inode in own]
        found = {row.remote for row in held if row.state == _CONNECTED and row.remote in listening}
        found |= {row.local for row in held if row.state == _LISTENS}
    return Neighbours(tuple(sorted(listening - {sidecar_port or 0})), tuple(sorted(found - {sidecar_port or 0})))


def _rows(table: Path) -> Iterator[_Row]:
    with contextlib.suppress(OSError), table.open() as file:
        for number, line in enumerate(file):
            if number > _MOST_ROWS:
                return
            parts = line.split()
            with contextlib.suppress(ValueError, IndexError):
                local, remote = (int(parts[place].rpartition(":")[2], 16) for place in (1, 2))
                yield _Row(local, remote, parts[3], parts[9])


def _sockets_beside(inodes: Set[str], proc: Path) -> Set[str]:
    """All sockets of the process that has one of these."""
    for number, process in enumerate(proc.glob("[0-9]*")):
        if number > _MOST_PROCESSES:
            break
        held = set(_sockets(process / "fd"))
        if held & inodes:
            return held
    return set()


def _sockets(folder: Path) -> Iterator[str]:
    # Other users' processes show theirs to root only.
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number > _MOST_FILES:
                return
            with contextlib.suppress(OSError):
                kind, _, inode = str(Path(entry.path).readlink()).partition(":[")
                if kind == "socket":
                    yield inode.rstrip("]")
