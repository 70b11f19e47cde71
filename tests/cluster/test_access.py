"""The metrics API as the API server calls it: TLS, front proxy, tokens, reviews; what strangers learn is nothing."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from kvgauge.cluster.app import create_app
from kvgauge.cluster.authentication import Authenticator
from kvgauge.cluster.authorization import Authorizer
from kvgauge.cluster.metrics import Figures
from kvgauge.cluster.reviewing import Reviewer
from kvgauge.cluster.tls import Pair, ServingTls
from kvgauge.cluster.trusting import follow_request_header

from .asking import TOKEN
from .certificates import authority, client_context
from .fake_api_server import FakeApiServer
from .fake_api_store import Object, RefusedError
from .serving import Answer, connected, get, served
from .stocking import NOW_SECONDS, stocked
from .test_trusting import config_map
from .waiting import until

APIS = "/apis/custom.metrics.k8s.io/v1beta2"
PODS = f"{APIS}/namespaces/llm/pods/%2A/kvgauge_load_ratio"
EXPIRED = TOKEN + "-expired"
HPA = (
    ("X-Remote-User", "system:serviceaccount:kube-system:horizontal-pod-autoscaler"),
    ("X-Remote-Group", "system:serviceaccounts"),
    ("X-Remote-Group", "system:authenticated"),
)
BEARER = ("Authorization", f"Bearer {TOKEN}")
SECRETS = ("llama", "841m", '"a"', TOKEN, "10.0.0.1")
"""What is in the store or in requests and no refusal may tell."""


def review(kind: str, spec: Object) -> Object:
    """Everybody known may read in llm, and nowhere else."""
    if kind == "TokenReview":
        if spec["token"] == TOKEN:
            return {"authenticated": True, "user": {"username": "alice", "groups": ["system:authenticated"]}}
        return {"authenticated": False, "error": "token has expired"}
    if spec["resourceAttributes"]["namespace"] == "broken":
        raise RefusedError(500, "InternalError")
    return {"allowed": spec["resourceAttributes"]["namespace"] == "llm"}


@asynccontextmanager
async def aggregator(api: FakeApiServer) -> AsyncIterator[int]:
    store = stocked()
    figures = Figures(
        store,
        lambda required: None if required.replicas is None else 1000 * required.replicas,
        stale_after_seconds=10,
        clock=lambda: NOW_SECONDS,
    )
    tls = ServingTls(authority("serving").server())
    async with ApiClient(Configuration(host=api.url)) as client:
        reviewer = Reviewer(client)
        authenticator = Authenticator(reviewer.whose_token)
        app = create_app(store, figures, Authorizer(authenticator, reviewer.allows), external=True)
        task = asyncio.create_task(follow_request_header(client, authenticator, tls))
        async with served(app, tls) as server:
            await until(lambda: authenticator.request_header is not None)
            yield server.port
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def run(ask: Any) -> FakeApiServer:
    """`ask` gets the port."""

    async def main(api: FakeApiServer) -> None:
        async with aggregator(api) as port:
            await ask(port)

    with FakeApiServer(review=review) as api:
        api.create("configmaps", config_map(authority("front").pem))
        asyncio.run(main(api))
        assert api.complaints == []
    return api


def proxy(name: str = "front-proxy", **more: Any) -> Pair:
    return authority("front").client(name, **more)


def is_refusal(answer: Answer, code: int) -> None:
    reasons = {401: "Unauthorized", 403: "Forbidden", 503: "ServiceUnavailable"}
    assert answer.headers["content-type"] == "application/json"
    assert (answer.code, answer.body["code"], answer.body["reason"]) == (code, code, reasons[code])
    assert answer.body["status"] == "Failure"
    for secret in SECRETS:
        assert secret not in json.dumps(answer.body)


def test_an_autoscaler_reads_over_one_connection() -> None:
    async def ask(port: int) -> None:
        async with connected(port, client_context(proxy())) as connection:
            for _ in range(3):
                answer = await connection.get(PODS, *HPA)
                assert [item["value"] for item in answer.body["items"]] == ["841m", "1250m"]

    api = run(ask)
    [asked] = [request.body["spec"] for request in api.requests if "subjectaccessreviews" in request.path]
    assert asked["user"] == "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
    assert asked["resourceAttributes"]["name"] == "*"


def test_the_probe_of_the_api_server_passes_without_a_review() -> None:
    async def ask(port: int) -> None:
        prober = ("X-Remote-User", "system:kube-aggregator"), ("X-Remote-Group", "system:masters")
        assert (await get(port, client_context(proxy()), APIS, *prober)).code == 200

    assert run(ask).count("create", "subjectaccessreviews") == 0


@pytest.mark.parametrize("pair", [lambda: None, lambda: proxy("somebody")], ids=["none", "other name"])
def test_forged_headers_are_refused_everywhere_but_at_health(pair: Any) -> None:
    async def ask(port: int) -> None:
        context = client_context(pair())
        for path in (PODS, APIS, "/apis", "/api", f"{APIS}/namespaces/nowhere/pods/%2A/none"):
            is_refusal(await get(port, context, path, *HPA), 403)
            is_refusal(await get(port, context, path, *HPA, ("X-Remote-Group", "system:masters")), 403)
            is_refusal(await get(port, context, path, *HPA, BEARER), 403)
        for path in ("/healthz", "/livez", "/readyz"):
            assert (await get(port, context, path, *HPA)).code == 200

    assert {request.verb for request in run(ask).requests} <= {"list", "watch"}


@pytest.mark.parametrize(
    "pair",
    [lambda: authority("other").client("front-proxy"), lambda: proxy(valid=timedelta(days=-1))],
    ids=["other CA", "expired"],
)
def test_a_certificate_that_counts_for_nothing_does_not_connect(pair: Any) -> None:
    async def ask(port: int) -> None:
        for path in (PODS, "/livez"):
            with pytest.raises((OSError, EOFError)):
                await get(port, client_context(pair()), path, *HPA)

    run(ask)


def test_nobody_is_told_anything_but_health() -> None:
    async def ask(port: int) -> None:
        for path in ("/healthz", "/livez", "/readyz"):
            assert (await get(port, client_context(), path)).body == b"ok\n"
        for path in ("/apis", "/api", "/api/v1", APIS, PODS, "/apis/external.metrics.k8s.io/v1beta1"):
            is_refusal(await get(port, client_context(), path), 401)
            is_refusal(await get(port, client_context(proxy()), path), 401)
            anonymous = ("X-Remote-User", "system:anonymous"), ("X-Remote-Group", "system:unauthenticated")
            is_refusal(await get(port, client_context(proxy()), path, *anonymous), 401)
        for path in ("/docs", "/openapi.json", "/metrics"):
            assert (await get(port, client_context(), path)).code in {401, 404}

    run(ask)


def test_tokens(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)

    async def ask(port: int) -> None:
        context = client_context()
        for _ in range(2):
            assert len((await get(port, context, PODS, BEARER)).body["items"]) == 2
            is_refusal(await get(port, context, PODS, ("Authorization", f"Bearer {EXPIRED}")), 401)
            is_refusal(await get(port, context, PODS, BEARER, BEARER), 401)
        assert (await get(port, context, APIS, BEARER)).code == 200
        is_refusal(await get(port, context, APIS, ("Authorization", f"Bearer {EXPIRED}")), 401)

    assert run(ask).count("create", "tokenreviews") == 2
    assert TOKEN not in caplog.text
    assert TOKEN not in "".join(capfd.readouterr())


def test_a_namespace_that_one_may_not_read_looks_the_same_whatever_is_there() -> None:
    async def ask(port: int) -> None:
        for headers, context in ((HPA, client_context(proxy())), ((BEARER,), client_context())):
            bodies = []
            for path in (
                f"{APIS}/namespaces/elsewhere/pods/c/kvgauge_load_ratio",
                f"{APIS}/namespaces/elsewhere/pods/none/kvgauge_load_ratio",
                f"{APIS}/namespaces/elsewhere/pods/%2A/kvgauge_load_ratio?labelSelector=app%3Dllama",
                f"{APIS}/namespaces/elsewhere/pods/%2A/no_such_metric",
                f"{APIS}/namespaces/elsewhere/pods/%2A/kvgauge_load_ratio?labelSelector=%3D%3D",
                f"{APIS}/namespaces/elsewhere/metrics/kvgauge_load_ratio",
                f"{APIS}/namespaces/nowhere/pods/%2A/kvgauge_load_ratio",
                "/apis/external.metrics.k8s.io/v1beta1/namespaces/elsewhere/kvgauge_load_ratio",
            ):
                answer = await get(port, context, path, *headers)
                is_refusal(answer, 403)
                bodies.append(answer.body)
            assert all(body == bodies[0] for body in bodies)

    run(ask)


def test_where_the_api_server_cannot_say_nobody_reads() -> None:
    async def ask(port: int) -> None:
        path = f"{APIS}/namespaces/broken/pods/%2A/kvgauge_load_ratio"
        is_refusal(await get(port, client_context(proxy()), path, *HPA), 503)

    run(ask)
