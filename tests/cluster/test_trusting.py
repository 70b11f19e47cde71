"""The ConfigMap by which the front proxy is known, followed while it changes: against a fake API server, over TLS."""

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from kubernetes.aio.client import ApiClient, Configuration
from starlette.requests import Request
from starlette.responses import JSONResponse

from kvgauge.cluster.access import Denied
from kvgauge.cluster.authentication import Authenticator
from kvgauge.cluster.tls import Pair, ServingTls
from kvgauge.cluster.trusting import follow_request_header
from kvgauge.cluster.watching import Pace
from tests.cluster.waiting import until

from .asking import FakeReviews
from .certificates import authority, client_context
from .fake_api_server import FakeApiServer
from .fake_api_store import Object
from .serving import get, served

NAME = "extension-apiserver-authentication"
USER = ("X-Remote-User", "alice")


def config_map(ca: str, names: str = '["front-proxy"]', **more: str) -> Object:
    return {
        "metadata": {"namespace": "kube-system", "name": NAME},
        "data": {
            "requestheader-client-ca-file": ca,
            "requestheader-allowed-names": names,
            "requestheader-username-headers": '["X-Remote-User"]',
            "requestheader-group-headers": '["X-Remote-Group"]',
            "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
            **more,
        },
    }


def proxy(ca: str, name: str = "front-proxy") -> Pair:
    return authority(ca).client(name)


@dataclass
class Followed:
    """A server whose application tells who asks."""

    port: int
    authenticator: Authenticator

    async def who(self, pair: Pair | None) -> str:
        """The user, the code of the refusal, or "cut" where the handshake fails."""
        try:
            answer = await get(self.port, client_context(pair), "/", USER)
        except (OSError, EOFError):
            return "cut"
        return str(answer.body["user"]) if answer.code == 200 else str(answer.code)

    async def becomes(self, pair: Pair | None, expected: str) -> None:
        """Waits until it is so."""
        async with asyncio.timeout(10):
            while await self.who(pair) != expected:
                await asyncio.sleep(0.005)

    async def known(self, is_so: bool = True) -> None:
        async with asyncio.timeout(10):
            while (self.authenticator.request_header is not None) != is_so:
                await asyncio.sleep(0.002)


@asynccontextmanager
async def following(server: FakeApiServer) -> AsyncIterator[Followed]:
    authenticator = Authenticator(FakeReviews({}).whose_token)
    tls = ServingTls(authority("serving").server())

    async def app(scope: Mapping[str, object], receive: object, send: object) -> None:
        request = Request(dict(scope))
        try:
            response = JSONResponse({"user": (await authenticator.identify(request)).user})
        except Denied as denied:
            response = JSONResponse({}, denied.code)
        await response(request.scope, receive, send)  # type: ignore[arg-type]

    async with ApiClient(Configuration(host=server.url)) as client, served(app, tls=tls) as serving:
        pace = Pace(retry_seconds=0.005, most_retry_seconds=0.02)
        task = asyncio.create_task(follow_request_header(client, authenticator, tls, pace=pace, refused_seconds=0.02))
        try:
            yield Followed(serving.port, authenticator)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert server.complaints == []


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_the_ca_and_the_names_change_without_a_restart(caplog: pytest.LogCaptureFixture) -> None:
    async def run(server: FakeApiServer) -> None:
        async with following(server) as followed:
            await followed.becomes(proxy("old"), "alice")
            assert await followed.who(proxy("old", "other")) == "403"
            assert await followed.who(proxy("new")) == "cut"
            assert await followed.who(None) == "403"
            # Both for a while, as a cluster rotates.
            server.update("configmaps", config_map(authority("old").pem + authority("new").pem))
            await followed.becomes(proxy("new"), "alice")
            assert await followed.who(proxy("old")) == "alice"
            server.update("configmaps", config_map(authority("new").pem))
            await followed.becomes(proxy("old"), "cut")
            assert await followed.who(proxy("new")) == "alice"
            server.update("configmaps", config_map(authority("new").pem, '["other"]'))
            await followed.becomes(proxy("new"), "403")
            assert await followed.who(proxy("new", "other")) == "alice"
            server.update("configmaps", config_map(authority("new").pem, "[]"))
            await followed.becomes(proxy("new"), "alice")
            assert await followed.who(proxy("new", "other")) == "alice"

    with FakeApiServer() as server:
        server.create("configmaps", config_map(authority("old").pem))
        server.create("configmaps", {"metadata": {"namespace": "kube-system", "name": "another"}, "data": {}})
        asyncio.run(run(server))
        # Only that one may be read by the role that is bound for it.
        assert {request.path for request in server.requests} == {"/api/v1/namespaces/kube-system/configmaps"}
        assert {request.query["fieldSelector"] for request in server.requests} == {f"metadata.name={NAME}"}
    assert said(caplog) == []


