"""A fake API server for what kvgauge writes: Leases, annotations of Pods, Events. As strict as the real one about what
these three depend on: resourceVersion, uid, MicroTime, names, the fields that an Event must have."""

import copy
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from kvgauge.cluster.records import Pod
from kvgauge.cluster.scale_in import COST

_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_INT32 = re.compile(r"-?(0|[1-9]\d*)")
_EVENT_TEXTS = {"action": 128, "reason": 128, "reportingController": 253, "reportingInstance": 128}

Object = dict[str, Any]


class _RefusedError(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Api:
    """What it has, and what a test may do to it."""

    def __init__(self) -> None:
        self.host, self.port = "127.0.0.1", 0
        self.refused = 0
        self._versions = itertools.count(1)
        self._leases: dict[tuple[str, str], Object] = {}
        self._pods: dict[tuple[str, str], Object] = {}
        self._events: list[Object] = []
        self._forbidden: set[tuple[str, str, str]] = set()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def add_pod(self, pod: Pod) -> None:
        annotations = dict(pod.annotations)
        metadata = {"name": pod.key.name, "namespace": pod.key.namespace, "uid": pod.uid, "annotations": annotations}
        spec = {"containers": [{"name": "engine", "image": "engine"}]}
        self._pods[pod.key.namespace, pod.key.name] = {"metadata": metadata, "spec": spec}

    def annotations(self, namespace: str, name: str) -> dict[str, str]:
        pod = self._pods.get((namespace, name))
        return dict(pod["metadata"]["annotations"]) if pod else {}

    def pod_names(self, namespace: str) -> list[str]:
        return [name for where, name in self._pods if where == namespace]

    def events(self) -> list[Object]:
        return self._events

    def forbid(self, verb: str, resource: str, namespace: str) -> None:
        self._forbidden.add((verb, resource, namespace))

    def allow_all(self) -> None:
        self._forbidden.clear()

    def allow(self, verb: str, resource: str, namespace: str) -> None:
        if (verb, resource, namespace) in self._forbidden:
            self.refused += 1
            raise _RefusedError(403, "Forbidden")

    def stamp(self, thing: Object) -> Object:
        thing["metadata"]["resourceVersion"] = str(next(self._versions))
        return copy.deepcopy(thing)

    def lease(self, verb: str, namespace: str, name: str, body: Object | None) -> Object:
        self.allow(verb, "leases", namespace)
        known = self._leases.get((namespace, name))
        if verb == "create":
            if known is not None:
                raise _RefusedError(409, "AlreadyExists")
        elif known is None:
            raise _RefusedError(404, "NotFound")
        if body is None:
            if verb == "delete":
                return self._leases.pop((namespace, name))
            return copy.deepcopy(known or {})
        if known is not None and body["metadata"].get("resourceVersion") != known["metadata"]["resourceVersion"]:
            raise _RefusedError(409, "Conflict")
        _check_lease(body)
        self._leases[namespace, name] = body
        return self.stamp(body)

    def patch_pod(self, namespace: str, name: str, patch: Object) -> Object:
        self.allow("patch", "pods", namespace)
        pod = self._pods.get((namespace, name))
        if pod is None:
            raise _RefusedError(404, "NotFound")
        if patch.keys() != {"metadata"} or patch["metadata"].keys() != {"uid", "annotations"}:
            raise _RefusedError(422, "Invalid")
        if patch["metadata"]["uid"] != pod["metadata"]["uid"]:
            raise _RefusedError(409, "Conflict")
        annotations = pod["metadata"]["annotations"]
        merged = {**annotations, **patch["metadata"]["annotations"]}
        merged = {key: text for key, text in merged.items() if text is not None}
        if any(not isinstance(text, str) for text in merged.values()):
            raise _RefusedError(400, "BadRequest")
        cost = merged.get(COST)
        if cost is not None and not (_INT32.fullmatch(cost) and -(2**31) <= int(cost) < 2**31):
            raise _RefusedError(422, "Invalid")
        pod["metadata"]["annotations"] = merged
        return self.stamp(pod)

    def create_event(self, namespace: str, event: Object) -> Object:
        self.allow("create", "events", namespace)
        _check_event(event, namespace)
        self._events.append(event)
        return self.stamp(event)


def _check_lease(lease: Object) -> None:
    spec = lease["spec"]
    for field in ("acquireTime", "renewTime"):
        if field in spec and not _MICRO_TIME.fullmatch(spec[field]):
            raise _RefusedError(400, "BadRequest")
    if spec.get("leaseDurationSeconds", 1) <= 0 or spec.get("leaseTransitions", 0) < 0:
        raise _RefusedError(422, "Invalid")


def _check_event(event: Object, namespace: str) -> None:
    if not _MICRO_TIME.fullmatch(event.get("eventTime", "")):
        raise _RefusedError(400, "BadRequest")
    name = event["metadata"]["name"]
    good = len(name) <= 253 and _NAME.fullmatch(name) and event["metadata"].get("namespace") == namespace
    good = good and event["regarding"]["namespace"] == namespace and len(event.get("note", "")) <= 1024
    good = good and event["type"] in {"Normal", "Warning"} and not any("deprecated" in field for field in event)
    if not good or any(not 1 <= len(event.get(field, "")) <= most for field, most in _EVENT_TEXTS.items()):
        raise _RefusedError(422, "Invalid")


@asynccontextmanager
async def running_api() -> AsyncIterator[Api]:
    api = Api()
    leases = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    verbs = {"GET": "get", "PUT": "update", "DELETE": "delete", "POST": "create"}

    async def lease(request: web.Request) -> web.Response:
        body = await request.json() if request.method in {"PUT", "POST"} else None
        name = request.match_info.get("name") or (body or {})["metadata"]["name"]
        return web.json_response(api.lease(verbs[request.method], request.match_info["namespace"], name, body))

    async def patch(request: web.Request) -> web.Response:
        if request.content_type != "application/merge-patch+json":
            raise _RefusedError(415, "UnsupportedMediaType")
        where = request.match_info
        return web.json_response(api.patch_pod(where["namespace"], where["name"], await request.json()))

    async def event(request: web.Request) -> web.Response:
        return web.json_response(api.create_event(request.match_info["namespace"], await request.json()), status=201)

    @web.middleware
    async def answer(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        except _RefusedError as refused:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
            return web.json_response({**status, "reason": refused.reason, "code": refused.code}, status=refused.code)
        return response

    app = web.Application(middlewares=[answer])
    app.router.add_post(leases, lease)
    for method in ("GET", "PUT", "DELETE"):
        app.router.add_route(method, leases + "/{name}", lease)
    app.router.add_patch("/api/v1/namespaces/{namespace}/pods/{name}", patch)
    app.router.add_post("/apis/events.k8s.io/v1/namespaces/{namespace}/events", event)
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, api.host, 0).start()
        api.port = runner.addresses[0][1]
        yield api
    finally:
        await runner.cleanup()
