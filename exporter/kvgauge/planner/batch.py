"""Many cases, a line each: read, planned and written one at a time, so that memory stays that of one case."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import BinaryIO

from kvgauge.complaints import InputError
from kvgauge.planner.figures import Plan

LONGEST_LINE_BYTES = 16 * 2**20
_CHUNK_BYTES = 64 * 1024
_TICK_LINES = 50


Tick = Callable[[int, int], None]
"""Told (lines, bytes) since the last call."""


def run(path: str, plan: Plan, defaults: Mapping[str, object]) -> None:
    """Plans the lines of `path` (`-`: stdin) onto stdout. Raises InputError where the file can't be read."""
    with _source(path) as source, progress(_size(source)) as tick:
        # A pipe's answers are read by someone who waits for them.
        plan_lines(source, sys.stdout.buffer, plan, defaults, tick=tick, flush=path == "-")
    sys.stdout.buffer.flush()


def plan_lines(
    source: BinaryIO,
    target: BinaryIO,
    plan: Plan,
    defaults: Mapping[str, object] | None = None,
    *,
    tick: Tick | None = None,
    flush: bool = False,
) -> None:
    """One JSON result a line for each line of `source`, in order; blank lines at the end are no cases."""
    given = dict(defaults or {})
    encode = json.JSONEncoder(allow_nan=False, separators=(", ", ": ")).encode
    lines = size = 0
    for number, line in numbered_lines(source):
        result = plan_line(number, line, plan, given)
        try:
            text = encode(result)
        except (ValueError, TypeError, RecursionError) as error:
            text = encode(refusal(plan, number, f"has a result that is not JSON: {error}"))
        target.write(text.encode())
        target.write(b"\n")
        if flush:
            target.flush()
        if tick is not None:
            lines += 1
            size += len(line or b"") + 1
            if lines == _TICK_LINES:
                tick(lines, size)
                lines = size = 0
    if tick is not None and lines:
        tick(lines, size)


def plan_line(number: int, line: bytes | None, plan: Plan, defaults: Mapping[str, object]) -> dict[str, object]:
    """The result of one line; None stands for a line that is too long."""
    if line is None:
        return refusal(plan, number, f"is longer than {LONGEST_LINE_BYTES} bytes")
    try:
        # Infinity and NaN pass: Python writes them into config.json, as in Mamba's time_step_limit.
        case = json.loads(line.decode("utf-8-sig"))
    except RecursionError:
        return refusal(plan, number, "is nested too deeply")
    except UnicodeDecodeError:
        return refusal(plan, number, "is not UTF-8")
    except json.JSONDecodeError as error:
        return refusal(plan, number, f"is not JSON: {error.msg} at column {error.colno}" if line else "is empty")
    except ValueError as error:
        return refusal(plan, number, f"is not JSON: {error}")
    if not isinstance(case, dict):
        return refusal(plan, number, "is not a JSON object")
    return plan({**defaults, **case} if defaults else case)


def refusal(plan: Plan, number: int, why: str) -> dict[str, object]:
    """A result of the planner's shape for a line that holds no case."""
    message = " ".join(why.split())[:400]
    return {**plan({}), "warnings": [], "error": {"field": f"line {number}", "message": message}}


def numbered_lines(source: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line without its end) of `source`; None instead of a line that is too long."""
    number = blank = 0
    while line := source.readline(LONGEST_LINE_BYTES + 2):
        number += 1
        stripped = line.strip()
        if not stripped and len(line) <= LONGEST_LINE_BYTES:
            blank += 1
            continue
        for skipped in range(number - blank, number):
            yield skipped, b""
        blank = 0
        if len(line.rstrip(b"\r\n")) > LONGEST_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = source.readline(_CHUNK_BYTES)
            yield number, None
        else:
            yield number, stripped


@contextlib.contextmanager
def progress(total_bytes: int | None) -> Iterator[Tick | None]:
    """A bar on stderr where that is a terminal and rich is there; otherwise nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield None
        return
    columns = (BarColumn(), TextColumn("{task.fields[lines]} cases"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total_bytes, lines=0)
        done = 0

        def tick(lines: int, size: int) -> None:
            nonlocal done
            done += lines
            bar.update(task, advance=size, lines=done)

        yield tick


def _source(path: str) -> AbstractContextManager[BinaryIO]:
    if path == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")  # noqa: PTH123 - the caller closes it
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"batch: {path[:200]!r}: {reason}") from None


def _size(source: BinaryIO) -> int | None:
    try:
        return os.fstat(source.fileno()).st_size or None
    except OSError:
        return None
