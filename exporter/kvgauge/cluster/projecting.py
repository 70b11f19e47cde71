"""What is taken from the API server's objects: a few fields of pods, workloads and autoscalers, each of them checked.

An object without what every object has (a name, a uid) raises ValueError; what else is missing is None.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address

from kubernetes.utils.quantity import parse_quantity

from kvgauge.cluster.decoding import JsonObject
from kvgauge.cluster.names import (
    DELETION_COST,
    DEPLOYMENT,
    DOMAIN,
    LEADER_WORKER_SET,
    PORT,
    SIDECAR,
    STATEFUL_SET,
    WORKER_INDEX,
    WORKLOAD_KINDS,
    WorkloadKind,
)
from kvgauge.cluster.records import Pod, PodKey, Workload, WorkloadKey

_TEMPLATE_HASH = "pod-template-hash"
_SET_NAME = "leaderworkerset.sigs.k8s.io/name"
_RESOURCES = {(kind.group, kind.kind): kind.resource for kind in WORKLOAD_KINDS}
_MAX_LABELS = 256
_MAX_LABEL_CHARS = 63
_MAX_ANNOTATION_CHARS = 256
_MAX_QUANTITY_CHARS = 40
_MAX_PORT = 65535
_MAX_REPLICAS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """A HorizontalPodAutoscaler, and the dead band that it states: ratios, None where it states none."""

    namespace: str
    name: str
    workload: WorkloadKey
    tolerance_up: float | None
    tolerance_down: float | None


def pod_of(thing: JsonObject, sidecar_port: int) -> Pod | None:
    """None for a pod that is not marked as having a sidecar. `sidecar_port`: where that serves unless the pod says."""
    metadata = _part(thing, "metadata")
    labels, annotations = _texts(metadata, "labels"), _texts(metadata, "annotations")
    if "true" not in (labels.get(SIDECAR), annotations.get(SIDECAR)):
        return None
    namespace, name, uid = _identity(metadata)
    status = _part(thing, "status")
    return Pod(
        key=PodKey(namespace, name),
        uid=uid,
        labels=_bounded(labels),
        annotations={
            key: text
            for key, text in annotations.items()
            if (key.startswith(f"{DOMAIN}/") or key == DELETION_COST) and len(text) <= _MAX_ANNOTATION_CHARS
        },
        workload=_owner(metadata, namespace, labels),
        address=_address(status.get("podIP"), annotations.get(PORT), sidecar_port),
        node=_text(_part(thing, "spec"), "nodeName"),
        phase=_text(status, "phase") or "Unknown",
        ready=_is_ready(status),
        deleting=metadata.get("deletionTimestamp") is not None,
        created_wall_seconds=_wall_seconds(metadata.get("creationTimestamp")),
        deletion_cost=annotations.get(DELETION_COST),
    )


def workload_of(thing: JsonObject, group: str, resource: str, kind: str, api_version: str) -> Workload:
    """A Deployment, StatefulSet or LeaderWorkerSet. In each of them no `spec.replicas` means 1, and no
    `status.replicas` 0."""
    metadata = _part(thing, "metadata")
    namespace, name, uid = _identity(metadata)
    return Workload(
        key=WorkloadKey(namespace, group, resource, name),
        kind=kind,
        api_version=api_version,
        uid=uid,
        labels=_bounded(_texts(metadata, "labels")),
        spec_replicas=_count(_part(thing, "spec").get("replicas"), 1),
        status_replicas=_count(_part(thing, "status").get("replicas"), 0),
    )


def autoscaler_of(thing: JsonObject) -> Autoscaler | None:
    """Of an object of autoscaling/v2; None for one that scales something else than workloads of the kinds known here.
    `behavior.scaleUp.tolerance` and `.scaleDown.tolerance` are there since Kubernetes 1.33."""
    metadata, spec = _part(thing, "metadata"), _part(thing, "spec")
    namespace, name, _ = _identity(metadata)
    target, behavior = _part(spec, "scaleTargetRef"), _part(spec, "behavior")
    group, _, version = (_text(target, "apiVersion") or "").rpartition("/")
    resource = _RESOURCES.get((group, _text(target, "kind") or ""))
    scaled = _text(target, "name")
    if resource is None or not scaled or not version:
        return None
    return Autoscaler(
        namespace,
        name,
        WorkloadKey(namespace, group, resource, scaled),
        _ratio(_part(behavior, "scaleUp").get("tolerance")),
        _ratio(_part(behavior, "scaleDown").get("tolerance")),
    )


def _owner(metadata: JsonObject, namespace: str, labels: Mapping[str, str]) -> WorkloadKey | None:
    """Of a group of pods only the leader counts: the group is the replica. A ReplicaSet's name is its Deployment's and
    the hash that the pods carry as a label, so ReplicaSets need not be watched."""
    leader_worker_set = labels.get(_SET_NAME)
    if leader_worker_set:
        leads = labels.get(WORKER_INDEX) == "0"
        return _key(namespace, LEADER_WORKER_SET, leader_worker_set) if leads else None
    owners = metadata.get("ownerReferences")
    for owner in owners if isinstance(owners, list) else ():
        if not isinstance(owner, dict) or owner.get("controller") is not True:
            continue
        name = _text(owner, "name") or ""
        if not (_text(owner, "apiVersion") or "").startswith("apps/") or not name:
            return None
        if owner.get("kind") == "StatefulSet":
            return _key(namespace, STATEFUL_SET, name)
        ending = f"-{labels.get(_TEMPLATE_HASH, '')}"
        if owner.get("kind") == "ReplicaSet" and ending != "-" and name.endswith(ending) and name != ending:
            return _key(namespace, DEPLOYMENT, name.removesuffix(ending))
        return None
    return None


def _key(namespace: str, kind: WorkloadKind, name: str) -> WorkloadKey:
    return WorkloadKey(namespace, kind.group, kind.resource, name)


def _address(ip: object, stated_port: str | None, port: int) -> str | None:
    """None too where the pod states a port that is none: nothing else may be asked in its place."""
    if not isinstance(ip, str) or "%" in ip:
        return None
    try:
        found = ip_address(ip)
    except ValueError:
        return None
    if stated_port is not None:
        if not (stated_port.isascii() and stated_port.isdigit() and len(stated_port) <= len(str(_MAX_PORT))):
            return None
        port = int(stated_port)
    if not 1 <= port <= _MAX_PORT:
        return None
    return f"http://[{found}]:{port}" if found.version == 6 else f"http://{found}:{port}"


def _is_ready(status: JsonObject) -> bool:
    conditions = status.get("conditions")
    return any(
        isinstance(condition, dict) and condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in (conditions if isinstance(conditions, list) else ())
    )


def _identity(metadata: JsonObject) -> tuple[str, str, str]:
    """(namespace, name, uid)."""
    namespace, name, uid = (_text(metadata, field) for field in ("namespace", "name", "uid"))
    if not namespace or not name or not uid:
        raise ValueError("metadata: no namespace, name or uid")
    return namespace, name, uid


def _part(thing: JsonObject, name: str) -> JsonObject:
    part = thing.get(name)
    return part if isinstance(part, dict) else {}


def _text(thing: JsonObject, name: str) -> str | None:
    text = thing.get(name)
    return text if isinstance(text, str) else None


def _texts(metadata: JsonObject, name: str) -> dict[str, str]:
    return {key: text for key, text in _part(metadata, name).items() if isinstance(text, str)}


def _bounded(labels: Mapping[str, str]) -> dict[str, str]:
    """As many and as long as the API server lets through, more or less."""
    return {key: text for key, text in list(labels.items())[:_MAX_LABELS] if len(text) <= _MAX_LABEL_CHARS}


def _count(found: object, default: int) -> int:
    if isinstance(found, bool) or not isinstance(found, int):
        return default
    return min(max(found, 0), _MAX_REPLICAS)


def _ratio(found: object) -> float | None:
    """Of a quantity such as ``50m`` or ``0.05``; None for what is no finite number from 0 on."""
    if not isinstance(found, str) or len(found) > _MAX_QUANTITY_CHARS:
        return None
    try:
        ratio = float(parse_quantity(found))  # type: ignore[no-untyped-call]
    except (ValueError, OverflowError):
        return None
    return ratio if math.isfinite(ratio) and ratio >= 0 else None


def _wall_seconds(found: object) -> float:
    """Of RFC 3339; 0 for what is none."""
    try:
        moment = datetime.fromisoformat(found) if isinstance(found, str) else None
    except ValueError:
        moment = None
    if moment is None:
        return 0.0
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError):
        return 0.0
