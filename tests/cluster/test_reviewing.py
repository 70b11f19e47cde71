"""What the API server is asked by review, by the real client over real HTTP, and what its answers mean."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from kvgauge.cluster.access import Denied
from kvgauge.cluster.authentication import Identity
from kvgauge.cluster.reviewing import TOKENS_AT_ONCE, Reviewer

from .asking import READ, TOKEN
from .fake_api_server import FakeApiServer
from .fake_api_store import Object, RefusedError

T = TypeVar("T")
TOKENS = b"/apis/authentication.k8s.io/v1/tokenreviews"


def asked(url: str, ask: Callable[[Reviewer], Awaitable[T]], seconds: float = 5.0) -> T:
    async def run() -> T:
        async with ApiClient(Configuration(host=url)) as client:
            return await ask(Reviewer(client, timeout_seconds=seconds))

    return asyncio.run(run())


def told(status: Object, ask: Callable[[Reviewer], Awaitable[T]]) -> tuple[T, Object]:
    """The answer to a review with that status, and the body that was sent."""
    with FakeApiServer(review=lambda _kind, _spec: status) as server:
        answer = asked(server.url, ask)
        assert server.complaints == []
        [request] = server.requests
    return answer, request.body


def whose(status: Object) -> Identity | None:
    return told(status, lambda reviewer: reviewer.whose_token(TOKEN))[0]


def test_whose_token() -> None:
    user = {
        "username": "system:serviceaccount:kube-system:hpa",
        "uid": "42",
        "groups": ["system:serviceaccounts", "system:authenticated"],
        "extra": {"authentication.kubernetes.io/pod-name": ["hpa-1"]},
    }
    identity, body = told(
        {"authenticated": True, "user": user, "audiences": ["https://kubernetes"]},
        lambda reviewer: reviewer.whose_token(TOKEN),
    )
    assert body == {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": TOKEN}}
    assert identity == Identity(
        "system:serviceaccount:kube-system:hpa",
        ("system:serviceaccounts", "system:authenticated"),
        {"authentication.kubernetes.io/pod-name": ("hpa-1",)},
        "42",
    )


@pytest.mark.parametrize(
    "status",
    [
        {"authenticated": False, "error": "token has expired"},
        {"error": "invalid bearer token"},
        {},
        {"authenticated": True},
        {"authenticated": True, "user": {"groups": ["system:masters"]}},
        {"authenticated": False, "user": {"username": "alice"}},
    ],
)
def test_a_token_of_nobody(status: Object) -> None:
    assert whose(status) is None


def test_a_user_without_more_than_a_name() -> None:
    assert whose({"authenticated": True, "user": {"username": "alice"}}) == Identity("alice")


def test_the_question_of_a_read_of_many_pods() -> None:
    identity = Identity("alice", ("dev", "ops"), {"scopes": ("a", "b")}, "42")
    allowed, body = told({"allowed": True}, lambda reviewer: reviewer.allows(identity, READ))
    assert allowed is True
    assert body == {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": "alice",
            "groups": ["dev", "ops"],
            "extra": {"scopes": ["a", "b"]},
            "uid": "42",
            "resourceAttributes": {
                "verb": "get",
                "group": "custom.metrics.k8s.io",
                "version": "v1beta2",
                "resource": "pods",
                "subresource": "kvgauge_load_ratio",
                "namespace": "llm",
                "name": "*",
            },
        },
    }


def test_the_question_of_an_external_metric_has_no_name() -> None:
    external = replace(READ, verb="list", resource="kvgauge_load_ratio", subresource="", name="")
    _, body = told({"allowed": True}, lambda reviewer: reviewer.allows(Identity("alice"), external))
    assert body["spec"] == {
        "user": "alice",
        "resourceAttributes": {
            "verb": "list",
            "group": "custom.metrics.k8s.io",
            "version": "v1beta2",
            "resource": "kvgauge_load_ratio",
            "namespace": "llm",
        },
    }


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"allowed": True, "reason": "RBAC"}, True),
        ({"allowed": False, "denied": True}, False),
        ({"allowed": True, "denied": True}, False),
        ({"allowed": False, "evaluationError": "role not found"}, False),
    ],
)
def test_what_is_allowed(status: Object, expected: bool) -> None:
    assert told(status, lambda reviewer: reviewer.allows(Identity("alice"), READ))[0] is expected


def test_an_answer_that_does_not_say_whether_is_none() -> None:
    with FakeApiServer(review=lambda _kind, _spec: {}) as server:
        refused(server.url, lambda reviewer: reviewer.allows(Identity("alice"), READ))


ASKING: list[Callable[[Reviewer], Awaitable[object]]] = [
    lambda reviewer: reviewer.whose_token(TOKEN),
    lambda reviewer: reviewer.allows(Identity("alice"), READ),
]


def refused(url: str, ask: Callable[[Reviewer], Awaitable[object]], seconds: float = 5.0) -> None:
    with pytest.raises(Denied) as raised:
        asked(url, ask, seconds)
    assert raised.value.code == 503
    assert raised.value.__cause__ is None
    assert TOKEN not in raised.value.message
    assert "127.0.0.1" not in raised.value.message


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize("code", [401, 403, 404, 429, 500, 503])
def test_an_api_server_that_refuses_is_no_answer(
    ask: Callable[[Reviewer], Awaitable[object]], code: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def review(_kind: str, spec: Object) -> Object:
        raise RefusedError(code, "Reason", f"about {spec}")

    with FakeApiServer(review=review) as server:
        refused(server.url, ask)
        assert len(server.requests) == 1
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 201 Created\r\nContent-Length: 9\r\nContent-Type: application/json\r\n\r\nnot JSON!",
        b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n[]",
        b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nContent-Type: text/html\r\n\r\n\xff\xfe",
        b"HTTP/1.1 201 Created\r\nContent-Length: 99\r\n\r\n{",
        b"nonsense\r\n\r\n",
        b"",
        None,
    ],
    ids=["no JSON", "a list", "no text", "half", "no HTTP", "cut", "hangs"],
)
def test_an_api_server_that_answers_nonsense_or_nothing_is_no_answer(
    ask: Callable[[Reviewer], Awaitable[object]], reply: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def run() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            if reply is None:
                await reader.read()
                await reader.read()
            writer.write(reply or b"")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        await asyncio.to_thread(refused, f"http://127.0.0.1:{port}", ask, 0.1 if reply is None else 5.0)
        server.close()

    asyncio.run(run())
    assert TOKEN not in caplog.text


def test_many_tokens_at_once_leave_room_for_other_questions() -> None:
    paths: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        paths.append((await reader.readuntil(b"\r\n\r\n")).split()[1])
        if paths[-1] != TOKENS:
            body = b'{"spec": {}, "status": {"allowed": true}}'
            writer.write(b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nConnection: close\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
        else:
            while await reader.read(65536):
                pass
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with ApiClient(Configuration(host=url)) as client:
            reviewer = Reviewer(client, timeout_seconds=30.0)
            asking = [asyncio.create_task(reviewer.whose_token(f"{TOKEN}{number}")) for number in range(200)]
            async with asyncio.timeout(10):
                while paths.count(TOKENS) < TOKENS_AT_ONCE:
                    await asyncio.sleep(0.002)
                for _ in range(5):
                    assert await reviewer.allows(Identity("alice"), READ)
            assert paths.count(TOKENS) == TOKENS_AT_ONCE
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        server.close()

    asyncio.run(run())


@pytest.mark.parametrize("ask", ASKING)
def test_an_api_server_that_is_away_is_no_answer(ask: Callable[[Reviewer], Awaitable[object]]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refused(f"http://127.0.0.1:{free.getsockname()[1]}", ask)
