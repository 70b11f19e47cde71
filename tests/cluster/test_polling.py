"""The poller against real servers, good and bad ones."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from kvgauge.cluster.polling import Poller
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


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "0.0.0.0", "224.0.0.1", "example"])
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
