"""Events of KV pressure, written to a fake API server over real connections."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from kvgauge.cluster.events import PressureTeller, Rate, tell_pressure
from kvgauge.cluster.pressure import Bounds
from kvgauge.cluster.records import PodState, Reading
from kvgauge.cluster.store import Store
from tests.cluster.fake_line import FakeLine
from tests.cluster.herd import FakeClock, FakeLeadership, pod, put, reading, store_of
from tests.cluster.writable import Api, running_api

CALM = reading(usage=0.3, load=0.4, running=3, waiting=0)
FULL = reading(usage=0.97, load=1.3, running=12, waiting=30)
RATE = Rate(events_per_second=1000.0)


@dataclass
class Scene:
    api: Api
    line: FakeLine
    client: ApiClient
    store: Store
    leadership: FakeLeadership
    clock: FakeClock
    teller: PressureTeller

    async def say(self, said: Reading | None, seconds: int, *names: str) -> int:
        """All pods say the same for so long; the number of Events written."""
        count = 0
        for _ in range(seconds):
            self.clock.seconds += 1
            for name in names or ("a",):
                now = said and replace(said, read_seconds=self.clock.seconds)
                put(self.store, PodState(pod(name), now, None if now else "timeout"))
            count += await self.teller.look()
        return count

    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.api.events()]


@asynccontextmanager
async def scene(rate: Rate = RATE) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(running_api())
        line = await stack.enter_async_context(FakeLine(api.host, api.port))
        client = await stack.enter_async_context(ApiClient(Configuration(host=line.url)))
        store, leadership, clock = store_of(), FakeLeadership(), FakeClock()
        teller = PressureTeller(client, store, leadership, Bounds(), rate, clock)
        yield Scene(api, line, client, store, leadership, clock, teller)


def play(part: Callable[[Scene], Awaitable[None]], rate: Rate = RATE) -> None:
    async def run() -> None:
        async with scene(rate) as there:
            await part(there)

    asyncio.run(run())


def test_one_event_when_it_begins_and_one_when_it_ends() -> None:
    async def part(scene: Scene) -> None:
        assert await scene.say(CALM, 30) == 0
        assert await scene.say(FULL, 15) == 0
        assert await scene.say(FULL, 285) == 1
        assert await scene.say(CALM, 60) == 0
        assert await scene.say(CALM, 60) == 1
        begun, ended = scene.api.events()
        assert (begun["type"], begun["reason"], ended["type"], ended["reason"]) == (
            "Warning",
            "KVPressure",
            "Normal",
            "KVPressureEnded",
        )
        assert begun["note"] == (
            "KV pressure: 97 % of the pool in use, load 1.30 of what is safe, 12 running, 30 waiting."
        )
        assert ended["note"] == (
            "KV pressure ended after 300 s: 30 % of the pool in use, load 0.40 of what is safe, 3 running, 0 waiting."
        )
        for event in (begun, ended):
            assert event["regarding"] == {
                "kind": "Pod",
                "apiVersion": "v1",
                "namespace": "llm",
                "name": "a",
                "uid": "uid-a",
            }
            assert event["metadata"]["namespace"] == "llm"
            assert event["metadata"]["name"].startswith("a.")
            assert event["reportingController"] == "kvgauge.dev/aggregator"
            assert event["action"]
            assert 1 <= len(event["reportingInstance"]) <= 128
            assert "." in event["eventTime"]

    play(part)


def test_a_silent_pod_neither_begins_nor_ends() -> None:
    async def part(scene: Scene) -> None:
        assert await scene.say(FULL, 14) == 0
        assert await scene.say(None, 100) == 0
        assert await scene.say(FULL, 30) == 1
        assert await scene.say(None, 1000) == 0
        assert await scene.say(CALM, 100) == 1

    play(part)


def test_a_pod_that_comes_and_goes_is_told_once_in_a_while() -> None:
    async def part(scene: Scene) -> None:
        for _ in range(12):
            await scene.say(FULL, 20)
            await scene.say(CALM, 65)
        # It begins every 85 s for 1020 s; after the first those at 340 and 680 s are told.
        assert scene.reasons() == ["KVPressure", "KVPressureEnded"] * 3

    play(part)


def test_all_pods_together_are_bounded_and_none_is_forgotten() -> None:
    names = [f"p{number}" for number in range(30)]

    async def part(scene: Scene) -> None:
        assert await scene.say(FULL, 16, *names) == 5
        assert await scene.say(FULL, 10, *names) == 5
        assert await scene.say(FULL, 60, *names) == 20
        assert sorted(event["regarding"]["name"] for event in scene.api.events()) == sorted(names)

    play(part, Rate(events_per_second=0.5, burst=5))


def test_a_replica_that_does_not_lead_watches_and_goes_on_where_the_other_stopped() -> None:
    async def part(scene: Scene) -> None:
        scene.leadership.is_leader = False
        assert await scene.say(FULL, 60) == 0
        assert scene.line.requests == 0
        scene.leadership.is_leader = True
        assert await scene.say(FULL, 60) == 0
        assert await scene.say(CALM, 62) == 1
        (ended,) = scene.api.events()
        assert ended["note"].startswith("KV pressure ended after 120 s:")

    play(part)


def test_a_write_that_failed_is_tried_again_later(caplog: pytest.LogCaptureFixture) -> None:
    async def part(scene: Scene) -> None:
        scene.line.fault = "cut"
        assert await scene.say(FULL, 16) == 0
        assert await scene.say(FULL, 9) == 0
        assert scene.line.requests == 1
        assert await scene.say(FULL, 30) == 0
        assert scene.line.requests == 4
        scene.line.fault = "none"
        assert await scene.say(FULL, 10) == 1

    with caplog.at_level(logging.INFO, "kvgauge"):
        play(part)
    assert len(caplog.records) == 1


def test_pressure_that_was_over_before_it_could_be_told_is_not_told() -> None:
    async def part(scene: Scene) -> None:
        scene.line.fault = "cut"
        await scene.say(FULL, 40)
        await scene.say(CALM, 65)
        scene.line.fault = "none"
        assert await scene.say(CALM, 100) == 0

    play(part)


def test_a_namespace_that_forbids_events_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def part(scene: Scene) -> None:
        scene.api.close_namespace("create", "events", "llm")
        assert await scene.say(FULL, 300) == 0
        assert scene.api.refused == 1
        scene.api.open_namespaces()
        assert await scene.say(FULL, 320) == 1

    with caplog.at_level(logging.INFO, "kvgauge"):
        play(part)
    assert [record.message for record in caplog.records] == [
        "events: not allowed in namespace llm (HTTP 403); left off there"
    ]


def test_a_new_pod_of_the_same_name_begins_anew_and_one_that_goes_ends_nothing() -> None:
    async def part(scene: Scene) -> None:
        assert await scene.say(FULL, 16) == 1
        scene.store.replace_pods([pod("a", uid="another")])
        assert await scene.teller.look() == 0
        for _ in range(100):
            scene.clock.seconds += 1
            put(scene.store, PodState(pod("a", uid="another"), replace(CALM, read_seconds=scene.clock.seconds)))
            assert await scene.teller.look() == 0

    play(part)


def test_the_longest_name_of_a_pod_fits() -> None:
    async def part(scene: Scene) -> None:
        name = "a" * 235 + ".b-" + "c" * 15
        assert await scene.say(FULL, 16, name) == 1
        (event,) = scene.api.events()
        assert len(event["metadata"]["name"]) <= 253
        assert event["regarding"]["name"] == name

    play(part)


def test_it_goes_on_until_it_is_cancelled() -> None:
    async def part(scene: Scene) -> None:
        bounds = replace(Bounds(), hold_seconds=0.0)
        put(scene.store, PodState(pod("a"), replace(FULL, read_seconds=scene.clock.seconds)))
        rate = replace(RATE, interval_seconds=0.01)
        telling = asyncio.create_task(
            tell_pressure(scene.client, scene.store, scene.leadership, bounds, rate, scene.clock)
        )
        while not scene.api.events():
            await asyncio.sleep(0.01)
        telling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await telling
        assert scene.reasons() == ["KVPressure"]

    play(part)
