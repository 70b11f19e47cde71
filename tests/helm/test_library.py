"""The library's templates in a chart of somebody else's."""

import shutil
from pathlib import Path
from typing import Any

import helm_python
import pytest

from kvgauge.cluster.injector.patching import inject
from kvgauge.cluster.injector.pods import Pod
from kvgauge.cluster.names import INJECT, PORT, SIDECAR
from kvgauge.cluster.settings import InjectorSettings
from kvgauge.configuring import validated_role
from kvgauge.settings import Settings, validated
from kvgauge.settings import load as load_sidecar
from tests.helm.rendering import LIBRARY, VERSIONS, Manifest, named, render
from tests.helm.schemas import complaint


@pytest.fixture(scope="module")
def consumer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with its dependency put in, as `helm dependency build` does."""
    folder = tmp_path_factory.mktemp("charts") / "consumer"
    shutil.copytree(Path(__file__).parent / "consumer", folder)
    shutil.copytree(LIBRARY, folder / "charts" / LIBRARY.name)
    return folder


def pod(consumer: Path, version: str = VERSIONS[-1], **sidecar: Any) -> tuple[Manifest, Manifest]:
    """(pod template, the sidecar's container)"""
    manifests = render({"sidecar": sidecar}, folder=consumer, version=version)
    deployment = named(manifests, "Deployment")
    assert complaint(deployment, version) is None
    template = deployment["spec"]["template"]
    spec = template["spec"]
    (container,) = [one for one in (*spec.get("initContainers", []), *spec["containers"]) if one["name"] == "kvgauge"]
    return template, container


def settings(container: Manifest) -> Settings:
    role, *flags = container["args"]
    assert role == "sidecar"
    return load_sidecar(flags, {})[0]


def test_with_nothing_but_an_image(consumer: Path) -> None:
    template, container = pod(consumer)
    assert template["metadata"]["labels"][SIDECAR] == "true"
    assert template["metadata"]["annotations"][PORT] == "9838"
    assert container in template["spec"]["initContainers"]
    assert container["restartPolicy"] == "Always"
    assert container["ports"] == [{"name": "kvgauge", "containerPort": 9838, "protocol": "TCP"}]
    found, default = settings(container).model_dump(), validated({}).model_dump()
    assert found.pop("state_file").startswith(container["volumeMounts"][0]["mountPath"])
    assert found == {name: value for name, value in default.items() if name != "state_file"}


def test_with_all_that_it_takes(consumer: Path) -> None:
    template, container = pod(
        consumer,
        imagePullPolicy="Always",
        engineUrl="http://127.0.0.1:8080",
        engine="sglang",
        model="/models/m",
        port=9900,
        sloTtft="2s",
        sloTpot="80ms",
        spoolVolume="spool",
        resources={"requests": {"cpu": "5m", "memory": "50Mi"}},
        env=[{"name": "A", "value": "b"}],
        extraArgs=["--log-format=json"],
        securityContext={"runAsNonRoot": True},
    )
    found = settings(container)
    assert (found.engine_url, found.engine, found.model, found.port) == (
        "http://127.0.0.1:8080",
        "sglang",
        "/models/m",
        9900,
    )
    assert (found.slo_ttft, found.slo_tpot, found.spool, found.log_format) == (2.0, 0.08, "/run/kvgauge", "json")
    assert template["metadata"]["annotations"][PORT] == "9900"
    assert {"name": "spool", "mountPath": "/run/kvgauge", "readOnly": True} in container["volumeMounts"]
    assert container["resources"] == {"requests": {"cpu": "5m", "memory": "50Mi"}}
    assert container["env"] == [{"name": "A", "value": "b"}]
    assert container["securityContext"] == {"runAsNonRoot": True}


def test_before_native_sidecars_it_is_the_last_container(consumer: Path) -> None:
    template, container = pod(consumer, VERSIONS[0], native=False)
    assert template["spec"]["containers"][-1] == container
    assert "restartPolicy" not in container


@pytest.mark.parametrize("mode", ["none", "env", "runtimeClass", "dra", "hostPath"])
def test_views_of_the_gpu(consumer: Path, mode: str) -> None:
    template, container = pod(consumer, gpu={"mode": mode, "runtimeClassName": "other", "claims": ["gpu"]})
    variables = {one["name"] for one in container.get("env", [])}
    assert ("NVIDIA_VISIBLE_DEVICES" in variables) == (mode in {"env", "runtimeClass"})
    assert template["spec"].get("runtimeClassName") == ("other" if mode == "runtimeClass" else None)
    assert container["resources"].get("claims") == ([{"name": "gpu"}] if mode == "dra" else None)
    assert bool(container["securityContext"].get("privileged")) == (mode == "hostPath")
    mounts = {one["name"] for one in container["volumeMounts"]}
    assert mounts <= {one["name"] for one in template["spec"]["volumes"]}
    assert ("kvgauge-driver" in mounts) == (mode == "hostPath")
    assert not any("nvidia.com" in name for name in container["resources"]["requests"])


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        ({"image": ""}, "image: missing"),
        ({"gpu": {"mode": "all"}}, "gpu.mode: should be"),
        ({"gpu": {"mode": "dra"}}, "gpu.claims: missing"),
    ],
)
def test_what_cannot_be_is_named(consumer: Path, sidecar: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmRenderError, match=message):
        render({"sidecar": sidecar}, folder=consumer)


@pytest.mark.parametrize("mode", ["none", "env", "runtimeClass", "hostPath"])
def test_it_is_what_the_injector_would_have_put_in(consumer: Path, mode: str) -> None:
    """Apart from what only the injector can read from the pod's spec."""
    engine = {"name": "engine", "image": "vllm-openai:1", "args": ["--model", "m"]}
    asking = Pod.model_validate(
        {"metadata": {"name": "engine", "labels": {INJECT: "true"}}, "spec": {"containers": [engine]}}
    )
    settings = validated_role(InjectorSettings, {"gpu_mode": mode})
    added: dict[str, Any] = {one["path"]: one["value"] for one in inject(asking, settings, native=True).patch}  # type: ignore[misc]
    template, ours = pod(consumer, gpu={"mode": mode})
    (theirs,) = added["/spec/initContainers"]
    for key in ("command", "ports", "livenessProbe", "securityContext", "resources", "restartPolicy", "volumeMounts"):
        assert ours[key] == theirs[key], key
    assert added["/metadata/labels/kvgauge.dev~1sidecar"] == template["metadata"]["labels"][SIDECAR]
    assert added["/spec/volumes"] == [one for one in template["spec"]["volumes"] if one["name"] != "spool"]
    assert added.get("/spec/runtimeClassName") == template["spec"].get("runtimeClassName")
