"""Parts of the accuracy page: sections, Markdown tables, numbers as a person reads them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.table import Figure

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Section:
    """One heading of the page, and the figures that it must meet."""

    title: str
    text: str
    figures: tuple[Figure, ...] = ()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a column whose name begins with `>` is aligned to the right."""
    names = [name.removeprefix(">") for name in columns]
    rules = ["--:" if name.startswith(">") else "---" for name in columns]
    lines = [names, rules, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def whole(value: float | None) -> str:
    """A number with thousands separated; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


def gib(size_bytes: float) -> str:
    """Bytes as GiB with two digits."""
    return f"{size_bytes / GIB:.2f}"


def percent(ratio: float) -> str:
    """A signed share of one as a percentage with two digits; what rounds to nothing has no sign."""
    text = f"{100 * ratio:+.2f} %"
    return text if text[1:] != "0.00 %" else "0.00 %"


def paragraphs(*parts: str) -> str:
    """Blocks of text with an empty line between them; empty ones are left out."""
    return "\n\n".join(part.strip() for part in parts if part.strip())
