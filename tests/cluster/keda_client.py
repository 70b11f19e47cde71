"""A workload in a store, and a client that asks about it as KEDA does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest

from kvgauge.cluster.keda import KedaServer, serve_keda
from kvgauge.cluster.keda_messages import message_class
from kvgauge.cluster.records import Pod, PodKey, Reading, Required, Workload, WorkloadKey
from kvgauge.cluster.store import Store

LLAMA = WorkloadKey("llm", "apps", "deployments", "llama")
KINDS = {"deployments": "Deployment", "statefulsets": "StatefulSet", "leaderworkersets": "LeaderWorkerSet"}
NOW = 1000.0


class FakeClock:
    def __init__(self) -> None:
        self.seconds = NOW
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.seconds


def workload(key: WorkloadKey = LLAMA, replicas: int = 3) -> Workload:
    return Workload(key, KINDS[key.resource], "apps/v1", "u", {}, replicas, replicas)


def reading(load_ratio: float | None = 0.5, **others: object) -> Reading:
    told = Reading(
        read_seconds=NOW,
        wall_seconds=0.0,
        valid=load_ratio is not None,
        load_ratio=load_ratio,
        safe_concurrency=None,
        running=0,
        waiting=0,
        kv_usage_ratio=None,
        kv_exhaustion_seconds=None,
        kv_active_tokens=None,
        binding_limit=None,
        demand=None,
        served=None,
    )
    return replace(told, **others)  # type: ignore[arg-type]


def pod(name: str, key: WorkloadKey = LLAMA, **others: object) -> Pod:
    here = Pod(
        key=PodKey(key.namespace, name),
        uid=name,
        labels={},
        annotations={},
        workload=key,
        address=None,
        node=None,
        phase="Running",
        ready=True,
        deleting=False,
        created_wall_seconds=0.0,
    )
    return replace(here, **others)  # type: ignore[arg-type]


def store_of(
    *readings: Reading | None, key: WorkloadKey = LLAMA, replicas: int | None = None, required: int | None = 4
) -> Store:
    """A workload with a ready pod for each reading, and what is required of it."""
    store = Store()
    add(store, *readings, key=key, replicas=replicas, required=required)
    return store


def add(
    store: Store, *readings: Reading | None, key: WorkloadKey = LLAMA, replicas: int | None, required: int | None
) -> None:
    asked = workload(key, len(readings) if replicas is None else replicas)
    store.put_workload(asked)
    for number, told in enumerate(readings):
        put(store, pod(f"{key.name}-{number}", key), told)
    require(store, asked, required)


def put(store: Store, one: Pod, told: Reading | None) -> None:
    store.put_pod(one)
    if told is not None:
        store.put_reading(one.key, one.uid, told)


def require(store: Store, asked: Workload, replicas: int | None, read_seconds: float = NOW) -> None:
    store.put_required(Required(asked, replicas, 0.0, read_seconds, {}, ()))


def whole(required: Required) -> int | None:
    """Stands in for the rule that widens what an autoscaler's dead band would swallow."""
    return None if required.replicas is None else required.replicas * 1000


def reference(namespace: str = "llm", **metadata: str) -> bytes:
    """As KEDA writes it, with the keys that it passes on."""
    given_keys = {"scalerAddress": "kvgauge:9840", "workload": "deployment/llama"} | metadata
    return bytes(
        message_class("ScaledObjectRef")(
            name="llama", namespace=namespace, scalerMetadata=given_keys
        ).SerializeToString()
    )


def metrics_request(metric_name: str = "kvgauge_required_replicas", **metadata: str) -> bytes:
    made = message_class("GetMetricsRequest")(metricName=metric_name)
    made.scaledObjectRef.ParseFromString(reference(**metadata))
    return bytes(made.SerializeToString())


class Client:
    """What KEDA does, in bytes on both sides."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def call(self, method: str, body: bytes) -> bytes:
        answer = await self._channel.unary_unary(f"/externalscaler.ExternalScaler/{method}")(body, timeout=10)
        return bytes(answer)

    async def active(self, **metadata: str) -> bool:
        answer = await self.call("IsActive", reference(**metadata))
        return bool(message_class("IsActiveResponse").FromString(answer).result)

    async def value(self, metric_name: str = "kvgauge_required_replicas", **metadata: str) -> float:
        """As KEDA takes it: in thousandths, the rest cut off."""
        answer = await self.call("GetMetrics", metrics_request(metric_name, **metadata))
        (told,) = message_class("GetMetricsResponse").FromString(answer).metricValues
        assert told.metricName == metric_name
        number = told.metricValueFloat if told.metricValueFloat > 0 else float(told.metricValue)
        return int(number * 1000) / 1000

    async def load(self, **metadata: str) -> float:
        return await self.value("kvgauge_load_ratio", metric="kvgauge_load_ratio", **metadata)

    def stream(self, body: bytes) -> grpc.aio.UnaryStreamCall:
        return self._channel.unary_stream("/externalscaler.ExternalScaler/StreamIsActive")(body, timeout=60)


@asynccontextmanager
async def served(
    store: Store, clock: Callable[[], float] | None = None, push_seconds: float = 0.01
) -> AsyncIterator[tuple[Client, KedaServer, int]]:
    server, port = await serve_keda(
        store, whole, host="127.0.0.1", port=0, clock=clock or FakeClock(), push_seconds=push_seconds
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Client(channel), server, port
    finally:
        await server.stop(0.0)


def ask(
    store: Store, question: Callable[[Client], Awaitable[object]], clock: Callable[[], float] | None = None
) -> object:
    async def run() -> object:
        async with served(store, clock) as (client, _, _):
            return await question(client)

    return asyncio.run(run())


def refusal(store: Store, question: Callable[[Client], Awaitable[object]]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        ask(store, question)
    return caught.value.code(), caught.value.details() or ""
