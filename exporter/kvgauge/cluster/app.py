"""The aggregated API's web application: discovery around the two groups, and every error as a Status."""

from collections.abc import Mapping, Sequence

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from kvgauge import __version__
from kvgauge.cluster.access import Authorize, Denied
from kvgauge.cluster.answers import (
    CUSTOM,
    CUSTOM_VERSIONS,
    EXTERNAL,
    EXTERNAL_VERSIONS,
    Failure,
    group,
    group_list,
    resource_list,
    status,
)
from kvgauge.cluster.custom_metrics import custom_routes, json_response
from kvgauge.cluster.external_metrics import external_routes
from kvgauge.cluster.metrics import Figures
from kvgauge.cluster.store import Store

_AGGREGATED = "apidiscovery.k8s.io"


def create_app(store: Store, figures: Figures, authorize: Authorize, *, external: bool) -> FastAPI:
    """The application. `authorize` is asked before anything but health is told."""
    app = FastAPI(
        title="kvgauge aggregator", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    app.include_router(_health())
    app.include_router(
        _discovery(authorize, {CUSTOM: CUSTOM_VERSIONS} | ({EXTERNAL: EXTERNAL_VERSIONS} if external else {}))
    )
    app.include_router(custom_routes(figures, authorize))
    if external:
        app.include_router(external_routes(store, figures, authorize))

    async def failure(_request: Request, error: Exception) -> Response:
        if isinstance(error, Failure | Denied):
            return json_response(status(error.code, error.message), error.code)
        code = error.status_code if isinstance(error, HTTPException) else 500
        messages = {404: "the server could not find the requested resource", 405: "only GET is served"}
        return json_response(status(code, messages.get(code, "the request could not be answered")), code)

    for kind in (Failure, Denied, HTTPException, Exception):
        app.add_exception_handler(kind, failure)
    return app


def _health() -> APIRouter:
    router = APIRouter()

    @router.get("/livez")
    @router.get("/readyz")
    @router.get("/healthz")
    async def health() -> Response:
        """200 while this process answers. Discovery must stay up even when every figure is stale."""
        return PlainTextResponse("ok\n")

    return router


def _discovery(authorize: Authorize, groups: Mapping[str, Sequence[str]]) -> APIRouter:
    router = APIRouter()

    @router.get("/apis")
    async def all_groups(request: Request) -> Response:
        await authorize(request, None)
        if _wants_only_aggregated(request.headers.get("accept", "")):
            raise Failure(406, "only the per-version lists are served")
        return json_response(group_list([group(name, versions) for name, versions in groups.items()]))

    @router.get("/apis/{name}")
    async def one_group(request: Request, name: str) -> Response:
        await authorize(request, None)
        if name not in groups:
            raise Failure(404, "no such API group")
        return json_response(group(name, groups[name]))

    @router.get("/api")
    async def core_versions(request: Request) -> Response:
        """A client that is pointed straight at us looks here first."""
        await authorize(request, None)
        return json_response({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})

    @router.get("/api/v1")
    async def core_resources(request: Request) -> Response:
        await authorize(request, None)
        # Clients take an empty list for an error. Namespaces themselves are not served.
        return json_response(resource_list("v1", {"namespaces": False}, "Namespace"))

    return router


def _wants_only_aggregated(accept: str) -> bool:
    """Whether a client takes nothing but the aggregated form of discovery, which 406 makes it give up."""
    kinds = [part.strip().lower() for part in accept.split(",") if part.strip()]
    plain = [kind for kind in kinds if _AGGREGATED not in kind]
    takes_plain = any(kind.split(";")[0].strip() in {"application/json", "application/*", "*/*"} for kind in plain)
    return any(_AGGREGATED in kind for kind in kinds) and not takes_plain
