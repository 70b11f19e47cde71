"""The plain port of a cluster role: health and its own metrics, for kubelet and Prometheus."""

from collections.abc import Callable

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from kvgauge import __version__


def create_health_app(registry: CollectorRegistry, ready: Callable[[], bool]) -> FastAPI:
    """`registry`: what is measured. `ready`: whether requests may be sent here."""
    app = FastAPI(title="kvgauge", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/livez")
    async def livez() -> Response:
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> Response:
        return PlainTextResponse("ok\n") if ready() else PlainTextResponse("not ready\n", 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        if not content_type.startswith("application/openmetrics-text"):
            content_type = CONTENT_TYPE_PLAIN_0_0_4
        return Response(encode(registry), headers={"Content-Type": content_type})

    return app
