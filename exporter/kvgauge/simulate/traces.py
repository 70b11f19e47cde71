"""Requests from a recorded trace: read, put in order, cut and multiplied."""

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path

from kvgauge.complaints import InputError
from kvgauge.simulate.spec import Request
from kvgauge.simulate.trace_file import Columns, Fields, Lines, opened
from kvmodel.errors import show

MAX_REQUESTS = 5_000_000
"""Most requests of one load, copies included: the largest public trace that is one file has 3.9 million."""
MAX_PREFIX_BLOCKS = 50_000_000
MAX_TOKENS = 10_000_000
"""Longest prompt or output that is believed."""
MAX_SCALE = 1000.0
_LATEST_SECONDS = 1e11
_LONGEST_SPAN_SECONDS = 10 * 366 * 86400.0
_DISORDER_SECONDS = 600.0
"""How far past a cut rows may still bring an earlier arrival; reading ends there."""
_GAP_SECONDS = 600.0
_JITTER_SECONDS = 1.0
_NEIGHBOURS = 10

_IDS = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?", re.ASCII)

_Row = tuple[float, int, int, tuple[int, ...]]
"""Arrival in seconds, prompt and output tokens, names of the prompt's leading blocks."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival, on a clock that starts at the file's first request."""

    recorded: tuple[Request, ...]
    duration_seconds: float
    """Where the load ends: the cut, or the last arrival of a trace that is shorter."""
    warnings: tuple[str, ...] = ()
    """What was odd about the file and what was made of it, a sentence each."""

    def requests(self) -> Iterator[Request]:
        """The requests, from the first on."""
        return iter(self.recorded)


def read_trace(path: Path, *, scale: float = 1.0, duration_seconds: float | None = None, seed: int = 1) -> Trace:
    """The requests of a file, its first `duration_seconds` of them, at `scale` times its arrivals.

    A whole copy of every request stays as recorded; further ones come up to a second later, with the lengths of one of
    the ten requests before or after, so that bursts and the mix of lengths stay and no two requests are twins. A copy
    of a request with prefix blocks keeps its lengths and shares blocks only with requests of the same copy: other
    users, alike in habits. Of a fraction of a copy, each request comes with that probability. Below 1 the clock stays
    the file's, though its first request may be gone. The same seed gives the same requests, and a shorter cut the
    beginning of a longer one, except for neighbours across it.

    Rows without output tokens (failed requests) are left out, and rows out of order are sorted; `warnings` says so.
    Raises InputError for a file that is no such trace, naming row, column and value.
    """
    if not 0 < scale <= MAX_SCALE:
        raise InputError(f"scale: should be above 0 and at most {MAX_SCALE:g}, not {show(scale)}")
    if duration_seconds is not None and not 0 < duration_seconds < math.inf:
        raise InputError(f"duration: should be above 0 seconds, not {show(duration_seconds)}")
    with opened(path) as (columns, rows, lines):
        collected = _Collected(path, columns, duration_seconds)
        collected.take(rows, lines)
    recorded = collected.finish()
    if len(recorded) * scale > MAX_REQUESTS:
        raise InputError(f"scale: {scale:g} x {len(recorded)} requests are more than {MAX_REQUESTS}; cut the duration")
    scaled = _scaled(recorded, scale, seed)
    end = recorded[-1][0]
    if duration_seconds is not None:
        end = duration_seconds if collected.reaches_cut else end
        scaled = [row for row in scaled if row[0] < duration_seconds]
    if not scaled:
        raise InputError(f"scale: {scale:g} leaves none of {len(recorded)} requests")
    block_tokens = columns.block_tokens
    requests = tuple([Request(*row, block_tokens) for row in scaled])
    return Trace(requests, max(end, requests[-1].arrival_seconds), collected.warnings(recorded))


