"""A fake API server that holds what `lookup` asks for: Secrets and APIServices; and, if asked, empty lists of what the
aggregator follows."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.helm.rendering import Manifest

_RESOURCES = {
    ("v1", "Secret"): ("/api/v1", "secrets", True),
    ("apiregistration.k8s.io/v1", "APIService"): ("/apis/apiregistration.k8s.io/v1", "apiservices", False),
}


_LISTS = (
    "/api/v1/pods",
    "/apis/apps/v1/deployments",
    "/apis/apps/v1/statefulsets",
    "/apis/autoscaling/v2/horizontalpodautoscalers",
)


@contextmanager
def serving(manifests: Sequence[Manifest], *, lists: bool = False) -> Iterator[str]:
    """Yields a kubeconfig."""
    answers = _answers(manifests)
    if lists:
        answers |= {path: {"kind": "List", "metadata": {"resourceVersion": "1"}, "items": []} for path in _LISTS}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, answers))
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield _kubeconfig(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _kubeconfig(port: int) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "nobody"}}],
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "nobody", "user": {}}],
        }
    )


def _answers(manifests: Sequence[Manifest]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [
                {
                    "name": "apiregistration.k8s.io",
                    "versions": [{"groupVersion": "apiregistration.k8s.io/v1", "version": "v1"}],
                    "preferredVersion": {"groupVersion": "apiregistration.k8s.io/v1", "version": "v1"},
                }
            ],
        },
    }
    for (version, kind), (path, plural, namespaced) in _RESOURCES.items():
        resource = {
            "name": plural,
            "singularName": "",
            "namespaced": namespaced,
            "kind": kind,
            "verbs": ["get"],
        }
        found[path] = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": [resource]}
    for one in manifests:
        path, plural, namespaced = _RESOURCES[one["apiVersion"], one["kind"]]
        where = f"/namespaces/{one['metadata']['namespace']}" if namespaced else ""
        found[f"{path}{where}/{plural}/{one['metadata']['name']}"] = one
    return found


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, answers: Mapping[str, Any], *connection: Any) -> None:
        self._answers = answers
        super().__init__(*connection)

    def do_GET(self) -> None:
        found = self._answers.get(self.path.partition("?")[0])
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        body = json.dumps(missing if found is None else found).encode()
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Says nothing."""
