"""Strict schemas: those of Kubernetes by version, and those of custom resources where their definitions are at hand."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import yaml
from jsonschema.protocols import Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from tests.helm.rendering import ROOT, Manifest

CRDS = ROOT.parent / "shared/reference/crds"
"""Definitions beside the checkout; not needed, but used where they are."""

_CUSTOM_GROUPS = ("cert-manager.io", "keda.sh", "monitoring.coreos.com")


def complaint(manifest: Manifest, version: str) -> str | None:
    """What the strict schema of that Kubernetes version has against an object; None: nothing, or a custom resource
    whose definition is not here."""
    validator = _validator(manifest["apiVersion"], manifest["kind"], version)
    error = None if validator is None else jsonschema.exceptions.best_match(validator.iter_errors(manifest))
    if error is None:
        return None
    name = f"{manifest['kind']} {manifest['metadata']['name']}"
    return f"{name} for {version}: {error.json_path}: {error.message[:300]}"


@cache
def _validator(api_version: str, kind: str, version: str) -> Validator | None:
    group = api_version.rpartition("/")[0]
    if group in _CUSTOM_GROUPS:
        schema = custom_schemas().get((api_version, kind))
        return None if schema is None else jsonschema.Draft202012Validator(schema)
    file = f"{kind.lower()}-{group.split('.')[0]}{'-' if group else ''}{api_version.rpartition('/')[2]}.json"
    # As kubernetes_validate.validate does, which reads all definitions anew for each object.
    schema = schema_contents(f"{_folder(version)}/{file}", version)
    registry = Resource.from_contents(schema) @ _definitions(version)
    return jsonschema.Draft202012Validator(schema, registry=registry)


def _folder(version: str) -> str:
    return f"kubernetes-json-schema/v{version}.0-local-strict"


@cache
def _definitions(version: str) -> Registry[Any]:
    registry: Registry[Any] = Registry()
    return Resource.from_contents(schema_contents(f"{_folder(version)}/_definitions.json", version)) @ registry


@cache
def custom_schemas() -> dict[tuple[str, str], Any]:
    """(apiVersion, kind) -> schema that forbids unknown fields."""
    found = {}
    for file in sorted(CRDS.glob("*.yaml")):
        for definition in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            if not definition:
                continue
            spec = definition["spec"]
            for version in spec["versions"]:
                key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                found[key] = _strict(version["schema"]["openAPIV3Schema"])
                found[key]["properties"]["metadata"] = {"type": "object"}
    return found


def _strict(schema: Any) -> Any:
    """The same with unknown fields forbidden and Kubernetes' int-or-string told in JSON schema's words."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {
        key: {name: _strict(part) for name, part in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
        if key not in {"description", "format"}
    }
    if strict.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in strict and not strict.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


def leaves(node: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every value of an object with its path."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, f"{path}[{index}]")
    else:
        yield path, node
