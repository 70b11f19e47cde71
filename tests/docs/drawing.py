"""Diagrams as one SVG document: narrow enough that their words can be read on a phone, in light and in dark.

`bench.advice.drawing` draws charts for wide pages; these are boxes, bars and a few lines with words beside them.
"""

from dataclasses import dataclass, field
from html import escape
from typing import Literal

WIDTH = 480
"""Of the drawing's own units, in which words are 16 high: 11 px where a phone is 360 px wide."""
SHOWN_WIDTH = 560
"""Pixels, where there is room."""
LETTER = 8.9
"""Width of a letter on average."""

Anchor = Literal["start", "middle", "end"]

# Kinds differ by lightness and by pattern too, not by hue alone. Image viewers know no page, so the ground is drawn.
_STYLE = """\
.page { fill: #ffffff } text { font: 16px system-ui, "DejaVu Sans", sans-serif; fill: #3d4652 }
.strong { font-weight: 600; fill: #15191f } .big { font-weight: 600; font-size: 18px; fill: #15191f }
.line { stroke: #3d4652; stroke-width: 1.5; fill: none } .grid { stroke: #d5dae1; fill: none }
.dash { stroke: #15191f; stroke-width: 1.5; stroke-dasharray: 5 4; fill: none }
.live { fill: #2f66d0 } .reuse { fill: #e3a63c } .none { fill: #ffffff; stroke: #8b95a1 }
.bad { fill: #b91c2b } .soft { fill: #b9cdf3; stroke: #2f66d0 }
.rest { fill: #8b95a1 } .edge { stroke: #15191f; fill: none }
.one { stroke: #2f66d0 } .two { stroke: #a35f00 } .three { stroke: #b91c2b } .four { stroke: #1a7f4b }
.curve { fill: none; stroke-width: 3; stroke-linejoin: round } .ahead { stroke-dasharray: 7 5 }
.hatched { fill: url(#hatch) } .hatch-ground { fill: #fbe4e2 } .hatch-line { stroke: #b91c2b; stroke-width: 2.5 }
@media (prefers-color-scheme: dark) { .page { fill: #0d1116 } text { fill: #b4bec9 }
  .strong, .big { fill: #eef1f5 } .line { stroke: #b4bec9 } .grid { stroke: #303843 } .dash, .edge { stroke: #eef1f5 }
  .live { fill: #5f93f0 } .reuse { fill: #d9982b } .none { fill: #0d1116; stroke: #77818d } .bad { fill: #ff7b77 }
  .soft { fill: #2a3f6b; stroke: #5f93f0 } .rest { fill: #77818d } .one { stroke: #6c9cf2 } .two { stroke: #e0a24a }
  .three { stroke: #ff7b77 } .four { stroke: #57c98c } .hatch-ground { fill: #3b1a1d }
  .hatch-line { stroke: #ff7b77 } }"""
_HATCH = """\
<pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">\
<rect class="hatch-ground" width="7" height="7"/><line class="hatch-line" x1="0" x2="0" y1="0" y2="7"/></pattern>"""


@dataclass(slots=True)
class Drawing:
    """Parts in the order in which they are painted."""

    title: str
    description: str
    """For whoever cannot see it: what it shows, with its numbers."""
    height: float
    parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        self.parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>')

    def words(self, x: float, y: float, text: str, kind: str = "", anchor: Anchor = "start") -> None:
        end = x + LETTER * len(text) * {"start": 1.0, "middle": 0.5, "end": 0.0}[anchor]
        assert end <= WIDTH + 6, f"{text!r} leaves the picture at {end:.0f}"
        class_ = f' class="{kind}"' if kind else ""
        placed = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.parts.append(f'<text{class_} x="{x:g}" y="{y:g}"{placed}>{escape(text, quote=False)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "line") -> None:
        self.parts.append(f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>')

    def curve(self, points: list[tuple[float, float]], kind: str) -> None:
        # Of points on one level the first and the last are enough.
        around = zip([points[0], *points], points, [*points[1:], points[-1]], strict=False)
        kept = [here for before, here, after in around if not before[1] == here[1] == after[1]]
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in dict.fromkeys((points[0], *kept, points[-1])))
        self.parts.append(f'<polyline class="curve {kind}" points="{places}"/>')

    def document(self) -> str:
        shown = round(self.height * SHOWN_WIDTH / WIDTH)
        size = f'viewBox="0 0 {WIDTH} {self.height:g}" width="{SHOWN_WIDTH}" height="{shown}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title description">',
                f'<title id="title">{escape(self.title)}</title>',
                f'<desc id="description">{escape(self.description)}</desc>',
                f"<style>{_STYLE}</style>",
                _HATCH,
                f'<rect class="page" width="{WIDTH}" height="{self.height:g}"/>',
                *self.parts,
                "</svg>\n",
            ]
        )
