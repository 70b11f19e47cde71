"""The webhook as the API server meets it, over TLS; and as anybody else might."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvgauge.cluster.injector.admission import MAX_BODY_BYTES, create_app
from kvgauge.cluster.injector.counting import Counts
from tests.cluster.injector.applying import applied
from tests.cluster.injector.given import manifest, sidecar_of
from tests.cluster.injector.given import settings as injector_settings
from tests.cluster.injector.running import Injector, injector, patch_of, review

MARK = "hush-4711"
"""What must not come out again."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Injector]:
    with injector(tmp_path_factory.mktemp("tls"), "--native-sidecars", "always", "--log-level", "debug") as process:
        yield process


def counted(running: Injector, document: Any) -> tuple[dict[str, Any], tuple[str, str]]:
    """The response, and what it was counted as."""
    before = running.injections()
    response = running.ask(document)
    changed = [key for key, count in running.injections().items() if count != before.get(key, 0)]
    assert len(changed) == 1
    return response, changed[0]


def test_a_pod_is_given_its_sidecar(running: Injector) -> None:
    pod = manifest("vllm")
    response, counts = counted(running, review(pod))
    assert counts == ("injected", "new")
    after = applied(pod, patch_of(response))
    assert sidecar_of(after)["restartPolicy"] == "Always"
    assert "warnings" not in response
    assert response["auditAnnotations"] == {"result": "injected", "reason": "new"}
    response, counts = counted(running, review(after))
    assert counts == ("skipped", "present")
    assert patch_of(response) == []


def test_a_dry_run_is_answered_alike(running: Injector) -> None:
    real, dry = (running.ask(review(manifest("vllm"), dryRun=dry)) for dry in (False, True))
    assert real == dry


def test_warnings_name_annotation_and_value(running: Injector) -> None:
    response, counts = counted(running, review(manifest("vllm", {"kvgauge.dev/engine-port": "eighty"})))
    assert counts == ("skipped", "bad_annotation")
    assert patch_of(response) == []
    assert response["warnings"] == ["kvgauge: kvgauge.dev/engine-port: should be a port from 1 to 65535, got 'eighty'"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}}, "other_kind"),
        ({"kind": {"group": "", "version": "v1", "kind": "Secret"}}, "other_kind"),
        ({"kind": {"group": "example.dev", "version": "v1", "kind": "Pod"}}, "other_kind"),
        ({"subResource": "ephemeralcontainers"}, "other_kind"),
        ({"operation": "UPDATE"}, "other_operation"),
        ({"operation": "DELETE", "object": None}, "other_operation"),
    ],
)
def test_other_kinds_are_let_through(running: Injector, fields: dict[str, Any], reason: str) -> None:
    response, counts = counted(running, review(manifest("vllm"), **fields))
    assert counts == ("skipped", reason)
    assert patch_of(response) == []


@pytest.mark.parametrize(
    "pod",
    [
        None,
        [],
        "pod",
        {},
        {"spec": None},
        {"spec": {"containers": MARK}},
        {"metadata": {"labels": {"a": {"b": MARK}}}, "spec": {"containers": []}},
        {"spec": {"containers": [{"name": "x", "command": [{"a": MARK}]}]}},
        {"spec": {"containers": [{"image": MARK}]}},
        {"spec": {"containers": [{"name": "x", "ports": [{"containerPort": MARK}]}]}},
    ],
)
def test_a_pod_that_cannot_be_read_is_let_through(running: Injector, pod: Any) -> None:
    response, counts = counted(running, review(pod))
    assert counts == ("failed", "malformed")
    assert patch_of(response) == []
    assert MARK not in json.dumps(response)


def without(document: dict[str, Any], *path: str) -> dict[str, Any]:
    target = document
    for key in path[:-1]:
        target = target[key]
    del target[path[-1]]
    return document


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe" + MARK.encode(),
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 100_000,
        MARK.encode(),
        json.dumps({"kind": "AdmissionReview", MARK: 1}).encode(),
        json.dumps({**review({}), "apiVersion": "admission.k8s.io/v1beta1"}).encode(),
        json.dumps({**review({}), "kind": "Pod"}).encode(),
        json.dumps({**review({}), "request": None}).encode(),
        json.dumps({**review({}), "request": [MARK]}).encode(),
        json.dumps(review({}, uid="")).encode(),
        json.dumps(review({}, uid=MARK * 100)).encode(),
        json.dumps(review({}, uid=7)).encode(),
        json.dumps(review({}, kind="Pod")).encode(),
        json.dumps(without(review({}), "request", "uid")).encode(),
        json.dumps(without(review({}), "request", "operation")).encode(),
    ],
)
def test_what_is_no_review_is_refused_in_one_line(running: Injector, body: bytes) -> None:
    before = running.injections().get(("failed", "malformed"), 0)
    status, answer = running.post(body)
    assert status == 400
    assert len(answer.decode().splitlines()) == 1
    assert len(answer) < 300
    assert MARK.encode() not in answer
    assert running.injections()[("failed", "malformed")] == before + 1


