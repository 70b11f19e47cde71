"""Reads the lines of a metrics page that somebody asked for, and leaves the rest unparsed.

Nearly all lines are plain: a name, labels without escapes, a number. One expression reads those, in a fraction of
prometheus_client's time, whose parser gets the others one by one: it raises on a line that it cannot read (an
engine on Windows prints ``-nan(ind)``), and so only that line is lost.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from kvgauge.observe.records import SourceError

MAX_LINES = 50_000
MAX_LINE_BYTES = 64 * 1024
MAX_LABEL_CHARACTERS = 256

_PAIR = r'[a-zA-Z_][a-zA-Z0-9_]*="[^"\\]*"'
_NUMBER = r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|[+-]?Inf|NaN"
_PLAIN = re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{{((?:{_PAIR}(?:,{_PAIR})*)?)\}})? ({_NUMBER})")
_PAIRS = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\]*)"')
# A label of this name would stand for the sample's own.
_NAME_LABEL = "__name__"


@dataclass(frozen=True, slots=True)
class Page:
    """The wanted samples of one page, by the name they carry on it, in page order."""

    samples: Mapping[str, tuple[Sample, ...]]
    bad_lines: int

    def rows(self, *names: str) -> tuple[Sample, ...]:
        """Samples of the first of `names` that the page has; empty when it has none."""
        for name in names:
            if name in self.samples:
                return self.samples[name]
        return ()


def sample_names(body: bytes) -> Iterable[bytes]:
    """Names of all samples on a page, as they come. Raises SourceError `too_many_lines` beyond MAX_LINES."""
    for line in _lines(body):
        if not line.startswith(b"#"):
            yield _name(line)


def read_page(body: bytes, wanted: Collection[bytes]) -> Page:
    """Parses the lines of `body` whose sample name is in `wanted`.

    A wanted line that cannot be read, or is longer than MAX_LINE_BYTES, is counted in `bad_lines` and left out.
    Raises SourceError `too_many_lines` beyond MAX_LINES lines.
    """
    lines = [line for line in _lines(body) if _name(line) in wanted]
    readable = [line for line in lines if len(line) <= MAX_LINE_BYTES]
    bad_lines = len(lines) - len(readable)
    samples: list[Sample] = []
    for line in readable:
        text = _text(line)
        plain = _plain_sample(text)
        if plain is not None:
            samples.append(plain)
            continue
        try:
            samples.extend(_parse(text))
        except ValueError:
            bad_lines += 1
    grouped: dict[str, list[Sample]] = {}
    for sample in samples:
        grouped.setdefault(sample.name, []).append(sample)
    return Page({name: tuple(rows) for name, rows in grouped.items()}, bad_lines)


def label(sample: Sample, name: str) -> str | None:
    """One label's value, cut to MAX_LABEL_CHARACTERS; None when absent, empty, or Python's word for it ("None")."""
    value = sample.labels.get(name)
    if value is None or value in {"", "None"}:
        return None
    return value[:MAX_LABEL_CHARACTERS]


def _lines(body: bytes) -> list[bytes]:
    if body.count(b"\n") > MAX_LINES:
        raise SourceError("too_many_lines", f"the page has more than {MAX_LINES} lines")
    return body.split(b"\n")


def _name(line: bytes) -> bytes:
    brace = line.find(b"{")
    return line[:brace].rstrip() if brace >= 0 else line.partition(b" ")[0]


def _text(line: bytes) -> str:
    # OpenMetrics pages may carry an exemplar after the value, which the text format does not know.
    return line.decode(errors="replace").split(" # {", 1)[0]


def _plain_sample(text: str) -> Sample | None:
    """The sample of a plain line; None for every other."""
    found = _PLAIN.fullmatch(text)
    if found is None:
        return None
    name, body, value = found.groups()
    if not body:
        return Sample(name, {}, float(value))
    labels: dict[str, str] = dict(_PAIRS.findall(body))
    # Fewer labels than pairs: one is there twice.
    if _NAME_LABEL in labels or len(labels) != body.count('="'):
        return None
    return Sample(name, labels, float(value))


def _parse(text: str) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(text + "\n") for sample in family.samples]
