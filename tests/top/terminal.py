"""A program in a pseudo-terminal of a given size, and what is on its screen."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_])")
_HOME = "\x1b[H"
_WAIT_SECONDS = 15.0


@dataclass
class Terminal:
    """`typed` keys go in; frames come out, each drawn from the upper left corner."""

    process: "subprocess.Popen[bytes]"
    master: int
    columns: int
    output: str = ""

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def resize(self, columns: int, rows: int) -> None:
        self.columns = columns
        _set_size(self.master, columns, rows)
        self.process.send_signal(signal.SIGWINCH)

    @property
    def echoes(self) -> bool:
        """Whether what is typed is shown, as in a shell."""
        return bool(termios.tcgetattr(self.master)[3] & termios.ECHO)

    def until(self, holds: Callable[[list[str]], bool], what: str) -> list[str]:
        """The first whole screen for which it holds. Raises AssertionError with the last one."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < deadline:
            if not self._read(0.2) and self.process.poll() is not None:
                break
            # The last frame may be half written; the one before it is whole.
            for drawn in reversed(self.output.split(_HOME)[1:-1]):
                lines = plain(drawn)
                if holds(lines):
                    self.output = _HOME + self.output.rpartition(_HOME)[2]
                    return lines
                break
        raise AssertionError(f"not seen: {what}\n" + "\n".join(plain(self.output[-6000:])))

    def drawn_until(self, holds: Callable[[], bool], what: str) -> None:
        """Takes what is drawn until it holds. Raises AssertionError."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"not seen: {what}"
            self._read(0.05)
        while self._read(0.0):
            pass

    def end(self) -> int:
        """The exit code, once the program has ended by itself."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.1)
        assert self.process.poll() is not None, "the program does not end"
        while self._read(0.0):
            pass
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], seconds)
        if not ready:
            return False
        try:
            read = os.read(self.master, 65536)
        except OSError:
            return False
        self.output += read.decode(errors="replace")
        return bool(read)


def plain(drawn: str) -> list[str]:
    """Lines without colours and without the blanks that fill them."""
    return [line.rstrip() for line in _ESCAPE.sub("", drawn).replace("\r", "").split("\n")]


@contextmanager
def terminal(
    command: Sequence[str], columns: int, rows: int, environ: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """Runs the command in a terminal of that size until the block ends."""
    master, slave = pty.openpty()
    _set_size(slave, columns, rows)
    # What the surroundings say of size and colours must not win over the terminal.
    kept = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "TERM")}
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={**kept, "TERM": "xterm-256color", **(environ or {})},
    )
    try:
        yield Terminal(process, master, columns)
    finally:
        process.kill()
        process.wait(5)
        os.close(slave)
        os.close(master)


def _set_size(descriptor: int, columns: int, rows: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