def test_huge_bodies_are_not_read(running: Injector) -> None:
    before = running.rss_bytes()
    for _ in range(20):
        connection = running.connection()
        connection.putrequest("POST", "/inject")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(10**10))
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert answer.read() == f"body: larger than {MAX_BODY_BYTES} bytes\n".encode()
        connection.close()
    assert running.rss_bytes() - before < 10 << 20


def test_huge_bodies_of_unstated_length_are_cut_off(running: Injector) -> None:
    def chunks() -> Iterator[bytes]:
        while True:
            yield b"x" * 65536

    before = running.rss_bytes()
    for _ in range(3):
        connection = running.connection()
        connection.putrequest("POST", "/inject")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        sent = 0
        try:
            for chunk in chunks():
                connection.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                sent += len(chunk)
                assert sent < 64 << 20
        except OSError:
            pass
        connection.close()
    assert running.rss_bytes() - before < 30 << 20
    assert running.ask(review(manifest("vllm")))["allowed"]


def test_a_pod_as_large_as_the_api_server_takes(running: Injector) -> None:
    pod = manifest("vllm", {"example.dev/large": "x" * 200_000})
    pod["spec"]["containers"][0]["env"] += [{"name": f"E{number}", "value": "x" * 100} for number in range(15_000)]
    response, counts = counted(running, review(pod))
    assert counts == ("injected", "new")
    assert len(json.dumps(response)) < 20_000
    # References that would make arguments of gigabytes.
    pod = manifest("vllm")
    pod["spec"]["containers"][0]["env"].append({"name": "A", "value": "x" * 500_000})
    pod["spec"]["containers"][0]["args"] = ["$(A)" * 1000 for _ in range(500)]
    assert counted(running, review(pod))[1] == ("injected", "new")


def test_pods_made_to_keep_it_busy(running: Injector) -> None:
    def pod(number: int, **container: Any) -> dict[str, Any]:
        containers = [{"name": f"c{index}", "image": "x", **container} for index in range(number)]
        return {"metadata": {"labels": {"kvgauge.dev/inject": "true"}}, "spec": {"containers": containers}}

    references = {"env": [{"name": "A", "value": "y" * 4000}], "command": ["exec", *["$(A)$(A)"] * 1000]}
    for busy in (
        pod(80_000),
        pod(180, command=["sh", "-c", "a b; " * 3000]),
        pod(16, command=["sh", "-c", "a b; " * 1600]),
        pod(16, command=["sh", "-c", "x\n" * 4000]),
        pod(16, command=["exec", *["a"] * 2000]),
        pod(16, **references),
    ):
        body = json.dumps(review(busy)).encode()
        assert len(body) < MAX_BODY_BYTES
        began = time.monotonic()
        assert running.post(body)[0] == 200
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_headers(running: Injector, headers: dict[str, str], status: int) -> None:
    assert running.post(json.dumps(review(manifest("vllm"))).encode(), headers)[0] == status


def test_other_paths_and_methods(running: Injector) -> None:
    assert running.post(b"{}", path="/mutate")[0] == 404
    connection = running.connection()
    connection.request("GET", "/inject")
    assert connection.getresponse().status == 405
    connection.close()


def test_many_at_a_time(running: Injector) -> None:
    results: list[bool] = []

    def ask() -> None:
        results.extend(bool(patch_of(running.ask(review(manifest("vllm"))))) for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 40


def test_nothing_of_a_pod_gets_out(running: Injector) -> None:
    """Last of those that share the process: its log has all of the above."""
    pod = manifest("vllm", {"example.dev/token": MARK})
    pod["spec"]["containers"][0]["env"].append({"name": "TOKEN", "value": MARK})
    pod["spec"]["containers"][0]["args"] += ["--api-key", MARK]
    assert MARK not in json.dumps(patch_of(running.ask(review(pod))))
    assert MARK not in running.operations("/metrics")[1]
    assert MARK not in "".join(running.log)


KEYS = st.sampled_from(["metadata", "spec", "containers", "name", "labels", "env", "args", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pod=JSON)
def test_any_object_is_let_through(running: Injector, pod: Any) -> None:
    assert patch_of(running.ask(review(pod))) == []


async def posted(app: Any, body: bytes, *, ends: bool = True) -> tuple[int, bytes]:
    """One request straight to the application."""
    scope = {"type": "http", "method": "POST", "path": "/inject", "headers": [], "query_string": b"", "root_path": ""}
    given = [{"type": "http.request", "body": body, "more_body": not ends}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if given:
            return given.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_a_body_that_does_not_end() -> None:
    app = create_app(injector_settings(), Counts(), lambda: True, body_seconds=0.05)
    assert asyncio.run(posted(app, b"{", ends=False)) == (408, b"body: not complete after 0.05 s\n")


def test_whatever_goes_wrong_inside_the_pod_is_let_through(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> bool:
        raise RuntimeError(MARK)

    counts = Counts()
    app = create_app(injector_settings(), counts, broken)
    status, body = asyncio.run(posted(app, json.dumps(review(manifest("vllm"))).encode()))
    response = json.loads(body)["response"]
    assert status == 200
    assert response["allowed"] is True
    assert patch_of(response) == []
    assert b'kvgauge_injections_total{reason="internal",result="failed"} 1.0' in counts.page()
    assert MARK not in body.decode() + caplog.text
    assert "RuntimeError" in caplog.text
