"""What docs/install.md and the values say is what the chart does."""

import re
from collections.abc import Iterator

import pytest
import yaml

from tests.helm import readme
from tests.helm.rendering import CHART, ROOT, VERSIONS, Manifest, merged, named, render
from tests.helm.schemas import complaint

DOCUMENT = (ROOT / "docs/install.md").read_text(encoding="utf-8")


def snippets(language: str = "yaml") -> Iterator[Manifest]:
    """YAML blocks of the document, those in lists too."""
    for block in re.findall(rf"^ *```{language}\n(.*?)^ *```", DOCUMENT, re.MULTILINE | re.DOTALL):
        yield yaml.safe_load(block)


def test_the_workloads_of_the_document_get_their_autoscalers() -> None:
    (values,) = [one for one in snippets() if "workloads" in one]
    manifests = render(merged({"aggregator": {"keda": {"enabled": True}}}, values))
    assert named(manifests, "HorizontalPodAutoscaler")["metadata"]["name"] == "llama-kvgauge"
    assert named(manifests, "ScaledObject")["metadata"]["name"] == "qwen-kvgauge"


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_the_autoscalers_of_the_document_are_those_that_the_chart_makes(version: str) -> None:
    (by_load,) = [one for one in snippets() if one.get("kind") == "HorizontalPodAutoscaler"]
    (by_count,) = [one["metrics"] for one in snippets() if "metrics" in one]
    assert complaint(by_load, version) is None
    for hpa, expected in (({}, by_load["spec"]["metrics"]), ({"metric": "object"}, by_count)):
        workload = {"name": "llama", "kind": "Deployment", "namespace": "llm", "min": 1, "max": 8, "hpa": hpa}
        made = named(render({"workloads": [workload]}, version=version), "HorizontalPodAutoscaler")
        assert made["spec"]["metrics"] == expected


def test_values_that_the_document_names_are_there() -> None:
    known = {value.path for value in readme.values((CHART / "values.yaml").read_text(encoding="utf-8"))}
    of_the_top = {path[0] for path in known}
    named_ones = {
        tuple(found.split("."))
        for found in re.findall(r"[`\s]([a-zA-Z]+(?:\.[a-zA-Z]+)+)\b", DOCUMENT)
        if found.split(".")[0] in of_the_top
    }
    assert len(named_ones) > 15
    assert {path for path in named_ones if path not in known} == set()


def test_every_flag_of_set_is_a_value() -> None:
    known = {".".join(value.path) for value in readme.values((CHART / "values.yaml").read_text(encoding="utf-8"))}
    given = set(re.findall(r"--set ([\w.]+)=", DOCUMENT))
    assert given
    assert given <= known