def test_deletion_switches_it_off_and_a_new_one_on(caplog: pytest.LogCaptureFixture) -> None:
    async def run(server: FakeApiServer) -> None:
        async with following(server) as followed:
            await followed.becomes(proxy("old"), "alice")
            server.delete("configmaps", "kube-system", NAME)
            await followed.becomes(proxy("old"), "403")
            # Certificates are not even asked for.
            assert await followed.who(proxy("new")) == "403"
            server.create("configmaps", config_map(authority("new").pem))
            await followed.becomes(proxy("new"), "alice")
            assert await followed.who(proxy("old")) == "cut"
            server.delete("configmaps", "kube-system", NAME)
            await followed.known(False)

    with FakeApiServer() as server:
        server.create("configmaps", config_map(authority("old").pem))
        asyncio.run(run(server))
    assert said(caplog) == [f"the front proxy is not believed: ConfigMap kube-system/{NAME}: not there"] * 2


def test_one_that_is_missing_at_first_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def run(server: FakeApiServer) -> None:
        async with following(server) as followed:
            await until(lambda: server.watches > 0)
            assert await followed.who(proxy("old")) == "403"
            # A list again, that finds the same.
            server.expire()
            await until(lambda: server.count("list", "configmaps") >= 2)
            server.create("configmaps", config_map(authority("old").pem))
            await followed.becomes(proxy("old"), "alice")

    with FakeApiServer() as server:
        asyncio.run(run(server))
    assert said(caplog) == [f"the front proxy is not believed: ConfigMap kube-system/{NAME}: not there"]


def test_one_that_may_not_be_read_is_said_once_and_read_later(caplog: pytest.LogCaptureFixture) -> None:
    async def run(server: FakeApiServer) -> None:
        async with following(server) as followed:
            await until(lambda: server.count("list", "configmaps") >= 3)
            assert await followed.who(proxy("old")) == "403"
            server.allow("list", "configmaps")
            await followed.becomes(proxy("old"), "alice")

    with FakeApiServer() as server:
        server.create("configmaps", config_map(authority("old").pem))
        server.forbid("list", "configmaps")
        asyncio.run(run(server))
    [message] = said(caplog)
    assert "HTTP 403; a RoleBinding to extension-apiserver-authentication-reader" in message


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (config_map("no PEM"), "client CA: not a PEM certificate (SSLError)"),
        (config_map(""), "without requestheader-client-ca-file"),
        (config_map("CA", names="front-proxy"), "requestheader-allowed-names is no list of names"),
        ({"metadata": {"namespace": "kube-system", "name": NAME}}, "without requestheader-client-ca-file"),
    ],
)
def test_a_broken_one_switches_it_off(broken: Object, why: str, caplog: pytest.LogCaptureFixture) -> None:
    async def run(server: FakeApiServer) -> None:
        async with following(server) as followed:
            await followed.becomes(proxy("old"), "alice")
            server.update("configmaps", broken)
            await followed.known(False)
            assert await followed.who(proxy("old")) == "403"
            server.update("configmaps", config_map(authority("old").pem))
            await followed.becomes(proxy("old"), "alice")

    with FakeApiServer() as server:
        server.create("configmaps", config_map(authority("old").pem))
        asyncio.run(run(server))
    assert said(caplog) == [f"the front proxy is not believed: ConfigMap kube-system/{NAME}: {why}"]


def test_while_the_api_server_is_away_what_was_known_holds(caplog: pytest.LogCaptureFixture) -> None:
    async def run(server: FakeApiServer) -> None:
        async with following(server) as followed:
            await followed.becomes(proxy("old"), "alice")
            await asyncio.to_thread(server.away)
            assert await followed.who(proxy("old")) == "alice"
            server.update("configmaps", config_map(authority("new").pem))
            await asyncio.to_thread(server.back)
            await followed.becomes(proxy("new"), "alice")
            server.drop_watches(in_a_line=True)
            server.say(b"nonsense\n")
            server.update("configmaps", config_map(authority("old").pem))
            await followed.becomes(proxy("old"), "alice")

    with FakeApiServer() as server:
        server.create("configmaps", config_map(authority("old").pem))
        asyncio.run(run(server))
    assert said(caplog) == []


def test_what_cannot_be_taken_over_is_taken_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full for a while: nothing is believed meanwhile, and nothing ends."""

    async def run(server: FakeApiServer) -> None:
        old, new = client_context(proxy("old")), client_context(proxy("new"))
        async with following(server) as followed:
            await followed.known()
            monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
            server.update("configmaps", config_map(authority("new").pem))
            await followed.known(False)
            assert (await get(followed.port, old, "/", USER)).code == 403
            monkeypatch.undo()
            await followed.known()
            assert (await get(followed.port, new, "/", USER)).body == {"user": "alice"}

    with FakeApiServer() as server:
        server.create("configmaps", config_map(authority("old").pem))
        asyncio.run(run(server))
