"""The last that is known of every pod and workload. Everything in it is written and read in one event loop's thread.

It holds no rule but one: what is gone from the API server is gone from here.
"""

from collections.abc import Iterable, Iterator

from kvgauge.cluster.records import Pod, PodKey, PodState, Reading, Required, Workload, WorkloadKey


class Store:
    """Pods by namespace, workloads by key, and the last `Required` of each workload."""

    def __init__(self) -> None:
        self._pods: dict[str, dict[str, PodState]] = {}
        self._workloads: dict[WorkloadKey, Workload] = {}
        self._required: dict[WorkloadKey, Required] = {}

    def pods(self, namespace: str | None = None) -> Iterator[PodState]:
        """Those of one namespace, or all."""
        if namespace is not None:
            yield from self._pods.get(namespace, {}).values()
            return
        for there in self._pods.values():
            yield from there.values()

    def pod(self, key: PodKey) -> PodState | None:
        return self._pods.get(key.namespace, {}).get(key.name)

    def put_pod(self, pod: Pod) -> None:
        """A pod as the API server has it now. A new pod under an old name starts without a reading."""
        there = self._pods.setdefault(pod.key.namespace, {})
        known = there.get(pod.key.name)
        same = known is not None and known.pod.uid == pod.uid
        there[pod.key.name] = PodState(pod, known.reading, known.failure) if known and same else PodState(pod)

    def drop_pod(self, key: PodKey) -> None:
        there = self._pods.get(key.namespace, {})
        there.pop(key.name, None)
        if not there:
            self._pods.pop(key.namespace, None)

    def replace_pods(self, pods: Iterable[Pod]) -> None:
        """All pods that there are: the others are gone."""
        found = list(pods)
        kept = {pod.key for pod in found}
        for gone in [state.pod.key for state in self.pods() if state.pod.key not in kept]:
            self.drop_pod(gone)
        for pod in found:
            self.put_pod(pod)

    def put_reading(self, key: PodKey, uid: str, reading: Reading) -> None:
        """What the sidecar of that very pod said."""
        known = self.pod(key)
        if known is not None and known.pod.uid == uid:
            self._pods[key.namespace][key.name] = PodState(known.pod, reading)

    def put_failure(self, key: PodKey, uid: str, failure: str) -> None:
        """A poll that brought nothing; the last reading stays until it is too old."""
        known = self.pod(key)
        if known is not None and known.pod.uid == uid:
            self._pods[key.namespace][key.name] = PodState(known.pod, known.reading, failure)

    def workloads(self) -> Iterable[Workload]:
        return self._workloads.values()

    def workload(self, key: WorkloadKey) -> Workload | None:
        return self._workloads.get(key)

    def put_workload(self, workload: Workload) -> None:
        self._workloads[workload.key] = workload

    def drop_workload(self, key: WorkloadKey) -> None:
        self._workloads.pop(key, None)
        self._required.pop(key, None)

    def replace_workloads(self, group: str, resource: str, workloads: Iterable[Workload]) -> None:
        """All workloads of one kind that there are: the others of that kind are gone."""
        found = {workload.key: workload for workload in workloads}
        kind = [key for key in self._workloads if (key.group, key.resource) == (group, resource)]
        for gone in [key for key in kind if key not in found]:
            self.drop_workload(gone)
        self._workloads.update(found)

    def required(self, key: WorkloadKey) -> Required | None:
        return self._required.get(key)

    def all_required(self) -> Iterable[Required]:
        return self._required.values()

    def put_required(self, required: Required) -> None:
        if required.workload.key in self._workloads:
            self._required[required.workload.key] = required
