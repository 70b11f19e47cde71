"""The poller against real servers, good and bad ones."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from kvgauge.cluster.polling import LONGEST_PAUSE_SECONDS, Poller, pause_seconds
from kvgauge.cluster.records import PodKey, PodState
from kvgauge.cluster.store import Store

from .stocking import pod
from .test_reading import PLAIN

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
KEY = PodKey("llm", "a")


async def good(_request: web.Request) -> web.StreamResponse:
    return web.json_response(PLAIN)


async def hangs(_request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def trickles(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


async def huge(_request: web.Request) -> web.StreamResponse:
    return web.Response(body=b" " * 50_000_000)


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


async def bomb(_request: web.Request) -> web.StreamResponse:
    return web.Response(body=gzip.compress(b" " * 10_000_000), headers={"Content-Encoding": "gzip"})


async def html(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>", content_type="text/html")


async def lies(_request: web.Request) -> web.StreamResponse:
    return web.json_response(PLAIN | {"load_ratio": 1e12})


async def stale(_request: web.Request) -> web.StreamResponse:
    return web.json_response({"detail": "no fresh tick to show"}, status=503)


async def broken(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=500)


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/v1/advice", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def polled(store: Store, *, allow_loopback: bool = True, interval: float = 0.1) -> AsyncIterator[Poller]:
    poller = Poller(store, interval_seconds=interval, timeout_seconds=0.3, allow_loopback=allow_loopback)
    task = asyncio.create_task(poller.run())
    try:
        yield poller
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(store: Store, condition: Callable[[PodState], bool]) -> PodState:
    for _ in range(1000):
        state = store.pod(KEY)
        if state is not None and condition(state):
            return state
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within 10 s: {store.pod(KEY)}")


def test_a_reading_comes_and_stays_when_the_pod_falls_silent() -> None:
    async def scenario() -> None:
        store = Store()
        async with polled(store) as poller:
            async with served(good) as address:
                store.put_pod(pod("a", address=address))
                state = await until(store, lambda state: state.reading is not None)
                assert state.failure is None
            state = await until(store, lambda state: state.failure is not None)
            assert state.reading is not None
            assert state.failure in {"refused", "protocol"}
            assert poller.outcomes["ok"] >= 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (hangs, "timeout"),
        (trickles, "timeout"),
        (huge, "body_too_large"),
        (endless, "body_too_large"),
        (bomb, "content_encoding"),
        (html, "not_json"),
        (lies, "unbelievable"),
        (stale, "stale"),
        (broken, "http_status"),
    ],
)
def test_bad_sidecars(handler: Handler, reason: str) -> None:
    async def scenario() -> None:
        store = Store()
        async with served(handler) as address, polled(store) as poller:
            store.put_pod(pod("a", address=address))
            state = await until(store, lambda state: state.failure is not None)
            assert (state.failure, state.reading) == (reason, None)
            assert poller.outcomes[reason] >= 1

    asyncio.run(scenario())


def test_a_redirect_is_not_followed() -> None:
    asked = []

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.json_response(PLAIN)

    async def scenario() -> None:
        store = Store()
        async with served(elsewhere) as there:

            async def redirects(_request: web.Request) -> web.StreamResponse:
                raise web.HTTPFound(f"{there}/v1/advice")

            async with served(redirects) as address, polled(store):
                store.put_pod(pod("a", address=address))
                assert (await until(store, lambda state: state.failure is not None)).failure == "http_status"

    asyncio.run(scenario())
    assert asked == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "169.254.169.254",
        "[fe80::1]",
        "0.0.0.0",
        "224.0.0.1",
        "example",
    ],
)
def test_addresses_that_no_pod_has(host: str) -> None:
    async def scenario() -> None:
        store = Store()
        async with polled(store, allow_loopback=False):
            store.put_pod(pod("a", address=f"http://{host}:9838"))
            assert (await until(store, lambda state: state.failure is not None)).failure == "address"

    asyncio.run(scenario())


def test_a_new_pod_under_an_old_name_starts_without_a_reading_and_a_deleted_one_is_left_alone() -> None:
    async def scenario() -> None:
        store = Store()
        async with served(good) as address, polled(store) as poller:
            store.put_pod(pod("a", address=address))
            await until(store, lambda state: state.reading is not None)
            store.put_pod(pod("a", uid="another", address=None))
            assert store.pod(KEY) == PodState(pod("a", uid="another", address=None))
            store.put_pod(pod("a", uid="another", address=address))
            await until(store, lambda state: state.reading is not None)
            store.put_pod(pod("a", uid="another", address=address, deleting=True))
            await asyncio.sleep(0.3)
            before = poller.outcomes.total()
            await asyncio.sleep(0.5)
            assert poller.outcomes.total() == before

    asyncio.run(scenario())


def test_a_connection_that_is_reset() -> None:
    async def resets(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def scenario() -> None:
        store = Store()
        server = await asyncio.start_server(resets, "127.0.0.1", 0)
        async with server, polled(store) as poller:
            store.put_pod(pod("a", address=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
            assert (await until(store, lambda state: state.failure is not None)).failure == "protocol"
            assert poller.durations.buckets()[-1] == ("+Inf", float(poller.outcomes.total()))

    asyncio.run(scenario())


def test_a_pod_that_failed_long_is_back_at_once() -> None:
    healthy = False

    async def recovers(request: web.Request) -> web.StreamResponse:
        return await (good if healthy else broken)(request)

    async def scenario() -> None:
        nonlocal healthy
        store = Store()
        async with served(recovers) as address, polled(store, interval=0.05) as poller:
            store.put_pod(pod("a", address=address))
            while poller.outcomes["http_status"] < 4:
                await asyncio.sleep(0.01)
            healthy = True
            await until(store, lambda state: state.reading is not None)
            loop = asyncio.get_running_loop()
            began = loop.time()
            first = poller.outcomes["ok"]
            while poller.outcomes["ok"] < first + 4:
                await asyncio.sleep(0.01)
            # Four polls at the pace of one that fails would take 0.4 s each.
            assert loop.time() - began < 1.0

    asyncio.run(scenario())


def test_pauses_grow_to_a_bound_however_long_a_pod_fails() -> None:
    assert [pause_seconds(1.0, failures) for failures in range(7)] == [1, 1, 2, 4, 8, 15, 15]
    assert pause_seconds(1.0, 1_000_000) == LONGEST_PAUSE_SECONDS
    # Never sooner than a pod that answers.
    assert pause_seconds(60.0, 3) == 60.0


def test_connections_are_kept() -> None:
    ports = set()

    async def looks(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        return web.Response(body=json.dumps(PLAIN).encode())

    async def scenario() -> None:
        store = Store()
        async with served(looks) as address, polled(store, interval=0.05) as poller:
            store.put_pod(pod("a", address=address))
            while poller.outcomes["ok"] < 5:
                await asyncio.sleep(0.02)

    asyncio.run(scenario())
    assert len(ports) == 1
