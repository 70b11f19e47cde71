"""docs/keda.md: its manifests have the shape that the API server and KEDA want, and name what there is."""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvgauge.cluster.keda_messages import Reference
from kvgauge.cluster.keda_triggers import DEFAULT_TARGET_MILLI, read_trigger
from kvgauge.cluster.names import DEFAULT_PORT, POD_METRICS, REQUIRED_REPLICAS
from kvgauge.cluster.settings import AggregatorSettings

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "keda.md").read_text()
TRIGGERS = {
    "external": (
        {"scalerAddress", "workload"},
        {"metric", "target", "activation", "enableTLS"},
    ),
    "prometheus": ({"serverAddress", "query", "threshold", "ignoreNullValues"}, {"activationThreshold"}),
    "metrics-api": (
        {"url", "format", "valueLocation", "targetValue", "aggregateFromKubeServiceEndpoints", "aggregationType"},
        set(),
    ),
}
"""Type to the metadata that a trigger here must and may have."""
SPEC = {
    "scaleTargetRef": dict,
    "minReplicaCount": int,
    "maxReplicaCount": int,
    "pollingInterval": int,
    "cooldownPeriod": int,
    "initialCooldownPeriod": int,
    "fallback": dict,
    "advanced": dict,
    "triggers": list,
}
RULES = {
    "stabilizationWindowSeconds": int,
    "tolerance": int,
    "policies": list,
}
BEHAVIORS = {"static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"}


def manifests() -> list[dict[str, Any]]:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [manifest for block in blocks for manifest in yaml.safe_load_all(block)]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests() if manifest["kind"] == kind]


