"""The reflector against a fake API server over real HTTP: what it holds is what there is, whatever goes wrong."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes.aio.client import ApiClient, Configuration

from kvgauge.cluster.decoding import JsonObject
from kvgauge.cluster.watching import Pace, Reflector, RefusedError
from tests.cluster import waiting

from .fake_api_server import FakeApiServer
from .fake_api_store import Object

QUICK = Pace(retry_seconds=0.01, most_retry_seconds=0.05, settled_seconds=0.5, watch_seconds=60)
PATIENCE_SECONDS = 30
until = partial(waiting.until, seconds=PATIENCE_SECONDS)
Item = tuple[str, str, str]
"""Namespace, name and the label `round`."""


def project(thing: JsonObject) -> Item | None:
    metadata = thing["metadata"]
    assert isinstance(metadata, dict)
    label = metadata["labels"]["round"]
    if label == "hostile":
        raise RuntimeError("hostile")
    return None if label == "ignored" else (metadata["namespace"], metadata["name"], label)


class Known:
    """What the callbacks left, and a reflector that fills it."""

    def __init__(
        self,
        client: ApiClient,
        pace: Pace = QUICK,
        label_selector: str | None = None,
        project: Callable[[JsonObject], Item | None] = project,
    ) -> None:
        self.items: dict[tuple[str, str], str] = {}
        self.replaced = 0
        self.reflector = Reflector(
            client, "/api/v1/pods", project, replace=self._replace, put=self._put, drop=self._drop,
            label_selector=label_selector, pace=pace,
        )  # fmt: skip

    def _replace(self, items: list[Item]) -> None:
        self.replaced += 1
        self.items = {(namespace, name): label for namespace, name, label in items}

    def _put(self, item: Item) -> None:
        self.items[item[0], item[1]] = item[2]

    def _drop(self, namespace: str, name: str) -> None:
        self.items.pop((namespace, name), None)


def pod(name: str, label: str = "0", namespace: str = "llm", **more: object) -> Object:
    return {"metadata": {"name": name, "namespace": namespace, "labels": {"round": label}}, "spec": more}


def truth(server: FakeApiServer) -> dict[tuple[str, str], str]:
    things = [thing["metadata"] for thing in server.list("pods")]
    return {(at["namespace"], at["name"]): at["labels"]["round"] for at in things}


@asynccontextmanager
async def reflecting(server: FakeApiServer, pace: Pace, label_selector: str | None) -> AsyncIterator[Known]:
    async with ApiClient(Configuration(host=server.url)) as client:
        known = Known(client, pace, label_selector)
        task = asyncio.create_task(known.reflector.run())
        try:
            await until(lambda: known.reflector.synced and known.reflector.counts.watches > 0)
            yield known
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def server() -> Iterator[FakeApiServer]:
    with FakeApiServer() as running:
        yield running
        assert running.complaints == []


def check(
    server: FakeApiServer,
    work: Callable[[Known], Awaitable[None]],
    pace: Pace = QUICK,
    label_selector: str | None = None,
) -> None:
    async def all_of_it() -> None:
        async with reflecting(server, pace, label_selector) as known:
            await work(known)

    asyncio.run(all_of_it())


def test_it_lists_in_pages_and_follows(server: FakeApiServer) -> None:
    for index in range(1201):
        server.create("pods", pod(f"p{index}"))

    async def work(known: Known) -> None:
        assert known.items == truth(server)
        assert [request.query["limit"] for request in server.requests if request.verb == "list"] == ["500"] * 3
        server.create("pods", pod("new"))
        server.patch("pods", "llm", "p0", {"metadata": {"labels": {"round": "1"}}})
        server.patch("pods", "llm", "p2", {"metadata": {"labels": {"round": "ignored"}}})
        server.delete("pods", "llm", "p1")
        await until(lambda: known.items == {key: label for key, label in truth(server).items() if label != "ignored"})
        assert known.replaced == 1
        assert known.reflector.counts.events == 4

    check(server, work)


def test_selectors_are_the_api_servers(server: FakeApiServer) -> None:
    server.create("pods", pod("a"))
    server.create("pods", pod("b", "1"))

    async def work(known: Known) -> None:
        assert list(known.items) == [("llm", "b")]
        server.patch("pods", "llm", "b", {"metadata": {"labels": {"round": "2"}}})
        await until(lambda: not known.items)
        watches = [request.query for request in server.requests if request.verb == "watch"]
        assert watches[0]["labelSelector"] == "round=1"
        assert 60 <= int(watches[0]["timeoutSeconds"]) <= 120

    check(server, work, label_selector="round=1")


def churn(server: FakeApiServer, pods: int, changes: int) -> None:
    dice = random.Random(7)
    for index in range(changes):
        name = f"p{dice.randrange(pods)}"
        if index % 3 == 0:
            server.delete("pods", "llm", name)
            server.create("pods", pod(name, f"new-{index}"))
        else:
            server.patch("pods", "llm", name, {"metadata": {"labels": {"round": str(index)}}})


def test_ten_thousand_pods_that_churn(server: FakeApiServer) -> None:
    """Watches break and history is lost on the way."""
    for index in range(10_000):
        server.create("pods", pod(f"p{index}"))

    async def work(known: Known) -> None:
        churning = Thread(target=churn, args=(server, 10_000, 10_000))
        churning.start()
        await until(lambda: known.reflector.counts.events > 500)
        await asyncio.to_thread(server.drop_watches)
        seen = known.reflector.counts.events
        await until(lambda: known.reflector.counts.events > seen + 500)
        await asyncio.to_thread(server.expire)
        await asyncio.to_thread(churning.join)
        expected = truth(server)
        await until(lambda: known.items == expected)
        assert len(known.items) == 10_000
        assert known.replaced == 2

    check(server, work)


@pytest.mark.parametrize("told_as", ["event", "http"])
def test_lost_history_is_listed_anew_and_nothing_is_forgotten_meanwhile(server: FakeApiServer, told_as: str) -> None:
    server.create("pods", pod("a"))
    server.create("pods", pod("b"))

    async def work(known: Known) -> None:
        before = known.items
        server.expire("event" if told_as == "event" else "http")
        server.delete("pods", "llm", "b")
        assert len(before) == 2
        await until(lambda: known.items == truth(server))
        assert known.replaced == 2

    check(server, work)


def test_a_line_cut_in_the_middle(server: FakeApiServer) -> None:
    async def work(known: Known) -> None:
        server.drop_watches(in_a_line=True)
        server.create("pods", pod("a"))
        await until(lambda: known.items == truth(server))
        assert known.replaced == 1
        assert known.reflector.counts.bad_objects == 0

    check(server, work)


def test_an_api_server_that_is_away_is_waited_for(server: FakeApiServer) -> None:
    server.create("pods", pod("a"))

    async def work(known: Known) -> None:
        server.away()
        failures = known.reflector.counts.failures
        await until(lambda: known.reflector.counts.failures > failures + 5)
        assert known.items == {("llm", "a"): "0"}
        assert known.reflector.age_seconds() > 0.03
        server.create("pods", pod("b"))
        server.back()
        await until(lambda: known.items == truth(server))
        assert known.replaced == 1

    check(server, work)


def test_it_comes_back_when_it_was_told_to(server: FakeApiServer) -> None:
    """With pauses of milliseconds, only Retry-After keeps it from asking again at once."""

    async def work(known: Known) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        server.throttle(1, 1)
        server.drop_watches()
        server.create("pods", pod("a"))
        await until(lambda: known.items == truth(server))
        assert clock() - began >= 1
        assert known.replaced == 1

    check(server, work)


def test_a_half_open_watch_is_noticed(server: FakeApiServer) -> None:
    quick = Pace(retry_seconds=0.01, watch_read_seconds=0.2)

    async def work(known: Known) -> None:
        server.silent = True
        server.create("pods", pod("a"))
        watches = known.reflector.counts.watches
        await until(lambda: known.reflector.counts.watches > watches)
        server.silent = False
        await until(lambda: known.items == truth(server))

    check(server, work, quick)


def test_bookmarks_tell_that_it_is_in_step(server: FakeApiServer) -> None:
    server.bookmark_seconds = 0.02

    async def work(known: Known) -> None:
        await until(lambda: known.reflector.counts.bookmarks > 3)
        # Writes of another kind: only a bookmark moves the version on.
        server.create("configmaps", {"metadata": {"name": "a", "namespace": "llm"}})
        seen = known.reflector.counts.bookmarks
        await until(lambda: known.reflector.counts.bookmarks > seen + 2)
        assert known.reflector.age_seconds() < PATIENCE_SECONDS
        version = server.get("configmaps", "llm", "a")["metadata"]["resourceVersion"]
        server.drop_watches()
        await until(lambda: known.reflector.counts.watches > 1)
        watches = [request.query["resourceVersion"] for request in server.requests if request.verb == "watch"]
        assert watches[-1] == version

    check(server, work)


def test_an_object_that_cannot_be_read_is_left_out_alone(server: FakeApiServer) -> None:
    server.create("pods", pod("a", "hostile"))
    server.create("pods", pod("b"))

    async def work(known: Known) -> None:
        assert list(known.items) == [("llm", "b")]
        server.create("pods", pod("c"))
        server.patch("pods", "llm", "b", {"metadata": {"labels": {"round": "hostile"}}})
        await until(lambda: list(known.items) == [("llm", "c")])
        assert known.reflector.counts.bad_objects == 2

    check(server, work)


@pytest.mark.parametrize(
    "line",
    [
        b"no json\n",
        b"[" * 100_000 + b"\n",
        b'{"type":"DELETED","object":{"metadata":7}}\n',
        b'{"type":"ADDED"}\n',
        b'{"type":"ADDED","object":{"metadata":{"name":"x"},"pad":"' + b"x" * (1 << 20) + b'"}}\n',
    ],
)
def test_a_change_that_cannot_be_read_costs_a_list_after_the_watch(server: FakeApiServer, line: bytes) -> None:
    async def work(known: Known) -> None:
        server.say(line)
        await until(lambda: known.reflector.counts.bad_objects == 1)
        server.create("pods", pod("a"))
        await until(lambda: known.items == truth(server))
        assert known.replaced == 1
        server.drop_watches()
        await until(lambda: known.replaced == 2)

    check(server, work)


def test_watches_that_end_at_once_are_no_hot_loop(server: FakeApiServer) -> None:
    """Each ERROR event right after the list makes another list; the pauses between them double."""

    async def work(known: Known) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(4):
            watches = known.reflector.counts.watches
            server.say(b'{"type":"ERROR","object":{"code":410}}\n')
            await until(lambda: known.reflector.counts.watches > watches)  # noqa: B023
        assert loop.time() - began >= (0.04 + 0.08 + 0.16 + 0.32) / 2

    check(server, work, Pace(retry_seconds=0.04, settled_seconds=60))


@pytest.mark.parametrize(("code", "status"), [("forbid", 403), ("missing", 404)])
def test_a_refusal_is_the_callers(server: FakeApiServer, code: str, status: int) -> None:
    if code == "forbid":
        server.forbid("list", "pods")
    else:
        server.remove_kind("pods")

    async def run() -> None:
        async with ApiClient(Configuration(host=server.url)) as client:
            with pytest.raises(RefusedError) as raised:
                await Known(client).reflector.run()
            assert raised.value.status == status

    asyncio.run(run())


def test_a_page_that_expired_is_no_list(server: FakeApiServer) -> None:
    """The list begins anew."""
    for name in "abc":
        server.create("pods", pod(name))

    async def run() -> None:
        async with ApiClient(Configuration(host=server.url)) as client:
            seen: list[JsonObject] = []

            def expire_once(thing: JsonObject) -> Item | None:
                seen.append(thing)
                if len(seen) == 1:
                    server.expire()
                return project(thing)

            known = Known(client, pace=Pace(page_items=2, retry_seconds=0.01), project=expire_once)
            task = asyncio.create_task(known.reflector.run())
            await until(lambda: known.reflector.synced)
            task.cancel()
            assert len(known.items) == 3
            assert [request.verb for request in server.requests][:4] == ["list"] * 4

    asyncio.run(run())


NAMES = st.sampled_from(
    ["type", "object", "metadata", "name", "namespace", "labels", "round", "code", "resourceVersion"]
)
TOLD = st.recursive(
    st.none() | st.text(max_size=5) | st.sampled_from(["ADDED", "DELETED", "ERROR", "BOOKMARK", 0, 410, 429]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=25)
@given(st.lists(TOLD, max_size=20))
def test_whatever_a_watch_tells_the_next_pod_is_known(told: list[object]) -> None:
    async def work(known: Known) -> None:
        api.say(b"".join(json.dumps(line).encode() + b"\n" for line in told) or b"\n")
        api.drop_watches()
        api.create("pods", pod("a"))
        await until(lambda: known.items.get(("llm", "a")) == "0")

    with FakeApiServer() as api:
        check(api, work)
