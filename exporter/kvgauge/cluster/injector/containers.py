"""The containers and volumes that the injector puts into a pod, as the API server takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvgauge.cluster.injector.mounting import ModelView
from kvgauge.cluster.injector.pods import Claim, PodSpec, VolumeMount
from kvgauge.cluster.settings import InjectorSettings

Json = dict[str, object]

SIDECAR_NAME = "kvgauge"
AGENT_NAME = "kvgauge-agent"
OURS = frozenset({SIDECAR_NAME, AGENT_NAME})
STATE_VOLUME = "kvgauge-state"
SPOOL_VOLUME = "kvgauge-spool"
AGENT_VOLUME = "kvgauge-agent"
DRIVER_VOLUME = "kvgauge-driver"
OUR_VOLUMES = frozenset({STATE_VOLUME, SPOOL_VOLUME, AGENT_VOLUME, DRIVER_VOLUME})

STATE_FOLDER = "/var/lib/kvgauge"
SPOOL_FOLDER = "/run/kvgauge"
AGENT_FOLDER = "/opt/kvgauge-agent"
LAUNCH_FOLDER = f"{AGENT_FOLDER}/kvgauge_agent/launch"
_PROGRAM = "/opt/kvgauge/bin/kvgauge"
_PYTHON = "/opt/kvgauge/bin/python"
_DRIVER_LIBRARY = "/usr/lib/libnvidia-ml.so.1"
_USER = 65532
# Of a pod that is guaranteed what it asks for, in which a container without limits would end that for all of it.
_GUARANTEED_CPU = "200m"


@dataclass(frozen=True, slots=True)
class SidecarPlan:
    """What one pod's sidecar is to be."""

    port: int
    engine_url: str
    flags: Mapping[str, str | bool]
    """More of the sidecar's settings, by name."""
    model: ModelView
    gpu_mode: str
    visible_devices: str
    """Value of NVIDIA_VISIBLE_DEVICES where the mode sets it."""
    claims: tuple[Claim, ...]
    engine_key: tuple[str, str] | None
    with_agent: bool
    native: bool


def sidecar_container(plan: SidecarPlan, settings: InjectorSettings, spec: PodSpec) -> Json:
    """No readiness probe, no GPU request: it must never take its engine out of service."""
    container: Json = {
        "name": SIDECAR_NAME,
        **_image(settings),
        "command": [_PROGRAM],
        "args": _arguments(plan),
        "env": _environment(plan),
        "ports": [{"name": "kvgauge", "containerPort": plan.port, "protocol": "TCP"}],
        "livenessProbe": {
            "httpGet": {"path": "/livez", "port": "kvgauge"},
            "periodSeconds": 30,
            "timeoutSeconds": 10,
            "failureThreshold": 10,
        },
        "resources": _resources(settings, spec, plan.claims if plan.gpu_mode == "dra" else ()),
        "securityContext": _privileged(settings) if plan.gpu_mode == "hostPath" else _restricted(settings),
        "volumeMounts": _mounts(plan),
    }
    if plan.native:
        container["restartPolicy"] = "Always"
    return container


def agent_container(settings: InjectorSettings, spec: PodSpec) -> Json:
    """Lays the agent out in the folder that the engine's PYTHONPATH names, and ends."""
    return {
        "name": AGENT_NAME,
        **_image(settings),
        "command": [_PYTHON],
        "args": ["-m", "kvgauge_agent.bundle", AGENT_FOLDER],
        "resources": _resources(settings, spec, ()),
        "securityContext": _restricted(settings),
        "volumeMounts": [{"name": AGENT_VOLUME, "mountPath": AGENT_FOLDER}],
    }


def volumes(plan: SidecarPlan, settings: InjectorSettings) -> list[Json]:
    """In memory, and small: a volume on the node's disk would keep cluster autoscalers from emptying the node."""
    found = [_in_memory(STATE_VOLUME, "4Mi")]
    if plan.with_agent:
        found += [_in_memory(AGENT_VOLUME, "16Mi"), _in_memory(SPOOL_VOLUME, "16Mi")]
    if plan.gpu_mode == "hostPath":
        found.append({"name": DRIVER_VOLUME, "hostPath": {"path": settings.driver_library, "type": "File"}})
    return found


def engine_mounts() -> list[Json]:
    """What the agent needs in the engine's container."""
    return [
        {"name": AGENT_VOLUME, "mountPath": AGENT_FOLDER, "readOnly": True},
        {"name": SPOOL_VOLUME, "mountPath": SPOOL_FOLDER},
    ]


