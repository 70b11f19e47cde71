"""The JSON Patch (RFC 6902) of one pod. It only ever adds: nothing that the pod has is changed, moved or taken away."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kvgauge.cluster.injector.annotations import STATUS
from kvgauge.cluster.injector.containers import (
    AGENT_NAME,
    SIDECAR_NAME,
    Json,
    agent_container,
    engine_mounts,
    sidecar_container,
    volumes,
)
from kvgauge.cluster.injector.planning import Plan, SkipError, plan_for
from kvgauge.cluster.injector.pods import Container, Pod
from kvgauge.cluster.names import DEFAULT_PORT, PORT, SIDECAR
from kvgauge.cluster.settings import InjectorSettings

DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one pod. `result` is injected or skipped; an empty patch changes nothing."""

    result: str
    reason: str
    patch: tuple[Json, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def inject(pod: Pod, settings: InjectorSettings, *, native: bool) -> Outcome:
    """The patch that gives the pod its sidecar. Called again on a pod that has it, adds only what has become known
    since: what another webhook put in between. Never raises for a pod that it cannot use."""
    existing = _sidecar_of(pod)
    is_ours = existing is not None and STATUS in pod.metadata.annotations
    try:
        plan = plan_for(pod, settings, native=_is_native(pod) if is_ours else native, is_ours=is_ours)
    except SkipError as skip:
        return Outcome("skipped", skip.reason, (), (f"kvgauge: {skip.warning}",) if skip.warning else ())
    patch = [
        *_metadata(pod, plan),
        *_volumes(pod, plan, settings),
        *_engine(pod, plan),
        *(_completed(pod, plan, settings) if is_ours else _containers(pod, plan, settings)),
        *_runtime_class(pod, plan, settings),
    ]
    warnings = tuple(f"kvgauge: {warning}" for warning in plan.warnings)
    if is_ours and not patch:
        return Outcome("skipped", "present", (), warnings)
    return Outcome("injected", "completed" if is_ours else "new", tuple(patch), warnings)


def _sidecar_of(pod: Pod) -> Container | None:
    return next((each for each in pod.spec.everyone() if each.name == SIDECAR_NAME), None)


def _is_native(pod: Pod) -> bool:
    return any(each.name == SIDECAR_NAME for each in pod.spec.init_containers)


def _metadata(pod: Pod, plan: Plan) -> list[Json]:
    annotations = {STATUS: _status(plan)}
    if plan.sidecar.port != DEFAULT_PORT:
        annotations[PORT] = str(plan.sidecar.port)
    if not plan.sidecar.native:
        annotations[DEFAULT_CONTAINER] = pod.spec.containers[0].name
    return [
        *_into_mapping("/metadata/labels", pod.metadata.labels, {SIDECAR: "true"}),
        *_into_mapping("/metadata/annotations", pod.metadata.annotations, annotations),
    ]


def _status(plan: Plan) -> str:
    sidecar = plan.sidecar
    return (
        f"injected: container={plan.engine.name} engine={sidecar.flags.get('engine', 'auto')} "
        f"engine-url={sidecar.engine_url} gpu-mode={sidecar.gpu_mode} agent={'yes' if sidecar.with_agent else 'no'} "
        f"model-volume={'yes' if sidecar.model.mount is not None else 'no'}"
    )


def _volumes(pod: Pod, plan: Plan, settings: InjectorSettings) -> list[Json]:
    known = {each.name for each in pod.spec.volumes}
    wanted = [each for each in volumes(plan.sidecar, settings) if each["name"] not in known]
    return _into_list("/spec/volumes", pod.spec.volumes, wanted)


def _engine(pod: Pod, plan: Plan) -> list[Json]:
    """What the agent needs in the engine's container, if there is to be one."""
    if not plan.sidecar.with_agent:
        return []
    engine = plan.engine
    path = f"/spec/containers/{pod.spec.containers.index(engine)}"
    there = {each.mount_path.rstrip("/") for each in engine.volume_mounts}
    mounts = [each for each in engine_mounts() if each["mountPath"] not in there]
    return [
        *_into_list(f"{path}/env", engine.env, plan.engine_env),
        *_into_list(f"{path}/volumeMounts", engine.volume_mounts, mounts),
    ]


def _containers(pod: Pod, plan: Plan, settings: InjectorSettings) -> list[Json]:
    spec = pod.spec
    first = [agent_container(settings, spec)] if plan.sidecar.with_agent else []
    sidecar = sidecar_container(plan.sidecar, settings, spec)
    if plan.sidecar.native:
        # After the pod's own, which may be what fetches the model.
        return _into_list("/spec/initContainers", spec.init_containers, [*first, sidecar])
    # Last, so that the first stays the one that tools take by default.
    return [
        *_into_list("/spec/initContainers", spec.init_containers, first),
        *_into_list("/spec/containers", spec.containers, [sidecar]),
    ]


def _completed(pod: Pod, plan: Plan, settings: InjectorSettings) -> list[Json]:
    """What our own sidecar lacks. What somebody else has changed in it since stays as they want it."""
    spec = pod.spec
    place, those = ("initContainers", spec.init_containers) if _is_native(pod) else ("containers", spec.containers)
    number, ours = next((number, each) for number, each in enumerate(those) if each.name == SIDECAR_NAME)
    wanted = sidecar_container(plan.sidecar, settings, spec)
    path = f"/spec/{place}/{number}"
    mounted = {each.mount_path for each in ours.volume_mounts}
    set_already = {each.name for each in ours.env}
    flags = {each.partition("=")[0] for each in ours.args}
    lacks_agent = plan.sidecar.with_agent and all(each.name != AGENT_NAME for each in spec.init_containers)
    return [
        *_into_list(f"{path}/args", ours.args, [each for each in _texts(wanted["args"]) if _flag(each) not in flags]),
        *_into_list(
            f"{path}/env", ours.env, [each for each in _objects(wanted["env"]) if each["name"] not in set_already]
        ),
        *_into_list(
            f"{path}/volumeMounts",
            ours.volume_mounts,
            [each for each in _objects(wanted["volumeMounts"]) if each["mountPath"] not in mounted],
        ),
        *(
            _into_list(
                "/spec/initContainers", spec.init_containers, [agent_container(settings, spec)] if lacks_agent else []
            )
        ),
    ]


def _flag(argument: str) -> str:
    return argument.partition("=")[0]


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


def _objects(value: object) -> list[Json]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _runtime_class(pod: Pod, plan: Plan, settings: InjectorSettings) -> list[Json]:
    """One that the pod has, an empty one too, stays."""
    if plan.sidecar.gpu_mode != "runtimeClass" or pod.spec.runtime_class_name is not None:
        return []
    return [_add("/spec/runtimeClassName", settings.runtime_class)]


def _into_list(path: str, existing: Sequence[object], new: Iterable[object]) -> list[Json]:
    """At the end. A list that is absent, null or empty is made."""
    items = list(new)
    if not items:
        return []
    return [_add(f"{path}/-", item) for item in items] if existing else [_add(path, items)]


def _into_mapping(path: str, existing: Mapping[str, str], new: Mapping[str, str]) -> list[Json]:
    """Keys that are not there yet."""
    missing = {key: value for key, value in new.items() if key not in existing}
    if not missing:
        return []
    if not existing:
        return [_add(path, missing)]
    return [_add(f"{path}/{_escaped(key)}", value) for key, value in missing.items()]


def _add(path: str, value: object) -> Json:
    return {"op": "add", "path": path, "value": value}


def _escaped(key: str) -> str:
    """A key within a JSON Pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")
