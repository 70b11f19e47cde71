"""Runs the command over the stand-in as a process: on pipes, or on a pseudo-terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

COMMAND = (sys.executable, "-m", "tests.planner.standin")


def piped(
    *arguments: str, given: bytes = b"", environ: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """The command on pipes."""
    return subprocess.run(
        [*COMMAND, *arguments], input=given, capture_output=True, timeout=60, env={**os.environ, **(environ or {})}
    )


def without(package: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """The command on pipes, where `package` can't be imported."""
    code = (
        f"import sys; sys.modules[{package!r}] = None; from tests.planner.standin import FIELDS, plan, run; "
        "run(sys.argv[1:], plan, FIELDS)"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=60)


def on_terminal(*arguments: str, columns: int = 80) -> tuple[int, str]:
    """(exit code, what a terminal `columns` wide would get of stdout and stderr)."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS", "FORCE_COLOR"}}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**kept, "TERM": "xterm-256color"},
    )
    os.close(slave)
    written = b""
    try:
        while chunk := _read(master):
            written += chunk
    finally:
        os.close(master)
    return process.wait(30), written.decode()


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:
        # Linux ends a pseudo-terminal whose last writer has left with EIO.
        return b""
