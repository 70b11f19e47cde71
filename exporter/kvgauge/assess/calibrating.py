"""What was measured of an engine before corrects what is predicted of it now, under whatever flags it runs.

Learned is a pair for each part of a GPU's memory: what was predicted and what was measured. A part that grows with the
batch (activations, graphs) is corrected by their ratio, any other by their difference. What the driver shows beyond the
parts counts as `context`. Where a part takes more than predicted out of the engine's share, the pool has so much less.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median_low

from kvgauge.assess.forecasting import ACTIVATIONS, CONTEXT, GRAPHS, KV_POOL
from kvgauge.assess.records import ComponentPrediction, GpuAssessment

TOTAL = "total"
_SCALING = frozenset({ACTIVATIONS, GRAPHS})
# What differs more from its prediction was not measured of the same thing.
_MOST_APART = 8
_NAME = re.compile(r"[a-z_]{1,32}")
_MOST_BYTES = 1 << 50
_MOST_FIGURES = 32


@dataclass(frozen=True, slots=True)
class Key:
    """What has to be the same for figures of one run to hold for another. Empty: not told."""

    engine: str
    version: str
    gpu: str
    """Names of the GPUs and MIG profiles."""
    model: str
    tp: int
    pp: int


@dataclass(frozen=True, slots=True)
class Figure:
    """One part of a GPU's memory, or its total, in bytes. `measured_bytes` None: predicted only."""

    predicted_bytes: int
    measured_bytes: int | None

    @property
    def excess_bytes(self) -> int:
        """What it takes more than predicted; 0 where it was not measured."""
        return 0 if self.measured_bytes is None else self.measured_bytes - self.predicted_bytes

    @property
    def taken_bytes(self) -> int:
        """As measured, else as predicted."""
        return self.predicted_bytes + self.excess_bytes


Figures = Mapping[str, Figure]
"""By component, and the total."""


def predictions(gpu: GpuAssessment) -> tuple[ComponentPrediction, ...]:
    """The parts of one GPU and their total, where that is predicted."""
    return gpu.components if gpu.total is None else (*gpu.components, gpu.total)


def learned(parts: Sequence[ComponentPrediction], measured: Mapping[str, Sequence[int]]) -> Figures:
    """From the same part measured several times, the middle one: a single odd reading changes nothing."""
    figures = {}
    for part in parts:
        values = measured.get(part.component, ())
        value = median_low(values) if values else None
        if value is None or _is_given(part) or not _is_plausible(part.expected_bytes, value):
            value = None
        figures[part.component] = Figure(part.expected_bytes, value)
    return figures


def calibrated(
    parts: Sequence[ComponentPrediction], figures: Figures, pool_pays_for: Collection[str]
) -> dict[str, int]:
    """Bytes by component, the total included where it is predicted; never negative."""
    expected = {part.component: part.expected_bytes for part in parts}
    total = expected.pop(TOTAL, None)
    found = {name: _corrected(name, size, figures.get(name)) for name, size in expected.items()}
    pool = next((part for part in parts if part.component == KV_POOL), None)
    if pool is not None:
        found[KV_POOL] = pool.expected_bytes
        if not _is_given(pool):
            # What its neighbours took more, they take more again; the rest of the pool's own error stays as it was.
            paid = [name for name in pool_pays_for if name in found]
            own_excess = sum(figures[name].excess_bytes for name in paid if name in figures)
            figure = figures.get(KV_POOL, Figure(0, None))
            rest = -figure.excess_bytes - own_excess if figure.measured_bytes is not None else 0
            found[KV_POOL] -= sum(found[name] - expected[name] for name in paid) + rest
    seen = figures.get(TOTAL)
    if total is not None and seen is not None and seen.measured_bytes is not None:
        beyond = seen.measured_bytes - sum(figure.taken_bytes for name, figure in figures.items() if name != TOTAL)
        found[CONTEXT] = found.get(CONTEXT, 0) + beyond
    if total is not None:
        found[TOTAL] = sum(found.values())
    return {name: max(size, 0) for name, size in found.items()}


def _corrected(name: str, expected_bytes: int, figure: Figure | None) -> int:
    if figure is None or figure.measured_bytes is None:
        return expected_bytes
    if name in _SCALING and figure.predicted_bytes:
        return expected_bytes * figure.measured_bytes // figure.predicted_bytes
    return max(expected_bytes + figure.excess_bytes, 0)


def _is_given(part: ComponentPrediction) -> bool:
    """A pool that was asked for in bytes: its size says nothing of its neighbours, nor they of it."""
    return part.component == KV_POOL and part.low_bytes == part.high_bytes


def _is_plausible(predicted_bytes: int, measured_bytes: int) -> bool:
    if predicted_bytes == 0:
        return 0 <= measured_bytes < _MOST_BYTES
    return predicted_bytes <= measured_bytes * _MOST_APART and measured_bytes <= predicted_bytes * _MOST_APART


def plain_figures(figures: Figures) -> dict[str, dict[str, int | None]]:
    """As JSON can hold them."""
    return {name: asdict(figure) for name, figure in figures.items()}


def figures_of(plain: object) -> Figures:
    """Of what `plain_figures` gave; whatever else is in there is left out."""
    found: dict[str, Figure] = {}
    for name, figure in plain.items() if isinstance(plain, Mapping) else ():
        if isinstance(name, str) and _NAME.fullmatch(name) and isinstance(figure, Mapping):
            predicted = size_of(figure.get("predicted_bytes"))
            if predicted is not None and len(found) < _MOST_FIGURES:
                found[name] = Figure(predicted, size_of(figure.get("measured_bytes")))
    return found


def size_of(plain: object) -> int | None:
    """A number of bytes that was written down."""
    if not isinstance(plain, int) or isinstance(plain, bool) or not 0 <= plain < _MOST_BYTES:
        return None
    return plain