def _image(settings: InjectorSettings) -> Json:
    policy = settings.image_pull_policy
    return {"image": settings.image, **({"imagePullPolicy": policy} if policy is not None else {})}


def _arguments(plan: SidecarPlan) -> list[str]:
    arguments = [
        "sidecar",
        f"--port={plan.port}",
        f"--engine-url={plan.engine_url}",
        f"--state-file={STATE_FOLDER}/state.json",
    ]
    if plan.model.model is not None:
        arguments.append(f"--model={plan.model.model}")
    if plan.with_agent:
        arguments.append(f"--spool={SPOOL_FOLDER}")
    for name, value in plan.flags.items():
        flag = "--" + name.replace("_", "-")
        arguments.append(flag if value is True else f"{flag}={value}")
    return arguments


def _environment(plan: SidecarPlan) -> list[Json]:
    fields = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_UID": "metadata.uid",
        "NODE_NAME": "spec.nodeName",
    }
    found: list[Json] = [
        {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for name, path in fields.items()
    ]
    if plan.gpu_mode in {"env", "runtimeClass"}:
        found += [
            {"name": "NVIDIA_VISIBLE_DEVICES", "value": plan.visible_devices},
            {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "utility"},
        ]
    if plan.model.hub_cache is not None:
        found.append({"name": "HF_HUB_CACHE", "value": plan.model.hub_cache})
    if plan.engine_key is not None:
        secret, key = plan.engine_key
        # Optional, so that a Secret that is not there costs the sidecar its key and not the pod its start.
        reference = {"name": secret, "key": key, "optional": True}
        found.append({"name": "KVGAUGE_ENGINE_API_KEY", "valueFrom": {"secretKeyRef": reference}})
    return found


def _mounts(plan: SidecarPlan) -> list[Json]:
    found: list[Json] = [{"name": STATE_VOLUME, "mountPath": STATE_FOLDER}]
    if plan.with_agent:
        found.append({"name": SPOOL_VOLUME, "mountPath": SPOOL_FOLDER, "readOnly": True})
    if plan.model.mount is not None:
        found.append(_read_only(plan.model.mount))
    if plan.gpu_mode == "hostPath":
        found.append({"name": DRIVER_VOLUME, "mountPath": _DRIVER_LIBRARY, "readOnly": True})
    return found


def _read_only(mount: VolumeMount) -> Json:
    found: Json = {"name": mount.name, "mountPath": mount.mount_path, "readOnly": True}
    if mount.sub_path:
        found["subPath"] = mount.sub_path
    return found


def _resources(settings: InjectorSettings, spec: PodSpec, claims: Sequence[Claim]) -> Json:
    found: Json
    if spec.resources is not None and (spec.resources.requests or spec.resources.limits):
        # The pod as a whole has a size, which another container's requests might not fit into.
        found = {}
    elif _is_guaranteed(spec):
        whole = {"cpu": settings.cpu_limit or _GUARANTEED_CPU, "memory": settings.memory_limit}
        found = {"requests": whole, "limits": whole}
    else:
        limits = {"memory": settings.memory_limit}
        if settings.cpu_limit is not None:
            limits = {"cpu": settings.cpu_limit, **limits}
        found = {"requests": {"cpu": settings.cpu_request, "memory": settings.memory_request}, "limits": limits}
    if claims:
        found["claims"] = [
            {"name": each.name, **({"request": each.request} if each.request else {})} for each in claims
        ]
    return found


def _is_guaranteed(spec: PodSpec) -> bool:
    """Whether the pod's quality of service is Guaranteed: exclusive processors hang on that."""
    for each in spec.everyone():
        if each.name in OURS:
            continue
        resources = each.resources
        if resources is None or not all(resources.limits.get(name) for name in ("cpu", "memory")):
            return False
        if any(
            resources.requests.get(name, resources.limits[name]) != resources.limits[name] for name in ("cpu", "memory")
        ):
            return False
    return True


def _restricted(settings: InjectorSettings) -> Json:
    """What the strictest of the Pod Security Standards asks for."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        **_user(settings),
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _privileged(settings: InjectorSettings) -> Json:
    """The node's device files are only there for a privileged container."""
    return {
        "privileged": True,
        "readOnlyRootFilesystem": True,
        **_user(settings),
    }


def _user(settings: InjectorSettings) -> Json:
    number = {} if settings.assigned_user else {"runAsUser": _USER, "runAsGroup": _USER}
    return {"runAsNonRoot": True, **number}


def _in_memory(name: str, limit: str) -> Json:
    return {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": limit}}
