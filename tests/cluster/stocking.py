"""A store filled by hand, for who reads it."""

from dataclasses import replace

from kvgauge.cluster.records import Pod, PodKey, Reading, Required, Workload, WorkloadKey
from kvgauge.cluster.store import Store

NOW_SECONDS = 1000.0
WALL_SECONDS = 1_790_000_000.5
LLAMA = WorkloadKey("llm", "apps", "deployments", "llama")


def pod(name: str, namespace: str = "llm", **changes: object) -> Pod:
    plain = Pod(
        key=PodKey(namespace, name),
        uid=f"uid-{name}",
        labels={"app": "llama"},
        annotations={},
        workload=LLAMA,
        address="http://10.0.0.1:9838",
        node="node-1",
        phase="Running",
        ready=True,
        deleting=False,
        created_wall_seconds=WALL_SECONDS - 600,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def reading(**changes: object) -> Reading:
    plain = Reading(
        read_seconds=NOW_SECONDS - 1,
        wall_seconds=WALL_SECONDS,
        valid=True,
        load_ratio=0.8401,
        safe_concurrency=37,
        running=21,
        waiting=3,
        kv_usage_ratio=0.5,
        kv_exhaustion_seconds=None,
        kv_active_tokens=1000.0,
        binding_limit="kv",
        demand=None,
        served=None,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def workload(key: WorkloadKey = LLAMA, **changes: object) -> Workload:
    plain = Workload(
        key=key, kind="Deployment", api_version="apps/v1", uid=f"uid-{key.name}", labels={"app": key.name},
        spec_replicas=2, status_replicas=2,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def required(replicas: int | None = 3, **changes: object) -> Required:
    plain = Required(workload(), replicas, WALL_SECONDS, NOW_SECONDS - 2, {}, ())
    return replace(plain, **changes)  # type: ignore[arg-type]


def put(store: Store, one: Pod, told: Reading | None) -> None:
    store.put_pod(one)
    if told is not None:
        store.put_reading(one.key, one.uid, told)


def stocked() -> Store:
    """Two pods that tell, one that is silent, one that goes, one of somebody else's; a Deployment that needs three."""
    store = Store()
    put(store, pod("a"), reading())
    put(store, pod("b", labels={"app": "llama", "tier": "gold"}), reading(load_ratio=1.25, kv_exhaustion_seconds=90.9))
    put(store, pod("silent", labels={"app": "other"}), reading(read_seconds=NOW_SECONDS - 60))
    put(store, pod("going", deleting=True), reading())
    put(store, pod("c", namespace="elsewhere", workload=None), reading())
    store.put_workload(workload())
    store.put_required(required())
    return store
