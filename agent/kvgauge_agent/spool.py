"""This process' file in the spool: written under another name and renamed, so that a reader sees all of it or none."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time

DEFAULT_DIRECTORY = "/run/kvgauge"
MAX_BYTES = 64 * 1024
ABANDONED_AFTER_SECONDS = 60.0

_OURS = re.compile(r"\.?[A-Za-z0-9-]{1,32}-[0-9]+\.json(\.tmp)?")


class Spool:
    """The file of this process in `directory` (KVGAUGE_SPOOL, or /run/kvgauge). Its methods raise OSError."""

    def __init__(self, directory: str = "") -> None:
        self._directory = directory or os.environ.get("KVGAUGE_SPOOL") or DEFAULT_DIRECTORY
        name = f"{_place()}-{os.getpid()}.json"
        self.path = os.path.join(self._directory, name)
        self._temporary = os.path.join(self._directory, f".{name}.tmp")

    def write(self, content: bytes) -> None:
        """Replaces the file. The directory is made where only its last part is missing."""
        # Readable by all: the sidecar runs as another user, and the engine's umask may be anything.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(self._temporary, flags, 0o644)
        except FileNotFoundError:
            os.mkdir(self._directory, 0o755)
            file = os.open(self._temporary, flags, 0o644)
        try:
            os.fchmod(file, 0o644)
            if os.write(file, content) != len(content):
                raise OSError(f"{self._temporary}: written in part only")
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
            raise
        finally:
            os.close(file)
        os.replace(self._temporary, self.path)

    def remove(self) -> None:
        """Takes the file away, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def remove_abandoned(self) -> None:
        """Takes away what agents left that have not written for a minute; a directory that can't be read is left."""
        oldest = time.time() - ABANDONED_AFTER_SECONDS
        with contextlib.suppress(OSError), os.scandir(self._directory) as entries:
            for entry in entries:
                if _OURS.fullmatch(entry.name):
                    with contextlib.suppress(OSError):
                        if entry.stat(follow_symlinks=False).st_mtime < oldest:
                            os.unlink(entry.path)


def _place() -> str:
    """Where a process id means one process: the containers of a pod share the host's name, and each has a process 1."""
    host = re.sub(r"[^A-Za-z0-9-]", "", socket.gethostname())[:20] or "host"
    try:
        return f"{host}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return host
