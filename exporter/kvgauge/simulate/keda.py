"""KEDA's part in scaling, under a virtual clock: it owns 0 <-> 1 and answers the autoscaler it creates for 1 <-> N.

Source: kedacore/keda pkg/scaling/executor/scale_scaledobjects.go and pkg/fallback/fallback.go, of the releases that
know `fallback.behavior`. Every polling interval the operator asks the triggers whether there is work, and switches the
workload on or off. In between, the autoscaler makes its own queries at its own period; the operator passes each
trigger's value on as an External metric with an AverageValue target, ceil(total / target) replicas, and counts the
failures of those queries.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

from kvgauge.simulate.hpa import Decision, HorizontalPodAutoscaler, HpaSpec
from kvgauge.simulate.hpa_behavior import Behavior, Bounds
from kvgauge.simulate.hpa_calculator import ExternalMetric, Pod

Readings: TypeAlias = Mapping[str, int | str | None]
"""Trigger name to its value in thousandths; a text, None or no entry is a trigger that could not be read."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """One source of load: the total is shared out at `target_milli` a replica."""

    name: str
    target_milli: int
    activation_milli: int = 0
    """Above this, and not at it, the trigger is active."""

    def __post_init__(self) -> None:
        if self.target_milli <= 0:
            raise ValueError(f"target_milli of trigger {self.name} must be above 0, not {self.target_milli}")


@dataclass(frozen=True, slots=True)
class Fallback:
    """The replicas to report for a trigger that has failed more than `failure_threshold` queries in a row."""

    failure_threshold: int
    replicas: int
    behavior: Literal["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"] = "static"

    def __post_init__(self) -> None:
        for name, value in (("failure_threshold", self.failure_threshold), ("replicas", self.replicas)):
            if value < 0:
                raise ValueError(f"{name} of the fallback must be 0 or more, not {value}")

    def replicas_at(self, current: int) -> int:
        """What to report while the workload has `current` replicas."""
        match self.behavior:
            case "static":
                return self.replicas
            case "currentReplicas":
                return current
            case "currentReplicasIfHigher":
                return max(current, self.replicas)
            case "currentReplicasIfLower":
                return min(current, self.replicas)


@dataclass(frozen=True, slots=True)
class ScaledObject:
    """A ScaledObject's settings, with KEDA's defaults."""

    triggers: tuple[Trigger, ...]
    min_replicas: int = 0
    max_replicas: int = 100
    polling_seconds: float = 30.0
    cooldown_seconds: float = 300.0
    """How long after the last sign of work the workload is switched off."""
    initial_cooldown_seconds: float = 0.0
    """How long after its creation a workload that never had work is switched off."""
    idle_replicas: int | None = None
    """The size while there is no work, below a `min_replicas` that holds while there is some."""
    fallback: Fallback | None = None
    behavior: Behavior | None = None
    """For the autoscaler that KEDA creates; None leaves `spec.behavior` out, as KEDA does."""
    tolerance: float = 0.1
    """That of the cluster's controller."""

    def __post_init__(self) -> None:
        Bounds(self.min_replicas, self.max_replicas)
        if not self.triggers:
            raise ValueError("triggers must not be empty")
        if not 0 < self.polling_seconds < math.inf:
            raise ValueError(f"polling_seconds must be above 0, not {self.polling_seconds}")
        for name in ("cooldown_seconds", "initial_cooldown_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.idle_replicas is not None and not 0 <= self.idle_replicas < self.min_replicas:
            raise ValueError(f"idle_replicas must be from 0 to below min_replicas, not {self.idle_replicas}")

    @property
    def hpa(self) -> HpaSpec:
        """The autoscaler that KEDA creates: it never goes to 0 by itself."""
        return HpaSpec(self.max_replicas, max(1, self.min_replicas), self.behavior, self.tolerance)


class Activity(StrEnum):
    """What a poll found and did."""

    ACTIVATED = "Activated"
    ACTIVE = "ScalerActive"
    PARTLY_FAILED = "PartialTriggerError"
    """Some triggers are active and some failed: nothing changes, and the cooldown is not put off."""
    HELD = "TriggerError"
    """Triggers failed and none is active: not a reason to switch off."""
    COOLING_DOWN = "ScalerCooldown"
    DEACTIVATED = "Deactivated"
    RAISED = "RaisedToMinimum"
    INACTIVE = "ScalerNotActive"


@dataclass(frozen=True, slots=True)
class Activation:
    """The outcome of one poll."""

    replicas: int
    """What spec.replicas shall be; the present value where nothing changes."""
    activity: Activity


class Keda:
    """One ScaledObject with its memory and its autoscaler. Calls must come in order of time."""

    def __init__(self, spec: ScaledObject, created_seconds: float = 0.0) -> None:
        self.spec = spec
        self.autoscaler = HorizontalPodAutoscaler(spec.hpa)
        self.last_active_seconds: float | None = None
        self._created_seconds = created_seconds
        self._failures = dict.fromkeys((trigger.name for trigger in spec.triggers), 0)

    def poll(self, now_seconds: float, spec_replicas: int, readings: Readings) -> Activation:
        """What the operator does every `polling_seconds`: switches on at once, and off after the cooldown."""
        values = [(trigger, readings.get(trigger.name)) for trigger in self.spec.triggers]
        failed = any(not isinstance(value, int) for _, value in values)
        if any(isinstance(value, int) and value > trigger.activation_milli for trigger, value in values):
            return self._while_active(now_seconds, spec_replicas, failed)
        return self._while_inactive(now_seconds, spec_replicas, failed)

    def sync(
        self,
        now_seconds: float,
        spec_replicas: int,
        status_replicas: int,
        pods: Sequence[Pod],
        readings: Readings,
    ) -> Decision:
        """One reconciliation of the autoscaler, every 15 s, with the triggers' values as they are now.

        At 0 replicas the autoscaler is off and asks nothing, so that no failure is counted either.
        """
        bounds = self.autoscaler.spec.bounds
        asks = bounds.min_replicas <= spec_replicas <= bounds.max_replicas
        metrics = [self._answer(one, readings.get(one.name), spec_replicas) for one in self.spec.triggers if asks]
        return self.autoscaler.sync(now_seconds, spec_replicas, status_replicas, pods, metrics)

    def _answer(self, trigger: Trigger, value: int | str | None, current: int) -> ExternalMetric:
        """A trigger's value as the autoscaler gets it, or the fallback's once it has failed often enough."""
        failures = self._failures[trigger.name] = 0 if isinstance(value, int) else self._failures[trigger.name] + 1
        fallback = self.spec.fallback
        if fallback is not None and failures > fallback.failure_threshold:
            value = trigger.target_milli * fallback.replicas_at(current)
        return ExternalMetric(trigger.name, trigger.target_milli, value)

    def _while_active(self, now_seconds: float, current: int, failed: bool) -> Activation:
        spec = self.spec
        if current == 0 or (spec.idle_replicas is not None and current < spec.min_replicas):
            self.last_active_seconds = now_seconds
            return Activation(max(1, spec.min_replicas), Activity.ACTIVATED)
        if failed:
            return Activation(current, Activity.PARTLY_FAILED)
        self.last_active_seconds = now_seconds
        return Activation(current, Activity.ACTIVE)

    def _while_inactive(self, now_seconds: float, current: int, failed: bool) -> Activation:
        spec = self.spec
        # A fallback to 0 replicas says that a trigger that fails may be taken for one without work.
        if failed and (spec.fallback is None or spec.fallback.replicas > 0):
            return Activation(current, Activity.HELD)
        if spec.idle_replicas is None and current < spec.min_replicas:
            return Activation(spec.min_replicas, Activity.RAISED)
        floor = spec.min_replicas if spec.idle_replicas is None else spec.idle_replicas
        may_switch_off = spec.min_replicas == 0 or spec.idle_replicas is not None
        if not may_switch_off or current <= floor:
            return Activation(current, Activity.INACTIVE)
        if self._cooled_down(now_seconds):
            return Activation(floor, Activity.DEACTIVATED)
        return Activation(current, Activity.COOLING_DOWN)

    def _cooled_down(self, now_seconds: float) -> bool:
        if self.last_active_seconds is None:
            return now_seconds > self._created_seconds + self.spec.initial_cooldown_seconds
        return now_seconds > self.last_active_seconds + self.spec.cooldown_seconds
