"""Findings of the last link: autoscalers, what they name, whom they scale, and what they say of themselves."""

from collections.abc import Iterator

from kvgauge.cluster.records import Pod
from kvgauge.doctor.autoscalers import Condition, Hpa, hpa_of
from kvgauge.doctor.findings import Finding, fail, ok, since, skip, typed, warn, words
from kvgauge.doctor.looking_around import ClusterFacts, Scaled, with_sidecars
from kvgauge.doctor.telling import age_seconds, unread

_LIMITED = "TooManyReplicas"


def hpas(facts: ClusterFacts, wall_seconds: float) -> Iterator[Finding]:
    """Of each autoscaler that means a metric of kvgauge, four: its metrics, its target, its pods, its conditions."""
    where = f"-n {facts.namespace}" if facts.namespace else "-A"
    if not facts.hpas.good:
        yield unread("hpa", facts.hpas, f"list horizontalpodautoscalers.autoscaling {where}")
        return
    if not facts.scaled:
        told = f"none of {len(facts.hpas.items)} names a metric of kvgauge"
        yield warn("hpa", told, f"kubectl get hpa {where}")
        return
    for scaled in facts.scaled:
        yield metrics(scaled)
        yield target(scaled)
        yield pods(scaled)
        yield conditions(scaled.hpa, wall_seconds)
    following = [hpa for item in facts.hpas.items if (hpa := hpa_of(item)) is not None]
    if len(following) > len(facts.scaled):
        told = f"only {len(facts.scaled)} of {len(following)} that follow kvgauge were looked at"
        left = following[len(facts.scaled)].namespace
        more = f"kvgauge doctor --cluster --namespace {left}" if left != facts.namespace else f"kubectl get hpa {where}"
        yield warn("hpa", told, more)
    elif facts.hpas.cut:
        yield warn("hpa", f"only the first {len(facts.hpas.items)} were looked through", f"kubectl get hpa {where}")


def metrics(scaled: Scaled) -> Finding:
    """Are they spelled right, of the right kind of object, and can they be read?"""
    hpa, name = scaled.hpa, f"hpa {scaled.hpa.where} metric"
    faults = [fault for metric in hpa.metrics if (fault := metric.fault) is not None]
    if faults:
        return fail(name, words("; ".join(faults)), f"kubectl -n {hpa.namespace} edit hpa {hpa.name}")
    for described, answer in scaled.described.items():
        if answer.status == 404:
            told = f"its describedObject {words(described)} does not exist"
            return fail(name, told, f"kubectl -n {hpa.namespace} edit hpa {hpa.name}")
    named = ", ".join(f"{metric.name} ({metric.kind})" for metric in hpa.metrics)
    objects = [metric for metric in hpa.metrics if metric.described is not None]
    if scaled.required is not None and objects and not scaled.required.good:
        metric, answer = objects[-1], scaled.required
        assert metric.described is not None  # noqa: S101 - `objects` has no other
        resource = metric.described.resource
        if answer.refused:
            return unread(name, answer, f"get {resource} --subresource={metric.name} -n {hpa.namespace}")
        return fail(name, f"{named}: {answer.why}", f"kubectl get --raw {typed(answer.path)}")
    return ok(name, named)


def target(scaled: Scaled) -> Finding:
    hpa, answer = scaled.hpa, scaled.target
    name, about = f"hpa {hpa.where} target", f"{words(hpa.target.kind)} {words(hpa.target.name)}"
    if answer is None:
        return skip(name, f"{about} is of a kind that is not looked at")
    resource = hpa.target.resource
    if answer.status == 404:
        return fail(name, f"{about} does not exist", f"kubectl -n {hpa.namespace} get {typed(resource)}")
    if not answer.good:
        return unread(name, answer, f"get {typed(f'{resource}/{hpa.target.name}')} -n {hpa.namespace}")
    return ok(name, f"{about} exists")


def pods(scaled: Scaled) -> Finding:
    """Does what it scales have sidecars? HPA reads the metric of just those pods."""
    hpa, name = scaled.hpa, f"hpa {scaled.hpa.where} pods"
    if scaled.target is None or not scaled.target.good:
        return skip(name, "its target was not read")
    if scaled.pods is None:
        return skip(name, "its target states no selector")
    selector = words(scaled.selector)
    command = (
        f"kubectl -n {hpa.namespace} get pods -l {typed(scaled.selector)} -L kvgauge.dev/inject,kvgauge.dev/sidecar"
    )
    if not scaled.pods.good:
        return unread(name, scaled.pods, f"list pods -n {hpa.namespace}")
    total, carrying = len(scaled.pods.items), with_sidecars(scaled.pods)
    if not total:
        return fail(name, f"the selector {selector} matches no pod", command)
    if not carrying:
        return fail(name, f"none of the {total} pods that {selector} matches has a sidecar", command)
    if len(carrying) < total:
        return warn(
            name, f"{total - len(carrying)} of the {total} pods that {selector} matches have no sidecar", command
        )
    return ok(name, f"{selector} matches {total} pods with sidecars, {_ready(carrying)} ready")


def _ready(carrying: list[Pod]) -> int:
    return sum(pod.ready for pod in carrying)


def conditions(hpa: Hpa, wall_seconds: float) -> Finding:
    """What the HPA controller says."""
    name, command = f"hpa {hpa.where} conditions", f"kubectl -n {hpa.namespace} describe hpa {hpa.name}"
    if not hpa.conditions:
        return warn(name, "none yet: its controller has not looked at it", command)
    for condition in hpa.conditions:
        if condition.type in ("AbleToScale", "ScalingActive") and condition.status != "True":
            told = _told(condition, wall_seconds)
            # Scaling that somebody turned off by replicas 0 is no broken link.
            return (warn if condition.reason == "ScalingDisabled" else fail)(name, told, command)
    limited = next((each for each in hpa.conditions if each.type == "ScalingLimited" and each.status == "True"), None)
    if limited is not None and limited.reason == _LIMITED:
        return warn(name, f"{_told(limited, wall_seconds)}: maxReplicas holds it back", command)
    read = f"; it last read {words(', '.join(hpa.read))}" if hpa.read else ""
    return ok(name, ", ".join(f"{words(each.type)} {words(each.status)}" for each in hpa.conditions) + read)


def _told(condition: Condition, wall_seconds: float) -> str:
    age = age_seconds(condition.changed, wall_seconds)
    lasting = f" for {since(age)}" if age is not None else ""
    said = ": ".join(filter(None, (words(condition.reason), words(condition.message))))
    return f"{words(condition.type)} is {words(condition.status)}{lasting}: {said}"
