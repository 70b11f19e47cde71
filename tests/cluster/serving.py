"""A server of the cluster's kind on a real port, in the test's own loop, and a bare client."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from kvgauge.cluster.serving import Patience, serve
from kvgauge.cluster.tls import ServingTls
from kvgauge.listening import bind


@dataclass(frozen=True)
class Answer:
    """`body` is what JSON says."""

    code: int
    headers: Mapping[str, str]
    body: Any


async def tell_scope(scope: Any, receive: Any, send: Any) -> None:
    """Application that answers with the extensions of its scope."""
    body = json.dumps({"extensions": scope["extensions"], "path": scope["path"]}).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Served:
    port: int
    stop: asyncio.Event
    ended: "asyncio.Task[None]"

    async def end(self) -> float:
        """Seconds that it took."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        self.stop.set()
        await self.ended
        return loop.time() - begin


@asynccontextmanager
async def served(
    app: Any = tell_scope, tls: ServingTls | None = None, patience: Patience | None = None
) -> AsyncIterator[Served]:
    listener = bind("127.0.0.1", 0)
    stop = asyncio.Event()
    context = None if tls is None else tls.context
    serving = Served(
        listener.getsockname()[1], stop, asyncio.create_task(serve(app, listener, stop, context, patience))
    )
    try:
        yield serving
    finally:
        await serving.end()


class Connection:
    """HTTP/1.1, kept alive. Raises OSError or EOFError when it is cut off."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def get(self, path: str = "/", *headers: tuple[str, str]) -> Answer:
        lines = [f"GET {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers)]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        return await self.answer()

    async def answer(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        told = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(told.get("content-length", 0)))
        return Answer(int(head[0].split()[1]), told, json.loads(body) if body.startswith((b"{", b"[")) else body)


@asynccontextmanager
async def connected(port: int, context: ssl.SSLContext | None = None, name: str = "") -> AsyncIterator[Connection]:
    """`name`: the server's, as the client hello tells it; without it none is told."""
    sni = name if context is not None else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=sni)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def get(
    port: int, context: ssl.SSLContext | None, path: str = "/", *headers: tuple[str, str], name: str = ""
) -> Answer:
    async with connected(port, context, name) as connection:
        return await connection.get(path, *headers)
