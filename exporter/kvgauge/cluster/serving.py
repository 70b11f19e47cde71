"""Web servers inside a running event loop, on sockets that are already bound, with the peer's certificate in the scope.

uvicorn does not tell an application who the client of a TLS connection is; its protocol does, once it is asked.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kvgauge.cluster.authentication import PEER_NAME

MOST_CONNECTIONS = 512
_IDLE_SECONDS = 75
_DRAIN_SECONDS = 0.4
_HEADERS_SECONDS = 10.0


class PeerProtocol(HttpToolsProtocol):
    """HTTP over one connection. Its requests carry the common name of the verified client certificate, and a
    connection that has not told a whole request in time is cut off."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer_name = peer_name(transport.get_extra_info("ssl_object"))
        self._slow: asyncio.TimerHandle | None = self.loop.call_later(_HEADERS_SECONDS, transport.abort)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > 16384:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        self._in_time()
        self.scope["extensions"] = {} if self._peer_name is None else {PEER_NAME: {"common_name": self._peer_name}}
        super().on_headers_complete()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._slow is None:
            self._slow = self.loop.call_later(_HEADERS_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    def _in_time(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None


def peer_name(connection: ssl.SSLObject | None) -> str | None:
    """The common name of the client's certificate, which the handshake has verified; None without one."""
    certificate: Any = connection.getpeercert() if connection is not None else None
    if not certificate:
        return None
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if len(names) == 1 else ""


async def serve(app: Any, listener: socket.socket, stop: asyncio.Event, tls: ssl.SSLContext | None = None) -> None:
    """Serves an ASGI application until `stop` is set, then drains for a moment."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        http=PeerProtocol,
        ws="none",
        server_header=False,
        date_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=_IDLE_SECONDS,
        # asyncio takes a fraction of a second here, which the annotation does not foresee.
        timeout_graceful_shutdown=_DRAIN_SECONDS,  # type: ignore[arg-type]
    )
    config.load()
    config.ssl = tls
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.should_exit = True
        stopped.cancel()
    await serving


class _Server(uvicorn.Server):
    """Signals are the program's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
