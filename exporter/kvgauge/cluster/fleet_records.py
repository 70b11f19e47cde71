"""What `/v1/fleet` answers. Keys carry their unit; what nobody told is null, never 0.

Figures of pods are rounded (ratios to thousandths, times to tenths of a second), so that an answer is small on the wire
and no digit stands in it that a page would not show.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Standing = Literal["over", "silent", "near", "safe", "none"]
"""Of a workload or the whole, the worst first. over: what its pods really have to do adds up to more than
the pods that tell it. silent: a ready pod does not tell, so that nobody can say. near: past the target, or one pod is
over its limit, or more pods are required than there are. none: no pod is ready."""


@dataclass(frozen=True, slots=True)
class WorkloadFigures:
    """One workload. Sums and extremes are of the pods that tell; `pods_silent` are not in them."""

    namespace: str
    kind: str | None
    """None, with the name: pods whose workload is not known, of one namespace."""
    name: str | None
    standing: Standing
    standing_seconds: float | None
    """For how long it was seen so; None where nothing is remembered yet."""
    spec_replicas: int | None
    """Asked for; groups of pods for a LeaderWorkerSet."""
    actual_replicas: int | None
    required_replicas: int | None
    """By the fleet rule."""
    published_replicas: float | None
    """What an autoscaler reads: another number where its dead band would swallow the first."""
    required_unknown: str | None
    """Why there is no required number, in words."""
    pods_ready: int
    pods_telling: int
    pods_silent: int
    pods_starting: int
    pods_terminating: int
    load_ratio_sum: float | None
    load_now_ratio_sum: float | None
    """Without the damping by which load ratios follow a fall within a minute."""
    load_ratio_most: float | None
    load_now_ratio_most: float | None
    safe_concurrency: int | None
    running: int | None
    waiting: int | None
    kv_usage_ratio_most: float | None
    kv_exhaustion_seconds: float | None
    """Of the pod whose pool is full first; None too when none is heading there."""
    oldest_age_seconds: float | None
    """Of the oldest figures among the ready pods."""


@dataclass(frozen=True, slots=True)
class PodFigures:
    """One pod. Figures that are too old to stand on are None; `age_seconds` says how old."""

    namespace: str
    name: str
    kind: str | None
    workload: str | None
    state: str
    """telling, silent, starting or terminating."""
    ready: bool
    load_ratio: float | None
    load_now_ratio: float | None
    """Less than the load ratio while that still follows a fall."""
    safe_concurrency: int | None
    running: int | None
    waiting: int | None
    kv_usage_ratio: float | None
    kv_exhaustion_seconds: float | None
    binding_limit: str | None
    age_seconds: float | None
    """Since the figures that it told last; None: it never did."""
    created_age_seconds: float | None
    silent_reason: str | None
    """Why a silent pod is silent, in words."""


@dataclass(frozen=True, slots=True)
class FleetTotals:
    """All workloads together."""

    workloads: int
    workloads_by_standing: Mapping[str, int]
    pods: Mapping[str, int]
    """By state."""
    load_ratio_sum: float | None
    """Of the pods that tell, as are those that follow."""
    running: int | None
    waiting: int | None
    actual_replicas: int
    required_replicas: int | None
    """Of the workloads of which it is known."""
    workloads_without_required: int


@dataclass(frozen=True, slots=True)
class FleetFigures:
    """The fleet at one moment."""

    wall_seconds: float
    watched_seconds: float | None
    """For how long this process has looked; what was before it does not know."""
    api_server_age_seconds: float | None
    """Since the API server last told of pods; None: never."""
    standing: Standing
    standing_seconds: float | None
    totals: FleetTotals
    workloads: tuple[WorkloadFigures, ...]
    """The worst first."""
    workloads_left_out: int
    chosen: WorkloadFigures | None
    """None: none was asked for, or there is none of that name."""
    explanation: tuple[str, ...]
    """Why the chosen one needs so many pods, in sentences."""
    pods: tuple[PodFigures, ...]
    """Of the chosen workload, else of all; the worst first."""
    pods_left_out: int


@dataclass(frozen=True, slots=True)
class FleetPoint:
    """One moment of the past quarter of an hour."""

    wall_seconds: float
    load_ratio_sum: float | None
    pods_telling: int
    pods_silent: int
