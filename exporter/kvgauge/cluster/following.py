"""Keeps the store in step with the API server: pods with sidecars, the workloads they belong to, and the dead bands of
the autoscalers that scale these."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn
from urllib.parse import quote

from kubernetes.aio.client import ApiClient

from kvgauge.cluster.decoding import JsonObject
from kvgauge.cluster.names import DEPLOYMENT, LEADER_WORKER_SET, STATEFUL_SET, WorkloadKind
from kvgauge.cluster.projecting import Autoscaler, autoscaler_of, pod_of, workload_of
from kvgauge.cluster.records import Pod, PodKey, Workload, WorkloadKey
from kvgauge.cluster.settings import AggregatorSettings
from kvgauge.cluster.store import Store
from kvgauge.cluster.watching import Counts, Pace, Reflector, RefusedError
from kvgauge.logs import logger

Tolerances = Mapping[WorkloadKey, tuple[float | None, float | None]]
"""Up and down, of each workload that an autoscaler scales; None for what that does not state."""

_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Again:
    """Seconds between two looks at a kind that the API server does not have or does not show us."""

    optional_seconds: float = 300.0
    mandatory_seconds: float = 30.0


@dataclass(slots=True)
class _Kind:
    """One kind that is followed."""

    resource: str
    reflector: Reflector[Any]
    forget: Callable[[], None]
    """There is none of it any more."""
    optional: bool
    refused: int = field(default=0)
    """HTTP status with which it was refused; 0 while it is followed."""


class Following:
    """Follows every kind in one namespace, or in all. LeaderWorkerSets and autoscalers are optional: where there are
    none, or where they are not shown, the rest goes on without them."""

    def __init__(
        self,
        client: ApiClient,
        store: Store,
        settings: AggregatorSettings,
        *,
        pace: Pace | None = None,
        again: Again | None = None,
    ) -> None:
        self._client = client
        self._store = store
        self._within = f"/namespaces/{quote(settings.namespace, safe='')}" if settings.namespace else ""
        self._pace = pace or Pace()
        self._again = again or Again()
        self._autoscalers = _Autoscalers()
        self._kinds = {
            kind.resource: kind
            for kind in (
                self._pods(settings.sidecar_port, settings.pod_selector),
                self._workloads(DEPLOYMENT),
                self._workloads(STATEFUL_SET),
                self._workloads(LEADER_WORKER_SET, optional=True),
                self._scalers(),
            )
        }

    @property
    def synced(self) -> bool:
        """Pods and the kinds that every cluster has were known once."""
        return all(kind.reflector.synced for kind in self._kinds.values() if not kind.optional)

    @property
    def tolerances(self) -> Tolerances:
        """Of a workload that is not in it no autoscaler is known."""
        return self._autoscalers.tolerances

    @property
    def knows_autoscalers(self) -> bool:
        """Whether a workload that is not in `tolerances` has no autoscaler."""
        kind = self._kinds["horizontalpodautoscalers"]
        return kind.reflector.synced and not kind.refused

    def ages(self) -> dict[str, float | None]:
        """By resource, seconds since the API server last told something of it; None where it never did or refuses."""
        ages = {name: kind.reflector.age_seconds() for name, kind in self._kinds.items() if not kind.refused}
        return {name: age if (age := ages.get(name, math.inf)) < math.inf else None for name in self._kinds}

    def counts(self) -> dict[str, Counts]:
        """By resource."""
        return {name: kind.reflector.counts for name, kind in self._kinds.items()}

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for kind in self._kinds.values():
                group.create_task(self._keep(kind))

    async def _keep(self, kind: _Kind) -> NoReturn:
        pause = self._again.optional_seconds if kind.optional else self._again.mandatory_seconds
        while True:
            try:
                await kind.reflector.run()
            except RefusedError as error:
                if kind.refused != error.status:
                    _say(kind, error.status, pause)
                kind.refused = error.status
                # What every cluster has is not gone: something before the API server answers.
                if kind.optional and error.status == _NOT_FOUND:
                    kind.forget()
            await asyncio.sleep(pause)

    def _pods(self, sidecar_port: int, selector: str | None) -> _Kind:
        def drop(namespace: str, name: str) -> None:
            self._store.drop_pod(PodKey(namespace, name))

        def project(thing: JsonObject) -> Pod | None:
            return pod_of(thing, sidecar_port)

        replace = self._store.replace_pods
        return self._kind("/api/v1", "pods", project, replace, self._store.put_pod, drop, selector=selector)

    def _workloads(self, kind: WorkloadKind, *, optional: bool = False) -> _Kind:
        group, resource = kind.group, kind.resource

        def drop(namespace: str, name: str) -> None:
            self._store.drop_workload(WorkloadKey(namespace, group, resource, name))

        def project(thing: JsonObject) -> Workload:
            return workload_of(thing, group, resource, kind.kind, kind.api_version)

        replace = partial(self._store.replace_workloads, group, resource)
        put = self._store.put_workload
        return self._kind(f"/apis/{kind.api_version}", resource, project, replace, put, drop, optional=optional)

    def _scalers(self) -> _Kind:
        known = self._autoscalers
        name = "horizontalpodautoscalers"
        return self._kind(
            "/apis/autoscaling/v2", name, autoscaler_of, known.replace, known.put, known.drop, optional=True
        )

    def _kind(
        self,
        root: str,
        resource: str,
        project: Callable[[JsonObject], Any],
        replace: Callable[[list[Any]], None],
        put: Callable[[Any], None],
        drop: Callable[[str, str], None],
        *,
        optional: bool = False,
        selector: str | None = None,
    ) -> _Kind:
        def replace_and_note(items: list[Any]) -> None:
            replace(items)
            kind = self._kinds[resource]
            if kind.refused:
                logger.info("%s: followed now", resource)
            kind.refused = 0

        reflector = Reflector(
            self._client,
            f"{root}{self._within}/{resource}",
            project,
            replace=replace_and_note,
            put=put,
            drop=drop,
            label_selector=selector,
            pace=self._pace,
        )
        return _Kind(resource, reflector, partial(replace, []), optional)


class _Autoscalers:
    """Those that there are. Their status changes all the time, what is kept of them hardly ever."""

    def __init__(self) -> None:
        self.tolerances: Tolerances = {}
        self._known: dict[tuple[str, str], Autoscaler] = {}

    def replace(self, autoscalers: list[Autoscaler]) -> None:
        self._known = {(one.namespace, one.name): one for one in autoscalers}
        self._reckon()

    def put(self, autoscaler: Autoscaler) -> None:
        key = (autoscaler.namespace, autoscaler.name)
        if self._known.get(key) != autoscaler:
            self._known[key] = autoscaler
            self._reckon()

    def drop(self, namespace: str, name: str) -> None:
        if self._known.pop((namespace, name), None) is not None:
            self._reckon()

    def _reckon(self) -> None:
        """Of several for one workload, which is a mistake of whoever made them, the first by name is taken."""
        last_first = sorted(self._known.items(), reverse=True)
        self.tolerances = {one.workload: (one.tolerance_up, one.tolerance_down) for _, one in last_first}


def _say(kind: _Kind, status: int, pause_seconds: float) -> None:
    if not kind.optional:
        logger.error(
            "%s: the API server refuses them (HTTP %d), nothing can be served without them; tried again every %g s",
            kind.resource,
            status,
            pause_seconds,
        )
    elif status == _NOT_FOUND:
        logger.info("%s: this cluster has none; looked for every %g s", kind.resource, pause_seconds)
    else:
        logger.warning("%s: not shown to us (HTTP %d); tried again every %g s", kind.resource, status, pause_seconds)
