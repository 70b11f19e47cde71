"""What clients do to a server that are slow, long-winded or gone, and how it ends."""

import asyncio
import gc
import json
import logging
import socket
from collections.abc import Awaitable, Callable

import pytest

from kvgauge.cluster.serving import MOST_CONNECTIONS, MOST_HEAD_BYTES, Patience
from kvgauge.cluster.tls import ServingTls

from .certificates import authority, client_context
from .serving import Connection, connected, get, served, tell_scope

SOON = Patience(handshake_seconds=0.1, request_seconds=0.1, answer_seconds=0.1)
WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Send = Callable[[object], Awaitable[None]]


def secure() -> ServingTls:
    return ServingTls(authority("serving").server())


async def read_to_the_end(connection: Connection) -> bytes:
    told = b""
    async with asyncio.timeout(5):
        try:
            while more := await connection.reader.read(65536):
                told += more
        except ConnectionError:
            pass
    return told


async def big(scope: object, receive: object, send: Send) -> None:
    """Application that tells more than any buffer holds."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(500):
        await send({"type": "http.response.body", "body": b"a" * 100_000, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    "sent",
    [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"],
    ids=["nothing", "a letter", "half a head", "half a body"],
)
@pytest.mark.parametrize("tls", [None, secure], ids=["plain", "TLS"])
def test_who_does_not_finish_a_request_is_cut_off(sent: bytes, tls: Callable[[], ServingTls] | None) -> None:
    async def reads(scope: object, receive: Callable[[], Awaitable[dict[str, object]]], send: Send) -> None:
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass

    async def run() -> None:
        context = client_context() if tls else None
        async with (
            served(reads, tls() if tls else None, SOON) as server,
            connected(server.port, context) as connection,
        ):
            connection.writer.write(sent)
            assert await read_to_the_end(connection) == b""

    asyncio.run(run())


def test_a_second_request_that_is_not_finished_is_cut_off_too() -> None:
    async def run() -> None:
        async with served(patience=SOON) as server, connected(server.port) as connection:
            assert (await connection.get()).code == 200
            connection.writer.write(WHOLE + b"GET /half")
            assert (await connection.answer()).code == 200
            assert await read_to_the_end(connection) == b""

    asyncio.run(run())


def test_who_is_idle_between_requests_stays() -> None:
    async def run() -> None:
        async with served(patience=SOON) as server, connected(server.port) as connection:
            assert (await connection.get()).code == 200
            # Another that came later is over: its time is longer than that of the first would have been.
            async with connected(server.port) as other:
                assert await read_to_the_end(other) == b""
            assert (await connection.get()).code == 200

    asyncio.run(run())


def test_an_answer_may_take_longer_than_a_request() -> None:
    async def slow(scope: object, receive: object, send: Send) -> None:
        await asyncio.sleep(0.3)
        await tell_scope(scope, receive, send)

    async def run() -> None:
        async with served(slow, patience=SOON) as server:
            assert (await get(server.port, None)).code == 200

    asyncio.run(run())


@pytest.mark.parametrize("tls", [None, secure], ids=["plain", "TLS"])
def test_who_does_not_take_an_answer_is_cut_off(tls: Callable[[], ServingTls] | None) -> None:
    ended = asyncio.Event()

    async def app(scope: object, receive: object, send: Send) -> None:
        await big(scope, receive, send)
        ended.set()

    async def run() -> None:
        context = client_context() if tls else None
        async with served(app, tls() if tls else None, SOON) as server, connected(server.port, context) as connection:
            transport = connection.writer.transport
            assert isinstance(transport, asyncio.Transport)
            transport.pause_reading()
            connection.writer.write(WHOLE)
            async with asyncio.timeout(5):
                await ended.wait()
            transport.resume_reading()
            assert len(await read_to_the_end(connection)) < 50_000_000

    asyncio.run(run())


def test_who_has_taken_what_there_was_is_not_cut_off() -> None:
    size = 4_000_000

    async def app(scope: object, receive: object, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % (size + 1))]})
        await send({"type": "http.response.body", "body": b"a" * size, "more_body": True})
        await asyncio.sleep(0.7)
        await send({"type": "http.response.body", "body": b"a"})

    async def run() -> None:
        patience = Patience(answer_seconds=0.5)
        async with served(app, patience=patience) as server, connected(server.port) as connection:
            assert len((await connection.get()).body) == size + 1

    asyncio.run(run())


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (b"a" * 1_000_000),
        b"GET / HTTP/1.1\r\nHost: x\r\n%b\r\n" % (b"X: a\r\n" * 200_000),
        b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 1_000_000),
        b"%b / HTTP/1.1\r\n\r\n" % (b"A" * 1_000_000),
    ],
    ids=["one header", "many headers", "a path", "a method"],
)
@pytest.mark.parametrize("tls", [None, secure], ids=["plain", "TLS"])
def test_a_megabyte_of_a_head_is_cut_off(head: bytes, tls: Callable[[], ServingTls] | None) -> None:
    scopes: list[object] = []

    async def app(scope: object, receive: object, send: Send) -> None:
        scopes.append(scope)
        await tell_scope(scope, receive, send)

    async def run() -> None:
        async with served(app, tls() if tls else None) as server:
            context = client_context() if tls else None
            async with connected(server.port, context) as connection:
                connection.writer.write(head)
                assert b" 200 " not in await read_to_the_end(connection)
            assert scopes == []
            assert (await get(server.port, context)).code == 200

    asyncio.run(run())


def test_a_head_as_long_as_users_with_many_groups_have_is_read() -> None:
    async def run() -> None:
        async with served() as server, connected(server.port) as connection:
            for _ in range(3):
                assert (await connection.get("/", ("X", "a" * (MOST_HEAD_BYTES - 20_000)))).code == 200

    asyncio.run(run())


def test_a_long_body_is_no_head() -> None:
    async def counts(scope: object, receive: Callable[[], Awaitable[dict[str, bytes]]], send: Send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), bool(message["more_body"])
        body = json.dumps({"size": size}).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def run() -> None:
        size = 3_000_000
        async with served(counts, secure()) as server, connected(server.port, client_context()) as connection:
            for _ in range(2):
                head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
                connection.writer.write(head + b"a" * size)
                assert (await connection.answer()).body == {"size": size}

    asyncio.run(run())


@pytest.mark.parametrize("sent", [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 50_000])
def test_what_is_no_http_ends_without_a_stack(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with served(patience=SOON) as server:
            async with connected(server.port) as connection:
                connection.writer.write(sent)
                assert b" 200 " not in await read_to_the_end(connection)
            assert (await get(server.port, None)).code == 200

    asyncio.run(run())
    assert "Traceback" not in caplog.text
    assert caplog.text.count("\n") <= 1


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_who_asks_for_another_protocol_is_answered_in_this_one(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with served() as server:
            answer = await get(server.port, None, "/", ("Connection", "Upgrade"), ("Upgrade", protocol))
            assert answer.code == 200

    asyncio.run(run())
    assert caplog.text == ""


def test_more_connections_than_can_be_had_are_told_to_come_again() -> None:
    async def run() -> None:
        async with served(patience=Patience(request_seconds=60)) as server:
            idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MOST_CONNECTIONS)]
            assert (await get(server.port, None)).code == 503
            for _, writer in idle:
                writer.close()
            async with asyncio.timeout(5):
                while (await get(server.port, None)).code != 200:
                    await asyncio.sleep(0.01)

    asyncio.run(run())


def test_another_peer_is_not_told_of_by_headers() -> None:
    async def run() -> None:
        async with served() as server:
            forged = ("kvgauge.peer_name", "front-proxy"), ("X-Forwarded-For", "1.2.3.4")
            assert (await get(server.port, None, "/", *forged)).body["extensions"] == {}

    asyncio.run(run())


# The end.


def test_it_ends_soon_beside_an_idle_connection() -> None:
    async def run() -> None:
        for tls in (None, secure()):
            context = client_context() if tls else None
            async with served(tls=tls) as server, connected(server.port, context) as connection:
                assert (await connection.get()).code == 200
                assert await server.end() < 1
                assert await read_to_the_end(connection) == b""
                with pytest.raises(ConnectionError):
                    await asyncio.open_connection("127.0.0.1", server.port)

    asyncio.run(run())


@pytest.mark.parametrize("tls", [None, secure], ids=["plain", "TLS"])
def test_it_ends_soon_beside_one_that_does_not_read(
    tls: Callable[[], ServingTls] | None, caplog: pytest.LogCaptureFixture
) -> None:
    begun = asyncio.Event()

    async def app(scope: object, receive: object, send: Send) -> None:
        begun.set()
        await big(scope, receive, send)

    async def run() -> None:
        context = client_context() if tls else None
        async with served(app, tls() if tls else None) as server, connected(server.port, context) as connection:
            transport = connection.writer.transport
            assert isinstance(transport, asyncio.Transport)
            transport.pause_reading()
            connection.writer.write(WHOLE)
            await begun.wait()
            assert await server.end() < 1

    asyncio.run(run(), debug=True)
    gc.collect()
    assert caplog.text == ""


def test_it_ends_soon_beside_one_that_has_not_greeted() -> None:
    async def run() -> None:
        async with served(tls=secure()) as server, connected(server.port) as connection:
            connection.writer.write(b"\x16\x03\x01")
            assert await server.end() < 1

    asyncio.run(run())


async def lets_in(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.transport.abort()
    return True


def test_an_answer_that_is_under_way_is_given() -> None:
    entered, go = asyncio.Event(), asyncio.Event()

    async def app(scope: object, receive: object, send: Send) -> None:
        entered.set()
        await go.wait()
        await tell_scope(scope, receive, send)

    async def run() -> None:
        async with served(app, secure()) as server, connected(server.port, client_context()) as connection:
            asking = asyncio.create_task(connection.get())
            await entered.wait()
            server.stop.set()
            while await lets_in(server.port):
                await asyncio.sleep(0.01)
            go.set()
            answer = await asking
            assert answer.code == 200
            assert answer.headers["connection"] == "close"
            await server.ended

    asyncio.run(run())


def test_an_answer_that_does_not_come_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    entered = asyncio.Event()
    ends: list[str] = []

    async def app(scope: object, receive: object, send: Send) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("given up")

    async def run() -> None:
        async with served(app) as server, connected(server.port) as connection:
            connection.writer.write(WHOLE)
            await entered.wait()
            assert await server.end() < 1
            assert await read_to_the_end(connection) == b""

    asyncio.run(run())
    assert ends == ["given up"]
    assert caplog.text == ""


def test_who_cancels_it_finds_the_port_free() -> None:
    async def run() -> None:
        async with served() as server:
            assert (await get(server.port, None)).code == 200
            server.ended.cancel()
            with pytest.raises(asyncio.CancelledError):
                await server.ended
            with socket.socket() as again:
                again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                again.bind(("127.0.0.1", server.port))
            server.ended = asyncio.create_task(asyncio.sleep(0))

    asyncio.run(run())


def test_a_defect_of_the_application_ends_nothing_and_tells_the_client_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: object, receive: object, send: Send) -> None:
        raise RuntimeError("inner matters")

    async def run() -> None:
        async with served(app) as server:
            for _ in range(2):
                answer = await get(server.port, None)
                assert (answer.code, answer.body) == (500, b"Internal Server Error")

    with caplog.at_level(logging.CRITICAL):
        asyncio.run(run())
