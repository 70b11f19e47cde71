"""Web servers inside a running event loop, on sockets that are already bound, with the peer's certificate in the scope.

uvicorn does not tell an application who the client of a TLS connection is; its protocol does, once it is asked.
"""

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from kvgauge.cluster.authentication import PEER_NAME
from kvgauge.cluster.tls import Switching

MOST_CONNECTIONS = 512
MOST_HEAD_BYTES = 64 * 1024
_IDLE_SECONDS = 75
_DRAIN_SECONDS = 0.4
_LOOK_SECONDS = 0.02
_PIECE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Patience:
    """With clients that are slow or never come to an end, in seconds."""

    handshake_seconds: float = 10.0
    request_seconds: float = 10.0
    """From the first byte of a request, or the start of the connection, to the request's last byte."""
    answer_seconds: float = 30.0
    """In which a client takes nothing of an answer that waits for it."""
    farewell_seconds: float = 5.0
    """From the end of a TLS connection to the client's own."""


class PeerProtocol(HttpToolsProtocol):
    """HTTP over one connection. Its requests carry the common name of the verified client certificate. A connection is
    cut off that does not tell a request or take an answer in time, that tells a long head, or that stems from a CA no
    longer trusted."""

    def __init__(self, config: uvicorn.Config, state: ServerState, patience: Patience, tls: Switching | None) -> None:
        super().__init__(config, state, {})
        self._patience = patience
        self._listening = tls
        self._tls: ssl.SSLObject | None = None
        self._peer_name: str | None = None
        self._waiting: dict[str, asyncio.TimerHandle] = {}
        self._in_head = True
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._tls = transport.get_extra_info("ssl_object")
        self._peer_name = peer_name(self._tls)
        self._wait_for("request", self._patience.request_seconds)

    def data_received(self, data: bytes) -> None:
        if self._is_distrusted() and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
        for start in range(0, len(data), _PIECE_BYTES):
            if self.transport.is_closing():
                return
            piece = data[start : start + _PIECE_BYTES]
            super().data_received(piece)
            if self._in_head:
                self._head_bytes += len(piece)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._wait_for("request", self._patience.request_seconds)

    def on_headers_complete(self) -> None:
        self._in_head = False
        known = None if self._is_distrusted() else self._peer_name
        self.scope["extensions"] = {} if known is None else {PEER_NAME: {"common_name": known}}
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_time("request")
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for("answer", self._patience.answer_seconds)

    def resume_writing(self) -> None:
        self._in_time("answer")
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        for what in list(self._waiting):
            self._in_time(what)
        super().connection_lost(exc)

    def _unsupported_upgrade_warning(self) -> None:
        """Whoever asks for another protocol is answered in this one, and nothing is logged that anybody can cause."""

    def _is_distrusted(self) -> bool:
        return self._listening is not None and self._tls is not None and self._listening.distrusts(self._tls)

    def _wait_for(self, what: str, seconds: float) -> None:
        if what not in self._waiting:
            self._waiting[what] = self.loop.call_later(seconds, self.transport.abort)

    def _in_time(self, what: str) -> None:
        timer = self._waiting.pop(what, None)
        if timer is not None:
            timer.cancel()


def peer_name(connection: ssl.SSLObject | None) -> str | None:
    """The common name of the client's certificate, which the handshake has verified; None without one."""
    certificate: Any = connection.getpeercert() if connection is not None else None
    if not certificate:
        return None
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if len(names) == 1 else ""


async def serve(
    app: Any,
    listener: socket.socket,
    stop: asyncio.Event,
    tls: Switching | None = None,
    patience: Patience | None = None,
) -> None:
    """Serves an ASGI application until `stop` is set, then drains for a moment."""

    async def ending(scope: Any, receive: Any, send: Any) -> None:
        # uvicorn would log the stack of an answer that is given up at the end.
        with contextlib.suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    config = uvicorn.Config(
        ending,
        log_config=None,
        access_log=False,
        ws="none",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=_IDLE_SECONDS,
    )
    config.load()
    state, patience = ServerState(), patience or Patience()
    server = await asyncio.get_running_loop().create_server(
        lambda: PeerProtocol(config, state, patience, tls),
        sock=listener,
        backlog=MOST_CONNECTIONS,
        ssl=tls,
        ssl_handshake_timeout=None if tls is None else patience.handshake_seconds,
        ssl_shutdown_timeout=None if tls is None else patience.farewell_seconds,
    )
    try:
        await stop.wait()
    finally:
        server.close()
        await _drain(state)


async def _drain(state: ServerState) -> None:
    """Who waits for an answer gets a moment; who then still does, or does not read, is cut off."""
    for connection in list(state.connections):
        connection.shutdown()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while state.connections:
                await asyncio.sleep(_LOOK_SECONDS)
    for connection in list(state.connections):
        connection.transport.abort()
    while state.connections:
        await asyncio.sleep(0)
    for task in list(state.tasks):
        task.cancel()
    await asyncio.gather(*state.tasks)
