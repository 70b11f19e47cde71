"""Line plots over time as inline SVG, by hand: no script, no other file, colours by CSS variables of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from kvgauge.simulate.fleet import Sample

BINS = 240
"""Points of a curve: more would not be seen, and make the page large."""

_WIDTH, _HEIGHT = 720, 190
_SMALLEST = 1e-6
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 24, 12, 26


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: its name, its CSS class, and its values."""

    name: str
    style: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Course:
    """A run in stretches of equal length: in each the mean rate of arrivals, and of all else the highest value."""

    seconds: tuple[float, ...]
    """Where each stretch ends."""
    arrivals_per_second: tuple[float, ...]
    ready: tuple[float, ...]
    wanted: tuple[float, ...]
    running: tuple[float, ...]
    waiting: tuple[float, ...]
    kv_ratio: tuple[float, ...]


def course(samples: Sequence[Sample]) -> Course:
    """The samples in at most `BINS` stretches, none where there are no samples."""
    size = math.ceil(len(samples) / BINS) or 1
    stretches = [samples[begin : begin + size] for begin in range(0, len(samples), size)]
    rates = []
    before_seconds, before_arrived = 0.0, 0
    for stretch in stretches:
        last = stretch[-1]
        rates.append((last.arrived - before_arrived) / max(last.seconds - before_seconds, 1e-9))
        before_seconds, before_arrived = last.seconds, last.arrived
    return Course(
        seconds=tuple(stretch[-1].seconds for stretch in stretches),
        arrivals_per_second=tuple(rates),
        ready=tuple(float(max(one.ready for one in stretch)) for stretch in stretches),
        wanted=tuple(float(max(one.replicas for one in stretch)) for stretch in stretches),
        running=tuple(float(max(one.running for one in stretch)) for stretch in stretches),
        waiting=tuple(float(max(one.waiting for one in stretch)) for stretch in stretches),
        kv_ratio=tuple(max(one.kv_ratio for one in stretch) for stretch in stretches),
    )


def plot(label: str, seconds: Sequence[float], curves: Sequence[Curve], *, most: float | None = None) -> str:
    """Curves over time on one scale from 0 to `most` (default: a little over the highest value).

    On a narrow screen it is scrolled rather than shrunk. `label` tells a reader who cannot see it what is drawn.
    Without two points there is nothing to draw, and it says so.
    """
    if len(seconds) < 2:
        return '<p class="soft">Too short to draw.</p>'
    highest = max(value for curve in curves for value in curve.values)
    top = most if most is not None else highest * 1.08 if highest > _SMALLEST else 1.0
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x(at: float) -> float:
        return round(_LEFT + (right - _LEFT) * at / seconds[-1], 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - _TOP) * min(value, top) / top, 1)

    said = "; ".join(f"{curve.name} up to {max(curve.values):,.4g}" for curve in curves)
    parts = [
        f'<div class="wide"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{label}: {said}")}">'
    ]
    for value in ticks(top, 5):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(value)}" y2="{y(value)}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{value:,g}</text>')
    unit, size = _time_unit(seconds[-1])
    for at in ticks(seconds[-1] / size, 8):
        anchor = "start" if at == 0 else "middle"
        parts.append(f'<text x="{x(at * size)}" y="{bottom + 18}" text-anchor="{anchor}">{at:g} {unit}</text>')
    for curve in curves:
        points = " ".join(f"{x(at):g},{y(value):g}" for at, value in zip(seconds, curve.values, strict=True))
        parts.append(f'<polyline class="{curve.style}" points="{points}"/>')
    return "".join([*parts, "</svg></div>"])


def ticks(most: float, count: int) -> list[float]:
    """Round numbers from 0 up to `most`, about `count` of them."""
    raw = most / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= raw * (1 - 1e-9))
    return [round(step * index, 10) for index in range(int(most / step * (1 + 1e-9)) + 1)]


def _time_unit(seconds: float) -> tuple[str, float]:
    """What the time axis counts in."""
    return next(unit for unit in (("h", 3600.0), ("min", 60.0), ("s", 1.0)) if seconds >= 3 * unit[1] or unit[1] == 1)