class _Collected:
    """The rows of a file so far, and what was odd about them."""

    def __init__(self, path: Path, columns: Columns, duration_seconds: float | None) -> None:
        self.rows: list[_Row] = []
        self._path = path
        self._columns = columns
        self._duration = math.inf if duration_seconds is None else duration_seconds
        self._first = math.inf
        self._latest = -math.inf
        self._without_output = 0
        self._disordered = 0
        self._overlong = 0
        self._blocks = 0

    @property
    def reaches_cut(self) -> bool:
        """Whether the trace goes on up to the cut at least."""
        return self._latest - self._first >= self._duration

    def take(self, rows: Iterator[Fields], lines: Lines) -> None:
        """Takes in the rows up to the cut. Raises InputError."""
        pick = itemgetter(*self._columns.keys)
        for fields in rows:
            try:
                row = self._row(pick(fields))
            except (IndexError, KeyError):
                raise InputError(self._without_value(lines, fields)) from None
            except _BadValueError as error:
                raise InputError(f"trace: {self._path}: row {lines.number}, {error}") from None
            if row is None:
                self._without_output += 1
                continue
            arrival = row[0]
            if arrival < self._latest:
                self._disordered += 1
            else:
                self._latest = arrival
            self._first = min(self._first, arrival)
            if arrival - self._first < self._duration:
                self.rows.append(row)
                if len(self.rows) > MAX_REQUESTS or self._blocks > MAX_PREFIX_BLOCKS:
                    raise InputError(
                        f"trace: {self._path}: row {lines.number}: more than {MAX_REQUESTS} requests or "
                        f"{MAX_PREFIX_BLOCKS} prefix blocks; cut the duration"
                    )
            elif arrival - self._first > self._duration + _DISORDER_SECONDS:
                return

    def _row(self, picked: Sequence[object]) -> _Row | None:
        """A row's request, None without output. Raises _BadValueError."""
        columns = self._columns
        blocks: tuple[int, ...] = ()
        column = 0
        try:
            arrival = _arrival_seconds(picked[0], columns.arrival_unit_seconds)
            column = 1
            prompt = _tokens(picked[1])
            column = 2
            output = _tokens(picked[2])
            if not output:
                return None
            column = 1
            if not prompt:
                raise ValueError("should be at least 1")
            if len(picked) > 3:
                column = 3
                blocks, more = _block_names(picked[3], -(-prompt // columns.block_tokens))
                self._blocks += len(blocks)
                self._overlong += more
        except ValueError as error:
            raise _BadValueError(f"column {show(columns.names[column])}: {error}, not {show(picked[column])}") from None
        return arrival, prompt, output, blocks

    def _without_value(self, lines: Lines, fields: Fields) -> str:
        there = fields if isinstance(fields, Mapping) else range(len(fields))
        named = zip(self._columns.names, self._columns.keys, strict=True)
        missing = next(name for name, key in named if key not in there)
        return f"trace: {self._path}: row {lines.number}: no value in column {show(missing)}"

    def finish(self) -> list[_Row]:
        """The rows in order of arrival, from 0, all before the cut. Raises InputError where there are none."""
        if not self.rows:
            raise InputError(f"trace: {self._path}: no requests in it")
        if self._disordered:
            self.rows.sort(key=itemgetter(0))
        first, last = self._first, self.rows[-1][0]
        if last - first > _LONGEST_SPAN_SECONDS:
            raise InputError(
                f"trace: {self._path}: spans {last - first:.4g} seconds, more than ten years; "
                "a column of milliseconds should be called timestamp_ms"
            )
        return [
            (arrival - first, prompt, output, blocks)
            for arrival, prompt, output, blocks in self.rows
            if arrival - first < self._duration
        ]

    def warnings(self, recorded: Sequence[_Row]) -> tuple[str, ...]:
        """What a reader of results should know of the file."""
        found = []
        if self._without_output:
            found.append(f"{self._without_output} rows without output tokens are left out")
        if self._disordered:
            found.append(f"{self._disordered} rows come before an earlier one; sorted by arrival")
        if self._overlong:
            found.append(f"{self._overlong} rows name more prefix blocks than their prompt has; the rest is left out")
        gaps = ((after[0] - row[0], row[0]) for row, after in itertools.pairwise(recorded))
        gap, begin = max(gaps, default=(0.0, 0.0))
        if gap >= _GAP_SECONDS:
            found.append(f"no request for {gap:.0f} seconds from second {begin:.0f} on, the longest gap")
        return tuple(found)


class _BadValueError(Exception):
    """A value that cannot be: which column, why and what it is."""


def _arrival_seconds(value: object, unit_seconds: float) -> float:
    """Seconds on some clock; a date and time without zone is UTC. Raises ValueError."""
    try:
        at = _number(value) * unit_seconds
    except ValueError:
        if not isinstance(value, str):
            raise
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError("should be a number or a date and time") from None
        at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if abs(at) > _LATEST_SECONDS:
        raise ValueError("should be a time in seconds (milliseconds in a column called timestamp_ms)")
    return at


def _tokens(value: object) -> int:
    """A count of tokens, perhaps 0. Raises ValueError."""
    if isinstance(value, str) and len(value) < 9 and value.isdigit() and value.isascii():
        tokens = int(value)
    else:
        number = _number(value)
        if not number.is_integer():
            raise ValueError("should be a whole number")
        tokens = int(number)
    if not 0 <= tokens <= MAX_TOKENS:
        raise ValueError(f"should be from 1 to {MAX_TOKENS}")
    return tokens


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or (isinstance(value, str) and "_" in value):
        raise ValueError("should be a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("should be a number") from None
    if not math.isfinite(number):
        raise ValueError("should be a number")
    return number


def _block_names(value: object, most: int) -> tuple[tuple[int, ...], bool]:
    """The first `most` block names of a list, or of a text of ids and ranges; and whether there are more."""
    ranges: list[range] = []
    if isinstance(value, str):
        for part in value.strip("[] \t\r\n").replace(",", " ").replace(";", " ").split():
            match = _IDS.fullmatch(part)
            if match is None:
                raise ValueError("should be block ids such as 0-78 90")
            begin = int(match[1])
            ranges.append(range(begin, int(match[2] or begin) + 1))
            if not ranges[-1]:
                raise ValueError("should be block ids such as 0-78 90, ranges upwards")
        flat = itertools.chain.from_iterable(ranges)
        found = tuple(itertools.islice(flat, most))
        return found, next(flat, None) is not None
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one < 10**18 for one in value):
        raise ValueError("should be a list of block ids")
    return tuple(value[:most]), len(value) > most


def _scaled(rows: list[_Row], scale: float, seed: int) -> list[_Row]:
    if scale == 1:
        return rows
    source = random.Random(seed)  # noqa: S311 - copies that can be repeated, not a secret
    whole, fraction = divmod(scale, 1)
    stride = 1 + max((max(row[3]) for row in rows if row[3]), default=-1)
    last = len(rows) - 1
    scaled: list[_Row] = []
    for index, row in enumerate(rows):
        count = int(whole) + (source.random() < fraction)
        if count:
            scaled.append(row)
        for copy in range(1, count):
            at = row[0] + _JITTER_SECONDS * source.random()
            if row[3]:
                scaled.append((at, row[1], row[2], tuple([name + copy * stride for name in row[3]])))
                continue
            near = rows[min(max(index - _NEIGHBOURS + int((2 * _NEIGHBOURS + 1) * source.random()), 0), last)]
            scaled.append((at, near[1], near[2], ()))
    scaled.sort(key=itemgetter(0))
    return scaled
