"""The fake API server keeps to the rules that the code under test relies on."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from .fake_api_server import FakeApiServer
from .fake_api_store import Object

PODS = "/api/v1/pods"


@pytest.fixture
def server() -> Iterator[FakeApiServer]:
    with FakeApiServer() as running:
        yield running


def pod(name: str, namespace: str = "llm", **labels: str) -> Object:
    return {"metadata": {"name": name, "namespace": namespace, "labels": labels}, "spec": {}}


def ask(
    server: FakeApiServer, path: str, method: str = "GET", body: Object | None = None, kind: str = "application/json"
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": kind})
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text)
    finally:
        connection.close()


def watch(server: FakeApiServer, query: str) -> list[tuple[str, Object]]:
    """Everything that a watch of one second tells."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", f"{PODS}?watch=true&timeoutSeconds=1&{query}")
        response = connection.getresponse()
        assert response.status == 200
        lines = [json.loads(line) for line in response.read().splitlines()]
    finally:
        connection.close()
    return [(line["type"], line["object"]) for line in lines]


def test_pages_are_of_one_moment(server: FakeApiServer) -> None:
    for name in "abc":
        server.create("pods", pod(name))
    _, first = ask(server, f"{PODS}?limit=2")
    server.create("pods", pod("d"))
    _, second = ask(server, f"{PODS}?limit=2&continue={first['metadata']['continue']}")
    names = [thing["metadata"]["name"] for page in (first, second) for thing in page["items"]]
    assert names == ["a", "b", "c"]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert "continue" not in second["metadata"]


def test_a_page_that_is_too_old_is_gone(server: FakeApiServer) -> None:
    for name in "abc":
        server.create("pods", pod(name))
    _, first = ask(server, f"{PODS}?limit=2")
    server.expire()
    assert ask(server, f"{PODS}?limit=2&continue={first['metadata']['continue']}")[0] == 410


def test_a_watch_tells_what_enters_and_leaves_the_selection(server: FakeApiServer) -> None:
    server.create("pods", pod("a", app="x"))
    version = ask(server, PODS)[1]["metadata"]["resourceVersion"]
    server.patch("pods", "llm", "a", {"metadata": {"labels": {"app": "y"}}})
    server.patch("pods", "llm", "a", {"metadata": {"labels": {"app": "x"}}})
    server.patch("pods", "llm", "a", {"status": {"phase": "Running"}})
    server.delete("pods", "llm", "a")
    told = watch(server, f"resourceVersion={version}&labelSelector=app%3Dx&allowWatchBookmarks=true")
    assert [what for what, _ in told if what != "BOOKMARK"] == ["DELETED", "ADDED", "MODIFIED", "DELETED"]
    versions = [int(thing["metadata"]["resourceVersion"]) for _, thing in told]
    assert versions == sorted(versions)
    assert told[-1][0] == "BOOKMARK"


def test_what_is_forgotten_is_410_in_either_manner(server: FakeApiServer) -> None:
    version = ask(server, PODS)[1]["metadata"]["resourceVersion"]
    server.expire("event")
    [(what, status)] = watch(server, f"resourceVersion={version}")
    assert (what, status["code"]) == ("ERROR", 410)
    server.expire("http")
    assert ask(server, f"{PODS}?watch=true&resourceVersion={version}")[0] == 410


def test_writes_are_optimistic(server: FakeApiServer) -> None:
    where = "/api/v1/namespaces/llm/pods"
    code, made = ask(server, where, "POST", pod("a"))
    assert code == 201
    assert ask(server, where, "POST", pod("a"))[0] == 409
    made["spec"]["nodeName"] = "n"
    assert ask(server, f"{where}/a", "PUT", made)[0] == 200
    assert ask(server, f"{where}/a", "PUT", made)[0] == 409
    patch = {"metadata": {"annotations": {"x": "1"}, "uid": "another"}}
    assert ask(server, f"{where}/a", "PATCH", patch, "application/merge-patch+json")[0] == 409
    patch["metadata"].pop("uid")
    code, patched = ask(server, f"{where}/a", "PATCH", patch, "application/merge-patch+json")
    assert (code, patched["metadata"]["annotations"], patched["spec"]["nodeName"]) == (200, {"x": "1"}, "n")
    assert ask(server, f"{where}/a", "DELETE")[0] == 200
    assert ask(server, f"{where}/a")[0] == 404
    assert server.complaints == []


def test_what_it_does_not_know_it_complains_of(server: FakeApiServer) -> None:
    assert ask(server, "/api/v1/secrets")[0] == 404
    assert ask(server, f"{PODS}?colour=red")[0] == 400
    assert len(server.complaints) == 2
    assert ask(server, "/version")[1]["minor"] == "36"


def test_it_throttles_forbids_and_lacks_kinds(server: FakeApiServer) -> None:
    server.throttle(1, 1)
    assert [ask(server, PODS)[0] for _ in range(2)] == [429, 200]
    server.forbid("list", "pods")
    assert ask(server, PODS)[0] == 403
    server.remove_kind("pods")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", PODS)
    assert connection.getresponse().read() == b"404 page not found\n"
    connection.close()


def test_away_and_back_on_the_same_port(server: FakeApiServer) -> None:
    server.create("pods", pod("a"))
    server.away()
    with pytest.raises(ConnectionError):
        ask(server, PODS)
    server.back()
    assert [thing["metadata"]["name"] for thing in ask(server, PODS)[1]["items"]] == ["a"]


def test_reviews_are_answered_by_who_is_asked() -> None:
    def review(kind: str, spec: Object) -> Object:
        return {"authenticated": spec["token"] == "good", "kind": kind}

    path = "/apis/authentication.k8s.io/v1/tokenreviews"
    with FakeApiServer(review=review) as server:
        _, answer = ask(server, path, "POST", {"kind": "TokenReview", "spec": {"token": "good"}})
    assert answer["status"] == {"authenticated": True, "kind": "TokenReview"}
