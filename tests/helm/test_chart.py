"""The chart as a package: versions, schema, lint, what is packed."""

import io
import json
import tarfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tests.helm import readme
from tests.helm.rendering import CHART, LIBRARY, NO_KEYS, ROOT, VERSIONS, Values, chart, merged, objects, render_files
from tests.helm.switches import SWITCHES

WARNING = 2


def test_the_chart_has_the_projects_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for folder in (CHART, LIBRARY):
        metadata = yaml.safe_load((folder / "Chart.yaml").read_text())
        assert metadata["appVersion"] == version
        assert metadata["version"] == version
    (dependency,) = yaml.safe_load((CHART / "Chart.yaml").read_text())["dependencies"]
    assert dependency["version"] == version


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
@pytest.mark.parametrize("values", [NO_KEYS, merged(NO_KEYS, SWITCHES["demo"])])
def test_lint_finds_nothing(version: str, values: Values) -> None:
    report = helm_python.lint(CHART, dict(values), strict=True, with_subcharts=True, kube_version=f"v{version}.0")
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] >= WARNING] == []


def test_what_is_packed_renders_the_same_and_holds_the_dashboards_folder_once(tmp_path: Path) -> None:
    archive = Path(helm_python.package(CHART, destination=tmp_path))
    values = merged(NO_KEYS, merged(SWITCHES["rules"], SWITCHES["dashboards"]))
    assert objects(render_files(values, folder=archive)) == objects(render_files(values))
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as packed:
        names = {member.name for member in packed.getmembers()}
        assert all(member.isfile() for member in packed.getmembers())
    alerts = {f"kvgauge/dashboards/alerts/{file.name}" for file in (ROOT / "dashboards/alerts").glob("*.yaml")}
    assert {"kvgauge/README.md", "kvgauge/values.schema.json", "kvgauge/charts/kvgauge-sidecar/Chart.yaml"} <= names
    assert {name for name in names if name.startswith("kvgauge/dashboards/alerts/")} == {
        name for name in alerts if "test" not in name
    }
    assert not any("/tests/" in name or "/." in name for name in names)


def test_helm_would_install_it() -> None:
    with helm_python.Config(storage_driver="memory") as config:
        release = config.install(CHART, "kvgauge", dict(NO_KEYS), namespace="kvgauge", dry_run="client")
    assert "kind: Deployment" in release["manifest"]
    assert "kvgauge.dev/inject" in release["notes"]


def test_older_kubernetes_is_refused_by_helm() -> None:
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert metadata["kubeVersion"] == f">={VERSIONS[0]}.0-0"


def test_the_dashboards_are_a_link_and_no_copy() -> None:
    link = CHART / "dashboards"
    assert link.is_symlink()
    assert str(link.readlink()) == "../../dashboards"


