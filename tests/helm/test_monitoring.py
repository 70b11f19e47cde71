"""What the Prometheus operator, Grafana and network policies get."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from kvgauge.cluster.names import SIDECAR
from tests.helm.rendering import (
    CHART,
    LIBRARY,
    NAMESPACE,
    ROOT,
    Manifest,
    merged,
    named,
    of_kind,
    pod_specs,
    render,
    render_files,
)
from tests.helm.switches import SWITCHES

ALERTS = ROOT / "dashboards/alerts"
FIELDS = {
    "PodMonitor": {"selector", "namespaceSelector", "podTargetLabels", "podMetricsEndpoints"},
    "PrometheusRule": {"groups"},
    "ScaledObject": {
        "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "fallback",
        "advanced", "triggers",
    },
    "Certificate": {
        "isCA", "commonName", "secretName", "dnsNames", "duration", "renewBefore", "privateKey", "usages", "issuerRef",
    },
    "Issuer": {"selfSigned", "ca"},
}  # fmt: skip
"""Fields of custom resources' specs that the chart may use; a look at them where their definitions are not at hand."""


@pytest.mark.parametrize("switch", SWITCHES)
def test_custom_resources_have_only_fields_that_are_known(switch: str) -> None:
    for one in render(SWITCHES[switch]):
        if one["kind"] in FIELDS:
            assert set(one["spec"]) <= FIELDS[one["kind"]]


def test_monitors_select_ports_that_pods_have() -> None:
    manifests = render(merged(SWITCHES["pod monitors"], SWITCHES["demo"]))
    pods = [one["spec"]["template"] for one in of_kind(manifests, "Deployment")]
    monitors = of_kind(manifests, "PodMonitor")
    assert len(monitors) == 3
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (pod,) = [pod for pod in pods if wanted <= pod["metadata"]["labels"].items()]
        spec = pod["spec"]
        ports = {
            port["name"] for one in (*spec.get("initContainers", []), *spec["containers"]) for port in one["ports"]
        }
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] in ports
        assert endpoint["path"] == "/metrics"


def test_the_sidecars_monitor_takes_them_wherever_they_are() -> None:
    for switch, expected in (("pod monitors", {"any": True}), ("one namespace", {"matchNames": ["llm"]})):
        manifests = render(merged(SWITCHES["pod monitors"], SWITCHES[switch]))
        spec = named(manifests, "PodMonitor", "kvgauge-sidecars")["spec"]
        assert spec["selector"]["matchLabels"] == {SIDECAR: "true"}
        assert spec["namespaceSelector"] == expected
        assert spec["podTargetLabels"] == ["app"]


def test_the_aggregators_series_keep_the_namespace_that_they_are_of() -> None:
    manifests = render(SWITCHES["pod monitors"])
    assert named(manifests, "PodMonitor", "kvgauge-aggregator")["spec"]["podMetricsEndpoints"][0]["honorLabels"] is True
    assert "honorLabels" not in named(manifests, "PodMonitor", "kvgauge-injector")["spec"]["podMetricsEndpoints"][0]


def test_every_file_of_rules_is_one_object_with_the_same_groups() -> None:
    found = {
        one["metadata"]["name"]: one["spec"]["groups"] for one in of_kind(render(SWITCHES["rules"]), "PrometheusRule")
    }
    assert found == {
        f"kvgauge-{file.stem}": yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for file in ALERTS.glob("*.yaml")
        if "test" not in file.stem
    }


