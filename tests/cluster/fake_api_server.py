"""A FAKE Kubernetes API server over real HTTP: pages, watches, optimistic writes, reviews, and what goes wrong.

It is strict: what it does not know goes into `complaints`, which tests assert to be empty. It runs in a thread with an
event loop of its own, so a test may call its methods from anywhere.
"""

import asyncio
import concurrent.futures
import json
import math
import ssl
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from aiohttp import web

from .fake_api_store import KINDS, Key, Kind, Object, RefusedError, Selection, Storage

Review = Callable[[str, Object], Object]
"""Given the kind of a review (TokenReview, SubjectAccessReview) and its spec, answers its status."""

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_PATCHES = ("application/merge-patch+json", "application/strategic-merge-patch+json")
_REVIEWS = {
    "/apis/authentication.k8s.io/v1/tokenreviews": "TokenReview",
    "/apis/authorization.k8s.io/v1/subjectaccessreviews": "SubjectAccessReview",
}
_QUERY = {
    "labelSelector", "fieldSelector", "limit", "continue", "watch", "resourceVersion", "resourceVersionMatch",
    "allowWatchBookmarks", "timeoutSeconds", "timeout", "pretty", "fieldManager", "fieldValidation", "dryRun",
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One that came, in order."""

    verb: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Object


@dataclass(eq=False)
class _Watch:
    transport: asyncio.Transport
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    fault: Literal["none", "cut", "expired"] = "none"


class FakeApiServer:
    """A context manager. `url` is where it is; knobs may be turned from any thread at any time."""

    def __init__(self, *, review: Review | None = None, tls: ssl.SSLContext | None = None, minor: str = "36") -> None:
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.bookmark_seconds = 0.5
        """Pause between two bookmarks of a watch in which nothing happens."""
        self.silent = False
        """Watches stay open and tell nothing, as over a line that is half open."""
        self.minor = minor
        self.port = 0
        self._review = review
        self._tls = tls
        self._kinds = {kind.resource: kind for kind in KINDS}
        self._missing: set[str] = set()
        self._forbidden: set[tuple[str, str]] = set()
        self._throttled = 0
        self._retry_after = 0
        self._expired_as: Literal["event", "http"] = "event"
        self._watches: set[_Watch] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake API server", daemon=True)
        self._storage = Storage(self._wake)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def watches(self) -> int:
        """How many are open now."""
        return len(self._watches)

    def __enter__(self) -> "FakeApiServer":
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    # What a test does to the cluster.

    def create(self, resource: str, thing: Object) -> Object:
        """The namespace is the object's own."""
        return self._storage.create(self._kinds[resource], thing["metadata"].get("namespace", ""), thing)

    def update(self, resource: str, thing: Object) -> Object:
        metadata = thing["metadata"]
        return self._storage.update(self._kinds[resource], (metadata.get("namespace", ""), metadata["name"]), thing)

    def patch(self, resource: str, namespace: str, name: str, patch: Object) -> Object:
        return self._storage.patch(self._kinds[resource], (namespace, name), patch)

    def delete(self, resource: str, namespace: str, name: str) -> Object:
        return self._storage.delete(self._kinds[resource], (namespace, name))

    def get(self, resource: str, namespace: str, name: str) -> Object:
        """Raises RefusedError with code 404."""
        return self._storage.get(self._kinds[resource], (namespace, name))

    def list(self, resource: str, namespace: str | None = None) -> list[Object]:
        items: list[Object] = self._storage.page(self._kinds[resource], Selection(namespace), 0, "")["items"]
        return items

    # What goes wrong.

    def away(self) -> None:
        """Nothing listens any more, every connection is cut."""
        self._call(self._leave())

    def back(self) -> None:
        """Listens again, on the same port."""
        self._call(self._listen())

    def drop_watches(self, *, in_a_line: bool = False) -> None:
        """Cuts every watch off; `in_a_line`: after half of one."""
        self._call(self._end_watches("cut" if in_a_line else "none"))

    def throttle(self, times: int, retry_after: int) -> None:
        """The next requests are answered 429."""
        self._retry_after = retry_after
        self._throttled = times

    def expire(self, told_as: Literal["event", "http"] = "event") -> None:
        """Forgets the history and ends the watches: with an ERROR event, or with 410 when they are taken up again."""
        self._expired_as = told_as
        self._storage.expire()
        self._call(self._end_watches("expired" if told_as == "event" else "none"))

    def say(self, line: bytes) -> None:
        """Sends that to every watch as it is."""
        self._call(self._tell(line))

    def forbid(self, verb: str, resource: str) -> None:
        """Answers 403. `verb`: get, list, watch, create, update, patch, delete."""
        self._forbidden.add((verb, resource))

    def allow(self, verb: str, resource: str) -> None:
        self._forbidden.discard((verb, resource))

    def remove_kind(self, resource: str) -> None:
        """As a cluster that has no such CRD."""
        self._missing.add(resource)
        self._call(self._end_watches("none"))

    def restore_kind(self, resource: str) -> None:
        self._missing.discard(resource)

    def count(self, verb: str, resource: str) -> int:
        """Requests of that kind that came."""
        return sum(request.verb == verb and resource in request.path.split("/") for request in list(self.requests))

    # The server.

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        waiting: concurrent.futures.Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        waiting.result(timeout=30)

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._wake_watches)

    def _wake_watches(self) -> None:
        for watch in self._watches:
            watch.wake.set()

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._answer], client_max_size=2**22)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        await self._listen()

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls)
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    async def _leave(self) -> None:
        await self._site.stop()
        await self._end_watches("none")
        server = self._runner.server
        for connection in server.connections if server else ():
            if connection.transport is not None:
                connection.transport.abort()

    async def _stop(self) -> None:
        await self._end_watches("none")
        await self._runner.cleanup()

    async def _end_watches(self, fault: Literal["none", "cut", "expired"]) -> None:
        for watch in list(self._watches):
            if fault == "none":
                watch.transport.abort()
            watch.fault = fault
            watch.wake.set()
        while fault != "none" and any(watch.fault == fault for watch in self._watches):
            await asyncio.sleep(0.001)

    async def _tell(self, line: bytes) -> None:
        for watch in self._watches:
            # A chunk of HTTP/1.1, as StreamResponse writes it.
            watch.transport.write(b"%x\r\n%b\r\n" % (len(line), line))

    @web.middleware
    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        except RefusedError as refused:
            headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
            return web.json_response(refused.status, status=refused.code, headers=headers)
        return response

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        text = await request.read()
        body = json.loads(text) if text else {}
        path = request.path
        target = self._target(path)
        watching = request.query.get("watch") in ("1", "true")
        verb = _VERBS.get(request.method, request.method)
        if target and verb == "get" and not target[2]:
            verb = "watch" if watching else "list"
        self.requests.append(Request(verb, path, dict(request.query), dict(request.headers), body))
        if self._throttled > 0:
            self._throttled -= 1
            raise RefusedError(429, "TooManyRequests", retry_after=self._retry_after)
        if target is None:
            return self._other(request, body)
        kind, namespace, name, rest = target
        if kind.resource in self._missing:
            return web.Response(status=404, text="404 page not found\n")
        if (verb, kind.resource) in self._forbidden:
            raise RefusedError(403, "Forbidden", f"cannot {verb} resource {kind.resource}")
        if rest not in ((), ("status",)) or not set(request.query) <= _QUERY or (rest and verb in {"create", "delete"}):
            raise self._complaint(request, 400, "BadRequest")
        if verb == "watch":
            return await self._watch(request, kind, _selection(request, namespace))
        if verb == "list":
            query = request.query
            limit = int(query.get("limit") or 0)
            page = self._storage.page(kind, _selection(request, namespace), limit, query.get("continue", ""))
            return web.json_response(page)
        return self._write(request, verb, kind, (namespace or "", name), body)

    def _target(self, path: str) -> tuple[Kind, str | None, str, tuple[str, ...]] | None:
        """Kind, namespace, name ("" for all) and what follows."""
        for kind in KINDS:
            if not path.startswith(kind.root + "/"):
                continue
            parts = path[len(kind.root) + 1 :].split("/")
            namespace = None
            if len(parts) > 2 and parts[0] == "namespaces" and kind.namespaced:
                namespace, parts = parts[1], parts[2:]
            if parts[0] == kind.resource:
                return kind, namespace, parts[1] if len(parts) > 1 else "", tuple(parts[2:])
        return None

    def _write(self, request: web.Request, verb: str, kind: Kind, key: Key, body: Object) -> web.Response:
        if (verb == "create") == bool(key[1]) or bool(key[0]) != kind.namespaced:
            raise self._complaint(request, 405, "MethodNotAllowed")
        if verb == "get":
            return web.json_response(self._storage.get(kind, key))
        if verb == "create":
            return web.json_response(self._storage.create(kind, key[0], body), status=201)
        if verb == "update":
            return web.json_response(self._storage.update(kind, key, body))
        if verb == "delete":
            return web.json_response(self._storage.delete(kind, key, body.get("preconditions")))
        if verb != "patch":
            raise self._complaint(request, 405, "MethodNotAllowed")
        if request.content_type not in _PATCHES or not isinstance(body, dict):
            raise self._complaint(request, 415, "UnsupportedMediaType")
        return web.json_response(self._storage.patch(kind, key, body))

    def _other(self, request: web.Request, body: Object) -> web.Response:
        path = request.path
        if path in _REVIEWS and request.method == "POST" and self._review is not None:
            if body.get("kind") != _REVIEWS[path] or not isinstance(body.get("spec"), dict):
                raise self._complaint(request, 400, "BadRequest")
            return web.json_response({**body, "status": self._review(_REVIEWS[path], body["spec"])}, status=201)
        if request.method == "GET" and path == "/version":
            return web.json_response({"major": "1", "minor": self.minor, "gitVersion": f"v1.{self.minor}.0"})
        if request.method == "GET" and path in ("/livez", "/readyz", "/healthz"):
            return web.Response(text="ok")
        raise self._complaint(request, 404, "NotFound")

    def _complaint(self, request: web.Request, code: int, reason: str) -> RefusedError:
        self.complaints.append(f"{request.method} {request.path_qs}: {code} {reason}")
        return RefusedError(code, reason)

    async def _watch(self, request: web.Request, kind: Kind, selection: Selection) -> web.StreamResponse:
        query, transport = request.query, request.transport
        assert isinstance(transport, asyncio.Transport)
        stated_version = query.get("resourceVersion") or "0"
        if not stated_version.isdigit():
            raise RefusedError(400, "BadRequest", f"resourceVersion: Invalid value: {stated_version}")
        version = int(stated_version)
        first = b""
        if version == 0:
            page = self._storage.page(kind, selection, 0, "")
            version = int(page["metadata"]["resourceVersion"])
            stated = {"kind": kind.kind, "apiVersion": kind.api_version}
            first = b"".join(_line("ADDED", {**stated, **thing}) for thing in page["items"])
        elif self._expired_as == "http":
            self._storage.since(kind, version, selection)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        watch = _Watch(transport)
        self._watches.add(watch)
        try:
            await response.prepare(request)
            await response.write(first)
            await self._stream(request, response, watch, (kind, version, selection))
        except ConnectionError:
            pass
        finally:
            self._watches.discard(watch)
        return response

    async def _stream(
        self, request: web.Request, response: web.StreamResponse, watch: _Watch, what: tuple[Kind, int, Selection]
    ) -> None:
        kind, version, selection = what
        bookmarks = request.query.get("allowWatchBookmarks") == "true"
        ends = self._loop.time() + float(request.query.get("timeoutSeconds") or math.inf)
        while not watch.transport.is_closing():
            watch.wake.clear()
            try:
                changes, version = self._storage.since(kind, version, selection)
            except RefusedError as refused:
                await response.write(_line("ERROR", refused.status))
                return
            lines = b"".join(_line(*change) for change in changes)
            if watch.fault == "cut":
                await response.write((lines or _line("MODIFIED", {"metadata": {"name": "half"}}))[:20])
                watch.transport.abort()
                return
            over = self._loop.time() >= ends
            if not changes and bookmarks:
                about = {"resourceVersion": str(version), "creationTimestamp": None}
                stated: Object = {"kind": kind.kind, "apiVersion": kind.api_version}
                lines = _line("BOOKMARK", {**stated, "metadata": about})
            if not self.silent:
                await response.write(lines)
            if over:
                return
            left = min(self.bookmark_seconds, ends - self._loop.time())
            try:
                async with asyncio.timeout(max(left, 0)):
                    await watch.wake.wait()
            except TimeoutError:
                continue


def _line(what: str, thing: Object) -> bytes:
    return json.dumps({"type": what, "object": thing}, separators=(",", ":")).encode() + b"\n"


def _selection(request: web.Request, namespace: str | None) -> Selection:
    """Equality of labels, and the field metadata.name."""
    labels = []
    for part in filter(None, request.query.get("labelSelector", "").split(",")):
        key, equals, text = part.replace("==", "=").partition("=")
        if not equals or key.endswith("!"):
            raise RefusedError(400, "BadRequest", f"the fake does not know labelSelector {part}")
        labels.append((key.strip(), text.strip()))
    field_name, _, name = request.query.get("fieldSelector", "").partition("=")
    if field_name not in ("", "metadata.name"):
        raise RefusedError(400, "BadRequest", f"the fake does not know fieldSelector {field_name}")
    return Selection(namespace, tuple(labels), name or None)
