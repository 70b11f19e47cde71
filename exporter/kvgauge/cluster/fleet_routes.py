"""What people see on the plain port: the page of the fleet, and the JSON that it is made from."""

from collections.abc import Callable
from dataclasses import replace

from fastapi import APIRouter, FastAPI, HTTPException
from pydantic import TypeAdapter
from starlette.datastructures import QueryParams
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from kvgauge.cluster.fleet import MOST_CHOSEN_PODS, MOST_PODS, MOST_WORKLOADS, Ambiguous, Choice, Fleet, Now, Owner
from kvgauge.cluster.fleet_past import FleetPast
from kvgauge.cluster.fleet_records import FleetFigures, FleetPoint, WorkloadFigures
from kvgauge.pages import PAGE_HEADERS, composed

_CHOICE = frozenset({"namespace", "workload", "kind"})
_SINCE = "after_wall_seconds"
_MOST_NAME = 253
"""Characters of the longest name that Kubernetes gives."""
_REMEMBERED_SECONDS = 0.5
"""However many look at it, the fleet is not reckoned up more often."""
_FIGURES = TypeAdapter(FleetFigures)
_POINTS = TypeAdapter(list[FleetPoint])
_NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def add_fleet(
    app: FastAPI,
    fleet: Fleet,
    past: FleetPast,
    *,
    ready: Callable[[], bool],
    api_server_age_seconds: Callable[[], float | None],
) -> None:
    """Adds the page and its JSON to a web application. `ready`: whether the pods were listed; before that there is no
    answer, for a fleet of which nothing is known is not an empty one."""
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=5)
    router = APIRouter()
    page = composed("kvgauge.cluster", "fleet.html")

    @router.get("/")
    async def fleet_page() -> Response:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @router.get("/v1/fleet")
    async def figures(request: Request) -> Response:
        """The fleet now; with `namespace` and `workload`, and `kind` where two have the name, that one's pods."""
        choice = _choice(request.query_params, _CHOICE)
        _check(ready)
        now = await fleet.soon(_REMEMBERED_SECONDS)
        found = figures_of(now, fleet, past, choice, api_server_age_seconds())
        return Response(_FIGURES.dump_json(found), media_type="application/json", headers=_NO_STORE)

    @router.get("/v1/fleet/history")
    async def history(request: Request) -> Response:
        """The load of the past quarter of an hour, of all or of the chosen one; only what is newer than
        `after_wall_seconds`."""
        choice = _choice(request.query_params, _CHOICE | {_SINCE})
        since = _seconds(request.query_params)
        _check(ready)
        owner = None if choice is None else _owner(await fleet.soon(_REMEMBERED_SECONDS), choice)
        points = [] if choice is not None and owner is None else past.points(owner)
        newer = [point for point in points if point.wall_seconds > since]
        return Response(_POINTS.dump_json(newer), media_type="application/json", headers=_NO_STORE)

    app.include_router(router)


def figures_of(
    now: Now, fleet: Fleet, past: FleetPast, choice: Choice | None, api_server_age_seconds: float | None
) -> FleetFigures:
    """What `/v1/fleet` answers. Raises HTTPException."""

    def told(owner: Owner) -> WorkloadFigures:
        figures = now.workloads[owner]
        return replace(figures, standing_seconds=past.standing_seconds(owner, figures.standing))

    worst = now.worst_workloads(MOST_WORKLOADS)
    chosen = None if choice is None else _owner(now, choice)
    if choice is None:
        pods, left_out = now.pods(None, MOST_PODS)
    else:
        pods, left_out = ((), 0) if chosen is None else now.pods(chosen, MOST_CHOSEN_PODS)
    key = chosen[1] if chosen is not None else None
    standing = now.standing()
    return FleetFigures(
        wall_seconds=now.wall_seconds,
        watched_seconds=past.watched_seconds(),
        api_server_age_seconds=None if api_server_age_seconds is None else round(api_server_age_seconds, 1),
        standing=standing,
        standing_seconds=past.standing_seconds(None, standing),
        totals=now.totals(),
        workloads=tuple(told(owner) for owner in worst),
        workloads_left_out=len(now.workloads) - len(worst),
        chosen=told(chosen) if chosen is not None else None,
        explanation=fleet.explanation(key) if key is not None else (),
        pods=pods,
        pods_left_out=left_out,
    )


def _check(ready: Callable[[], bool]) -> None:
    if not ready():
        raise HTTPException(503, "the pods were not listed yet")


def _owner(now: Now, choice: Choice) -> Owner | None:
    try:
        return now.chosen(choice)
    except Ambiguous:
        raise HTTPException(422, "workload: several kinds have this name; give the kind too") from None


def _choice(query: QueryParams, allowed: frozenset[str]) -> Choice | None:
    """The workload that is asked for; None: none is. What is wrong is named, never repeated."""
    names = [name for name, _ in query.multi_items()]
    if unknown := len(set(names) - allowed):
        raise HTTPException(422, f"{unknown} unknown parameters; there are {', '.join(sorted(allowed))}")
    for field in sorted(set(names)):
        if names.count(field) > 1:
            raise HTTPException(422, f"{field}: is given more than once")
        if len(query[field]) > _MOST_NAME:
            raise HTTPException(422, f"{field}: is longer than {_MOST_NAME} characters")
    namespace, name, kind = query.get("namespace"), query.get("workload"), query.get("kind")
    if not namespace and not name and not kind:
        return None
    if not namespace:
        raise HTTPException(422, "namespace: is missing beside workload")
    if name is None:
        raise HTTPException(422, "workload: is missing beside namespace; empty, it means the pods of none")
    return Choice(namespace, name or None, kind or None)


def _seconds(query: QueryParams) -> float:
    try:
        return float(query.get(_SINCE, "0"))
    except ValueError:
        raise HTTPException(422, f"{_SINCE}: is not a number") from None