def triggers(kind: str = "") -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each with its ScaledObject."""
    for manifest in of_kind("ScaledObject"):
        for trigger in manifest["spec"]["triggers"]:
            if trigger["type"].startswith(kind):
                yield manifest, trigger


def has_only(found: Mapping[str, Any], known: Mapping[str, type]) -> None:
    assert found.keys() <= known.keys()
    for key, value in found.items():
        assert type(value) is known[key], key


def test_there_is_a_whole_manifest_for_each_way() -> None:
    assert {trigger["type"] for _, trigger in triggers()} == set(TRIGGERS)
    assert PAGE.count("```yaml") == PAGE.count("kind: ScaledObject") == 6


def test_every_manifest_is_of_a_known_kind_and_named() -> None:
    versions = {"Service": "v1", "ScaledObject": "keda.sh/v1alpha1", "TriggerAuthentication": "keda.sh/v1alpha1"}
    for manifest in manifests():
        assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
        assert manifest["apiVersion"] == versions[manifest["kind"]]
        assert manifest["metadata"].keys() == {"name", "namespace"}


def test_scaled_objects_have_the_schemas_shape() -> None:
    for manifest in of_kind("ScaledObject"):
        spec = manifest["spec"]
        has_only(spec, SPEC)
        assert {"scaleTargetRef", "triggers"} <= spec.keys()
        has_only(spec["scaleTargetRef"], {"apiVersion": str, "kind": str, "name": str})
        assert 0 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
        if "fallback" in spec:
            has_only(spec["fallback"], {"failureThreshold": int, "replicas": int, "behavior": str})
            assert {"failureThreshold", "replicas"} <= spec["fallback"].keys()
            assert spec["fallback"]["behavior"] in BEHAVIORS
            assert spec["fallback"]["replicas"] > 0
        if "advanced" in spec:
            (config,) = spec["advanced"].values()
            assert spec["advanced"].keys() == {"horizontalPodAutoscalerConfig"}
            assert config.keys() == {"behavior"}
            assert config["behavior"].keys() <= {"scaleUp", "scaleDown"}
            for rules in config["behavior"].values():
                has_only(rules, RULES)
                for policy in rules.get("policies", []):
                    assert policy.keys() == {"type", "value", "periodSeconds"}
                    assert policy["type"] in {"Pods", "Percent"}


def test_triggers_have_what_their_scaler_takes() -> None:
    names = {manifest["metadata"]["name"] for manifest in of_kind("TriggerAuthentication")}
    for manifest, trigger in triggers():
        required, optional = TRIGGERS[trigger["type"]]
        metadata = trigger["metadata"]
        assert trigger.keys() <= {"type", "name", "metadata", "authenticationRef"}
        assert required <= metadata.keys() <= required | optional
        assert all(type(value) is str for value in metadata.values()), "the API server takes strings only"
        if "authenticationRef" in trigger:
            assert trigger["authenticationRef"]["name"] in names
            assert metadata["enableTLS"] == "true"
        assert len(manifest["spec"]["triggers"]) == 1 or trigger["name"]


def test_the_scaler_takes_its_triggers_and_they_are_about_the_workload_scaled() -> None:
    for manifest, trigger in triggers("external"):
        told = read_trigger(Reference(manifest["metadata"]["name"], "llm", trigger["metadata"]))
        target = manifest["spec"]["scaleTargetRef"]
        (key,) = told.keys
        assert key.name == target["name"]
        assert key.resource == target.get("kind", "Deployment").lower() + "s"
        assert key.group == target.get("apiVersion", "apps/v1").split("/")[0]


def test_every_key_of_the_scaler_is_told_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(workload|metric|target|activation)` \| (.*?) \|", PAGE, re.MULTILINE))
    assert rows == {
        "workload": "none, must be given",
        "metric": f"`{REQUIRED_REPLICAS}`",
        "target": "`1`; `0.85` for `kvgauge_load_ratio`",
        "activation": "`0`",
    }
    assert DEFAULT_TARGET_MILLI == {REQUIRED_REPLICAS: 1000, "kvgauge_load_ratio": 850}


def test_no_query_takes_missing_for_nothing() -> None:
    for _, trigger in triggers("prometheus"):
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert trigger["metadata"]["query"].startswith(("sum(", "max(")), "one element"


def test_services_and_triggers_agree() -> None:
    services = {
        f"{manifest['metadata']['name']}.{manifest['metadata']['namespace']}.svc": manifest["spec"]["ports"][0]
        for manifest in of_kind("Service")
    }
    for _, trigger in triggers("external"):
        host, _, port = trigger["metadata"]["scalerAddress"].partition(":")
        assert services[host]["targetPort"] == int(port)
    for _, trigger in triggers("metrics-api"):
        found = re.fullmatch(r"http://(.*)\.cluster\.local:(\d+)/metrics", trigger["metadata"]["url"])
        assert found is not None
        assert services[found[1]]["targetPort"] == int(found[2]) == DEFAULT_PORT


def test_every_metric_there_is() -> None:
    known = set(re.findall(r"^\| `(kvgauge_\w+)` \|", (DOCS / "metrics.md").read_text(), re.MULTILINE))
    named = set(re.findall(r"kvgauge_\w+", PAGE))
    assert named == {"kvgauge_load_ratio", REQUIRED_REPLICAS}
    assert named <= known | {REQUIRED_REPLICAS, *POD_METRICS}


def test_every_flag_there_is() -> None:
    named = set(re.findall(r"--([a-z][a-z-]+)", re.sub(r"^kubectl.*$", "", PAGE, flags=re.MULTILINE)))
    assert {"keda-port", "keda-tls"} <= named
    assert {name.replace("-", "_") for name in named} <= AggregatorSettings.model_fields.keys()


def queries() -> list[str]:
    found = [trigger["metadata"]["query"].strip() for _, trigger in triggers("prometheus")]
    (wrapper,) = re.findall(r"^```text\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    return [*found, wrapper.replace("QUERY", found[0])]


@pytest.mark.prometheus
def test_prometheus_answers_the_queries_as_told(tmp_path: Path) -> None:
    """The sum while every ready pod tells its load; nothing where one is silent; 0 where no pod is asked for."""
    load, required, queue, to_zero = queries()

    def pod(number: int) -> str:
        return f'kvgauge_load_ratio{{namespace="llm", pod="llama-5d8f-abcd{number}", model="m", rank="0"}}'

    def deployment(name: str, replicas: int) -> dict[str, str]:
        series = f'kube_deployment_{name}{{namespace="llm", deployment="llama"}}'
        return {"series": series, "values": f"{replicas}x5"}

    def case(series: list[dict[str, str]], *expected: tuple[str, float | None]) -> dict[str, Any]:
        return {
            "interval": "15s",
            "input_series": series,
            "promql_expr_test": [
                {
                    "expr": query,
                    "eval_time": "30s",
                    "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
                }
                for query, value in expected
            ],
        }

    loads = [{"series": pod(number), "values": "0.5x5"} for number in range(3)]
    foreign = {"series": pod(1).replace("llama-5d8f", "llama-70b-5d8f"), "values": "9x5"}
    counts = [
        {
            "series": f'{REQUIRED_REPLICAS}{{namespace="llm", workload="llama", instance="{name}"}}',
            "values": f"{name}x5",
        }
        for name in (3, 4)
    ]
    waiting = {"series": 'gateway_requests_waiting{route="llama", gateway="a"}', "values": "7x5"}
    asked = deployment("spec_replicas", 3)
    tests = [
        case([*loads, foreign, deployment("status_replicas_ready", 3), asked], (load, 1.5), (to_zero, 1.5)),
        case([*loads[:2], deployment("status_replicas_ready", 3), asked], (load, None), (to_zero, None)),
        case([deployment("status_replicas_ready", 0), deployment("spec_replicas", 0)], (load, None), (to_zero, 0)),
        case([*counts, waiting], (required, 4), (queue, 7)),
    ]
    file = tmp_path / "queries.json"
    file.write_text(json.dumps({"evaluation_interval": "15s", "tests": tests}))
    ran = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
