"""What is to be done with one pod: what its annotations ask, what its spec tells, and what stands against it."""

import os.path
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvgauge.cluster.injector.annotations import GPU_MODES, AnnotationError, Wishes, read_wishes
from kvgauge.cluster.injector.containers import (
    AGENT_FOLDER,
    AGENT_VOLUME,
    LAUNCH_FOLDER,
    OUR_VOLUMES,
    OURS,
    SIDECAR_NAME,
    SPOOL_FOLDER,
    SPOOL_VOLUME,
    Json,
    SidecarPlan,
)
from kvgauge.cluster.injector.mounting import view_model
from kvgauge.cluster.injector.pods import Container, Pod
from kvgauge.cluster.injector.reading import EngineFacts, find_engine, read_engine
from kvgauge.cluster.names import DEFAULT_PORT, INJECT, PORT
from kvgauge.cluster.settings import InjectorSettings

_PORTS_TRIED = 20
_ENGINE_PORT = 8000
# Loaded by vLLM's own plugin mechanism; these run vLLM.
_PLUGIN_HOSTS = frozenset({"vllm", "dynamo", "nim"})
_NOT_PYTHON = frozenset({"llama.cpp", "ollama"})


class SkipError(Exception):
    """The pod is left as it is. `reason` is one of a small fixed set of words; `warning` is for the pod's author."""

    def __init__(self, reason: str, warning: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.warning = warning


@dataclass(frozen=True, slots=True)
class Plan:
    """What the pod gets."""

    engine: Container
    facts: EngineFacts
    sidecar: SidecarPlan
    engine_env: tuple[Json, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def plan_for(pod: Pod, settings: InjectorSettings, *, native: bool, is_ours: bool) -> Plan:
    """`native`: init containers may keep running. `is_ours`: the pod has our sidecar from an earlier call, which the
    plan leaves out of account. Raises SkipError."""
    _check(pod, native=native, is_ours=is_ours)
    try:
        wishes = read_wishes(pod.metadata.annotations, pod.metadata.labels, _allowed_modes(settings))
    except AnnotationError as error:
        raise SkipError("bad_annotation", str(error)) from None
    engine = _engine(pod, wishes)
    if engine is None:
        raise SkipError("no_engine", "which container is the engine cannot be told; kvgauge.dev/container names it")
    facts = read_engine(engine, wishes.engine if wishes.engine != "auto" else None)
    warnings: list[str] = []
    agent_env = _agent(engine, facts, warnings) if wishes.agent else None
    gpu_mode = wishes.gpu_mode or settings.gpu_mode
    if gpu_mode == "dra" and not engine.claims:
        warnings.append("gpu mode dra: the engine's container has no resource claims to share")
    sidecar = SidecarPlan(
        port=_port(pod, wishes),
        engine_url=wishes.engine_url or f"http://127.0.0.1:{wishes.engine_port or facts.port or _ENGINE_PORT}",
        flags=_flags(facts, wishes),
        model=view_model(wishes.model or facts.model, facts.hub_cache, engine.volume_mounts, pod.spec.volumes),
        gpu_mode=gpu_mode,
        visible_devices=",".join(facts.gpu_uuids) or "all",
        claims=engine.claims,
        engine_key=wishes.engine_key,
        with_agent=agent_env is not None,
        native=native,
    )
    return Plan(engine, facts, sidecar, tuple(agent_env or ()), tuple(warnings))


def _check(pod: Pod, *, native: bool, is_ours: bool) -> None:
    spec = pod.spec
    if pod.metadata.labels.get(INJECT) != "true":
        raise SkipError("not_asked")
    if not is_ours:
        if any(each.name == SIDECAR_NAME for each in spec.everyone()):
            raise SkipError("present")
        mounted = {mount.name for each in spec.everyone() for mount in each.volume_mounts}
        taken = {each.name for each in spec.everyone()} & OURS
        taken |= (mounted | {each.name for each in spec.volumes}) & OUR_VOLUMES
        if taken:
            raise SkipError("name_taken", f"the pod has a container or volume of its own called {min(taken)}")
    if spec.os is not None and spec.os.name == "windows":
        raise SkipError("windows")
    if spec.host_network and PORT not in pod.metadata.annotations:
        raise SkipError("host_network", f"the pod shares its node's ports: {PORT} has to name a free one")
    if not native and spec.restart_policy in {"Never", "OnFailure"}:
        raise SkipError("job", "before Kubernetes 1.29 a sidecar would keep the pod from ever ending")


def _allowed_modes(settings: InjectorSettings) -> tuple[str, ...]:
    """A privileged container is for whoever runs the injector to allow."""
    return tuple(mode for mode in GPU_MODES if mode != "hostPath" or settings.gpu_mode == "hostPath")


def _engine(pod: Pod, wishes: Wishes) -> Container | None:
    if wishes.container is None:
        return find_engine(pod.spec, OURS)
    named = [each for each in pod.spec.containers if each.name == wishes.container and each.name not in OURS]
    if not named:
        raise SkipError("bad_annotation", f"kvgauge.dev/container: the pod has no container {wishes.container!r}")
    return named[0]


def _port(pod: Pod, wishes: Wishes) -> int:
    """9838, or the next that no container states as its own."""
    taken = {port.container_port for each in pod.spec.everyone() if each.name not in OURS for port in each.ports}
    if wishes.port is not None:
        if wishes.port in taken:
            raise SkipError("bad_annotation", f"{PORT}: a container of the pod has port {wishes.port}")
        return wishes.port
    free = [port for port in range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED) if port not in taken]
    if not free:
        raise SkipError("no_port", f"no port from {DEFAULT_PORT} on is free; {PORT} names another")
    return free[0]


def _flags(facts: EngineFacts, wishes: Wishes) -> dict[str, str | bool]:
    stated: dict[str, str | bool | None] = {
        "engine": wishes.engine or facts.kind,
        **facts.settings,
        "gpu_count": str(facts.gpu_count) if facts.gpu_count is not None else None,
        "gpu_uuids": ",".join(facts.gpu_uuids) or None,
        "slo_ttft": wishes.slo_ttft,
        "slo_tpot": wishes.slo_tpot,
    }
    return {name: value for name, value in stated.items() if value is not None}


def _agent(engine: Container, facts: EngineFacts, warnings: list[str]) -> Sequence[Json] | None:
    """Variables that the engine's container lacks for the agent; None, and a warning, where something of the user's
    stands in its way: that is never replaced."""
    hindrance = _hindrance(engine, facts)
    if hindrance is not None:
        warnings.append(f"kvgauge.dev/agent: {hindrance}; the sidecar goes without the agent")
        return None
    folder = AGENT_FOLDER if facts.kind in _PLUGIN_HOSTS else LAUNCH_FOLDER
    names = {each.name for each in engine.env}
    wanted = {"PYTHONPATH": folder, "KVGAUGE_SPOOL": SPOOL_FOLDER}
    return [{"name": name, "value": value} for name, value in wanted.items() if name not in names]


def _hindrance(engine: Container, facts: EngineFacts) -> str | None:
    literals = engine.literals
    if facts.kind in _NOT_PYTHON:
        return f"{facts.kind} runs no Python that it could live in"
    if "PYTHONPATH" in literals:
        entries = (literals["PYTHONPATH"] or "").split(os.pathsep)
        if not any(entry.startswith(AGENT_FOLDER) for entry in entries):
            return f"the container sets PYTHONPATH itself; put {AGENT_FOLDER} into it"
    elif any("PYTHONPATH".startswith(source.prefix or "") for source in engine.env_from):
        return "envFrom may set PYTHONPATH, which would be lost; state PYTHONPATH in env"
    if literals.get("KVGAUGE_SPOOL", SPOOL_FOLDER) != SPOOL_FOLDER:
        return f"the container sets KVGAUGE_SPOOL to something else than {SPOOL_FOLDER}"
    plugins = literals.get("VLLM_PLUGINS", "kvgauge")
    if facts.kind in _PLUGIN_HOSTS and "kvgauge" not in (plugins or "").split(","):
        return "the container sets VLLM_PLUGINS, which has to name kvgauge too"
    for mount in engine.volume_mounts:
        if mount.mount_path.rstrip("/") in {AGENT_FOLDER, SPOOL_FOLDER} and mount.name not in {
            AGENT_VOLUME,
            SPOOL_VOLUME,
        }:
            return f"the container mounts a volume of its own at {mount.mount_path}"
    return None
