"""The chart as Helm renders it, without a cluster."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml
from helm_python import _native

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/kvgauge"
LIBRARY = CHART / "charts/kvgauge-sidecar"
VERSIONS = ("1.28", "1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36")
"""Kubernetes versions that the chart is for."""

RELEASE = "kvgauge"
NAMESPACE = "kvgauge-system"

Manifest = dict[str, Any]


class _Loader(yaml.CSafeLoader):
    """Refuses a key that comes twice, as the API server does and PyYAML does not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises ValueError."""
        keys = [key.value for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise ValueError(f"a key comes twice: {sorted(key for key in keys if keys.count(key) > 1)}")
        return super().construct_mapping(node, deep)


Values = Mapping[str, Any]

NO_KEYS: Values = {"certificates": {"mode": "certManager"}}
"""Making keys takes longer than all the rest of a rendering."""


@cache
def chart(folder: Path = CHART) -> helm_python.Chart:
    return helm_python.Chart.load(folder)


def render_files(
    values: Values,
    *,
    version: str = VERSIONS[-1],
    name: str = RELEASE,
    namespace: str = NAMESPACE,
    folder: Path = CHART,
    checked: bool = True,
) -> dict[str, str]:
    """Template -> text. Raises HelmError for what the schema (unless that is not checked) or a template refuses.

    Kubernetes' version is not among the public arguments of helm_python 0.2.2, hence the private call.
    """
    if checked:
        chart(folder).validate_schema(dict(values))
    options = {"name": name, "namespace": namespace, "kube_version": f"v{version}.0"}
    loaded = chart(folder)
    text = _native.call_string("helm_render", loaded._raw(), json.dumps(values), json.dumps(options))
    return dict(json.loads(text))


def render(
    values: Values | None = None,
    *,
    version: str = VERSIONS[-1],
    name: str = RELEASE,
    namespace: str = NAMESPACE,
    folder: Path = CHART,
) -> list[Manifest]:
    """All objects, with the values on top of NO_KEYS."""
    chosen = merged(NO_KEYS, values or {}) if folder == CHART else values or {}
    files = render_files(chosen, version=version, name=name, namespace=namespace, folder=folder)
    return objects(files)


def objects(files: Mapping[str, str]) -> list[Manifest]:
    """What the YAML files hold, in their order."""
    return [
        found
        for file, text in sorted(files.items())
        if file.endswith(".yaml")
        for found in yaml.load_all(text, Loader=_Loader)
        if found
    ]


def merged(first: Values, second: Values) -> dict[str, Any]:
    """Maps are merged, all else is taken from the second."""
    both = dict(first)
    for key, value in second.items():
        before = both.get(key)
        both[key] = merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return both


def named(manifests: Sequence[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The one object of that kind, and name if there are more."""
    found = [one for one in manifests if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    assert len(found) == 1, f"{kind} {name}: {[(one['kind'], one['metadata']['name']) for one in manifests]}"
    return found[0]


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    return [one for one in manifests if one["kind"] == kind]


def pod_specs(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Specs of the pods that these objects make."""
    return [one["spec"]["template"]["spec"] for one in of_kind(manifests, "Deployment")]


def containers(spec: Manifest) -> list[Manifest]:
    return [*spec.get("initContainers", []), *spec["containers"]]
