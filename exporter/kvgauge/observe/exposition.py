"""Reads the lines of a metrics page that somebody asked for, and leaves the rest unparsed.

The parsing itself is prometheus_client's. It raises on the first line it cannot read, which would lose a whole scrape
(an engine on Windows prints ``-nan(ind)``), so on failure the lines are read one by one and only the bad one is lost.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from kvgauge.observe.records import SourceError

MAX_LINES = 50_000
MAX_LINE_BYTES = 64 * 1024
MAX_LABEL_CHARACTERS = 256


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
    try:
        samples = _parse(readable)
    except ValueError:
        samples = []
        for line in readable:
            try:
                samples.extend(_parse([line]))
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


def _parse(lines: list[bytes]) -> list[Sample]:
    # OpenMetrics pages may carry an exemplar after the value, which the text format does not know.
    text = "".join(line.decode(errors="replace").split(" # {", 1)[0] + "\n" for line in lines)
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]
