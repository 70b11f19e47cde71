"""The store is what a fake API server over real HTTP has, and the kinds that may be missing may be missing."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from kvgauge.cluster.following import Again, Following
from kvgauge.cluster.records import PodKey, Reading, WorkloadKey
from kvgauge.cluster.settings import AggregatorSettings
from kvgauge.cluster.store import Store
from kvgauge.cluster.watching import Pace
from tests.cluster import waiting

from .fake_api_server import FakeApiServer
from .fake_api_store import Object
from .herd import reading

QUICK = Pace(retry_seconds=0.01, most_retry_seconds=0.05)
SOON = Again(optional_seconds=0.05, mandatory_seconds=0.05)
PATIENCE_SECONDS = 30
until = partial(waiting.until, seconds=PATIENCE_SECONDS)
LLAMA = WorkloadKey("llm", "apps", "deployments", "llama")
HPAS = "horizontalpodautoscalers"
Work = Callable[[Following, Store], Awaitable[None]]


def pod(name: str, namespace: str = "llm", labels: dict[str, str] | None = None) -> Object:
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "llama-77", "controller": True, "uid": "u"}
    marks = {"kvgauge.dev/sidecar": "true", "pod-template-hash": "77", **(labels or {})}
    metadata = {"name": name, "namespace": namespace, "labels": marks, "ownerReferences": [owner]}
    return {"metadata": metadata, "spec": {}, "status": {"podIP": "10.0.0.1", "phase": "Running"}}


def workload(name: str = "llama", namespace: str = "llm", replicas: int = 1) -> Object:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"replicas": replicas}, "status": {}}


def autoscaler(name: str, target: str = "llama", tolerance: str | None = None) -> Object:
    spec: Object = {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}}
    if tolerance is not None:
        spec["behavior"] = {"scaleUp": {"tolerance": tolerance}}
    return {"metadata": {"name": name, "namespace": "llm"}, "spec": spec}


@asynccontextmanager
async def following(
    server: FakeApiServer, settings: AggregatorSettings, again: Again
) -> AsyncIterator[tuple[Following, Store]]:
    async with ApiClient(Configuration(host=server.url)) as client:
        store = Store()
        follows = Following(client, store, settings, pace=QUICK, again=again)
        task = asyncio.create_task(follows.run())
        try:
            yield follows, store
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def check(server: FakeApiServer, work: Work, settings: AggregatorSettings | None = None, again: Again = SOON) -> None:
    async def all_of_it() -> None:
        async with following(server, settings or AggregatorSettings.model_validate({}), again) as (follows, store):
            await work(follows, store)

    asyncio.run(all_of_it())


@pytest.fixture
def server() -> Iterator[FakeApiServer]:
    with FakeApiServer() as running:
        yield running
        assert running.complaints == []


def names(store: Store) -> set[str]:
    return {state.pod.key.name for state in store.pods()}


def test_the_store_is_what_there_is(server: FakeApiServer) -> None:
    server.create("pods", pod("a"))
    server.create("pods", pod("other", labels={"kvgauge.dev/sidecar": "no"}))
    server.create("deployments", workload(replicas=3))
    server.create("statefulsets", workload("db"))
    server.create("leaderworkersets", workload("big"))

    async def work(follows: Following, store: Store) -> None:
        await until(lambda: follows.synced and len(list(store.workloads())) == 3)
        [state] = store.pods()
        assert (state.pod.key, state.pod.workload, state.pod.address) == (
            PodKey("llm", "a"), LLAMA, "http://10.0.0.1:9838",
        )  # fmt: skip
        found = store.workload(LLAMA)
        assert found is not None
        assert (found.kind, found.spec_replicas) == ("Deployment", 3)
        server.patch("deployments", "llm", "llama", {"status": {"replicas": 2}})
        server.create("pods", pod("b"))
        server.delete("pods", "llm", "a")
        server.delete("statefulsets", "llm", "db")
        await until(lambda: names(store) == {"b"} and len(list(store.workloads())) == 2)
        await until(lambda: (now := store.workload(LLAMA)) is not None and now.status_replicas == 2)

    check(server, work)


def test_a_pod_that_loses_its_mark_is_dropped(server: FakeApiServer) -> None:
    server.create("pods", pod("a"))

    async def work(follows: Following, store: Store) -> None:
        await until(lambda: names(store) == {"a"})
        server.patch("pods", "llm", "a", {"metadata": {"labels": {"kvgauge.dev/sidecar": None}}})
        await until(lambda: not names(store))

    check(server, work)


def test_readings_outlast_a_lost_history_but_not_the_pod(server: FakeApiServer) -> None:
    server.create("pods", pod("a"))
    told: Reading = reading(usage=0.5)

    async def work(follows: Following, store: Store) -> None:
        await until(lambda: names(store) == {"a"})
        [state] = store.pods()
        store.put_reading(state.pod.key, state.pod.uid, told)
        server.expire()
        server.create("pods", pod("b"))
        await until(lambda: names(store) == {"a", "b"})
        kept = store.pod(PodKey("llm", "a"))
        assert kept is not None
        assert kept.reading == told
        server.delete("pods", "llm", "a")
        server.create("pods", pod("a"))
        await until(lambda: (now := store.pod(PodKey("llm", "a"))) is not None and now.reading is None)

    check(server, work)


def test_one_namespace_and_a_selector(server: FakeApiServer) -> None:
    server.create("pods", pod("a", labels={"app": "x"}))
    server.create("pods", pod("b", labels={"app": "y"}))
    server.create("pods", pod("c", "elsewhere", labels={"app": "x"}))
    server.create("deployments", workload())
    server.create("deployments", workload(namespace="elsewhere"))
    settings = AggregatorSettings.model_validate({"namespace": "llm", "pod_selector": "app=x"})

    async def work(follows: Following, store: Store) -> None:
        await until(lambda: follows.synced and follows.knows_autoscalers)
        assert names(store) == {"a"}
        assert [found.key for found in store.workloads()] == [LLAMA]
        assert {request.path.split("/")[-3] for request in server.requests} == {"namespaces"}

    check(server, work, settings)


def test_tolerances(server: FakeApiServer) -> None:
    server.create(HPAS, autoscaler("one", tolerance="50m"))
    server.create(HPAS, autoscaler("two", tolerance="1"))
    server.create(HPAS, autoscaler("plain", "other"))

    async def work(follows: Following, store: Store) -> None:
        other = WorkloadKey("llm", "apps", "deployments", "other")
        await until(lambda: follows.knows_autoscalers)
        assert follows.tolerances == {LLAMA: (0.05, None), other: (None, None)}
        server.patch(HPAS, "llm", "plain", {"spec": {"behavior": {"scaleDown": {"tolerance": "0"}}}})
        await until(lambda: follows.tolerances[other] == (None, 0.0))
        server.delete(HPAS, "llm", "one")
        await until(lambda: follows.tolerances[LLAMA] == (1.0, None))
        server.delete(HPAS, "llm", "two")
        await until(lambda: LLAMA not in follows.tolerances)

    check(server, work)


def test_leaderworkersets_may_come_and_go(server: FakeApiServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server.create("leaderworkersets", workload("big"))
    server.remove_kind("leaderworkersets")

    async def work(follows: Following, store: Store) -> None:
        await until(lambda: server.count("list", "leaderworkersets") > 3)
        await until(lambda: follows.synced)
        assert follows.ages()["leaderworkersets"] is None
        server.restore_kind("leaderworkersets")
        await until(lambda: [found.key.name for found in store.workloads()] == ["big"])
        assert follows.ages()["leaderworkersets"] is not None
        server.remove_kind("leaderworkersets")
        await until(lambda: not list(store.workloads()))

    check(server, work)
    said = [record.getMessage() for record in caplog.records if "this cluster has none" in record.getMessage()]
    assert len(said) == 2


def test_what_is_forbidden_and_optional_costs_only_itself(
    server: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.create("pods", pod("a"))
    server.create(HPAS, autoscaler("one", tolerance="0"))
    server.forbid("list", HPAS)

    async def work(follows: Following, store: Store) -> None:
        await until(lambda: follows.synced and server.count("list", HPAS) > 3)
        assert names(store) == {"a"}
        assert not follows.knows_autoscalers
        assert caplog.text.count("not shown to us (HTTP 403)") == 1
        server.allow("list", HPAS)
        await until(lambda: follows.knows_autoscalers)
        assert follows.tolerances == {LLAMA: (0.0, None)}
        server.forbid("watch", HPAS)
        server.drop_watches()
        await until(lambda: not follows.knows_autoscalers)
        assert follows.tolerances == {LLAMA: (0.0, None)}
        assert follows.ages()[HPAS] is None

    check(server, work)


def test_without_pods_it_is_not_synced_until_they_are_allowed(
    server: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.create("pods", pod("a"))
    server.forbid("list", "pods")

    async def work(follows: Following, store: Store) -> None:
        await until(lambda: follows.knows_autoscalers and server.count("list", "pods") > 2)
        assert not follows.synced
        server.allow("list", "pods")
        await until(lambda: follows.synced)
        assert names(store) == {"a"}

    check(server, work)
    assert "pods: the API server refuses them (HTTP 403)" in caplog.text


def test_a_404_for_what_every_cluster_has_forgets_nothing(server: FakeApiServer) -> None:
    """A gateway before the API server answers so while that is away."""
    server.create("pods", pod("a"))
    server.create("deployments", workload())

    async def work(follows: Following, store: Store) -> None:
        await until(lambda: follows.synced and follows.counts()["pods"].watches > 0)
        for resource in ("pods", "deployments"):
            server.remove_kind(resource)
            seen = server.count("list", resource)
            await until(lambda: server.count("list", resource) > seen + 2)  # noqa: B023
        assert follows.ages()["pods"] is None
        assert names(store) == {"a"}
        assert store.workload(LLAMA) is not None
        for resource in ("pods", "deployments"):
            server.restore_kind(resource)
        server.create("pods", pod("b"))
        await until(lambda: names(store) == {"a", "b"})

    check(server, work)


def test_away_and_back(server: FakeApiServer) -> None:
    server.create("pods", pod("a"))

    async def work(follows: Following, store: Store) -> None:
        await until(lambda: follows.synced and follows.counts()["pods"].watches > 0)
        server.away()
        await until(lambda: follows.counts()["pods"].failures > 2)
        assert names(store) == {"a"}
        assert follows.synced
        server.create("pods", pod("b"))
        server.back()
        await until(lambda: names(store) == {"a", "b"})

    check(server, work)


def test_ages_are_none_before_the_first_list(server: FakeApiServer) -> None:
    async def run() -> None:
        async with ApiClient(Configuration(host=server.url)) as client:
            follows = Following(client, Store(), AggregatorSettings.model_validate({}))
            assert set(follows.ages().values()) == {None}
            assert set(follows.ages()) == {"pods", "deployments", "statefulsets", "leaderworkersets", HPAS}
            assert not follows.synced

    asyncio.run(run())
