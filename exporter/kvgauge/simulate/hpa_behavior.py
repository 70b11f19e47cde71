"""How fast the horizontal pod autoscaler may follow a recommendation: stabilisation windows and rate policies.

Source: kubernetes pkg/controller/podautoscaler/horizontal.go. All times are virtual seconds.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeVar

from kvgauge.simulate.hpa_calculator import MAX_REPLICAS, Tolerances


class Reason(StrEnum):
    """Why a sync ended with the replicas it did."""

    WITHIN_RANGE = "DesiredWithinRange"
    SCALE_UP_LIMIT = "ScaleUpLimit"
    SCALE_DOWN_LIMIT = "ScaleDownLimit"
    TOO_MANY = "TooManyReplicas"
    TOO_FEW = "TooFewReplicas"
    DISABLED = "ScalingDisabled"
    METRICS_FAILED = "FailedComputeMetricsReplicas"


@dataclass(frozen=True, slots=True)
class Policy:
    """At most `value` pods, or per cent of the pods, of change in any `period_seconds`."""

    kind: Literal["Pods", "Percent"]
    value: int
    period_seconds: float

    def __post_init__(self) -> None:
        if self.kind not in {"Pods", "Percent"}:
            raise ValueError(f"kind of a policy must be Pods or Percent, not {self.kind!r}")
        for name, value in (("value", self.value), ("period_seconds", self.period_seconds)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} of a policy must be above 0, not {value}")


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """The rules of one direction."""

    policies: tuple[Policy, ...]
    stabilization_seconds: float = 0.0
    select: Literal["Max", "Min", "Disabled"] = "Max"
    """Which policy holds: the one that allows the largest change, the smallest, or no change at all."""
    tolerance: float | None = None
    """In place of the controller's own tolerance, for this direction."""

    def __post_init__(self) -> None:
        if self.select not in {"Max", "Min", "Disabled"}:
            raise ValueError(f"select must be Max, Min or Disabled, not {self.select!r}")
        if not self.policies and self.select != "Disabled":
            raise ValueError("policies must not be empty")
        if not 0 <= self.stabilization_seconds < math.inf:
            raise ValueError(f"stabilization_seconds must be 0 or more, not {self.stabilization_seconds}")


DEFAULT_SCALE_UP = ScalingRules((Policy("Pods", 4, 15), Policy("Percent", 100, 15)))
DEFAULT_SCALE_DOWN = ScalingRules((Policy("Percent", 100, 15),), stabilization_seconds=300)


@dataclass(frozen=True, slots=True)
class Behavior:
    """`spec.behavior`; what it leaves out takes the API server's defaults."""

    scale_up: ScalingRules = DEFAULT_SCALE_UP
    scale_down: ScalingRules = DEFAULT_SCALE_DOWN

    def tolerances(self, default: float) -> Tolerances:
        """The tolerance of each direction, the controller's where the rules have none."""
        up, down = self.scale_up.tolerance, self.scale_down.tolerance
        return Tolerances(default if up is None else up, default if down is None else down)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The fewest and the most replicas there may be."""

    min_replicas: int
    max_replicas: int

    def __post_init__(self) -> None:
        if self.min_replicas < 0:
            raise ValueError(f"min_replicas must be 0 or more, not {self.min_replicas}")
        if self.max_replicas < max(1, self.min_replicas):
            lowest = max(1, self.min_replicas)
            raise ValueError(f"max_replicas must be at least {lowest}, not {self.max_replicas}")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What the metrics asked for at one time, before stabilisation."""

    at_seconds: float
    replicas: int


@dataclass(frozen=True, slots=True)
class ScaleEvent:
    """A change that was made: how many pods were added, or removed."""

    at_seconds: float
    change: int


Dated = TypeVar("Dated", Recommendation, ScaleEvent)


@dataclass(slots=True)
class ScaleEvents:
    """The changes made lately, upward and downward."""

    ups: list[ScaleEvent] = field(default_factory=list)
    downs: list[ScaleEvent] = field(default_factory=list)

    def record(self, now_seconds: float, before: int, after: int, behavior: Behavior) -> None:
        """Notes a change from `before` to `after` replicas."""
        grew = after > before
        rules, events = (behavior.scale_up, self.ups) if grew else (behavior.scale_down, self.downs)
        longest = max((policy.period_seconds for policy in rules.policies), default=0.0)
        remember(events, ScaleEvent(now_seconds, abs(after - before)), now_seconds - longest)

    def replicas_at_start(self, current: int, period_seconds: float, now_seconds: float) -> int:
        """How many replicas there were a period ago, by undoing what was done since."""
        since = now_seconds - period_seconds
        return current - _changed_since(self.ups, since) + _changed_since(self.downs, since)


