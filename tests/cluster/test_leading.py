"""Candidates for one Lease, against a fake API server over real connections, with clocks of their own."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kubernetes.aio.client import ApiClient, Configuration, CoordinationV1Api, V1Lease, V1LeaseSpec
from kubernetes.aio.config.config_exception import ConfigException

from kvgauge.cluster.leading import LEASE, Leadership, Timing, lease_namespace, own_identity
from kvgauge.complaints import InputError
from tests.cluster.fake_line import FakeLine, Fault
from tests.cluster.herd import FakeClock
from tests.cluster.writable import Api, running_api

TIMING = Timing(request_seconds=0.3)


@dataclass
class Candidate:
    """One replica: its clock, its line to the API server, its leadership."""

    leadership: Leadership
    line: FakeLine
    clock: FakeClock = field(default_factory=FakeClock)

    async def attempt(self) -> bool:
        return await self.leadership.attempt()

    async def line_lost_after(self, answers: int) -> bool:
        """An attempt of which only so many answers arrive."""
        self.line.answers_left = answers
        held = await self.attempt()
        self.line.answers_left = None
        return held

    def leads(self) -> bool:
        return self.leadership.is_leader


@dataclass
class Scene:
    api: Api
    leases: CoordinationV1Api
    stack: AsyncExitStack

    async def candidate(self, name: str, clock: FakeClock | None = None, timing: Timing = TIMING) -> Candidate:
        line = await self.stack.enter_async_context(FakeLine(self.api.host, self.api.port))
        client = await self.stack.enter_async_context(ApiClient(Configuration(host=line.url)))
        own = clock or FakeClock()
        return Candidate(Leadership(client, "kvgauge", name, timing=timing, clock=own), line, own)

    async def lease(self) -> V1Lease:
        return await self.leases.read_namespaced_lease(LEASE, "kvgauge")

    async def spec(self) -> V1LeaseSpec:
        spec = (await self.lease()).spec
        assert spec is not None
        return spec

    async def holder(self) -> str | None:
        return (await self.spec()).holder_identity


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(running_api())
        client = await stack.enter_async_context(ApiClient(Configuration(host=api.url)))
        yield Scene(api, CoordinationV1Api(client), stack)


def play(part: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        async with scene() as there:
            await part(there)

    asyncio.run(run())


def pass_seconds(seconds: float, *candidates: Candidate) -> None:
    for candidate in candidates:
        candidate.clock.seconds += seconds


def test_the_first_leads_and_the_lease_says_so() -> None:
    async def part(scene: Scene) -> None:
        one, other = await scene.candidate("one"), await scene.candidate("other")
        assert not one.leads()
        assert await one.attempt()
        assert not await other.attempt()
        assert (one.leads(), other.leads()) == (True, False)
        spec = await scene.spec()
        assert (spec.holder_identity, spec.lease_duration_seconds, spec.lease_transitions) == ("one", 15, 0)
        assert spec.acquire_time == spec.renew_time

    play(part)


def test_a_leader_that_renews_stays_and_writes_once_a_time() -> None:
    async def part(scene: Scene) -> None:
        one, other = await scene.candidate("one"), await scene.candidate("other")
        await one.attempt()
        acquired = await scene.spec()
        before = one.line.requests
        for _ in range(20):
            pass_seconds(5, one, other)
            assert await one.attempt()
            assert not await other.attempt()
        assert one.leads()
        assert one.line.requests - before == 20
        renewed = await scene.spec()
        assert renewed.acquire_time == acquired.acquire_time
        assert renewed.renew_time != acquired.renew_time
        assert renewed.lease_transitions == 0

    play(part)


def test_another_takes_over_when_it_saw_no_renewal_for_the_whole_lease() -> None:
    async def part(scene: Scene) -> None:
        one, other = await scene.candidate("one"), await scene.candidate("other")
        await one.attempt()
        pass_seconds(14, one, other)
        # It sees the lease for the first time now, so it waits from now on.
        assert not await other.attempt()
        pass_seconds(14.9, one, other)
        assert not await other.attempt()
        pass_seconds(0.2, one, other)
        assert await other.attempt()
        spec = await scene.spec()
        assert (spec.holder_identity, spec.lease_transitions) == ("other", 1)
        assert not await one.attempt()
        assert (one.leads(), other.leads()) == (False, True)

    play(part)


def test_a_leader_ceases_by_itself_before_the_lease_runs_out() -> None:
    async def part(scene: Scene) -> None:
        one = await scene.candidate("one")
        await one.attempt()
        pass_seconds(9.9, one)
        assert one.leads()
        pass_seconds(0.2, one)
        assert not one.leads()
        assert await one.attempt()
        assert one.leads()

    play(part)


@pytest.mark.parametrize("fault", ["cut", "silent", "lossy"])
def test_a_leader_that_loses_the_api_server(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    async def part(scene: Scene) -> None:
        one, other = await scene.candidate("one"), await scene.candidate("other")
        await one.attempt()
        await other.attempt()
        one.line.fault = fault  # type: ignore[assignment]
        for _ in range(4):
            pass_seconds(2, one, other)
            assert not await one.attempt()
            assert one.leads()
            assert not await other.attempt()
        pass_seconds(2.1, one, other)
        assert not await one.attempt()
        assert not one.leads()
        # Where only the answers were lost, its renewals arrived and are valid.
        assert not await other.attempt()
        pass_seconds(15, one, other)
        assert await other.attempt()
        one.line.fault = "none"
        assert not await one.attempt()
        assert (one.leads(), other.leads()) == (False, True)

    with caplog.at_level(logging.INFO, "kvgauge"):
        play(part)
    lines = [record.message for record in caplog.records if "not reached" in record.message]
    assert len(lines) == 1
    assert [record.message for record in caplog.records if record.message.startswith("one ")] == [
        "one leads, by lease kvgauge/kvgauge-aggregator",
        "one no longer leads, by lease kvgauge/kvgauge-aggregator",
    ]


def test_a_renewal_whose_answer_was_lost_is_no_quarrel_with_itself() -> None:
    async def part(scene: Scene) -> None:
        one = await scene.candidate("one")
        await one.attempt()
        one.line.fault = "lossy"
        assert not await one.attempt()
        one.line.fault = "none"
        assert await one.attempt()
        spec = await scene.spec()
        assert spec.lease_transitions == 0

    play(part)


def test_a_lease_that_was_given_up_is_taken_at_once() -> None:
    async def part(scene: Scene) -> None:
        one, other = await scene.candidate("one"), await scene.candidate("other")
        leading = asyncio.create_task(one.leadership.lead())
        while not one.leads():
            await asyncio.sleep(0.01)
        assert not await other.attempt()
        leading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leading
        assert not one.leads()
        assert await scene.holder() == ""
        assert await other.attempt()
        assert await scene.holder() == "other"

    play(part)


def test_a_lease_that_was_made_without_an_answer_is_given_up_too() -> None:
    async def part(scene: Scene) -> None:
        one = await scene.candidate("one")
        # What reaches the server is the read; the next request is the creation.
        assert not await one.line_lost_after(1)
        assert await scene.holder() == "one"
        await one.leadership.release()
        assert await scene.holder() == ""

    play(part)


def test_who_does_not_hold_the_lease_gives_up_nothing() -> None:
    async def part(scene: Scene) -> None:
        one, other = await scene.candidate("one"), await scene.candidate("other")
        await one.attempt()
        await other.attempt()
        before = other.line.requests
        await other.leadership.release()
        assert other.line.requests == before
        pass_seconds(16, one, other)
        await other.attempt()
        assert await scene.holder() == "other"
        await one.leadership.release()
        assert await scene.holder() == "other"

    play(part)


def test_the_end_is_not_held_up_by_an_api_server_that_is_away() -> None:
    async def part(scene: Scene) -> None:
        one = await scene.candidate("one")
        await one.attempt()
        one.line.fault = "silent"
        async with asyncio.timeout(5):
            await one.leadership.release()
        assert not one.leads()
        assert await scene.holder() == "one"

    play(part)


@pytest.mark.parametrize("skew", [timedelta(days=400), timedelta(days=-400), timedelta(0)])
def test_the_time_in_the_lease_does_not_matter(skew: timedelta) -> None:
    async def part(scene: Scene) -> None:
        one, other = await scene.candidate("one"), await scene.candidate("other", FakeClock(5e6))
        await one.attempt()
        lease = await scene.lease()
        assert lease.spec is not None
        lease.spec.renew_time = datetime(2026, 7, 1, 12, 0, 0, 5, tzinfo=UTC) + skew
        await scene.leases.replace_namespaced_lease(LEASE, "kvgauge", lease)
        assert not await other.attempt()
        pass_seconds(14.9, other)
        assert not await other.attempt()
        pass_seconds(0.2, other)
        assert await other.attempt()

    play(part)


def test_anothers_lease_is_valid_for_as_long_as_it_says() -> None:
    async def part(scene: Scene) -> None:
        one = await scene.candidate("one", timing=Timing(lease_seconds=60, deadline_seconds=40))
        other = await scene.candidate("other")
        await one.attempt()
        await other.attempt()
        pass_seconds(59, one, other)
        assert not await other.attempt()
        pass_seconds(1, one, other)
        assert await other.attempt()

    play(part)


def test_a_token_that_is_just_being_replaced_ends_nothing() -> None:
    async def part(scene: Scene) -> None:
        broken = [True]

        async def token(configuration: Configuration) -> None:
            if broken:
                raise ConfigException("Token file exists but empty.")

        settings = Configuration(host=scene.api.url)
        settings.refresh_api_key_hook = token  # type: ignore[assignment]
        settings.api_key["BearerToken"] = "Bearer x"
        async with ApiClient(settings) as client:
            one = Leadership(client, "kvgauge", "one")
            assert not await one.attempt()
            broken.clear()
            assert await one.attempt()

    play(part)


def test_a_leader_whose_lease_somebody_gave_away_ceases_at_once() -> None:
    async def part(scene: Scene) -> None:
        one = await scene.candidate("one")
        await one.attempt()
        lease = await scene.lease()
        assert lease.spec is not None
        lease.spec.holder_identity = "other"
        await scene.leases.replace_namespaced_lease(LEASE, "kvgauge", lease)
        assert one.leads()
        assert not await one.attempt()
        assert not one.leads()

    play(part)


def test_what_others_wrote_on_the_lease_stays() -> None:
    async def part(scene: Scene) -> None:
        one = await scene.candidate("one")
        await one.attempt()
        lease = await scene.lease()
        assert lease.metadata is not None
        lease.metadata.labels = {"team": "serving"}
        await scene.leases.replace_namespaced_lease(LEASE, "kvgauge", lease)
        assert await one.attempt()
        assert await one.attempt()
        after = await scene.lease()
        assert after.metadata is not None
        assert after.metadata.labels == {"team": "serving"}

    play(part)


def test_of_many_that_want_it_at_once_one_gets_it() -> None:
    async def part(scene: Scene) -> None:
        many = [await scene.candidate(f"candidate-{number}") for number in range(5)]
        for _ in range(3):
            assert sum(await asyncio.gather(*(one.attempt() for one in many))) == 1
            assert sum(one.leads() for one in many) == 1
            await next(one for one in many if one.leads()).leadership.release()

    play(part)


def test_a_lease_that_was_deleted_is_made_anew() -> None:
    async def part(scene: Scene) -> None:
        one = await scene.candidate("one")
        await one.attempt()
        await scene.leases.delete_namespaced_lease(LEASE, "kvgauge")
        assert await one.attempt()
        assert await scene.holder() == "one"

    play(part)


@pytest.mark.parametrize("seed", range(3))
def test_never_two_lead_whatever_fails(seed: int) -> None:
    async def part(scene: Scene) -> None:
        chance = random.Random(seed)
        timing = Timing(request_seconds=0.15)
        many = [await scene.candidate(f"c{number}", FakeClock(number * 1e5), timing) for number in range(3)]
        faults: list[Fault] = ["none", "none", "none", "none", "cut", "lossy", "silent"]
        led = set()
        for _ in range(90):
            pass_seconds(chance.choice([0.5, 1, 2, 4]), *many)
            one = chance.choice(many)
            one.line.fault = chance.choice(faults)
            if chance.random() < 0.03:
                await one.leadership.release()
            else:
                await one.attempt()
            leaders = [candidate.leadership.identity for candidate in many if candidate.leads()]
            assert len(leaders) <= 1
            led.update(leaders)
        assert len(led) > 1

    play(part)


def test_waiting_is_longer_after_each_failure() -> None:
    async def part(scene: Scene) -> None:
        quick = Timing(retry_seconds=0.01, deadline_seconds=0.08, request_seconds=0.3)
        one = await scene.candidate("one", timing=quick)
        one.line.fault = "cut"
        started = asyncio.get_running_loop().time()
        leading = asyncio.create_task(one.leadership.lead())
        # aiohttp asks twice in each attempt, so this is the seventh: 20, 40 and then 80 ms lie between them.
        while one.line.requests < 13:
            await asyncio.sleep(0.005)
        assert asyncio.get_running_loop().time() - started >= 0.37
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)

    play(part)


def test_the_namespace_is_what_is_set_or_the_pods_own(tmp_path: Path) -> None:
    file = tmp_path / "namespace"
    with pytest.raises(InputError, match="lease_namespace: must be set outside a pod"):
        lease_namespace(None, {}, file)
    assert lease_namespace(None, {"POD_NAMESPACE": "serving"}, file) == "serving"
    file.write_text("kvgauge\n")
    assert lease_namespace(None, {"POD_NAMESPACE": "serving"}, file) == "kvgauge"
    assert lease_namespace("other", {"POD_NAMESPACE": "serving"}, file) == "other"


def test_a_container_that_was_restarted_is_another_candidate() -> None:
    one, other = own_identity({"POD_NAME": "aggregator-x"}), own_identity({"POD_NAME": "aggregator-x"})
    assert one.startswith("aggregator-x_")
    assert one != other
    assert own_identity({"HOSTNAME": "host"}).startswith("host_")
