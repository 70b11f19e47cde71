"""A web server for tests that can also behave badly."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any

Behaviour = Callable[["Exchange"], None]


class Exchange:
    """One request, to be answered as the behaviour likes."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler
        self.headers: Mapping[str, str] = dict(handler.headers.items())
        self.out: BufferedIOBase = handler.wfile
        self.complete = False

    def answer(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.head(status, {"Content-Length": str(len(body)), **(headers or {})})
        self.out.write(body)
        self.complete = True

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._handler.send_response(status)
        for name, value in headers.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()


def page(body: bytes, content_type: str = "text/plain; version=0.0.4") -> Behaviour:
    """Answers one body, always."""
    return lambda exchange: exchange.answer(body, headers={"Content-Type": content_type})


def status(code: int) -> Behaviour:
    return lambda exchange: exchange.answer(b"no", code)


def silent(until: threading.Event) -> Behaviour:
    """Accepts, and says nothing until the event."""

    def wait(_: Exchange) -> None:
        until.wait(30)

    return wait


def dripping(until: threading.Event) -> Behaviour:
    """Sends a byte now and then, for ever."""

    def drip(exchange: Exchange) -> None:
        exchange.head(200, {"Content-Type": "text/plain"})
        while not until.wait(0.02):
            exchange.out.write(b"#")
            exchange.out.flush()

    return drip


def endless(total_bytes: int) -> Behaviour:
    """A body of `total_bytes`, without a stated length."""

    def pour(exchange: Exchange) -> None:
        exchange.head(200, {"Content-Type": "text/plain"})
        for _ in range(total_bytes // 65536):
            exchange.out.write(b"# filler\n" * 7281)

    return pour


@contextmanager
def serving(routes: dict[str, Behaviour]) -> Iterator[str]:
    """Serves `routes` (path to behaviour, changeable while it runs) on loopback; yields the base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def do_GET(self) -> None:
            exchange = Exchange(self)
            try:
                routes.get(self.path, status(404))(exchange)
            except OSError:
                exchange.complete = False
            self.close_connection = not exchange.complete

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            """Quiet."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that hangs up is what these tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
