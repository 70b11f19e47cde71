"""Whatever is switched on or off, the chart renders to objects that every Kubernetes version takes."""

import json
import re
from collections.abc import Iterable
from itertools import combinations

import pytest
from helm_python import HelmError

from tests.helm.rendering import (
    CHART,
    NAMESPACE,
    NO_KEYS,
    VERSIONS,
    Manifest,
    Values,
    merged,
    objects,
    render,
    render_files,
)
from tests.helm.schemas import complaint, custom_schemas, leaves
from tests.helm.switches import REFUSED, SWITCHES

CLUSTER_SCOPED = {
    "APIService",
    "ClusterRole",
    "ClusterRoleBinding",
    "MutatingWebhookConfiguration",
    "PriorityClass",
}
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_PATH_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def complaints(manifests: Iterable[Manifest], version: str) -> list[str]:
    return [said for one in manifests if (said := complaint(one, version))]


def distinct(manifests: Iterable[Manifest]) -> list[Manifest]:
    return list({json.dumps(one, sort_keys=True): one for one in manifests}.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_switch_by_itself_passes_the_strict_schemas(version: str) -> None:
    found = render(version=version)
    for values in SWITCHES.values():
        found += render(values, version=version)
    assert len(found) > 10 * len(SWITCHES)
    assert complaints(distinct(found), version) == []


def test_every_pair_of_switches_renders_or_is_refused_for_its_contradiction() -> None:
    documents: set[str] = set()
    refused = set()
    for one, other in combinations(SWITCHES, 2):
        values = merged(NO_KEYS, merged(SWITCHES[one], SWITCHES[other]))
        try:
            # The schema has seen each by itself.
            files = render_files(values, checked=False)
        except HelmError:
            refused.add(frozenset((one, other)))
            continue
        documents.update(
            text for file, texts in files.items() if file.endswith(".yaml") for text in texts.split("\n---\n")
        )
    assert refused == REFUSED
    found = objects({f"{index}.yaml": text for index, text in enumerate(sorted(documents))})
    assert len(found) > 100
    assert complaints(found, VERSIONS[-1]) == []


def test_the_schemas_find_a_misspelt_field() -> None:
    (service,) = (one for one in render() if one["kind"] == "Service" and "injector" in one["metadata"]["name"])
    service["spec"]["selektor"] = {}
    assert "selektor" in (complaint(service, VERSIONS[-1]) or "")


@pytest.mark.skipif(not custom_schemas(), reason="the definitions of custom resources are not beside the checkout")
def test_the_schemas_of_custom_resources_find_a_misspelt_field() -> None:
    monitors = [one for one in render(SWITCHES["pod monitors"]) if one["kind"] == "PodMonitor"]
    assert len(monitors) == 3
    monitors[0]["spec"]["podMetricsEndpoints"][0]["intervall"] = "1s"
    assert "intervall" in (complaint(monitors[0], VERSIONS[-1]) or "")


@pytest.mark.parametrize(
    ("name", "namespace"),
    [
        ("kvgauge", "kvgauge"),
        ("a", "b"),
        ("a" * 53, "n" * 63),
        ("x.y" * 17, "default"),
        (f"kvgauge-{'b' * 45}", "n" * 63),
    ],
)
def test_names_and_labels_stay_within_what_kubernetes_takes(name: str, namespace: str) -> None:
    everything: Values = {}
    for switch in (
        "keda",
        "events",
        "network policies",
        "pod monitors",
        "rules",
        "dashboards",
        "priority class",
        "demo",
    ):
        everything = merged(everything, SWITCHES[switch])
    long = {"name": "w" * 63, "kind": "Deployment", "min": 1, "max": 2}
    values = merged(everything, {"workloads": [{**long, "hpa": {}}, {**long, "namespace": "llm", "scaledObject": {}}]})
    manifests = render(values, name=name, namespace=namespace)
    for one in manifests:
        metadata = one["metadata"]
        pattern = _PATH_NAME if one["kind"] in {*CLUSTER_SCOPED, "RoleBinding"} else _DNS_LABEL
        assert pattern.fullmatch(metadata["name"]), metadata["name"]
        assert len(metadata["name"]) <= 63
        assert (one["kind"] in CLUSTER_SCOPED) == ("namespace" not in metadata), one["kind"]
        for label in (
            (*metadata["labels"].values(), *one["spec"].get("selector", {}).get("matchLabels", {}).values())
            if (isinstance(one.get("spec"), dict))
            else metadata["labels"].values()
        ):
            assert len(label) <= 63
            assert _LABEL.fullmatch(label), label
    keys = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in manifests]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("one", "here"), ("two", "here")),
        (("same", "here"), ("same", "there")),
        (("a" * 52 + "1", "here"), ("a" * 52 + "2", "here")),
        (("same", "n" * 62 + "1"), ("same", "n" * 62 + "2")),
    ],
)
def test_two_releases_share_nothing_but_the_api_that_is_guarded(
    first: tuple[str, str], second: tuple[str, str]
) -> None:
    values: Values = {"priorityClass": {"create": True}, "aggregator": {"keda": {"enabled": True}, "events": True}}

    def keys(release: tuple[str, str]) -> set[tuple[str, str | None, str]]:
        found = render(values, name=release[0], namespace=release[1])
        return {(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in found}

    shared = keys(first) & keys(second)
    assert shared == {
        ("APIService", None, "v1beta1.custom.metrics.k8s.io"),
        ("APIService", None, "v1beta2.custom.metrics.k8s.io"),
    }


def test_everything_off_leaves_nothing() -> None:
    off: Values = {"aggregator": {"enabled": False}, "injector": {"enabled": False}}
    assert render(off) == []


@pytest.mark.parametrize("switch", SWITCHES)
def test_no_value_is_left_empty_or_printed_as_go_would(switch: str) -> None:
    for one in render(SWITCHES[switch]):
        for path, value in leaves(one):
            assert value is not None, (one["kind"], path)
            assert "<nil>" not in str(value)
            assert "map[" not in str(value)
            assert "%!" not in str(value)


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_notes_tell_what_to_do_next(switch: str) -> None:
    notes = render_files(merged(NO_KEYS, SWITCHES[switch]))["kvgauge/templates/NOTES.txt"]
    assert NAMESPACE in notes
    assert "<no value>" not in notes
    assert ("kvgauge.dev/inject" in notes) == (switch != "injector off")
    assert ("get apiservice" in notes) == (switch not in {"aggregator off", "custom metrics off"})
    assert ("WARNING" in notes) == (switch == "custom metrics off")
    assert max(map(len, notes.splitlines())) <= 160


def test_no_registry_is_named_in_the_chart() -> None:
    for file in CHART.rglob("*"):
        if file.is_file() and file.suffix in {".yaml", ".tpl", ".txt", ".json"} and "dashboards" not in file.parts:
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(docker|quay|ghcr|gcr|registry)\.(io|k8s)", text), file
            assert "://" not in text.replace("http://127.0.0.1:8000", "").replace(
                "http://json-schema.org/draft-07/schema#", ""
            ), file
