"""The library's templates in a chart of somebody else's."""

import shutil
from pathlib import Path
from typing import Any

import helm_python
import pytest

from kvgauge.cluster.names import PORT, SIDECAR
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


@pytest.mark.parametrize("mode", ["none", "env", "runtimeClass", "dra"])
def test_views_of_the_gpu(consumer: Path, mode: str) -> None:
    template, container = pod(consumer, gpu={"mode": mode, "runtimeClassName": "other", "claims": ["gpu"]})
    variables = {one["name"] for one in container.get("env", [])}
    assert ("NVIDIA_VISIBLE_DEVICES" in variables) == (mode in {"env", "runtimeClass"})
    assert template["spec"].get("runtimeClassName") == ("other" if mode == "runtimeClass" else None)
    assert container["resources"].get("claims") == ([{"name": "gpu"}] if mode == "dra" else None)
    assert not any("nvidia.com" in name for name in container["resources"]["requests"])


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        ({"image": ""}, "image: missing"),
        ({"gpu": {"mode": "hostPath"}}, "gpu.mode: should be"),
        ({"gpu": {"mode": "dra"}}, "gpu.claims: missing"),
    ],
)
def test_what_cannot_be_is_named(consumer: Path, sidecar: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmRenderError, match=message):
        render({"sidecar": sidecar}, folder=consumer)
