"""The simulated engine in real time behind an HTTP server, shaped like vLLM's."""

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Self

from kvgauge.simulate.device import H100_LLAMA_31_8B, EmbeddedDevice
from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.load import SyntheticLoad
from kvgauge.simulate.page import VllmPage
from kvgauge.simulate.spec import EngineSpec, Request
from kvgauge.simulate.state import EngineState

_TICK_SECONDS = 0.05
_SERVER_POLL_SECONDS = 0.05
_CLIENT_TIMEOUT_SECONDS = 2.0
_JSON = "application/json"
_PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

MOST_IN_FLIGHT = 10_000
"""Requests that one engine holds; more are turned away, so that a load it cannot serve does not pile up for ever."""

_Answer = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What an engine behind a server says of itself."""

    spec: EngineSpec
    name: str
    root: str
    """What `/v1/models` gives as the model's root: where its files lie."""
    engine_version: str
    gpu_memory_utilization: float


class EngineServer:
    """An engine, its load and its HTTP server in this process, under a clock.

    The page has the shape of vLLM 0.32; `/version` tells `model.engine_version`, since that is what decides the rules
    to predict its memory by. `load` gives requests in order of arrival, none longer than the engine takes. With port 0
    the system chooses. It starts once: RuntimeError when asked again, or after the stop.
    """

    def __init__(
        self,
        model: ServedModel,
        load: Iterable[Request],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._model = model
        self._address = host, port
        self._clock = clock
        self._wall_clock = wall_clock
        self._requests = iter(load)
        self._next_request = next(self._requests, None)
        self._engine = PagedEngine(model.spec)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._began: float | None = None
        self._server: _Server | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> str:
        """Starts the clock, the load and the server; returns the base URL. Raises OSError when the address cannot be
        had."""
        if self._began is not None or self._stopping.is_set():
            raise RuntimeError("the embedded engine was already started or stopped")
        started_seconds = self._wall_clock()
        model = self._model
        page = VllmPage(
            self.state,
            model.spec,
            model_name=model.name,
            gpu_memory_utilization=model.gpu_memory_utilization,
            started_seconds=started_seconds,
        )
        models = _models(model, started_seconds)
        routes: dict[str, Callable[[], _Answer]] = {
            "/metrics": lambda: (_PROMETHEUS_TEXT, page.render()),
            "/v1/models": lambda: (_JSON, models),
            "/version": lambda: (_JSON, json.dumps({"version": model.engine_version}).encode()),
            "/health": lambda: (_JSON, b""),
        }
        server = self._server = _Server(*self._address, partial(_Handler, routes))
        self._began = self._clock()
        self._threads = [
            threading.Thread(target=self._run, name="embedded-engine", daemon=True),
            threading.Thread(
                target=partial(server.serve_forever, _SERVER_POLL_SECONDS), name="embedded-engine-http", daemon=True
            ),
        ]
        for thread in self._threads:
            thread.start()
        return self.base_url

    def stop(self) -> None:
        """Ends the server and the load and waits for their threads, those of requests in flight too."""
        self._stopping.set()
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """Where the server listens. Raises RuntimeError unless it runs."""
        if self._server is None:
            raise RuntimeError("the embedded engine is not running")
        host, port = self._address[0], self._server.server_port
        # Whoever listens on all addresses is reached on loopback too.
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        return f"http://{shown}:{port}"

    def state(self) -> EngineState:
        """The engine at this moment; before the start, at its beginning."""
        with self._lock:
            self._advance_to_now()
            return self._engine.state()

    def _run(self) -> None:
        while not self._stopping.wait(_TICK_SECONDS):
            with self._lock:
                self._advance_to_now()

    def _advance_to_now(self) -> None:
        if self._began is None:
            return
        now = self._clock() - self._began
        while self._next_request is not None and self._next_request.arrival_seconds <= now:
            if self._engine.in_flight_requests < MOST_IN_FLIGHT:
                self._engine.submit(self._next_request)
            self._next_request = next(self._requests, None)
        self._engine.advance(now)


class EmbeddedEngine(EngineServer):
    """The engine for use where there is no GPU, on the device that its memory was measured on.

    `load` is by default a synthetic load with the given `seed`, `model_path` what `/v1/models` gives as the model's
    root, by default its name. It answers on loopback, on a port of the system's choice.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        model_path: Path | str | None = None,
        device: EmbeddedDevice = H100_LLAMA_31_8B,
        load: Iterable[Request] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.device = device
        model = ServedModel(
            spec=device.spec,
            name=device.model_name,
            root=str(model_path) if model_path is not None else device.model_name,
            engine_version=device.engine_version,
            gpu_memory_utilization=device.gpu_memory_utilization,
        )
        requests = SyntheticLoad(seed, device.spec.max_model_len) if load is None else load
        super().__init__(model, requests, clock=clock, wall_clock=wall_clock)

    def gpu_memory(self) -> tuple[int, int, int, int]:
        """Total, used, free and reserved bytes of the device, as a driver would tell them: used = total - free."""
        device = self.device
        return device.total_bytes, device.used_bytes, device.total_bytes - device.used_bytes, device.reserved_bytes


def _models(model: ServedModel, started_seconds: float) -> bytes:
    card = {
        "id": model.name,
        "object": "model",
        "created": int(started_seconds),
        "owned_by": "vllm",
        "root": model.root,
        "parent": None,
        "max_model_len": model.spec.max_model_len,
    }
    return json.dumps({"object": "list", "data": [card]}).encode()


class _Server(ThreadingHTTPServer):
    # Joined by server_close, so that a stopped engine leaves no thread behind.
    daemon_threads = False

    def __init__(self, host: str, port: int, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        """Binds without asking a name server what this machine is called."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hands the connection to a thread of its own."""
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection."""
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Ends the connections on which nobody has asked anything yet, and waits for the answers under way."""
        with self._open_lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left early is its own affair; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    # A client that reads nothing must not hold up the stop for longer.
    timeout = _CLIENT_TIMEOUT_SECONDS

    def __init__(self, routes: Mapping[str, Callable[[], _Answer]], *connection: Any) -> None:
        self._routes = routes
        super().__init__(*connection)

    def do_GET(self) -> None:
        """Answers one of the routes, or 404."""
        route = self._routes.get(self.path.partition("?")[0])
        if route is None:
            self._answer(404, _JSON, b'{"detail":"Not Found"}')
        else:
            self._answer(200, *route())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Says nothing: the engine lives in somebody else's terminal."""

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
