"""Charts as one SVG document: panels one above the other, no script and nothing outside the file."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from kvgauge.simulate.curves import ticks

Style = Literal["one", "two", "three"]

_WIDTH, _PANEL = 720, 214
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 48, 40
_HEAD = 14
_LETTER = 6.6
"""Width of a letter on average, to put one word behind the other."""

# Image viewers do not know the page's colours, so the ground is drawn too.
_STYLE = """\
.page { fill: #ffffff } text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #4d5663 }
.title { font-weight: 600; fill: #15191f } .grid { stroke: #d5dae1 } .mark { stroke: #15191f; stroke-dasharray: 3 3 }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round }
.one { stroke: #2f66d0 } .two { stroke: #b26a00; stroke-dasharray: 7 3 } .three { stroke: #b91c2b }
circle { fill: none; stroke-width: 2; stroke-dasharray: none } circle.two { stroke-dasharray: none }
@media (prefers-color-scheme: dark) { .page { fill: #0d1116 } text { fill: #a7b1bd } .title { fill: #e8ecf1 }
  .grid { stroke: #303843 } .mark { stroke: #e8ecf1 } .one { stroke: #6c9cf2 } .two { stroke: #e0a24a }
  .three { stroke: #ff7b77 } }"""


@dataclass(frozen=True, slots=True)
class Line:
    """Points joined by a line or, where they were measured one by one, drawn as dots. What lies above the panel is cut
    off."""

    name: str
    style: Style
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A dashed line across the panel with words at it: at a place of the axis below, or at a height."""

    words: str
    at: float
    upright: bool = True


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart. Both axes begin at 0; that at the side has no numbers where `most_y_told` is False."""

    title: str
    below: str
    """What the axis below counts."""
    lines: Sequence[Line]
    most_x: float
    most_y: float
    marks: Sequence[Mark] = ()
    most_y_told: bool = True


def document(title: str, description: str, panels: Sequence[Panel]) -> str:
    """The panels as a standalone SVG document. `description` is for whoever cannot see it."""
    height = _HEAD + _PANEL * len(panels)
    inside = f'x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_PANEL - _TOP - _BOTTOM + 2}"'
    labelled = 'role="img" aria-labelledby="title description"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {labelled}>',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="description">{escape(description)}</desc>',
        f"<style>{_STYLE}</style>",
        f'<clipPath id="inside"><rect {inside}/></clipPath>',
        f'<rect class="page" width="{_WIDTH}" height="{height}"/>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate(0 {_HEAD + _PANEL * number})">')
        parts += [*_axes(panel), *_curves(panel), *_marks(panel), *_key(panel)]
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def _x(panel: Panel, value: float) -> float:
    return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * value / panel.most_x, 1)


def _y(panel: Panel, value: float) -> float:
    bottom = _PANEL - _BOTTOM
    return round(bottom - (bottom - _TOP) * value / panel.most_y, 1)


def _axes(panel: Panel) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _PANEL - _BOTTOM
    parts = []
    for value in ticks(panel.most_y, 5) if panel.most_y_told else (0.0,):
        level = _y(panel, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{level}" y2="{level}"/>')
        if panel.most_y_told:
            parts.append(f'<text x="{_LEFT - 8}" y="{level + 4}" text-anchor="end">{value:,g}</text>')
    parts += [
        f'<text x="{_x(panel, value)}" y="{bottom + 16}" text-anchor="middle">{value:,g}</text>'
        for value in ticks(panel.most_x, 8)
    ]
    parts.append(f'<text x="{right}" y="{bottom + 32}" text-anchor="end">{escape(panel.below)}</text>')
    return parts


def _curves(panel: Panel) -> list[str]:
    parts = []
    for line in panel.lines:
        places = [(_x(panel, x), _y(panel, y)) for x, y in line.points]
        if line.dots:
            parts += [f'<circle class="{line.style}" cx="{x:g}" cy="{y:g}" r="3.5"/>' for x, y in places if y >= _TOP]
        else:
            # Of points on one level the first and the last are enough.
            kept = [
                place
                for number, place in enumerate(places)
                if number in (0, len(places) - 1) or not places[number - 1][1] == place[1] == places[number + 1][1]
            ]
            points = " ".join(f"{x:g},{y:g}" for x, y in kept)
            parts.append(f'<polyline class="{line.style}" clip-path="url(#inside)" points="{points}"/>')
    return parts


def _marks(panel: Panel) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _PANEL - _BOTTOM
    parts = []
    for mark in panel.marks:
        words = escape(mark.words)
        if mark.upright:
            x = _x(panel, mark.at)
            parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{_TOP - 4}" y2="{bottom}"/>')
            parts.append(f'<text x="{x + 6}" y="{_TOP + 8}">{words}</text>')
        else:
            y = _y(panel, mark.at)
            parts.append(f'<line class="mark" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{_LEFT + 6}" y="{y - 5}">{words}</text>')
    return parts


def _key(panel: Panel) -> list[str]:
    parts = [f'<text class="title" x="{_LEFT}" y="14">{escape(panel.title)}</text>']
    left = float(_LEFT)
    for line in panel.lines if len(panel.lines) > 1 else ():
        if line.dots:
            parts.append(f'<circle class="{line.style}" cx="{left + 11:g}" cy="30" r="3.5"/>')
        else:
            parts.append(f'<polyline class="{line.style}" points="{left:g},30 {left + 22:g},30"/>')
        parts.append(f'<text x="{left + 28:g}" y="34">{escape(line.name)}</text>')
        left = round(left + 28 + _LETTER * len(line.name) + 18, 1)
    return parts
