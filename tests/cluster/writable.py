"""The fake API server for what kvgauge writes: pods made from records, and namespaces that forbid a write."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from kvgauge.cluster.names import DELETION_COST as COST
from kvgauge.cluster.records import Pod
from tests.cluster.fake_api_server import FakeApiServer
from tests.cluster.fake_api_store import Key, Kind, Object, RefusedError

_INT32 = re.compile(r"-?(0|[1-9]\d*)")


class Api(FakeApiServer):
    """`refused` counts what a namespace forbade."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        super().__init__()
        self.refused = 0
        self._closed: set[tuple[str, str, str]] = set()

    def add_pod(self, pod: Pod) -> None:
        metadata = {"name": pod.key.name, "namespace": pod.key.namespace, "uid": pod.uid}
        spec = {"containers": [{"name": "engine", "image": "engine"}]}
        self.create("pods", {"metadata": {**metadata, "annotations": dict(pod.annotations)}, "spec": spec})

    def annotations(self, namespace: str, name: str) -> dict[str, str]:
        """Empty where there is no such pod."""
        try:
            return dict(self.get("pods", namespace, name)["metadata"].get("annotations") or {})
        except RefusedError:
            return {}

    def pod_names(self, namespace: str) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.list("pods", namespace)]

    def events(self) -> list[Object]:
        return self.list("events")

    def close_namespace(self, verb: str, resource: str, namespace: str) -> None:
        self._closed.add((verb, resource, namespace))

    def open_namespaces(self) -> None:
        self._closed.clear()

    def _write(self, request: web.Request, verb: str, kind: Kind, key: Key, body: Object) -> web.Response:
        if (verb, kind.resource, key[0]) in self._closed:
            self.refused += 1
            raise RefusedError(403, "Forbidden")
        if (verb, kind.resource) == ("patch", "pods"):
            _check_patch(body)
        return super()._write(request, verb, kind, key, body)


def _check_patch(body: Object) -> None:
    """Nothing but the uid and annotations; a cost is an int32, or the ReplicaSet controller passes it over."""
    if body.keys() != {"metadata"} or body["metadata"].keys() != {"uid", "annotations"}:
        raise RefusedError(422, "Invalid")
    cost = body["metadata"]["annotations"].get(COST)
    if cost is not None and not (_INT32.fullmatch(cost) and -(2**31) <= int(cost) < 2**31):
        raise RefusedError(422, "Invalid")


@asynccontextmanager
async def running_api() -> AsyncIterator[Api]:
    api = Api()
    with api:
        yield api
