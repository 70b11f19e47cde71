"""The HTTP side: hands out what is pinned on the board, computes nothing."""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from starlette.middleware.gzip import GZipMiddleware

from kvgauge import __version__
from kvgauge.pages import PAGE_HEADERS, composed
from kvgauge.publish.board import Board, Published
from kvgauge.publish.views import (
    AdviceView,
    AssessmentView,
    HistoryPoint,
    ObservationView,
    advice_view,
    assessment_view,
    observation_view,
)

_STALE: dict[int | str, dict[str, Any]] = {503: {"description": "No tick was finished lately."}}
_MAX_CASE_BYTES = 1024 * 1024
_OPENMETRICS = "application/openmetrics-text"


def create_app(board: Board) -> FastAPI:
    """The sidecar's web application over one board."""
    app = FastAPI(
        title="kvgauge",
        version=__version__,
        description="GPU memory beside an LLM engine: what it is, what it should be, and what is safe. "
        "Keys carry their unit: `_bytes` on each GPU, `_tokens` KV slots, `_seconds`, `_ratio` in 0..1 unless said. "
        "A fact that nobody told is null.",
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=5)
    app.include_router(_for_machines(board))
    app.include_router(_api(board))
    app.include_router(_planner())
    app.include_router(_pages())
    return app


def _current(board: Board) -> Published:
    published = board.current()
    if published is None:
        raise HTTPException(503, "no fresh tick to show")
    return published


def _for_machines(board: Board) -> APIRouter:
    router = APIRouter()

    @router.get("/livez", tags=["health"], response_class=PlainTextResponse)
    async def livez() -> str:
        """200 while this process answers. It says nothing of the engine, which must never be restarted for us."""
        return "ok\n"

    @router.get("/readyz", tags=["health"], response_class=PlainTextResponse, responses=_STALE)
    async def readyz() -> str:
        """200 while there is a fresh tick to show, whatever its sources say."""
        _current(board)
        return "ok\n"

    @router.get("/metrics", tags=["metrics"], response_class=PlainTextResponse, responses=_STALE)
    async def metrics(request: Request) -> Response:
        """The Prometheus page, as text 0.0.4 or OpenMetrics 1.0.0 by Accept."""
        published = _current(board)
        _, content_type = choose_encoder(request.headers.get("accept", ""))
        if content_type.startswith(_OPENMETRICS):
            return Response(published.openmetrics, headers={"Content-Type": content_type})
        return Response(published.text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    return router


def _api(board: Board) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["api"])

    @router.get("/observation", responses=_STALE)
    async def observation() -> ObservationView:
        """What the sidecar sees: devices, engine, model, and how each source is doing."""
        return observation_view(_current(board).snapshot.assessment.observation)

    @router.get("/assessment", responses=_STALE)
    async def assessment() -> AssessmentView:
        """What memory is against what it should be, and what is wasted."""
        return assessment_view(_current(board).snapshot.assessment)

    @router.get("/advice", responses=_STALE)
    async def advice() -> AdviceView:
        """How many requests may run together, and how near the pod is to it."""
        return advice_view(_current(board).snapshot.advice)

    @router.get("/history")
    async def history(after_wall_seconds: float = 0.0) -> list[HistoryPoint]:
        """Load and occupancy of the past quarter of an hour, oldest first; only what is newer than the given time."""
        return board.history(after_wall_seconds)

    return router


def _planner() -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["api"])

    @router.post("/plan", responses={413: {}, 422: {}})
    async def plan_a_case(request: Request) -> JSONResponse:
        """The capacity planner: one case in, as `kvgauge plan --batch` takes it, its result out.

        The model comes as an inline `config`; paths are refused, since they would be this container's. 422 with the
        planner's own `error` for a bad case.
        """
        # Only who plans pays for the planner's import.
        from kvmodel.plan import plan

        body = await _bounded_body(request)
        try:
            case = json.loads(body)
        except (ValueError, RecursionError):
            raise HTTPException(422, "the body is not JSON") from None
        if not isinstance(case, dict):
            raise HTTPException(422, "the body is not a JSON object")
        if "config" not in case and case.get("model") is not None:
            raise HTTPException(422, "model: a path is not taken here; send the model's config inline as config")
        result = await asyncio.to_thread(plan, case)
        return JSONResponse(result, 422 if result["error"] else 200)

    return router


async def _bounded_body(request: Request) -> bytes:
    too_large = HTTPException(413, f"the body is larger than {_MAX_CASE_BYTES} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > _MAX_CASE_BYTES:
        raise too_large
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_CASE_BYTES:
            raise too_large
    return body


def _pages() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    live, docs = (composed("kvgauge.publish", name) for name in ("live.html", "docs.html"))

    @router.get("/")
    async def live_page() -> HTMLResponse:
        return HTMLResponse(live, headers=PAGE_HEADERS)

    @router.get("/docs")
    async def docs_page() -> HTMLResponse:
        return HTMLResponse(docs, headers=PAGE_HEADERS)

    return router