def _changed_since(events: Iterable[ScaleEvent], since_seconds: float) -> int:
    return sum(event.change for event in events if event.at_seconds > since_seconds)


def remember(entries: list[Dated], entry: Dated, oldest_seconds: float) -> None:
    """Puts `entry` in the place of the last one older than `oldest_seconds`, or at the end.

    Other old entries stay, as they do in the controller: an event too old for the policies of its own direction can
    still be young enough to count in a longer period of the other.
    """
    for place in reversed(range(len(entries))):
        if entries[place].at_seconds < oldest_seconds:
            entries[place] = entry
            return
    entries.append(entry)


def stabilize(
    current: int, desired: int, past: Iterable[Recommendation], now_seconds: float, behavior: Behavior
) -> int:
    """`current`, moved only as far as every recommendation of the window in that direction agrees to."""
    up_since = now_seconds - behavior.scale_up.stabilization_seconds
    down_since = now_seconds - behavior.scale_down.stabilization_seconds
    lowest = highest = desired
    for one in past:
        if one.at_seconds > up_since:
            lowest = min(lowest, one.replicas)
        if one.at_seconds > down_since:
            highest = max(highest, one.replicas)
    return min(max(current, lowest), highest)


def scale_up_limit(current: int, rules: ScalingRules, events: ScaleEvents, now_seconds: float) -> int:
    """The most replicas that the policies allow now. May be below `current`, where earlier changes used them up."""
    return _policy_limit(current, rules, events, now_seconds, 1)


def scale_down_limit(current: int, rules: ScalingRules, events: ScaleEvents, now_seconds: float) -> int:
    """The fewest replicas that the policies allow now. May be above `current`, and below 0."""
    return _policy_limit(current, rules, events, now_seconds, -1)


def _policy_limit(current: int, rules: ScalingRules, events: ScaleEvents, now_seconds: float, sign: int) -> int:
    if rules.select == "Disabled":
        return current
    limits = []
    for policy in rules.policies:
        base = events.replicas_at_start(current, policy.period_seconds, now_seconds)
        limits.append(base + sign * policy.value if policy.kind == "Pods" else _percent(base, sign * policy.value))
    farthest = (rules.select == "Max") == (sign > 0)
    return min(max(limits) if farthest else min(limits), MAX_REPLICAS)


def _percent(base: int, percent: int) -> int:
    """Base changed by a percentage: rounded up when growing, so that one pod can always follow; else cut.

    In doubles, as in the controller: 100 pods and 10 % make 111, since 1.1 has no exact double.
    """
    factor = 1 + percent / 100
    return math.ceil(base * factor) if percent > 0 else int(base * factor)


def limit_rate(
    current: int, desired: int, bounds: Bounds, behavior: Behavior, events: ScaleEvents, now_seconds: float
) -> tuple[int, Reason]:
    """`desired` as far as policies and bounds let it go this time, and what held it back."""
    if desired > current:
        limit = max(current, scale_up_limit(current, behavior.scale_up, events, now_seconds))
        if desired > min(limit, bounds.max_replicas):
            return min(limit, bounds.max_replicas), _which(limit < bounds.max_replicas, up=True)
    elif desired < current:
        limit = min(current, scale_down_limit(current, behavior.scale_down, events, now_seconds))
        if desired < max(limit, bounds.min_replicas):
            return max(limit, bounds.min_replicas), _which(limit > bounds.min_replicas, up=False)
    return desired, Reason.WITHIN_RANGE


def _which(by_rate: bool, *, up: bool) -> Reason:
    if up:
        return Reason.SCALE_UP_LIMIT if by_rate else Reason.TOO_MANY
    return Reason.SCALE_DOWN_LIMIT if by_rate else Reason.TOO_FEW


def stabilize_without_behavior(
    desired: int, past: Iterable[Recommendation], now_seconds: float, window_seconds: float
) -> int:
    """The highest recommendation of the window: the older rule, for autoscalers without `spec.behavior`.

    Unlike `stabilize` it does not start from the present size, so that a recommendation that a limit held back is
    still followed minutes after the metrics took it back.
    """
    since = now_seconds - window_seconds
    return max([desired, *(one.replicas for one in past if one.at_seconds >= since)])


def limit_without_behavior(current: int, desired: int, bounds: Bounds) -> tuple[int, Reason]:
    """At most twice the pods, or 4, at every sync: the older limit, which remembers no earlier changes."""
    limit = max(2 * current, 4)
    if desired < bounds.min_replicas:
        return bounds.min_replicas, Reason.TOO_FEW
    if desired > min(limit, bounds.max_replicas):
        return min(limit, bounds.max_replicas), _which(limit < bounds.max_replicas, up=True)
    return desired, Reason.WITHIN_RANGE
