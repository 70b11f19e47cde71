"""Pods of one Deployment and what they said, for the tests of what writes to the API server."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvgauge.cluster.names import DELETION_COST as COST
from kvgauge.cluster.records import Pod, PodKey, PodState, Reading, Workload, WorkloadKey
from kvgauge.cluster.scale_in import MANAGED
from kvgauge.cluster.store import Store

NOW = 1000.0
KEY = WorkloadKey("llm", "apps", "deployments", "llama")


@dataclass
class FakeClock:
    """Monotonic seconds that pass when a test says so."""

    seconds: float = NOW

    def __call__(self) -> float:
        return self.seconds


@dataclass
class FakeLeadership:
    """Leads when a test says so."""

    is_leader: bool = True


def workload(key: WorkloadKey = KEY, labels: Mapping[str, str] | None = None) -> Workload:
    return Workload(key, "Deployment", "apps/v1", f"uid-{key.name}", labels or {}, 2, 2)


def pod(
    name: str,
    *,
    cost: str | None = None,
    mark: str | None = None,
    key: WorkloadKey | None = KEY,
    namespace: str = "llm",
    uid: str | None = None,
    ready: bool = True,
    deleting: bool = False,
    phase: str = "Running",
) -> Pod:
    annotations = {name: text for name, text in ((COST, cost), (MANAGED, mark)) if text is not None}
    return Pod(
        key=PodKey(namespace, name),
        uid=uid or f"uid-{name}",
        labels={},
        annotations=annotations,
        workload=key,
        address="http://10.0.0.1:9838",
        node="node",
        phase=phase,
        ready=ready,
        deleting=deleting,
        created_wall_seconds=0.0,
        deletion_cost=cost,
    )


def reading(
    tokens: float | None = None,
    usage: float | None = None,
    *,
    at: float = NOW,
    valid: bool = True,
    load: float | None = None,
    exhaustion: float | None = None,
    binding: str | None = "kv",
    running: int | None = None,
    waiting: int | None = None,
) -> Reading:
    return Reading(
        read_seconds=at,
        wall_seconds=at,
        valid=valid,
        load_ratio=load,
        safe_concurrency=None,
        running=running,
        waiting=waiting,
        kv_usage_ratio=usage,
        kv_exhaustion_seconds=exhaustion,
        kv_active_tokens=tokens,
        binding_limit=binding,
        demand=None,
        served=None,
    )


def store_of(*states: PodState, workloads: tuple[Workload, ...] = (workload(),)) -> Store:
    store = Store()
    store.replace_workloads("apps", "deployments", workloads)
    for state in states:
        put(store, state)
    return store


def put(store: Store, state: PodState) -> None:
    store.put_pod(state.pod)
    if state.reading is not None:
        store.put_reading(state.pod.key, state.pod.uid, state.reading)
    if state.failure is not None:
        store.put_failure(state.pod.key, state.pod.uid, state.failure)
