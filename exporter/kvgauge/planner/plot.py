"""Memory against concurrency as an SVG, written by hand: weights, overheads, KV cache, the pool's end, the card."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

from kvgauge.complaints import InputError
from kvgauge.planner.figures import GIB, Plan, count, figures, gib, requests, tokens_per_request
from kvgauge.planner.report import card_bytes

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 56, 96

# Colours that keep their contrast on a light and on a dark ground; the ground itself stays the reader's.
_STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #3d4450 } .title { font-size: 15px; font-weight: 600 }
.axis { stroke: #7a828e; stroke-width: 1 } .grid { stroke: #7a828e; stroke-width: 1; opacity: .25 }
.weights { fill: #4a7ebb } .overheads { fill: #b07aa1 } .kv { fill: #4f9d69 }
.limit { stroke: #d1495b; stroke-width: 2 }
.pool { stroke: #c98a1b; stroke-width: 2; stroke-dasharray: 6 4 }
@media (prefers-color-scheme: dark) { text { fill: #d5d9e0 } }"""


_Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn, in bytes and requests."""

    title: str
    weights_bytes: float
    overheads_bytes: float
    kv_bytes_per_request: float
    pool_bytes: float
    card_bytes: float | None
    most_requests: float
    """Requests that fill the pool."""
    request: str
    """What a request is, in words."""


def curve(plan: Plan, case: Mapping[str, object], result: Mapping[str, object]) -> Curve:
    """The picture of a plan. Raises InputError where there is no pool to draw."""
    found = figures(result)
    usual = tokens_per_request(plan, case, result)
    most = found.max_concurrency if usual is None else usual[1]
    if not found.fits or not most or found.pool_bytes is None:
        raise InputError("plot: nothing is left for the KV cache, there is no curve to draw")
    memory = dict(found.memory)
    weights = memory.get("weights", 0)
    others = sum(size for name, size in found.memory if name not in ("weights", "kv_pool"))
    return Curve(
        title=f"{found.model} on {found.engine} {found.engine_version}".strip(),
        weights_bytes=weights,
        overheads_bytes=others,
        kv_bytes_per_request=found.pool_bytes / most,
        pool_bytes=found.pool_bytes,
        card_bytes=card_bytes(case, result),
        most_requests=most,
        request="requests of the longest length" if usual is None else f"requests of {count(usual[0])} tokens",
    )


def svg(drawn: Curve) -> str:
    """The picture as a standalone SVG document."""
    base = drawn.weights_bytes + drawn.overheads_bytes
    full = base + drawn.pool_bytes
    most_x = drawn.most_requests * 1.2
    most_y = max(full, drawn.card_bytes or 0) * 1.14
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x(number: float) -> float:
        return round(_LEFT + (right - _LEFT) * number / most_x, 1)

    def y(size: float) -> float:
        return round(bottom - (bottom - _TOP) * size / most_y, 1)

    parts = [*_grid(most_x, most_y, x_of=x, y_of=y)]
    parts.append(_area("weights", [(x(0), y(0)), (x(0), y(drawn.weights_bytes))], right))
    parts.append(_area("overheads", [(x(0), y(drawn.weights_bytes)), (x(0), y(base))], right))
    end = x(drawn.most_requests)
    kv = f"{x(0)},{y(base)} {end},{y(full)} {right},{y(full)} {right},{y(base)}"
    parts.append(f'<polygon class="kv" points="{kv}"/>')
    parts.append(f'<line class="pool" x1="{end}" x2="{end}" y1="{_TOP}" y2="{bottom}"/>')
    parts.append(
        f'<text x="{end - 6}" y="{_TOP + 14}" text-anchor="end">pool full: {requests(drawn.most_requests)}</text>'
    )
    if drawn.card_bytes is not None:
        level = y(drawn.card_bytes)
        parts.append(f'<line class="limit" x1="{_LEFT}" x2="{right}" y1="{level}" y2="{level}"/>')
        parts.append(f'<text x="{_LEFT + 6}" y="{level - 6}">card: {gib(drawn.card_bytes)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{bottom}"/>')
    parts.extend(_labels(drawn, bottom))
    return _document(drawn, parts)


def _grid(most_x: float, most_y: float, *, x_of: _Scale, y_of: _Scale) -> list[str]:
    parts = []
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for size in _ticks(most_y / GIB):
        level = y_of(size * GIB)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{level}" y2="{level}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{level + 4}" text-anchor="end">{size:g}</text>')
    parts.extend(
        f'<text x="{x_of(number)}" y="{bottom + 18}" text-anchor="middle">{number:,g}</text>'
        for number in _ticks(most_x)
    )
    return parts


def _area(name: str, edge: list[tuple[float, float]], right: float) -> str:
    (left, low), (_, high) = edge
    height = round(low - high, 1)
    return f'<rect class="{name}" x="{left}" y="{high}" width="{right - left}" height="{height}"/>'


def _labels(drawn: Curve, bottom: float) -> list[str]:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    legend = (
        ("weights", f"weights {gib(drawn.weights_bytes)}"),
        ("overheads", f"overheads {gib(drawn.overheads_bytes)}"),
        ("kv", f"KV cache {gib(drawn.kv_bytes_per_request)} a request"),
    )
    turned = f'transform="translate(20 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle"'
    parts = [
        f'<text class="title" x="{_LEFT}" y="24">{escape(drawn.title[:90])}</text>',
        f'<text x="{middle}" y="{bottom + 42}" text-anchor="middle">concurrent {escape(drawn.request)}</text>',
        f"<text {turned}>memory of each GPU (GiB)</text>",
    ]
    for index, (name, label) in enumerate(legend):
        left, top = _LEFT + 225 * index, _HEIGHT - 28
        parts.append(f'<rect class="{name}" x="{left}" y="{top}" width="14" height="14"/>')
        parts.append(f'<text x="{left + 20}" y="{top + 12}">{escape(label)}</text>')
    return parts


def _document(drawn: Curve, parts: list[str]) -> str:
    card = "" if drawn.card_bytes is None else f" The card has {gib(drawn.card_bytes)}."
    description = (
        f"Weights take {gib(drawn.weights_bytes)}, overheads {gib(drawn.overheads_bytes)}; each of the {drawn.request} "
        f"takes {gib(drawn.kv_bytes_per_request)} of KV cache, and {requests(drawn.most_requests)} fill the pool of "
        f"{gib(drawn.pool_bytes)}.{card}"
    )
    labelled = 'role="img" aria-labelledby="title description"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {labelled}>',
            f'<title id="title">Memory against concurrency: {escape(drawn.title)}</title>',
            f'<desc id="description">{escape(description)}</desc>',
            f"<style>{_STYLE}</style>",
            *parts,
            "</svg>\n",
        ]
    )


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 up to `most`, about six of them."""
    raw = most / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= raw)
    return [round(step * index, 10) for index in range(int(most / step) + 1)]