TYPOS: Mapping[str, Values] = {
    "at the top": {"agregator": {}},
    "in the aggregator": {"aggregator": {"replica": 2}},
    "in the aggregator's KEDA": {"aggregator": {"keda": {"enable": True}}},
    "in a budget": {"aggregator": {"podDisruptionBudget": {"maxUnavailible": 1}}},
    "in the injector's webhook": {"injector": {"webhook": {"failurePolicy": "Fail"}}},
    "in a workload": {
        "workloads": [{"name": "a", "kind": "Deployment", "min": 1, "max": 2, "hpa": {"metrik": "pods"}}]
    },
    "kind of a workload": {"workloads": [{"name": "a", "kind": "Job", "min": 1, "max": 2, "hpa": {}}]},
    "workload without an autoscaler": {"workloads": [{"name": "a", "kind": "Deployment", "min": 1, "max": 2}]},
    "workload with two": {
        "workloads": [{"name": "a", "kind": "Deployment", "min": 1, "max": 2, "hpa": {}, "scaledObject": {}}]
    },
    "target of a count": {
        "workloads": [{"name": "a", "kind": "Deployment", "min": 1, "max": 2, "hpa": {"metric": "object", "target": 2}}]
    },
    "port": {"aggregator": {"port": 70000}},
    "privileged port": {"aggregator": {"port": 443}},
    "duration": {"aggregator": {"interval": "1 second"}},
    "duration without a unit": {"aggregator": {"interval": 1}},
    "quantity": {"sidecar": {"memoryLimit": "256 MB"}},
    "webhook that holds pods up": {"injector": {"webhook": {"timeoutSeconds": 10}}},
    "gpu mode": {"gpu": {"mode": "all"}},
    "native": {"sidecar": {"native": True}},
    "digest": {"image": {"digest": "sha256:short"}},
    "repository with a tag": {"image": {"repository": "kvgauge:1"}},
    "namespace": {"watchNamespace": "Not A Name"},
    "mode of certificates": {"certificates": {"mode": "certmanager"}},
    "issuer without a name": {"certificates": {"certManager": {"issuerRef": {"kind": "Issuer"}}}},
    "CA that is none": {"certificates": {"given": {"injector": {"caBundle": "LS0tLS1CRUdJTg=="}}}},
    "architecture": {"pods": {"architectures": ["x86_64"]}},
    "account without a name": {"aggregator": {"serviceAccount": {"create": False}}},
    "flag": {"aggregator": {"extraArgs": ["interval=2s"]}},
    "priority": {"priorityClass": {"value": 2000000000}},
    "text for a switch": {"demo": {"enabled": "yes"}},
}


@pytest.mark.parametrize("typo", TYPOS)
def test_the_schema_rejects(typo: str) -> None:
    with pytest.raises(helm_python.HelmValuesError):
        chart().validate_schema(dict(TYPOS[typo]))


def test_the_schema_takes_the_defaults_and_every_switch() -> None:
    chart().validate_schema({})
    for values in SWITCHES.values():
        chart().validate_schema(dict(values))


def properties(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of all properties of maps that know theirs, except in lists."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for name, part in schema.get("properties", {}).items():
        here = f"{path}.{name}".removeprefix(".")
        yield here
        yield from properties(part, definitions, here)


def keys(node: object, path: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, part in node.items():
            here = f"{path}.{name}".removeprefix(".")
            yield here
            yield from keys(part, here)


def test_schema_and_values_know_the_same_names() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(properties(schema, schema["definitions"]))
    there = set(keys(yaml.safe_load((CHART / "values.yaml").read_text())))
    of_helm = {"global", "kvgauge-sidecar"}
    of_the_issuer = {f"certificates.certManager.issuerRef.{name}" for name in ("name", "kind", "group")}
    assert {name for name in known - there if ".resources." not in name} == of_helm | of_the_issuer
    assert {name for name in there - known if ".resources." not in name} == set()


def test_maps_of_the_schema_know_their_names() -> None:
    free = []

    def walk(schema: Any, path: str) -> None:
        if isinstance(schema, dict):
            if schema.get("type") == "object" and "additionalProperties" not in schema:
                free.append(path)
            for name, part in schema.items():
                walk(part, f"{path}/{name}")
        elif isinstance(schema, list):
            for part in schema:
                walk(part, path)

    walk(json.loads((CHART / "values.schema.json").read_text()), "")
    assert sorted(path.rpartition("/properties/")[2] for path in free) == [
        "affinity",
        "extraEgress/items",
        "global",
        "kedaFrom/items",
        "kvgauge-sidecar",
        "monitoringFrom/items",
        "securityContext",
        "tolerations/items",
        "triggers/items",
    ]


def test_the_readme_tells_every_value() -> None:
    assert readme.README.read_text(encoding="utf-8") == readme.readme(), "run scripts/chart-readme"
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    told = list(readme.values(text))
    assert len(told) > 100
    assert [value.path for value in told if len(value.meaning) < 8] == []


def test_comments_belong_to_the_key_below_them() -> None:
    text = "# one\n# line\na:\n  # two\n  b: |\n    # text\n    c: 1\n  d: []\n\n# lost\n\n# three\ne: 1\n"
    assert readme.comments(text) == {("a",): "one line", ("a", "b"): "two", ("a", "d"): "", ("e",): "three"}
