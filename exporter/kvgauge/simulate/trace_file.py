"""Recorded requests from a file: CSV or JSON lines, gzip or not, by the column names of the public traces.

| trace | arrival | lengths | prefix blocks |
|---|---|---|---|
| plain | `t_s`, seconds | `prompt_tokens`, `output_tokens` | `block_ids_<tokens>`: ids and ranges such as `0-78 90` |
| Azure LLM inference 2023, 2024 | `TIMESTAMP`, date and time | `ContextTokens`, `GeneratedTokens` | |
| BurstGPT | `Timestamp`, seconds | `Request tokens`, `Response tokens` | |
| Mooncake (FAST'25) | `timestamp`, milliseconds | `input_length`, `output_length` | `hash_ids`, of 512 tokens |
| Qwen-Bailian | `timestamp`, seconds, beside `chat_id` | `input_length`, `output_length` | `hash_ids`, of 16 tokens |
| ServeGen | `timestamp`, seconds | `input_tokens`, `output_tokens` | |
| Vidur, Splitwise | `arrived_at`, `arrival_timestamp` | `num_prefill_tokens`, `prompt_size`, ... | |
"""

import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper
from pathlib import Path

from kvgauge.complaints import InputError
from kvmodel.errors import show

MAX_LINES = 20_000_000
MAX_LINE_CHARACTERS = 1024 * 1024
MAX_TEXT_CHARACTERS = 4 * 1024**3

_ARRIVALS: Mapping[str, float] = {
    "t_s": 1.0,
    "arrival_seconds": 1.0,
    "arrival_s": 1.0,
    "arrived_at": 1.0,
    "arrival_time": 1.0,
    "arrival_timestamp": 1.0,
    "timestamp_s": 1.0,
    "timestamp_ms": 0.001,
    "timestamp": 1.0,
}
"""Names of the arrival's column, the first that is there wins, and the seconds of its unit."""
_PROMPTS = (
    "prompt_tokens",
    "contexttokens",
    "request_tokens",
    "input_length",
    "input_tokens",
    "num_prefill_tokens",
    "prompt_size",
)
_OUTPUTS = (
    "output_tokens",
    "generatedtokens",
    "response_tokens",
    "output_length",
    "num_decode_tokens",
    "token_size",
    "completion_tokens",
)
_NAMED_BLOCKS = re.compile(r"block_ids_(\d{1,6})")

Fields = Sequence[object] | Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the facts of a row are: its keys, or its positions in a CSV."""

    names: tuple[str, ...]
    """Arrival, prompt, output and, where there are any, blocks, as the file spells them."""
    keys: tuple[int, ...] | tuple[str, ...]
    arrival_unit_seconds: float
    block_tokens: int


@contextmanager
def opened(path: Path) -> Iterator[tuple[Columns, Iterator[Fields], "Lines"]]:
    """The file's columns, its rows as they are read, and the count of its lines.

    Raises InputError, also from the rows and from what is done with them: for a file that cannot be read, is no text,
    breaks off in its compression, or has no such columns.
    """
    try:
        with _plain(path) as raw, TextIOWrapper(_unzipped(path, raw), encoding="utf-8-sig", newline="") as file:
            lines = Lines(path, file)
            yield *_table(path, lines), lines
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"trace: {path}: broken gzip file: {error}") from None
    except OSError as error:
        raise InputError(f"trace: {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"trace: {path}: not a text file: {error.reason} in UTF-8") from None


def _plain(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except ValueError as error:
        # A NUL in the path, or what no file system can spell.
        raise InputError(f"trace: {show(str(path))}: {error}") from None


def _unzipped(path: Path, raw: BufferedReader) -> BufferedReader | gzip.GzipFile:
    if raw.peek(2)[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=raw)
    if path.suffix == ".gz":
        raise InputError(f"trace: {path}: not a gzip file")
    return raw


class Lines:
    """The lines of a text, counted, none of them too long."""

    def __init__(self, path: Path, file: TextIOWrapper) -> None:
        self.number = 0
        self._path = path
        self._file = file
        self._characters = 0

    def __iter__(self) -> Iterator[str]:
        readline = self._file.readline
        while line := readline(MAX_LINE_CHARACTERS + 1):
            self.number += 1
            self._characters += len(line)
            if len(line) > MAX_LINE_CHARACTERS:
                raise InputError(
                    f"trace: {self._path}: row {self.number}: longer than {MAX_LINE_CHARACTERS} characters"
                )
            if self.number > MAX_LINES or self._characters > MAX_TEXT_CHARACTERS:
                raise InputError(f"trace: {self._path}: row {self.number}: larger than a trace can be; split it")
            yield line


def _table(path: Path, lines: Lines) -> tuple[Columns, Iterator[Fields]]:
    """The columns and the rows: JSON objects where the first line with anything on it is one, else CSV."""
    source = iter(lines)
    first = next((line for line in source if not line.isspace()), None)
    if first is None:
        raise InputError(f"trace: {path}: empty")
    if first.lstrip().startswith("{"):
        rows = _objects(path, itertools.chain((first,), source), lines)
        head = next(rows)
        columns = _columns(path, list(head), by_position=False)
        return columns, itertools.chain((head,), rows)
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    try:
        names = next(csv.reader((first,), delimiter=delimiter))
    except (csv.Error, StopIteration):
        names = [first]
    return _columns(path, names, by_position=True), _records(path, source, delimiter, lines)


def _objects(path: Path, source: Iterable[str], lines: Lines) -> Iterator[Mapping[str, object]]:
    for line in source:
        if line.isspace():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"trace: {path}: row {lines.number}: not a JSON object: {show(line.strip())}") from None
        if not isinstance(value, dict):
            raise InputError(f"trace: {path}: row {lines.number}: not a JSON object: {show(line.strip())}")
        yield value


def _records(path: Path, source: Iterator[str], delimiter: str, lines: Lines) -> Iterator[Sequence[str]]:
    try:
        # An empty record is a blank line.
        yield from filter(None, csv.reader(source, delimiter=delimiter))
    except csv.Error as error:
        raise InputError(f"trace: {path}: row {lines.number}: {error}") from None


def _columns(path: Path, names: list[str], *, by_position: bool) -> Columns:
    places: dict[str, int] = {}
    for index, name in enumerate(names):
        places.setdefault("_".join(name.lower().split()), index)

    def place(what: str, known: Iterable[str]) -> str:
        found = next((name for name in known if name in places), None)
        if found is None:
            there = ", ".join(show(name) for name in names[:12]) or "nothing"
            raise InputError(f"trace: {path}: no column of {what} ({', '.join(known)}); found {there}")
        return found

    arrival, prompt, output = place("arrivals", _ARRIVALS), place("prompts", _PROMPTS), place("outputs", _OUTPUTS)
    unit = _ARRIVALS[arrival]
    if arrival == "timestamp" and prompt == "input_length" and "chat_id" not in places:
        unit = 0.001
    chosen = [places[arrival], places[prompt], places[output]]
    block_tokens = 16 if "chat_id" in places else 512
    named = next((match for match in map(_NAMED_BLOCKS.fullmatch, places) if match and int(match[1])), None)
    if named is not None:
        chosen.append(places[named[0]])
        block_tokens = int(named[1])
    elif "hash_ids" in places:
        chosen.append(places["hash_ids"])
    spelled = tuple(names[index] for index in chosen)
    return Columns(spelled, tuple(chosen) if by_position else spelled, unit, block_tokens)
