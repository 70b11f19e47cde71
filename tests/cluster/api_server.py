"""The metrics API on a real port, over plain HTTP, with a store filled by hand."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.requests import Request

from kvgauge.cluster.access import Attributes, Denied
from kvgauge.cluster.app import create_app
from kvgauge.cluster.metrics import Figures
from kvgauge.cluster.store import Store
from kvgauge.listening import bind

from .stocking import NOW_SECONDS


class Client:
    """GET over one kept-alive connection, and what an authoriser was asked."""

    def __init__(self, port: int, asked: list[Attributes | None]) -> None:
        self.port = port
        self.asked = asked
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def send(
        self, path: str, method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, object]]:
        self._connection.request(method, path, headers=headers or {})
        response = self._connection.getresponse()
        assert response.headers["content-type"] == "application/json"
        return response.status, json.loads(response.read())

    def get(self, path: str) -> dict[str, object]:
        code, answer = self.send(path)
        assert code == 200, answer
        return answer

    def close(self) -> None:
        self._connection.close()


@contextmanager
def served(store: Store, *, external: bool = True, forbidden: str = "") -> Iterator[Client]:
    """`forbidden`: a namespace that nobody may read."""
    asked: list[Attributes | None] = []

    async def authorize(_request: Request, attributes: Attributes | None) -> None:
        asked.append(attributes)
        if attributes is not None and attributes.namespace == forbidden:
            raise Denied(403, "not allowed")

    figures = Figures(
        store,
        lambda required: None if required.replicas is None else 1000 * required.replicas,
        stale_after_seconds=10,
        clock=lambda: NOW_SECONDS,
    )
    app = create_app(store, figures, authorize, external=external)
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", http="httptools"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    client = Client(listener.getsockname()[1], asked)
    try:
        yield client
    finally:
        client.close()
        server.should_exit = True
        thread.join(timeout=10)
