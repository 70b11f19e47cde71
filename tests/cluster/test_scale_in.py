"""Costs written on pods of a fake API server, over real connections."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from kvgauge.cluster.leading import Alone, Leadership
from kvgauge.cluster.names import DELETION_COST as COST
from kvgauge.cluster.records import Pod, PodState, WorkloadKey
from kvgauge.cluster.scale_in import HELPER, MANAGED, CostKeeper, Pace, keep_costs
from kvgauge.cluster.store import Store
from tests.cluster.fake_line import FakeLine
from tests.cluster.herd import KEY, NOW, FakeClock, FakeLeadership, pod, put, reading, store_of, workload
from tests.cluster.writable import Api, running_api

PACE = Pace(patches_per_second=1000.0)
QUICK = Pace(interval_seconds=0.01, patches_per_second=2000.0)


@dataclass
class Scene:
    api: Api
    line: FakeLine
    client: ApiClient
    store: Store
    leadership: FakeLeadership
    clock: FakeClock
    keeper: CostKeeper

    def see(self, name: str, tokens: float, **more: object) -> None:
        """A pod as the watch would show it now, and what it holds."""
        there = self.api.annotations("llm", name)
        seen = pod(name, cost=there.get(COST), mark=there.get(MANAGED), **more)  # type: ignore[arg-type]
        put(self.store, PodState(seen, reading(tokens, tokens / 100_000, at=self.clock.seconds)))

    def marks(self) -> dict[str, dict[str, str]]:
        return {name: self.api.annotations("llm", name) for name in self.api.pod_names("llm")}


@asynccontextmanager
async def scene(*pods: Pod, pace: Pace = PACE, store: Store | None = None) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(running_api())
        line = await stack.enter_async_context(FakeLine(api.host, api.port))
        client = await stack.enter_async_context(ApiClient(Configuration(host=line.url)))
        for one in pods:
            api.add_pod(one)
        there, leadership, clock = store or store_of(), FakeLeadership(), FakeClock()
        keeper = CostKeeper(client, there, leadership, pace, clock)
        yield Scene(api, line, client, there, leadership, clock, keeper)


def play(part: Callable[[Scene], Awaitable[None]], *pods: Pod, pace: Pace = PACE, store: Store | None = None) -> None:
    async def run() -> None:
        async with scene(*pods, pace=pace, store=store) as there:
            await part(there)

    asyncio.run(run())


def test_costs_are_written_and_follow_what_pods_hold() -> None:
    async def part(scene: Scene) -> None:
        scene.see("a", 70_000)
        scene.see("b", 20_000)
        assert await scene.keeper.look() == 2
        assert scene.marks() == {"a": {COST: "70000", MANAGED: "70000"}, "b": {COST: "20000", MANAGED: "20000"}}
        scene.clock.seconds += 30
        scene.see("a", 71_000)
        scene.see("b", 0)
        assert await scene.keeper.look() == 1
        assert scene.marks() == {"a": {COST: "70000", MANAGED: "70000"}, "b": {COST: "0", MANAGED: "0"}}

    play(part, pod("a"), pod("b"))


def test_other_annotations_stay() -> None:
    async def part(scene: Scene) -> None:
        scene.see("a", 70_000)
        scene.see("b", 20_000)
        await scene.keeper.look()
        assert scene.marks()["a"] == {"team": "serving", COST: "70000", MANAGED: "70000"}

    play(part, replace(pod("a"), annotations={"team": "serving"}), pod("b"))


def test_a_pod_is_not_written_again_soon() -> None:
    async def part(scene: Scene) -> None:
        for seconds, patches in ((0, 2), (10, 0), (10, 0), (10, 2)):
            scene.clock.seconds += seconds
            passed = scene.clock.seconds - NOW
            scene.see("a", 20_000 + 1000 * passed)
            scene.see("b", 90_000 - 1000 * passed)
            assert await scene.keeper.look() == patches

    play(part, pod("a"), pod("b"))


def test_nothing_is_written_without_leading() -> None:
    async def part(scene: Scene) -> None:
        scene.see("a", 70_000)
        scene.see("b", 20_000)
        scene.leadership.is_leader = False
        assert await scene.keeper.look() == 0
        assert scene.line.requests == 0

    play(part, pod("a"), pod("b"))


def test_leading_that_ends_meanwhile_ends_the_writing() -> None:
    @dataclass
    class BriefLeadership:
        left: int

        @property
        def is_leader(self) -> bool:
            self.left -= 1
            return self.left >= 0

    async def part(scene: Scene) -> None:
        for name in "abcd":
            scene.see(name, 50_000)
        keeper = CostKeeper(scene.client, scene.store, BriefLeadership(3), PACE, scene.clock)
        assert await keeper.look() == 2
        assert sum(COST in mark for mark in scene.marks().values()) == 2

    play(part, *(pod(name) for name in "abcd"))


def test_the_cost_of_somebody_else_is_left_alone() -> None:
    async def part(scene: Scene) -> None:
        scene.see("a", 70_000)
        scene.see("b", 20_000)
        scene.see("c", 30_000)
        await scene.keeper.look()
        assert scene.marks()["c"] == {COST: "2147483647"}
        assert scene.marks()["a"][COST] == "70000"

    play(part, pod("a"), pod("b"), pod("c", cost="2147483647"))


def test_a_new_pod_of_the_same_name_is_not_marked() -> None:
    async def part(scene: Scene) -> None:
        scene.see("a", 70_000, uid="uid-of-the-one-before")
        scene.see("b", 20_000)
        await scene.keeper.look()
        assert scene.marks() == {"a": {}, "b": {COST: "20000", MANAGED: "20000"}}

    play(part, pod("a"), pod("b"))


def test_a_pod_that_is_gone_keeps_nobody_waiting() -> None:
    async def part(scene: Scene) -> None:
        put(scene.store, PodState(pod("a"), reading(70_000.0, 0.7)))
        scene.see("b", 20_000)
        await scene.keeper.look()
        assert scene.marks() == {"b": {COST: "20000", MANAGED: "20000"}}

    play(part, pod("b"))


@pytest.mark.parametrize(
    "key",
    [
        WorkloadKey("llm", "apps", "statefulsets", "llama"),
        WorkloadKey("llm", "leaderworkerset.x-k8s.io", "leaderworkersets", "llama"),
        WorkloadKey("llm", "apps", "deployments", "not-known"),
        None,
    ],
)
def test_only_pods_of_deployments_are_marked(key: WorkloadKey | None) -> None:
    async def part(scene: Scene) -> None:
        scene.see("a", 70_000, key=key)
        scene.see("b", 20_000, key=key)
        assert await scene.keeper.look() == 0

    play(part, pod("a"), pod("b"))


def test_a_deployment_that_is_left_out_loses_its_marks() -> None:
    async def part(scene: Scene) -> None:
        for name in "abc":
            scene.see(name, 50_000)
        assert await scene.keeper.look() == 1
        assert scene.marks() == {"a": {}, "b": {COST: "7"}, "c": {}}

    store = store_of(workloads=(workload(labels={HELPER: "false"}),))
    play(part, pod("a", cost="5", mark="5"), pod("b", cost="7"), pod("c"), store=store)


def test_a_namespace_that_forbids_it_is_left_alone_and_the_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    other = WorkloadKey("open", "apps", "deployments", "llama")

    async def part(scene: Scene) -> None:
        scene.api.close_namespace("patch", "pods", "llm")
        for seconds in (0, 30, 30):
            scene.clock.seconds += seconds
            for name in "ab":
                scene.see(name, scene.clock.seconds * 50)
                said = reading(scene.clock.seconds * 50, scene.clock.seconds * 50 / 1e5, at=scene.clock.seconds)
                put(scene.store, PodState(pod(name, key=other, namespace="open"), said))
            await scene.keeper.look()
        assert scene.api.annotations("llm", "a") == {}
        assert scene.api.annotations("open", "b")[COST] == "53000"
        assert scene.api.refused == 1
        scene.api.open_namespaces()
        scene.clock.seconds += 600
        for name in "ab":
            scene.see(name, 70_000)
        assert await scene.keeper.look() == 2

    store = store_of(workloads=(workload(), workload(other)))
    names = [pod(name, key=key, namespace=key.namespace) for key in (KEY, other) for name in "ab"]
    with caplog.at_level(logging.INFO, "kvgauge"):
        play(part, *names, store=store)
    assert [record.message for record in caplog.records] == [
        "pod-deletion-cost: not allowed in namespace llm (HTTP 403); left off there"
    ]


@pytest.mark.parametrize("fault", ["cut", "lossy"])
def test_an_api_server_that_is_away_is_asked_once_a_look(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    async def part(scene: Scene) -> None:
        scene.line.fault = fault  # type: ignore[assignment]
        for _ in range(3):
            for name in "abcd":
                scene.see(name, 50_000)
            before = scene.line.requests
            assert await scene.keeper.look() == 0
            assert scene.line.requests - before == 1
            scene.clock.seconds += 10
        scene.line.fault = "none"
        scene.clock.seconds += 30
        for name in "abcd":
            scene.see(name, 80_000)
        assert await scene.keeper.look() == 4

    with caplog.at_level(logging.INFO, "kvgauge"):
        play(part, *(pod(name) for name in "abcd"))
    assert len(caplog.records) == 1


def test_the_budget_is_kept_and_each_workload_gets_its_share() -> None:
    small = WorkloadKey("llm", "apps", "deployments", "small")

    async def part(scene: Scene) -> None:
        for number in range(40):
            scene.see(f"big-{number}", 50_000)
        for number in range(3):
            scene.see(f"small-{number}", 50_000, key=small)
        assert await scene.keeper.look() == 10
        marked = [name for name, mark in scene.marks().items() if mark]
        assert len(marked) == 10
        assert sum(name.startswith("small") for name in marked) == 3
        for _ in range(4):
            assert await scene.keeper.look() in {10, 3}
        assert all(scene.marks().values())

    names = [pod(f"big-{number}") for number in range(40)] + [pod(f"small-{number}", key=small) for number in range(3)]
    store = store_of(workloads=(workload(), workload(small)))
    play(part, *names, pace=Pace(interval_seconds=0.005, patches_per_second=2000.0), store=store)


def test_of_two_replicas_one_writes_and_the_other_goes_on_with_the_marks() -> None:
    async def part(scene: Scene) -> None:
        one = Leadership(scene.client, "kvgauge", "one", clock=scene.clock)
        other = Leadership(scene.client, "kvgauge", "other", clock=scene.clock)
        keepers = [CostKeeper(scene.client, scene.store, leading, PACE, scene.clock) for leading in (one, other)]
        assert (await one.attempt(), await other.attempt()) == (True, False)
        scene.see("a", 70_000)
        scene.see("b", 20_000)
        assert [await keeper.look() for keeper in keepers] == [2, 0]
        await one.release()
        assert await other.attempt()
        scene.see("a", 70_000)
        scene.see("b", 60_000)
        assert [await keeper.look() for keeper in keepers] == [0, 1]
        assert {name: mark[COST] for name, mark in scene.marks().items()} == {"a": "70000", "b": "60000"}

    play(part, pod("a"), pod("b"))


def test_it_goes_on_until_it_is_cancelled_and_leaves_the_marks() -> None:
    async def part(scene: Scene) -> None:
        scene.see("a", 70_000)
        scene.see("b", 20_000)
        keeping = asyncio.create_task(keep_costs(scene.client, scene.store, Alone(), QUICK, scene.clock))
        while len([mark for mark in scene.marks().values() if mark]) < 2:
            await asyncio.sleep(0.01)
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        assert scene.marks()["a"][COST] == "70000"

    play(part, pod("a"), pod("b"))
