"""Runs the web server over a socket that is already bound."""

import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from kvgauge.publish.app import create_app
from kvgauge.publish.board import Board

# More connections than a pod's Prometheus pair, aggregators, probes and a few people open; beyond it, 503.
_MAX_CONNECTIONS = 64

_DRAIN_SECONDS = 0.4


def serve(board: Board, listener: socket.socket, on_started: Callable[[Callable[[], None]], None]) -> None:
    """Serves until SIGTERM or SIGINT, or until the function that `on_started` is given is called.

    Answers in flight are finished within a few hundred milliseconds; slow readers are cut off.
    """
    server = _Server(
        uvicorn.Config(
            create_app(board),
            log_config=None,
            access_log=False,
            lifespan="off",
            loop="asyncio",
            http="h11",
            ws="none",
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            # asyncio takes a fraction of a second here, which the annotation does not foresee.
            timeout_graceful_shutdown=_DRAIN_SECONDS,  # type: ignore[arg-type]
        ),
        on_started,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again once it has drained; by then there is nothing left to do but to end well.
        signal.signal(number, _end)
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_started: Callable[[Callable[[], None]], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started(self._stop)

    def _stop(self) -> None:
        self.should_exit = True


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
