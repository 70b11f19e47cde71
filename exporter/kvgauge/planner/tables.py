"""rich, loaded when a person is to read: plain where the output is no terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kvgauge.complaints import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console() -> Console:
    """Where tables go: stdout, 80 columns wide when it is no terminal. Raises InputError without rich."""
    try:
        from rich.console import Console
    except ImportError:
        raise InputError("rich is missing: install it for tables, or use --json") from None
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal cannot show is no reason to show nothing.
        sys.stdout.reconfigure(errors="replace")
    # Markup off: a model's path may hold brackets.
    return Console(file=sys.stdout, markup=False, highlight=False, emoji=False, soft_wrap=False)


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int] = (0,)) -> Table:
    """A table, its columns right-aligned but those in `left`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    kept_left, listed = set(left), [list(row) for row in rows]
    made = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for index, heading in enumerate(headings):
        # A word of a heading and a number are never cut in two: where room is short, longer texts are folded.
        widest = max(map(len, heading.split()), default=0)
        if index in kept_left:
            made.add_column(heading, overflow="fold", min_width=widest)
        else:
            widest = max([widest, *(len(row[index]) for row in listed)])
            made.add_column(heading, justify="right", overflow="fold", min_width=widest)
    for row in listed:
        made.add_row(*(Text(cell) for cell in row))
    return made


def heading(text: str) -> object:
    """A line that stands out on a terminal."""
    from rich.text import Text

    return Text(text, style="bold")
