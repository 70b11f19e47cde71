"""Pods as people and controllers write them, and what the injector makes of them."""

import copy
from pathlib import Path
from typing import Any

import yaml

from kvgauge.cluster.injector.containers import SIDECAR_NAME
from kvgauge.cluster.injector.patching import Outcome, inject
from kvgauge.cluster.injector.pods import Pod
from kvgauge.cluster.settings import InjectorSettings
from kvgauge.configuring import validated_role
from tests.cluster.injector.applying import applied

Json = dict[str, Any]

FOLDER = Path(__file__).parent / "pods"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def manifest(name: str, annotations: dict[str, str] | None = None) -> Json:
    pod: Json = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    if annotations:
        pod["metadata"]["annotations"] = {**pod["metadata"].get("annotations", {}), **annotations}
    return pod


def settings(**values: object) -> InjectorSettings:
    return validated_role(InjectorSettings, values)


def injected(pod: Json, *, native: bool = True, **values: object) -> tuple[Json, Outcome]:
    """The pod after the patch. The one given is left alone."""
    outcome = inject(Pod.model_validate(copy.deepcopy(pod)), settings(**values), native=native)
    return applied(pod, list(outcome.patch)), outcome


def sidecar_of(pod: Json) -> Json:
    both = [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]
    return next(container for container in both if container["name"] == SIDECAR_NAME)


def flags_of(pod: Json) -> dict[str, str]:
    """The sidecar's flags: name to value, "" for a switch."""
    arguments = sidecar_of(pod)["args"]
    assert arguments[0] == "sidecar"
    return {name: value for name, _, value in (each.partition("=") for each in arguments[1:])}


def env_of(container: Json) -> Json:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container.get("env", [])}


def mounts_of(container: Json) -> dict[str, Json]:
    return {each["mountPath"]: each for each in container.get("volumeMounts", [])}