def test_runbooks_are_found_where_the_values_say() -> None:
    base = "https://git.example.com/kvgauge/blob/main/docs/runbooks"
    told = [
        rule["annotations"]["runbook_url"]
        for one in of_kind(render(merged(SWITCHES["rules"], runbooks_at(base))), "PrometheusRule")
        for group in one["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert told
    assert all(url.startswith(f"{base}/") and url.endswith(".md") for url in told)
    for board in boards(merged(SWITCHES["dashboards"], runbooks_at(base))):
        (variable,) = (each for each in board["templating"]["list"] if each["name"] == "runbooks")
        assert variable["query"] == base
    with pytest.raises(helm_python.HelmError, match="runbookBaseUrl"):
        render(merged(SWITCHES["rules"], runbooks_at("javascript:alert(1)")))


def test_dashboards_are_the_files_but_for_where_runbooks_are() -> None:
    plain = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(ALERTS.parent.glob("*.json"))]
    assert plain
    assert boards(SWITCHES["dashboards"]) == plain
    elsewhere = boards(merged(SWITCHES["dashboards"], runbooks_at("https://wiki.example.com/runbooks")))
    for board in elsewhere:
        (variable,) = (each for each in board["templating"]["list"] if each["name"] == "runbooks")
        variable["query"] = "docs/runbooks"
    assert elsewhere == plain


def boards(values: Mapping[str, Any]) -> list[Manifest]:
    """The dashboards that Grafana gets, by name."""
    maps = [one["data"] for one in of_kind(render(values), "ConfigMap") if "-dashboard-" in one["metadata"]["name"]]
    return [json.loads(text) for _, text in sorted(item for data in maps for item in data.items())]


def runbooks_at(base: str) -> dict[str, object]:
    return {"monitoring": {"rules": {"runbookBaseUrl": base}}}


def test_every_alert_has_a_severity_and_says_what_is_wrong() -> None:
    rules = [
        rule
        for file in ALERTS.glob("*.yaml")
        if "test" not in file.stem
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert rules
    for rule in rules:
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["for"]


def chart_with(tmp_path: Path, dashboards: dict[str, str] | None) -> Path:
    """A copy of the chart over another folder of dashboards, or none."""
    folder = tmp_path / "kvgauge"
    shutil.copytree(CHART, folder, ignore=shutil.ignore_patterns("dashboards"))
    for name, text in (dashboards or {}).items():
        file = folder / "dashboards" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


def test_dashboards_reach_grafana_unchanged(tmp_path: Path) -> None:
    dashboard = {"title": "Fleet", "panels": [{"targets": [{"expr": 'x{a="b"}', "legendFormat": "{{pod}}"}]}]}
    folder = chart_with(tmp_path, {"fleet.json": json.dumps(dashboard, indent=2), "tests/t.json": "{}"})
    (found,) = of_kind(render_folder(folder), "ConfigMap")
    assert found["metadata"]["name"] == "kvgauge-dashboard-fleet"
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"grafana_folder": "kvgauge"}
    assert found["metadata"]["namespace"] == NAMESPACE
    assert json.loads(found["data"]["fleet.json"]) == dashboard


def test_without_dashboards_there_is_nothing_to_install(tmp_path: Path) -> None:
    assert {one["kind"] for one in render_folder(chart_with(tmp_path, None))} & {"ConfigMap", "PrometheusRule"} == set()


def test_a_file_of_rules_without_rules_is_named(tmp_path: Path) -> None:
    folder = chart_with(tmp_path, {"alerts/empty.yaml": "group: []\n"})
    with pytest.raises(helm_python.HelmRenderError, match=r"dashboards/alerts/empty\.yaml: no groups of rules"):
        render_folder(folder)


def render_folder(folder: Path) -> list[Manifest]:
    values = merged(SWITCHES["dashboards"], SWITCHES["rules"])
    return render(merged({"certificates": {"mode": "certManager"}}, values), folder=folder)


def test_policies_let_through_what_the_parts_need() -> None:
    policies = merged(SWITCHES["network policies"], SWITCHES["keda"])
    manifests = render(merged(policies, {"aggregator": {"port": 8443, "sidecarPort": 9900}}))
    aggregator = named(manifests, "NetworkPolicy", "kvgauge-aggregator")["spec"]
    assert [rule["ports"][0]["port"] for rule in aggregator["ingress"]] == [8443, 9839, 9840]
    assert [[port["port"] for port in rule["ports"]] for rule in aggregator["egress"]] == [
        [53, 53],
        [443, 6443, 8443],
        [9900],
    ]
    assert aggregator["egress"][-1]["to"] == [{"namespaceSelector": {}}]
    injector = named(manifests, "NetworkPolicy", "kvgauge-injector")["spec"]
    assert [rule["ports"][0]["port"] for rule in injector["ingress"]] == [6443, 9839]
    assert [[port["port"] for port in rule["ports"]] for rule in injector["egress"]] == [[53, 53], [443, 6443, 8443]]
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in of_kind(manifests, "Deployment")]
    for policy in (aggregator, injector):
        assert [policy["podSelector"]["matchLabels"].items() <= each.items() for each in labels].count(True) == 1


def test_policies_can_be_narrower() -> None:
    manifests = render(merged(SWITCHES["narrow network policies"], merged(SWITCHES["keda"], SWITCHES["one namespace"])))
    spec = named(manifests, "NetworkPolicy", "kvgauge-aggregator")["spec"]
    assert "from" not in spec["ingress"][0]
    assert (
        spec["ingress"][1]["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] == "monitoring"
    )
    assert spec["ingress"][2]["from"] == [{"podSelector": {}}]
    assert spec["egress"][-2]["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "llm"}
    assert spec["egress"][-1]["ports"] == [{"port": 9900, "protocol": "TCP"}]


def test_all_of_the_library_is_in_the_chart() -> None:
    assert LIBRARY.is_dir()
    assert len(pod_specs(render(SWITCHES["demo"]))) == 3


@pytest.mark.parametrize("part", ["rules", "dashboards"])
def test_the_notes_say_that_runbooks_are_no_links_until_it_is_told_where_they_are(part: str) -> None:
    def notes(**rules: Any) -> str:
        wanted = {"monitoring": {part: {"enabled": True}}}
        return render_files(merged(wanted, {"monitoring": {"rules": rules}}))["kvgauge/templates/NOTES.txt"]

    assert "set monitoring.rules.runbookBaseUrl" in notes()
    assert "runbookBaseUrl" not in notes(runbookBaseUrl="https://docs.example/runbooks")
