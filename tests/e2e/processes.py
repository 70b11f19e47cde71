"""Child processes that can't outlive the tests, and waiting with a deadline."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

Found = TypeVar("Found")

POLL_SECONDS = 0.05
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108

# Reads until the tests' end of the pipe closes, however they end, then kills the process group it was given.
_GUARD = "import os, sys; sys.stdin.read(); os.killpg(int(sys.argv[1]), 9)"


def until(probe: Callable[[], Found | None], seconds: float, what: str) -> Found:
    """Calls `probe` until it gives something other than None or False, and returns that.

    Raises AssertionError that names `what` when it has not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(POLL_SECONDS)


def free_port() -> int:
    """A TCP port on loopback that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Child:
    """A program in a process group of its own, its output in a file.

    The group is killed when `kill` or `terminate` is called, and by a guard process when the tests themselves die.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        self._guard: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, str(self._process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the program itself, the head of the group, still runs."""
        return self._process.poll() is None

    def members(self) -> list[int]:
        """Living processes of the group. One that has died but was not yet waited for by its parent does not count."""
        return [pid for pid, group, state in _processes() if group == self.pid and state not in "ZX"]

    def kill(self) -> None:
        """SIGKILL to the whole group; returns when none of it lives. Also takes away the shared memory it leaves."""
        shared = _shared_memory(self.members())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(timeout=30)
        until(lambda: not self.members(), 30, f"the end of process group {self.pid}")
        self._dismiss_guard()
        for path in shared:
            path.unlink(missing_ok=True)

    def terminate(self, seconds: float = 20.0) -> int:
        """SIGTERM to the program, SIGKILL to what is left of its group after `seconds`; returns the exit status."""
        self._process.terminate()
        try:
            self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        with contextlib.suppress(AssertionError):
            until(lambda: not self.members(), 5, "the end of the group")
        self.kill()
        return self._process.returncode

    def last_lines(self, count: int = 15) -> str:
        """The end of the log, for an error message."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])

    def _dismiss_guard(self) -> None:
        self._guard.kill()
        self._guard.wait(timeout=30)
        stdin: IO[bytes] | None = self._guard.stdin
        if stdin is not None:
            stdin.close()


def _processes() -> Iterator[tuple[int, int, str]]:
    """(pid, process group, state) of every process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # The second field is the name in parentheses and may hold anything, so count from its end.
                state, _, group = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:3]
                yield int(entry.name), int(group), state


def _shared_memory(pids: Sequence[int]) -> set[Path]:
    """Named shared memory that the processes have mapped; SIGKILL leaves it behind, hundreds of MB an engine."""
    inodes: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
                if str(_SHARED_MEMORY) in line:
                    # Not by its name: a semaphore is mapped under a first one that is gone by now.
                    inodes.add(int(line.split()[4]))
    return {path for path in _SHARED_MEMORY.iterdir() if path.stat().st_ino in inodes}
