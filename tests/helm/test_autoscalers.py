"""HPA and ScaledObject of the workloads that the values name."""

import helm_python
import pytest

from kvgauge.cluster.keda_messages import Reference
from kvgauge.cluster.keda_triggers import read_trigger
from kvgauge.cluster.names import POD_METRICS, REQUIRED_REPLICAS
from kvgauge.cluster.records import WorkloadKey
from tests.helm.rendering import NAMESPACE, VERSIONS, Manifest, Values, merged, named, render
from tests.helm.switches import SWITCHES


def workload(**fields: object) -> Values:
    entry = {"name": "llama", "kind": "Deployment", "namespace": "llm", "min": 1, "max": 8, **fields}
    return {"aggregator": {"keda": {"enabled": True}}, "workloads": [entry]}


def hpa(version: str = VERSIONS[-1], **fields: object) -> Manifest:
    return named(render(workload(**fields), version=version), "HorizontalPodAutoscaler")


def test_by_the_load_of_the_pods() -> None:
    found = hpa(hpa={})
    assert found["metadata"]["namespace"] == "llm"
    assert found["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llama"}
    assert (found["spec"]["minReplicas"], found["spec"]["maxReplicas"]) == (1, 8)
    (metric,) = found["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in POD_METRICS
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "850m"}
    assert "behavior" not in found["spec"]


@pytest.mark.parametrize(("target", "expected"), [(1, "1000m"), (0.9, "900m"), (0.29, "290m"), (1.15, "1150m")])
def test_a_target_of_ones_own(target: float, expected: str) -> None:
    found = hpa(hpa={"metric": "pods", "target": target})
    assert found["spec"]["metrics"][0]["pods"]["target"]["averageValue"] == expected


def test_by_the_count_of_the_workload() -> None:
    found = hpa(kind="LeaderWorkerSet", min=0, hpa={"metric": "object"})
    (metric,) = found["spec"]["metrics"]
    described = {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": "llama"}
    assert metric["object"]["describedObject"] == found["spec"]["scaleTargetRef"] == described
    assert metric["object"]["metric"]["name"] == REQUIRED_REPLICAS
    assert metric["object"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    assert found["spec"]["minReplicas"] == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_count_is_followed_without_tolerance_where_kubernetes_knows_it(version: str) -> None:
    behavior = hpa(version, hpa={"metric": "object"})["spec"].get("behavior", {})
    expected = {"tolerance": "0"} if version in {"1.35", "1.36"} else None
    assert (behavior.get("scaleUp"), behavior.get("scaleDown")) == (expected, expected)


def test_behavior_and_tolerance_of_ones_own() -> None:
    given = {"scaleUp": {"tolerance": 0.05}, "scaleDown": {"stabilizationWindowSeconds": 60}}
    found = hpa("1.33", hpa={"tolerance": 0.02, "behavior": given})
    assert found["spec"]["behavior"] == {
        "scaleUp": {"tolerance": 0.05},
        "scaleDown": {"stabilizationWindowSeconds": 60, "tolerance": "0.02"},
    }


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("Deployment", ("apps", "deployments")),
        ("StatefulSet", ("apps", "statefulsets")),
        ("LeaderWorkerSet", ("leaderworkerset.x-k8s.io", "leaderworkersets")),
    ],
)
def test_the_scaler_reads_what_the_scaled_object_says(kind: str, key: tuple[str, str]) -> None:
    found = named(render(workload(kind=kind, min=0, scaledObject={})), "ScaledObject")
    (trigger,) = found["spec"]["triggers"]
    assert trigger["type"] == "external"
    read = read_trigger(Reference(name="llama", namespace="llm", metadata=trigger["metadata"]))
    assert read.keys == (WorkloadKey("llm", *key, "llama"),)
    assert (read.metric, read.target_milli) == (REQUIRED_REPLICAS, 1000)
    assert trigger["metadata"]["scalerAddress"] == f"kvgauge-keda.{NAMESPACE}.svc:9840"
    assert found["spec"]["minReplicaCount"] == 0


def test_everything_that_a_scaled_object_takes() -> None:
    values = workload(
        scaledObject={
            "metric": "kvgauge_load_ratio",
            "target": 0.9,
            "activation": "0.1",
            "pollingInterval": 5,
            "cooldownPeriod": 60,
            "authentication": {"name": "kvgauge-ca", "kind": "ClusterTriggerAuthentication"},
            "fallback": {"failureThreshold": 4, "replicas": 4, "behavior": "currentReplicasIfHigher"},
            "behavior": {"scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}},
            "triggers": [{"type": "prometheus", "metadata": {"query": "up"}}],
        }
    )
    values = merged(values, {"aggregator": {"keda": {"tls": True}}})
    spec = named(render(values), "ScaledObject")["spec"]
    first, second = spec["triggers"]
    read = read_trigger(Reference(name="llama", namespace="llm", metadata=first["metadata"]))
    assert (read.metric, read.target_milli, read.activation_milli) == ("kvgauge_load_ratio", 900, 100)
    assert first["metadata"]["enableTLS"] == "true"
    assert first["authenticationRef"]["name"] == "kvgauge-ca"
    assert second["type"] == "prometheus"
    assert (spec["pollingInterval"], spec["cooldownPeriod"], spec["fallback"]["replicas"]) == (5, 60, 4)
    assert "scaleDown" in spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (workload(min=0, hpa={}), r"workloads\[0\]\.hpa: min 0 needs metric object"),
        (workload(min=9, hpa={}), r"workloads\[0\]\.hpa: min should be at most max"),
        (workload(min=9, scaledObject={}), r"workloads\[0\]\.scaledObject: min should be at most max"),
        (
            merged(workload(hpa={}), SWITCHES["custom metrics off"]),
            r"workloads\[0\]\.hpa: needs aggregator\.enabled and customMetrics\.enabled",
        ),
        (
            merged(workload(scaledObject={}), {"aggregator": {"keda": {"enabled": False}}}),
            r"workloads\[0\]\.scaledObject: needs aggregator\.enabled and aggregator\.keda\.enabled",
        ),
        (
            merged(workload(scaledObject={}), {"aggregator": {"keda": {"tls": True}}}),
            r"workloads\[0\]\.scaledObject\.authentication: missing",
        ),
        (
            merged(SWITCHES["demo"], {"demo": {"minReplicas": 4}}),
            r"demo\.autoscaler: min should be at most max",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(values: Values, message: str) -> None:
    with pytest.raises(helm_python.HelmRenderError, match=message):
        render(values)
