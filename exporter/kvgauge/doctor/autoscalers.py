"""HorizontalPodAutoscalers that follow kvgauge, or mean to: which metrics they name, and of what."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from kvgauge.cluster.decoding import JsonObject
from kvgauge.cluster.names import POD_METRICS, REQUIRED_REPLICAS, WORKLOAD_KINDS
from kvgauge.doctor.asking import part, parts, text

KNOWN = (*POD_METRICS, REQUIRED_REPLICAS)
_LIKE_RATIO = 0.75
_PREFIX = "kvgauge_"
_KINDS = {(kind.group, kind.kind): kind for kind in WORKLOAD_KINDS}


@dataclass(frozen=True, slots=True)
class Target:
    """What an autoscaler scales, or a metric describes."""

    group: str
    kind: str
    name: str

    @property
    def known(self) -> bool:
        """Whether it is of a kind that kvgauge knows."""
        return (self.group, self.kind) in _KINDS

    def path(self, namespace: str) -> str:
        """Where the API server has it, if it is known."""
        kind = _KINDS[self.group, self.kind]
        within = f"/apis/{kind.api_version}/namespaces/{quote(namespace, safe='')}"
        return f"{within}/{kind.resource}/{quote(self.name, safe='')}"

    @property
    def resource(self) -> str:
        """As kubectl and the metrics API write it."""
        found = _KINDS.get((self.group, self.kind))
        if found is not None:
            return found.qualified
        return f"{self.kind.lower()}.{self.group}" if self.group else self.kind.lower()


@dataclass(frozen=True, slots=True)
class NamedMetric:
    """One metric of one autoscaler. `described` is what a metric of type Object is of."""

    kind: str
    name: str
    described: Target | None = None

    @property
    def meant(self) -> str | None:
        """The metric of kvgauge that the name is, or is most like; None where it is none of ours."""
        if self.name in KNOWN:
            return self.name
        like = difflib.get_close_matches(self.name, KNOWN, n=1, cutoff=_LIKE_RATIO)
        if like:
            return like[0]
        if self.name.startswith(_PREFIX):
            return difflib.get_close_matches(self.name, KNOWN, n=1, cutoff=0.0)[0]
        return None

    @property
    def fault(self) -> str | None:
        """What is wrong with the name or with where it stands."""
        if self.name not in KNOWN:
            return f"{self.name} is no metric of kvgauge; did you mean {self.meant}?"
        of_a_workload = self.name == REQUIRED_REPLICAS
        if self.kind == "Pods" and of_a_workload:
            return f"{self.name} is of a workload: type Object, the workload its describedObject, not Pods"
        of_what = self.described.kind if self.described else ""
        if self.kind == "Object" and not of_a_workload and of_what not in ("Namespace", "Pod"):
            return f"{self.name} is of pods: type Pods, not Object of a {of_what or 'thing without a kind'}"
        if self.kind == "Object" and of_a_workload and (self.described is None or not self.described.known):
            return f"{self.name} is of Deployments, StatefulSets and LeaderWorkerSets, not of a {of_what or 'thing'}"
        return None


@dataclass(frozen=True, slots=True)
class Condition:
    type: str
    status: str
    reason: str
    message: str
    changed: str
    """RFC 3339; empty where it is not told."""


@dataclass(frozen=True, slots=True)
class Hpa:
    """One autoscaler that means a metric of kvgauge."""

    namespace: str
    name: str
    target: Target
    metrics: tuple[NamedMetric, ...]
    """Those of kvgauge only."""
    conditions: tuple[Condition, ...]
    read: tuple[str, ...] = ()
    """Each of those metrics with the value that its controller read last."""

    @property
    def where(self) -> str:
        return f"{self.namespace}/{self.name}"


def hpa_of(thing: JsonObject) -> Hpa | None:
    """Of an object of autoscaling/v2; None for one that follows other metrics only."""
    metadata, spec = part(thing, "metadata"), part(thing, "spec")
    metrics = tuple(
        metric for each in parts(spec, "metrics") if (metric := _metric(each)) is not None and metric.meant is not None
    )
    namespace, name = text(metadata, "namespace"), text(metadata, "name")
    if not metrics or not namespace or not name:
        return None
    return Hpa(
        namespace,
        name,
        _target(part(spec, "scaleTargetRef")),
        metrics,
        conditions_of(part(thing, "status")),
        tuple(filter(None, (_read(each) for each in parts(part(thing, "status"), "currentMetrics")))),
    )


def conditions_of(status: JsonObject) -> tuple[Condition, ...]:
    """Of any object's status."""
    names = ("type", "status", "reason", "message", "lastTransitionTime")
    return tuple(Condition(*(text(each, name) for name in names)) for each in parts(status, "conditions"))


def selector_of(workload: JsonObject) -> str | None:
    """The label selector of a workload's pods, as a query writes it; None where it states none. A LeaderWorkerSet
    states in its status which pods count."""
    stated = text(part(workload, "status"), "hpaPodSelector")
    if stated:
        return stated
    selector = part(workload, "spec", "selector")
    written = [f"{key}={value}" for key, value in part(selector, "matchLabels").items()]
    written += [_expression(each) for each in parts(selector, "matchExpressions")]
    return ",".join(written) or None


def _expression(requirement: Mapping[str, object]) -> str:
    key, operator, values = (requirement.get(name) for name in ("key", "operator", "values"))
    listed = ",".join(map(str, values)) if isinstance(values, list) else ""
    if operator in ("In", "NotIn"):
        return f"{key} {str(operator).lower()} ({listed})"
    return f"!{key}" if operator == "DoesNotExist" else f"{key}"


def _metric(stated: JsonObject) -> NamedMetric | None:
    kind = text(stated, "type")
    body = part(stated, kind[:1].lower() + kind[1:])
    name = text(part(body, "metric"), "name")
    if kind not in ("Pods", "Object", "External") or not name:
        return None
    return NamedMetric(kind, name, _target(part(body, "describedObject")) if kind == "Object" else None)


def _read(stated: JsonObject) -> str | None:
    metric = _metric(stated)
    if metric is None or metric.meant is None:
        return None
    kind = text(stated, "type")
    current = part(stated, kind[:1].lower() + kind[1:], "current")
    value = text(current, "averageValue") or text(current, "value")
    return f"{metric.name} {value}" if value else None


def _target(reference: JsonObject) -> Target:
    group, _, _ = text(reference, "apiVersion").rpartition("/")
    return Target(group, text(reference, "kind"), text(reference, "name"))
