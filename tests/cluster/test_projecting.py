"""What is taken from the API server's objects, and that nothing in one of them raises more than ValueError."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.cluster.projecting import Autoscaler, autoscaler_of, pod_of, workload_of
from kvgauge.cluster.records import PodKey, WorkloadKey

Object = dict[str, Any]
SIDECAR = {"kvgauge.dev/sidecar": "true"}
APPS = {"apiVersion": "apps/v1", "controller": True, "uid": "u"}
SET = "leaderworkerset.sigs.k8s.io"


def pod(
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    owner: Object | None = None,
    ip: str = "10.0.0.7",
) -> Object:
    metadata: Object = {
        "name": "a", "namespace": "llm", "uid": "u-1", "labels": {**SIDECAR, **(labels or {})},
        "annotations": annotations or {}, "creationTimestamp": "2026-03-01T12:00:00Z",
    }  # fmt: skip
    if owner:
        metadata["ownerReferences"] = [{"kind": "Node", "name": "n", "apiVersion": "v1"}, owner]
    ready = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]
    status = {"phase": "Running", "podIP": ip, "conditions": ready}
    return {"metadata": metadata, "spec": {"nodeName": "node-1"}, "status": status}


def owner_of(**what: Any) -> WorkloadKey | None:
    found = pod_of(pod(**what), 9838)
    assert found is not None
    return found.workload


def address_of(thing: Object) -> str | None:
    found = pod_of(thing, 9838)
    assert found is not None
    return found.address


def test_a_pod() -> None:
    found = pod_of(pod({"app": "x"}, {"kvgauge.dev/a": "b", "other.example/c": "d"}), 9838)
    assert found is not None
    assert found.key == PodKey("llm", "a")
    assert (found.uid, found.node, found.phase, found.ready, found.deleting) == (
        "u-1", "node-1", "Running", True, False,
    )  # fmt: skip
    assert found.labels == {**SIDECAR, "app": "x"}
    assert found.annotations == {"kvgauge.dev/a": "b"}
    assert found.address == "http://10.0.0.7:9838"
    assert found.created_wall_seconds == datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    assert found.deletion_cost is None
    assert found.workload is None


def test_only_pods_with_a_sidecar() -> None:
    thing = pod()
    thing["metadata"]["labels"] = {"kvgauge.dev/sidecar": "false"}
    assert pod_of(thing, 9838) is None
    thing["metadata"]["annotations"] = SIDECAR
    assert pod_of(thing, 9838) is not None


def test_what_a_pod_does_not_have_is_not_made_up() -> None:
    metadata = {"name": "a", "namespace": "llm", "uid": "u", "labels": SIDECAR, "deletionTimestamp": "x"}
    found = pod_of({"metadata": metadata}, 9838)
    assert found is not None
    assert (found.address, found.node, found.phase, found.ready, found.deleting) == (None, None, "Unknown", False, True)
    del metadata["uid"]
    with pytest.raises(ValueError, match="uid"):
        pod_of({"metadata": metadata}, 9838)


def test_a_deletion_cost_is_kept_as_it_stands() -> None:
    cost = {"controller.kubernetes.io/pod-deletion-cost": "-5"}
    found = pod_of(pod(annotations=cost), 9838)
    assert found is not None
    assert (found.deletion_cost, dict(found.annotations)) == ("-5", cost)


@pytest.mark.parametrize(
    ("ip", "port", "address"),
    [
        ("10.0.0.7", "9000", "http://10.0.0.7:9000"),
        ("fd00::7", None, "http://[fd00::7]:9838"),
        ("FD00:0::7", "1", "http://[fd00::7]:1"),
        ("10.0.0.7", "0", None),
        ("10.0.0.7", "65536", None),
        ("10.0.0.7", "9838/../x", None),
        ("10.0.0.7", "٣", None),
        ("10.0.0.7", "", None),
        ("fe80::1%eth0", None, None),
        ("10.0.0.7@evil", None, None),
        ("", None, None),
    ],
)
def test_addresses(ip: str, port: str | None, address: str | None) -> None:
    assert address_of(pod(annotations={"kvgauge.dev/port": port} if port is not None else {}, ip=ip)) == address


@pytest.mark.parametrize(
    ("labels", "owner", "key"),
    [
        ({"pod-template-hash": "5d4f"}, {**APPS, "kind": "ReplicaSet", "name": "llama-5d4f"}, "deployments/llama"),
        ({"pod-template-hash": "5d4f"}, {**APPS, "kind": "ReplicaSet", "name": "llama-7777"}, None),
        ({"pod-template-hash": "5d4f"}, {**APPS, "kind": "ReplicaSet", "name": "-5d4f"}, None),
        ({}, {**APPS, "kind": "ReplicaSet", "name": "llama-5d4f"}, None),
        ({}, {**APPS, "kind": "StatefulSet", "name": "llama"}, "statefulsets/llama"),
        ({}, {**APPS, "kind": "StatefulSet", "name": "llama", "controller": False}, None),
        ({}, {**APPS, "kind": "StatefulSet", "name": "llama", "apiVersion": "apps.kruise.io/v1"}, None),
        ({}, {**APPS, "kind": "DaemonSet", "name": "llama"}, None),
        (
            {f"{SET}/name": "big", f"{SET}/worker-index": "0"},
            {**APPS, "kind": "StatefulSet", "name": "big"},
            "leaderworkersets/big",
        ),
        ({f"{SET}/name": "big", f"{SET}/worker-index": "1"}, {**APPS, "kind": "StatefulSet", "name": "big-0"}, None),
        ({f"{SET}/name": "big"}, {**APPS, "kind": "StatefulSet", "name": "big-0"}, None),
    ],
)
def test_whom_a_pod_belongs_to(labels: dict[str, str], owner: Object, key: str | None) -> None:
    found = owner_of(labels=labels, owner=owner)
    assert (found and f"{found.resource}/{found.name}") == key
    if found:
        assert found.namespace == "llm"
        assert found.group == ("leaderworkerset.x-k8s.io" if found.resource == "leaderworkersets" else "apps")


def test_workloads() -> None:
    thing: Object = {"metadata": {"name": "llama", "namespace": "llm", "uid": "u", "labels": {"a": "b"}}}
    found = workload_of(thing, "apps", "deployments", "Deployment", "apps/v1")
    assert found.key == WorkloadKey("llm", "apps", "deployments", "llama")
    assert (found.kind, found.api_version, found.uid, found.labels) == ("Deployment", "apps/v1", "u", {"a": "b"})
    assert (found.spec_replicas, found.status_replicas) == (1, 0)
    thing |= {"spec": {"replicas": 0}, "status": {"replicas": 4}}
    found = workload_of(thing, "apps", "deployments", "Deployment", "apps/v1")
    assert (found.spec_replicas, found.status_replicas) == (0, 4)


def autoscaler(api_version: str = "apps/v1", kind: str = "Deployment", **behavior: object) -> Object:
    target = {"apiVersion": api_version, "kind": kind, "name": "llama"}
    metadata = {"name": "hpa", "namespace": "llm", "uid": "u"}
    return {"metadata": metadata, "spec": {"scaleTargetRef": target, "behavior": behavior}}


@pytest.mark.parametrize(
    ("stated", "ratio"),
    [
        ("50m", 0.05),
        ("0.05", 0.05),
        ("0", 0.0),
        ("1e-2", 0.01),
        ("-50m", None),
        ("5%", None),
        ("NaN", None),
        (0.05, None),
    ],
)
def test_tolerances(stated: object, ratio: float | None) -> None:
    found = autoscaler_of(autoscaler(scaleUp={"tolerance": stated}, scaleDown={"policies": []}))
    assert found == Autoscaler("llm", "hpa", WorkloadKey("llm", "apps", "deployments", "llama"), ratio, None)


@pytest.mark.parametrize(
    ("api_version", "kind", "resource"),
    [
        ("apps/v1", "StatefulSet", "statefulsets"),
        ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "leaderworkersets"),
        ("argoproj.io/v1alpha1", "Rollout", None),
        ("v1", "Deployment", None),
        ("", "Deployment", None),
    ],
)
def test_what_an_autoscaler_scales(api_version: str, kind: str, resource: str | None) -> None:
    found = autoscaler_of(autoscaler(api_version, kind))
    assert (found and found.workload.resource) == resource


FIELDS = st.one_of(
    st.sampled_from(["metadata", "labels", "annotations", "name", "namespace", "uid", "ownerReferences", "controller"]),
    st.sampled_from(["spec", "status", "podIP", "conditions", "replicas", "kind", "apiVersion", "creationTimestamp"]),
    st.sampled_from(["behavior", "scaleUp", "scaleTargetRef", "tolerance", "kvgauge.dev/sidecar", "kvgauge.dev/port"]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("true"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=20,
)
METADATA = st.fixed_dictionaries(
    {"name": st.just("a") | VALUES, "namespace": st.just("llm"), "uid": st.just("u"), "labels": st.just(SIDECAR)},
    optional={"annotations": VALUES, "ownerReferences": VALUES, "creationTimestamp": VALUES | st.datetimes().map(str)},
)


@given(st.fixed_dictionaries({"metadata": METADATA | VALUES, "spec": VALUES, "status": VALUES}))
def test_hostile_objects_raise_nothing_but_value_errors(thing: Object) -> None:
    for project in (
        lambda thing: pod_of(thing, 9838),
        lambda thing: workload_of(thing, "apps", "deployments", "Deployment", "apps/v1"),
        autoscaler_of,
    ):
        with suppress(ValueError):
            hash(getattr(project(thing), "key", None))
