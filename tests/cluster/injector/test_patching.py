"""What is added, and what stands against it."""

from typing import Any

import pytest

from tests.cluster.injector.applying import lost
from tests.cluster.injector.given import Json, env_of, flags_of, injected, manifest, mounts_of, sidecar_of


def skipped(pod: Json, reason: str, *, warns: str | None, **how: Any) -> None:
    after, outcome = injected(pod, **how)
    assert after == pod
    assert (outcome.result, outcome.reason) == ("skipped", reason)
    assert [warns in warning for warning in outcome.warnings if warns is not None] == [True] * (warns is not None)
    assert len(outcome.warnings) == (warns is not None)


def engine_of(pod: Json) -> Json:
    container: Json = pod["spec"]["containers"][0]
    return container


def names(containers: list[Json]) -> list[str]:
    return [container["name"] for container in containers]


def test_a_native_sidecar() -> None:
    pod, _ = injected(manifest("kserve"))
    assert names(pod["spec"]["initContainers"]) == ["storage-initializer", "kvgauge"]
    assert names(pod["spec"]["containers"]) == ["kserve-container"]
    sidecar = sidecar_of(pod)
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["command"] == ["/opt/kvgauge/bin/kvgauge"]
    assert sidecar["ports"] == [{"name": "kvgauge", "containerPort": 9838, "protocol": "TCP"}]
    assert sidecar["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "kvgauge"}
    assert "readinessProbe" not in sidecar
    assert "startupProbe" not in sidecar
    assert sidecar["resources"] == {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}
    assert sidecar["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    fields = {name: value["fieldRef"]["fieldPath"] for name, value in env_of(sidecar).items()}
    assert fields == {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_UID": "metadata.uid",
        "NODE_NAME": "spec.nodeName",
    }
    assert pod["metadata"]["labels"]["kvgauge.dev/sidecar"] == "true"
    assert pod["metadata"]["annotations"]["kvgauge.dev/status"] == (
        "injected: container=kserve-container engine=auto engine-url=http://127.0.0.1:8081 gpu-mode=none agent=no "
        "model-volume=yes"
    )
    assert "kubectl.kubernetes.io/default-container" not in pod["metadata"]["annotations"]


def test_an_ordinary_sidecar_is_last_and_not_the_default_container() -> None:
    pod, _ = injected(manifest("ollama"), native=False)
    assert names(pod["spec"]["containers"]) == ["ollama", "ui", "kvgauge"]
    assert "initContainers" not in pod["spec"]
    assert "restartPolicy" not in sidecar_of(pod)
    assert pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "ollama"
    chosen = {"kubectl.kubernetes.io/default-container": "ui"}
    pod, _ = injected(manifest("ollama", chosen), native=False)
    assert pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "ui"


def test_an_ordinary_sidecar_would_keep_a_job_from_ending() -> None:
    for policy in ("Never", "OnFailure"):
        pod = manifest("vllm")
        pod["spec"]["restartPolicy"] = policy
        skipped(pod, "job", warns="ever ending", native=False)
        assert injected(pod, native=True)[1].result == "injected"


def test_our_volumes_do_not_keep_a_node_from_being_emptied() -> None:
    pod, _ = injected(manifest("vllm", {"kvgauge.dev/agent": "true"}))
    ours = [volume for volume in pod["spec"]["volumes"] if volume["name"].startswith("kvgauge-")]
    assert names(ours) == ["kvgauge-state", "kvgauge-agent", "kvgauge-spool"]
    assert all(volume["emptyDir"]["medium"] == "Memory" for volume in ours)
    assert all(volume["emptyDir"]["sizeLimit"] in {"4Mi", "16Mi"} for volume in ours)


def test_image_and_resources_are_settings() -> None:
    pod, _ = injected(
        manifest("own"),
        image="kvgauge:1",
        image_pull_policy="Always",
        cpu_request="5m",
        memory_request="32Mi",
        cpu_limit="1",
    )
    sidecar = sidecar_of(pod)
    assert (sidecar["image"], sidecar["imagePullPolicy"]) == ("kvgauge:1", "Always")
    assert sidecar["resources"] == {
        "requests": {"cpu": "5m", "memory": "32Mi"},
        "limits": {"cpu": "1", "memory": "256Mi"},
    }


def test_the_user_may_be_left_to_the_cluster() -> None:
    for container in injected(manifest("vllm", {"kvgauge.dev/agent": "true"}), assigned_user=True)[0]["spec"][
        "initContainers"
    ]:
        assert container["securityContext"]["runAsNonRoot"] is True
        assert "runAsUser" not in container["securityContext"]


def test_a_guaranteed_pod_stays_guaranteed() -> None:
    pod = manifest("own")
    engine_of(pod)["resources"] = {"limits": {"cpu": "8", "memory": "8Gi"}}
    for requests in (None, {"cpu": "8"}, {"cpu": "8", "memory": "8Gi"}):
        engine_of(pod)["resources"]["requests"] = requests
        resources = sidecar_of(injected(pod)[0])["resources"]
        assert resources["requests"] == resources["limits"] == {"cpu": "200m", "memory": "256Mi"}
    engine_of(pod)["resources"]["requests"] = {"cpu": "4"}
    resources = sidecar_of(injected(pod)[0])["resources"]
    assert resources["requests"] != resources["limits"]


def test_a_pod_with_a_size_of_its_own_is_not_made_larger() -> None:
    pod = manifest("own")
    pod["spec"]["resources"] = {"requests": {"cpu": "4"}}
    assert sidecar_of(injected(pod)[0])["resources"] == {}


@pytest.mark.parametrize("mode", ["none", "env", "runtimeClass", "dra", "hostPath"])
def test_no_mode_asks_for_a_gpu(mode: str) -> None:
    for name in ("vllm", "triton", "dra"):
        sidecar = sidecar_of(injected(manifest(name), gpu_mode=mode)[0])
        resources = sidecar["resources"]
        assert not [each for part in ("requests", "limits") for each in resources.get(part, {}) if "nvidia" in each]


def test_gpu_modes() -> None:
    def of(mode: str, name: str = "vllm") -> tuple[Json, Json]:
        pod, _ = injected(manifest(name), gpu_mode=mode)
        return pod, sidecar_of(pod)

    for mode in ("none", "dra", "hostPath"):
        assert not [each for each in env_of(of(mode)[1]) if each.startswith("NVIDIA")]
    for mode in ("env", "runtimeClass"):
        assert env_of(of(mode)[1])["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert of("runtimeClass")[0]["spec"]["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in of("env")[0]["spec"]
    assert of("dra", "dra")[1]["resources"]["claims"] == [{"name": "gpus"}]
    pod, sidecar = of("hostPath")
    assert sidecar["securityContext"]["privileged"] is True
    assert "allowPrivilegeEscalation" not in sidecar["securityContext"]
    assert mounts_of(sidecar)["/usr/lib/libnvidia-ml.so.1"]["readOnly"] is True
    assert pod["spec"]["volumes"][-1]["hostPath"]["type"] == "File"


def test_gpu_modes_that_cannot_work_say_so() -> None:
    _, outcome = injected(manifest("vllm"), gpu_mode="dra")
    assert outcome.result == "injected"
    assert "no resource claims" in outcome.warnings[0]


def test_a_runtime_class_of_the_pods_own_stays() -> None:
    pod = manifest("vllm")
    for own in ("kata", ""):
        pod["spec"]["runtimeClassName"] = own
        assert injected(pod, gpu_mode="runtimeClass")[0]["spec"]["runtimeClassName"] == own


def test_gpus_that_the_engine_names_are_what_the_sidecar_sees() -> None:
    pod = manifest("vllm")
    engine_of(pod)["env"].append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "GPU-00000001,GPU-00000002"})
    after, _ = injected(pod, gpu_mode="env")
    assert env_of(sidecar_of(after))["NVIDIA_VISIBLE_DEVICES"] == "GPU-00000001,GPU-00000002"
    assert flags_of(after)["--gpu-uuids"] == "GPU-00000001,GPU-00000002"


def test_the_agent() -> None:
    before = manifest("vllm", {"kvgauge.dev/agent": "true"})
    pod, outcome = injected(before)
    assert outcome.warnings == ()
    assert names(pod["spec"]["initContainers"]) == ["kvgauge-agent", "kvgauge"]
    agent = pod["spec"]["initContainers"][0]
    assert agent["command"] == ["/opt/kvgauge/bin/python"]
    assert agent["args"] == ["-m", "kvgauge_agent.bundle", "/opt/kvgauge-agent"]
    assert "restartPolicy" not in agent
    engine = engine_of(pod)
    assert env_of(engine)["PYTHONPATH"] == "/opt/kvgauge-agent"
    assert env_of(engine)["KVGAUGE_SPOOL"] == "/run/kvgauge"
    assert mounts_of(engine)["/opt/kvgauge-agent"]["readOnly"] is True
    assert "readOnly" not in mounts_of(engine)["/run/kvgauge"]
    assert mounts_of(sidecar_of(pod))["/run/kvgauge"]["readOnly"] is True
    assert flags_of(pod)["--spool"] == "/run/kvgauge"
    assert lost(before, pod) == []
    # A label asks for it too; an annotation wins.
    labelled = manifest("vllm")
    labelled["metadata"]["labels"]["kvgauge.dev/agent"] = "true"
    assert "--spool" in flags_of(injected(labelled)[0])
    labelled["metadata"]["annotations"] = {"kvgauge.dev/agent": "false"}
    assert "--spool" not in flags_of(injected(labelled)[0])


def test_other_programs_are_told_of_the_agent_by_their_start() -> None:
    pod, _ = injected(manifest("sglang", {"kvgauge.dev/agent": "true"}))
    assert env_of(engine_of(pod))["PYTHONPATH"] == "/opt/kvgauge-agent/kvgauge_agent/launch"


@pytest.mark.parametrize(
    ("change", "warns"),
    [
        ({"env": [{"name": "PYTHONPATH", "value": "/app"}]}, "PYTHONPATH"),
        ({"env": [{"name": "PYTHONPATH", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}]}, "PYTHONPATH"),
        ({"envFrom": [{"configMapRef": {"name": "a"}}]}, "envFrom"),
        ({"env": [{"name": "KVGAUGE_SPOOL", "value": "/elsewhere"}]}, "KVGAUGE_SPOOL"),
        ({"env": [{"name": "VLLM_PLUGINS", "value": "lora"}]}, "VLLM_PLUGINS"),
        ({"volumeMounts": [{"name": "shm", "mountPath": "/run/kvgauge/"}]}, "/run/kvgauge"),
    ],
)
def test_the_agent_never_replaces_what_is_the_users(change: Json, warns: str) -> None:
    before = manifest("vllm", {"kvgauge.dev/agent": "true"})
    engine_of(before).update(change)
    pod, outcome = injected(before)
    assert outcome.result == "injected"
    assert "--spool" not in flags_of(pod)
    assert engine_of(pod) == engine_of(before)
    assert names(pod["spec"]["initContainers"]) == ["kvgauge"]
    [warning] = outcome.warnings
    assert warns in warning


def test_a_users_path_that_names_the_agent_is_enough() -> None:
    before = manifest("vllm", {"kvgauge.dev/agent": "true"})
    engine_of(before)["envFrom"] = [{"configMapRef": {"name": "a"}}]
    engine_of(before)["env"] = [{"name": "PYTHONPATH", "value": "/app:/opt/kvgauge-agent"}]
    pod, outcome = injected(before)
    assert outcome.warnings == ()
    assert env_of(engine_of(pod)) == {"PYTHONPATH": "/app:/opt/kvgauge-agent", "KVGAUGE_SPOOL": "/run/kvgauge"}
    # A prefix that cannot make that name.
    before = manifest("vllm", {"kvgauge.dev/agent": "true"})
    engine_of(before)["envFrom"] = [{"prefix": "APP_", "configMapRef": {"name": "a"}}]
    assert injected(before)[1].warnings == ()


def test_an_engine_without_python_has_no_agent() -> None:
    pod, outcome = injected(manifest("ollama", {"kvgauge.dev/agent": "true"}))
    assert "--spool" not in flags_of(pod)
    assert "no Python" in outcome.warnings[0]


def test_pods_that_do_not_ask() -> None:
    for labels in ({}, {"kvgauge.dev/inject": "false"}, None):
        pod = manifest("vllm")
        pod["metadata"]["labels"] = labels
        skipped(pod, "not_asked", warns=None)


def test_a_container_of_the_users_that_is_called_like_ours() -> None:
    pod = manifest("vllm")
    pod["spec"]["containers"].append({"name": "kvgauge", "image": "mine"})
    skipped(pod, "present", warns=None)
    pod = manifest("vllm")
    pod["spec"]["initContainers"] = [{"name": "kvgauge-agent", "image": "mine"}]
    skipped(pod, "name_taken", warns="kvgauge-agent")
    pod = manifest("vllm")
    pod["spec"]["volumes"].append({"name": "kvgauge-state", "emptyDir": {}})
    skipped(pod, "name_taken", warns="kvgauge-state")


def test_a_status_that_was_copied_into_a_template_is_no_sidecar() -> None:
    pod, outcome = injected(manifest("vllm", {"kvgauge.dev/status": "injected: from yesterday"}))
    assert outcome.reason == "new"
    assert pod["metadata"]["annotations"]["kvgauge.dev/status"] == "injected: from yesterday"


def test_which_container_is_the_engine() -> None:
    pod = manifest("own")
    pod["spec"]["containers"].append({"name": "other", "image": "team/other:1", "ports": [{"containerPort": 6000}]})
    skipped(pod, "no_engine", warns="kvgauge.dev/container")
    named = {"kvgauge.dev/container": "other"}
    pod["metadata"]["annotations"] = named
    assert flags_of(injected(pod)[0])["--engine-url"] == "http://127.0.0.1:6000"
    pod["metadata"]["annotations"] = {}
    pod["spec"]["containers"].append({"name": "engine", "image": "vllm/vllm-openai"})
    assert "container=engine" in injected(pod)[0]["metadata"]["annotations"]["kvgauge.dev/status"]
    pod["spec"]["containers"][0]["resources"] = {"limits": {"amd.com/gpu": "1"}}
    assert "container=server" in injected(pod)[0]["metadata"]["annotations"]["kvgauge.dev/status"]
    skipped({"metadata": {"labels": {"kvgauge.dev/inject": "true"}}, "spec": {"containers": []}}, "no_engine", warns="")


def test_ports_that_are_taken() -> None:
    pod = manifest("own")
    engine_of(pod)["ports"] = [{"containerPort": port} for port in (9838, 9839)]
    after, _ = injected(pod)
    assert flags_of(after)["--port"] == "9840"
    assert after["metadata"]["annotations"]["kvgauge.dev/port"] == "9840"
    pod["metadata"]["annotations"] = {"kvgauge.dev/port": "9839"}
    skipped(pod, "bad_annotation", warns="9839")
    pod["metadata"]["annotations"] = {}
    engine_of(pod)["ports"] = [{"containerPort": port} for port in range(9838, 9900)]
    skipped(pod, "no_port", warns="kvgauge.dev/port")


def test_the_nodes_own_ports_are_not_taken_unasked() -> None:
    pod = manifest("vllm")
    pod["spec"]["hostNetwork"] = True
    skipped(pod, "host_network", warns="kvgauge.dev/port")
    pod["metadata"]["annotations"] = {"kvgauge.dev/port": "9838"}
    assert injected(pod)[1].result == "injected"


def test_windows() -> None:
    pod = manifest("own")
    pod["spec"]["os"] = {"name": "windows"}
    skipped(pod, "windows", warns=None)


@pytest.mark.parametrize(
    ("mount", "volume"),
    [
        ({"name": "m", "mountPath": "/models"}, {"name": "m", "secret": {"secretName": "s"}}),
        ({"name": "m", "mountPath": "/models"}, {"name": "m", "projected": {"sources": []}}),
        ({"name": "m", "mountPath": "/models", "subPathExpr": "$(POD_NAME)"}, {"name": "m", "emptyDir": {}}),
        ({"name": "m", "mountPath": "/models-2"}, {"name": "m", "emptyDir": {}}),
        ({"name": "m", "mountPath": "/models"}, {"name": "n", "emptyDir": {}}),
    ],
)
def test_volumes_that_are_not_mounted(mount: Json, volume: Json) -> None:
    pod = manifest("vllm")
    engine_of(pod)["volumeMounts"] = [mount]
    pod["spec"]["volumes"] = [volume]
    assert list(mounts_of(sidecar_of(injected(pod)[0]))) == ["/var/lib/kvgauge"]


@pytest.mark.parametrize(
    "place", ["/", "/opt", "/opt/kvgauge/models", "/usr/share/models", "/root/models", "/var", "/run/x"]
)
def test_a_volume_never_covers_what_our_image_is_made_of(place: str) -> None:
    model = f"{place.rstrip('/')}/llama"
    pod = manifest("vllm", {"kvgauge.dev/model": model})
    engine_of(pod)["volumeMounts"] = [{"name": "models", "mountPath": place}]
    after, _ = injected(pod)
    assert list(mounts_of(sidecar_of(after))) == ["/var/lib/kvgauge", "/mnt/kvgauge/model"]
    assert flags_of(after)["--model"] == "/mnt/kvgauge/model/llama"


def test_the_innermost_mount_holds_the_model() -> None:
    pod = manifest("vllm", {"kvgauge.dev/model": "/models/llama/../qwen"})
    engine_of(pod)["volumeMounts"] = [
        {"name": "shm", "mountPath": "/models"},
        {"name": "models", "mountPath": "/models/qwen/"},
        {"name": "shm", "mountPath": "/models/llama"},
    ]
    after, _ = injected(pod)
    assert mounts_of(sidecar_of(after))["/models/qwen"]["name"] == "models"
    assert flags_of(after)["--model"] == "/models/qwen"


def test_what_another_webhook_puts_in_between_is_completed_and_nothing_else() -> None:
    early = manifest("kserve", {"kvgauge.dev/agent": "true"})
    init = early["spec"].pop("initContainers")
    volumes = early["spec"].pop("volumes")
    mounts = engine_of(early).pop("volumeMounts")
    pod, _ = injected(early)
    assert "/mnt/models" not in mounts_of(sidecar_of(pod))
    # Another webhook fetches the model, and changes our container too.
    pod["spec"]["volumes"] += volumes
    pod["spec"]["initContainers"] = [*init, *pod["spec"]["initContainers"]]
    engine_of(pod)["volumeMounts"] += mounts
    sidecar = sidecar_of(pod)
    sidecar["image"] = "mirror/kvgauge:latest"
    sidecar["args"].append("--log-level=debug")
    sidecar["args"] = [each for each in sidecar["args"] if not each.startswith("--model")]
    sidecar["resources"]["limits"] = {"cpu": "1"}
    again, outcome = injected(pod)
    assert (outcome.result, outcome.reason) == ("injected", "completed")
    assert lost(pod, again) == []
    assert mounts_of(sidecar_of(again))["/mnt/models"]["readOnly"] is True
    assert flags_of(again)["--model"] == "/mnt/models"
    assert sidecar_of(again)["image"] == "mirror/kvgauge:latest"
    assert sidecar_of(again)["resources"]["limits"] == {"cpu": "1"}
    assert injected(again)[0] == again
