"""What can be read of pods and workloads: one table of metrics, and which objects a read is about."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvgauge.cluster.answers import Described, Failure, Value
from kvgauge.cluster.names import REQUIRED_REPLICAS, WORKLOAD_KINDS, WorkloadKind
from kvgauge.cluster.quantities import milli
from kvgauge.cluster.records import PodKey, PodState, Reading, Required, WorkloadKey, is_fresh
from kvgauge.cluster.selectors import Selector
from kvgauge.cluster.store import Store

REQUIRED_STALE_SECONDS = 60.0
"""A number of replicas that is older was made by nobody any more."""

PublishedReplicas = Callable[[Required], int | None]
"""Thousandths of replicas to publish for a workload; None while nothing is known."""


@dataclass(frozen=True, slots=True)
class PodMetric:
    """One figure of a pod. `up`: rounded up, since it stands for load; what stands for capacity is rounded down.
    `together` makes one figure of many pods'."""

    read: Callable[[Reading], float | None]
    up: bool
    together: Callable[[Iterable[float]], float]


POD_METRICS: Mapping[str, PodMetric] = {
    "kvgauge_load_ratio": PodMetric(lambda reading: reading.load_ratio, True, math.fsum),
    "kvgauge_safe_concurrency": PodMetric(lambda reading: reading.safe_concurrency, False, math.fsum),
    "kvgauge_running_requests": PodMetric(lambda reading: reading.running, True, math.fsum),
    "kvgauge_waiting_requests": PodMetric(lambda reading: reading.waiting, True, math.fsum),
    "kvgauge_kv_usage_ratio": PodMetric(lambda reading: reading.kv_usage_ratio, True, max),
    "kvgauge_kv_exhaustion_seconds": PodMetric(lambda reading: reading.kv_exhaustion_seconds, False, min),
}


WORKLOADS: Mapping[str, WorkloadKind] = {kind.qualified: kind for kind in WORKLOAD_KINDS}


class Figures:
    """Reads the store for the metrics APIs. What is too old is not there."""

    def __init__(
        self,
        store: Store,
        published_replicas: PublishedReplicas,
        *,
        stale_after_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._published_replicas = published_replicas
        self._stale_after_seconds = stale_after_seconds
        self._clock = clock

    def pods(self, namespace: str, metric: str, selector: Selector) -> list[tuple[PodState, Value]]:
        """The figure of each selected pod that has told it lately. A silent pod is left out, never counted as 0.

        Raises Failure: 404 when no pod that carries a sidecar is selected, 503 when none of them has the figure.
        """
        return self._known(self._selected(namespace, selector), metric)

    def pod(self, key: PodKey, metric: str) -> Value:
        """The figure of one pod. Raises Failure."""
        state = self._store.pod(key)
        if state is None:
            raise Failure(404, "no such pod with a sidecar")
        value = self._value(state, metric)
        if value is None:
            raise Failure(503, f"the pod has not told {metric} lately")
        return value

    def namespace(self, namespace: str, metric: str, selector: Selector) -> Value:
        """One figure of all selected pods of a namespace: the sum, the highest usage, the soonest exhaustion.

        Raises Failure, also when a ready pod is silent: a sum without it would be a smaller number, not an unknown one.
        """
        selected = self._selected(namespace, selector)
        known = self._known(selected, metric)
        silent = sum(state.pod.ready and self._reading(state) is None for state in selected)
        if silent:
            raise Failure(503, f"{silent} ready pods are silent: the sum of {metric} is not known")
        kind = POD_METRICS[metric]
        thousandths = milli(kind.together(value.thousandths / 1000 for _, value in known), up=kind.up)
        if thousandths is None:
            raise Failure(503, f"{metric} is beyond what can be told")
        oldest = min(value.wall_seconds for _, value in known)
        return Value(Described("Namespace", "v1", "", namespace), thousandths, oldest)

    def workload(self, key: WorkloadKey) -> Value:
        """`kvgauge_required_replicas` of one workload. Raises Failure."""
        workload = self._store.workload(key)
        if workload is None:
            raise Failure(404, f"no such {key.resource}")
        required = self._store.required(key)
        if required is None or self._clock() - required.read_seconds > REQUIRED_STALE_SECONDS:
            raise Failure(503, f"{REQUIRED_REPLICAS} is not known at present")
        thousandths = self._published_replicas(required)
        if thousandths is None:
            raise Failure(503, f"{REQUIRED_REPLICAS} is not known: nothing was ever heard of the pods")
        described = Described(workload.kind, workload.api_version, key.namespace, key.name)
        return Value(described, thousandths, required.wall_seconds)

    def workloads(self, namespace: str, resource: WorkloadKind, selector: Selector) -> list[Value]:
        """The same of each selected workload that has it. Raises Failure as `pods` does."""
        found = [
            workload.key
            for workload in self._store.workloads()
            if workload.key.namespace == namespace
            and (workload.key.group, workload.key.resource) == (resource.group, resource.resource)
            and selector.matches(workload.labels)
        ]
        if not found:
            raise Failure(404, f"no {resource.resource} are selected")
        known = []
        for key in found:
            try:
                known.append(self.workload(key))
            except Failure:
                continue
        if not known:
            raise Failure(503, f"{REQUIRED_REPLICAS} is known of none of the {len(found)} selected {resource.resource}")
        return known

    def _known(self, selected: Sequence[PodState], metric: str) -> list[tuple[PodState, Value]]:
        known = [(state, value) for state in selected if (value := self._value(state, metric)) is not None]
        if not known:
            raise Failure(503, f"none of the {len(selected)} selected pods has told {metric} lately")
        return known

    def _selected(self, namespace: str, selector: Selector) -> list[PodState]:
        found = [
            state
            for state in self._store.pods(namespace)
            if not state.pod.deleting and selector.matches(state.pod.labels)
        ]
        if not found:
            raise Failure(404, "no pods with a sidecar are selected")
        return found

    def _reading(self, state: PodState) -> Reading | None:
        reading = state.reading
        return reading if is_fresh(reading, self._clock(), self._stale_after_seconds) else None

    def _value(self, state: PodState, metric: str) -> Value | None:
        reading = self._reading(state)
        kind = POD_METRICS[metric]
        if reading is None or not reading.valid:
            return None
        figure = kind.read(reading)
        thousandths = milli(figure, up=kind.up) if figure is not None else None
        if thousandths is None:
            return None
        key = state.pod.key
        return Value(Described("Pod", "v1", key.namespace, key.name), thousandths, reading.wall_seconds)
