"""Memory as one bar of letters: to scale, and readable without colour."""

from collections.abc import Sequence
from dataclasses import dataclass

LETTERS = {
    "weights": "W",
    "activations": "A",
    "graphs": "G",
    "context": "C",
    "communication": "N",
    "workspace": "S",
    "kv_pool": "K",
}
COLOURS = {"W": "blue", "A": "yellow", "G": "magenta", "C": "cyan", "N": "red", "S": "bright_black", "K": "green"}
OTHER = "o"
FREE = "."
BEYOND = "!"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the bar."""

    name: str
    letter: str
    size_bytes: float
    cells: int


def segments(memory: Sequence[tuple[str, float]], card_bytes: float | None, width: int) -> list[Segment]:
    """The parts in `width` cells: every part that is not empty has one at least, the cells add up to `width`.

    What the card has left comes last; where the parts exceed the card, the excess does (named `beyond the card`, and
    part of the others).
    """
    parts = [(name, LETTERS.get(name, OTHER), size) for name, size in memory if size > 0]
    total = sum(size for _, _, size in parts)
    if card_bytes is not None and card_bytes > total:
        parts.append(("free", FREE, card_bytes - total))
    if not parts:
        return []
    cells = _cells([size for _, _, size in parts], max(width, len(parts)))
    return [Segment(name, letter, size, used) for (name, letter, size), used in zip(parts, cells, strict=True)]


def _cells(sizes: Sequence[float], width: int) -> list[int]:
    """Cells by largest remainder; the smallest parts take their one cell from the largest."""
    total = sum(sizes)
    exact = [size / total * width for size in sizes]
    cells = [max(1, int(share)) for share in exact]
    order = sorted(range(len(sizes)), key=lambda index: exact[index] - int(exact[index]), reverse=True)
    step = 0
    while sum(cells) < width:
        cells[order[step % len(order)]] += 1
        step += 1
    while sum(cells) > width:
        cells[cells.index(max(cells))] -= 1
    return cells
