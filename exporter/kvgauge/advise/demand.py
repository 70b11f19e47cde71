"""What is asked of an engine and what it can do, in one record: for who reckons with a fleet of them.

It travels as JSON in `/v1/advice` (`plain` writes it, `read_demand` reads it), so lengths are thinned to a few points
that keep their first three moments.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TypeVar

from kvgauge.advise.lengths import Lengths
from kvgauge.advise.residing import Resident
from kvmodel.latency import StepCost

_GROUPS = 12
_MOST_POINTS = 2 * _GROUPS
_MOST_FIGURE = 1e18
_Record = TypeVar("_Record", Resident, StepCost)


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests are the pod's, all data-parallel ranks together; what an engine can do is one rank's, of `ranks` that
    are alike. None: not known."""

    arrived_total: float | None
    """Requests that ever came: those that finished, run, wait or are swapped out. Never falls but with a restart."""
    prompts: Lengths
    """Tokens of a prompt, what is found in a cache included."""
    outputs: Lengths
    computed_ratio: float
    """Share of the prompt tokens that is computed; the others are found in a cache."""
    resident: Resident | None
    pool_slots: float | None
    """Slots of one rank's pool that sequences may hold."""
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    cost: StepCost | None
    """Of one rank's step, corrected by what was seen."""
    slo_ttft_seconds: float | None
    slo_tpot_seconds: float | None
    finished: float
    """Requests that the lengths stand on."""
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class PlainLengths:
    """A distribution: rising lengths, and the share of requests that each stands for."""

    length_tokens: tuple[float, ...]
    share_ratio: tuple[float, ...]
    requests: float


@dataclass(frozen=True, slots=True)
class PlainDemand:
    """What a fleet is reckoned with: what is asked of this pod, and what one of its ranks can do."""

    arrived_total: float | None
    """Requests that ever came."""
    finished: float
    """Requests that the lengths stand on."""
    prompts: PlainLengths
    outputs: PlainLengths
    computed_ratio: float
    """Share of the prompt tokens that is not found in a cache."""
    resident: Resident | None
    """What one running request holds, in slots of the pool."""
    pool_slots: float | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    cost: StepCost | None
    slo_ttft_seconds: float | None
    slo_tpot_seconds: float | None
    ranks: int


def thinned(lengths: Lengths) -> Lengths:
    """The same with 24 points at most: each run of points becomes the two that have its first three moments."""
    count = len(lengths.points)
    if count <= _MOST_POINTS:
        return lengths
    points: list[float] = []
    shares: list[float] = []
    for group in range(_GROUPS):
        run = slice(group * count // _GROUPS, (group + 1) * count // _GROUPS)
        for point, share in _pair(lengths.points[run], lengths.shares[run]):
            points.append(point)
            shares.append(share)
    return Lengths(tuple(points), tuple(shares), lengths.count)


def _pair(points: Sequence[float], shares: Sequence[float]) -> list[tuple[float, float]]:
    """Gauss quadrature of two nodes: they lie between the first point and the last."""
    weighed = list(zip(points, shares, strict=True))
    mass = math.fsum(shares)
    if mass <= 0:
        return []
    mean = math.fsum([point * share for point, share in weighed]) / mass
    variance = math.fsum([(point - mean) ** 2 * share for point, share in weighed]) / mass
    deviation = math.sqrt(variance)
    if deviation <= 1e-9 * mean:
        return [(mean, mass)]
    third = math.fsum([(point - mean) ** 3 * share for point, share in weighed]) / mass
    half = third / deviation**3 / 2
    root = math.sqrt(1 + half * half)
    low = max(mean + deviation * (half - root), points[0])
    high = min(mean + deviation * (half + root), points[-1])
    upper = mass * (1 - half / root) / 2
    return [(low, mass - upper), (high, upper)]


def plain(demand: Demand) -> PlainDemand:
    """The record as JSON has it."""
    same = {field.name: getattr(demand, field.name) for field in fields(Demand)}
    return PlainDemand(**{**same, "prompts": _plain_lengths(demand.prompts), "outputs": _plain_lengths(demand.outputs)})


def to_json(demand: Demand) -> dict[str, object]:
    """`plain` as JSON's own types."""
    return asdict(plain(demand))


def read_demand(stored: object) -> Demand | None:
    """The demand that `stored`, parsed JSON from another process, is; None for anything else."""
    if not isinstance(stored, Mapping):
        return None
    prompts, outputs = _read_lengths(stored.get("prompts")), _read_lengths(stored.get("outputs"))
    finished, computed = _figure(stored.get("finished")), _figure(stored.get("computed_ratio"))
    ranks = _figure(stored.get("ranks", 1))
    if prompts is None or outputs is None or finished is None or computed is None or not ranks:
        return None
    return Demand(
        arrived_total=_figure(stored.get("arrived_total")),
        prompts=prompts,
        outputs=outputs,
        computed_ratio=min(computed, 1.0),
        resident=_read_record(Resident, stored.get("resident")),
        pool_slots=_figure(stored.get("pool_slots")),
        max_num_seqs=_whole(stored.get("max_num_seqs")),
        max_num_batched_tokens=_whole(stored.get("max_num_batched_tokens")),
        cost=_read_record(StepCost, stored.get("cost")),
        slo_ttft_seconds=_figure(stored.get("slo_ttft_seconds")),
        slo_tpot_seconds=_figure(stored.get("slo_tpot_seconds")),
        finished=finished,
        ranks=int(ranks),
    )


def _plain_lengths(lengths: Lengths) -> PlainLengths:
    return PlainLengths(lengths.points, lengths.shares, lengths.count)


def _read_lengths(stored: object) -> Lengths | None:
    if not isinstance(stored, Mapping):
        return None
    points, shares = _figures(stored.get("length_tokens")), _figures(stored.get("share_ratio"))
    requests = _figure(stored.get("requests"))
    if not points or shares is None or requests is None or len(points) != len(shares):
        return None
    whole = math.fsum(shares)
    if points[0] < 1 or not 0.99 <= whole <= 1.01 or list(points) != sorted(points):
        return None
    return Lengths(points, tuple(share / whole for share in shares), requests)


def _read_record(kind: type[_Record], stored: object) -> _Record | None:
    if not isinstance(stored, Mapping):
        return None
    values = [_figure(stored.get(field.name), signed=field.name == "third_slots3") for field in fields(kind)]
    found = [value for value in values if value is not None]
    return kind(*found) if len(found) == len(values) else None


def _figures(stored: object) -> tuple[float, ...] | None:
    if not isinstance(stored, Sequence) or isinstance(stored, str | bytes) or len(stored) > _MOST_POINTS:
        return None
    found = [value for value in map(_figure, stored) if value is not None]
    return tuple(found) if len(found) == len(stored) else None


def _figure(stored: object, *, signed: bool = False) -> float | None:
    """A number that is finite and, unless `signed`, not negative; None for anything else."""
    if not isinstance(stored, int | float) or isinstance(stored, bool):
        return None
    return float(stored) if (-_MOST_FIGURE if signed else 0) <= stored <= _MOST_FIGURE else None


def _whole(stored: object) -> int | None:
    value = _figure(stored)
    return None if value is None else int(value)
