"""How the API server is found, with what it is spoken to, and what is said where it cannot be."""

import asyncio
import json
import ssl
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from kubernetes.aio.client import CoreV1Api

import kvgauge
from kvgauge.cluster.kube import connect
from kvgauge.complaints import InputError

from .certificates import self_made
from .fake_api_server import FakeApiServer


def certificate(directory: Path) -> ssl.SSLContext:
    """For 127.0.0.1, in ca.crt, signed by itself."""
    pair = self_made("fake")
    (directory / "ca.crt").write_bytes(pair.chain)
    (directory / "key.pem").write_bytes(pair.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "ca.crt", directory / "key.pem")
    return context


def kubeconfig(path: Path, server: str, user: Mapping[str, object]) -> Path:
    content = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "fake", "user": "me"}}],
        "clusters": [{"name": "fake", "cluster": {"server": server}}],
        "users": [{"name": "me", "user": user}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


async def list_pods(path: str | None, environ: Mapping[str, str], account: Path) -> None:
    async with await connect(path, environ=environ, account=account) as client:
        await CoreV1Api(client).list_namespaced_pod("llm")


def complaint(path: str | None, environ: Mapping[str, str], account: Path) -> str:
    with pytest.raises(InputError) as raised:
        asyncio.run(list_pods(path, environ, account))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_kubeconfig_that_is_named_wins(tmp_path: Path) -> None:
    with FakeApiServer() as server:
        file = kubeconfig(tmp_path / "config", server.url, {"token": "mine"})
        environ = {"KUBERNETES_SERVICE_HOST": "192.0.2.1", "KUBERNETES_SERVICE_PORT": "443"}
        (tmp_path / "token").write_text("other")
        asyncio.run(list_pods(str(file), environ, tmp_path))
        [request] = server.requests
    assert request.headers["Authorization"] == "Bearer mine"
    assert request.headers["User-Agent"] == f"kvgauge/{kvgauge.__version__}"


def test_kubeconfig_of_the_environment(tmp_path: Path) -> None:
    with FakeApiServer() as server:
        file = kubeconfig(tmp_path / "config", server.url, {})
        asyncio.run(list_pods(None, {"KUBECONFIG": f"/nowhere/at/all:{file}"}, tmp_path))
        assert len(server.requests) == 1


def test_the_pods_own_account_over_tls(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of-the-pod")
    with FakeApiServer(tls=certificate(tmp_path)) as server:
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}
        asyncio.run(list_pods(None, environ, tmp_path))
        [request] = server.requests
    assert request.headers["Authorization"].lower() == "bearer of-the-pod"


def test_the_accounts_token_is_read_anew(tmp_path: Path) -> None:
    """The client's loader reads the file again once its period is over; here that is at once."""
    (tmp_path / "token").write_text("first")

    async def twice(environ: Mapping[str, str]) -> None:
        async with await connect(None, environ=environ, account=tmp_path) as client:
            await CoreV1Api(client).list_namespaced_pod("llm")
            (tmp_path / "token").write_text("second")
            # The loader is the owner of the method that the hook closes over.
            hook = client.configuration.refresh_api_key_hook
            [loader] = [cell.cell_contents for cell in hook.__closure__]
            loader.token_expires_at -= timedelta(minutes=2)
            await CoreV1Api(client).list_namespaced_pod("llm")

    with FakeApiServer(tls=certificate(tmp_path)) as server:
        asyncio.run(twice({"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}))
        tokens = [request.headers["Authorization"].split()[-1] for request in server.requests]
    assert tokens == ["first", "second"]


def test_the_token_file_of_a_kubeconfig_is_read_anew(tmp_path: Path) -> None:
    """A file that is gone for a moment leaves the token as it was."""
    token = tmp_path / "a-token"
    token.write_text("first")

    async def thrice(file: Path) -> None:
        async with await connect(str(file), refresh_seconds=0) as client:
            await CoreV1Api(client).list_namespaced_pod("llm")
            token.unlink()
            await CoreV1Api(client).list_namespaced_pod("llm")
            token.write_text("second")
            await CoreV1Api(client).list_namespaced_pod("llm")

    with FakeApiServer() as server:
        asyncio.run(thrice(kubeconfig(tmp_path / "config", server.url, {"tokenFile": str(token)})))
        tokens = [request.headers["Authorization"] for request in server.requests]
    assert tokens == ["Bearer first", "Bearer first", "Bearer second"]


def test_an_exec_plugin_is_asked_anew(tmp_path: Path) -> None:
    """Since it states no time at which its token ends."""
    plugin = tmp_path / "plugin"
    answer = {"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": {"token": "t-$n"}}
    count = f"n=$(cat {tmp_path}/n 2>/dev/null || echo 0); n=$((n+1)); echo $n > {tmp_path}/n"
    plugin.write_text(f"#!/bin/sh\n{count}\ncat <<END\n{json.dumps(answer)}\nEND\n")
    plugin.chmod(0o755)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}}

    async def twice(file: Path) -> None:
        async with await connect(str(file), refresh_seconds=0) as client:
            await CoreV1Api(client).list_namespaced_pod("llm")

    with FakeApiServer() as server:
        asyncio.run(twice(kubeconfig(tmp_path / "config", server.url, user)))
        [request] = server.requests
    assert request.headers["Authorization"] == "Bearer t-2"


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    said = complaint(None, {"KUBECONFIG": str(tmp_path / "none")}, tmp_path)
    assert said.startswith("kubeconfig: not set")
    assert str(tmp_path / "none") in said


def test_a_named_file_that_is_not_there(tmp_path: Path) -> None:
    assert complaint(str(tmp_path / "none"), {}, tmp_path) == f"kubeconfig: {tmp_path / 'none'}: does not exist"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no kubeconfig"),
        ("- a\n- b\n", "no kubeconfig"),
        ("a: [\n", "not YAML (line 2)"),
        ("current-context: here\n", "expected object with name here"),
        ("contexts: []\n", "expected key current-context"),
    ],
)
def test_a_broken_file_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(text)
    assert said in complaint(str(tmp_path / "config"), {}, tmp_path)


def test_no_token_is_told(tmp_path: Path) -> None:
    """The loader's own message holds the whole user."""
    file = kubeconfig(tmp_path / "config", "http://127.0.0.1:1", {})
    content = yaml.safe_load(file.read_text())
    content["users"][0] = {"name": "me", "token": "s3cret"}
    file.write_text(yaml.safe_dump(content))
    said = complaint(str(file), {}, tmp_path)
    assert "s3cret" not in said
    assert "expected key user" in said


def test_an_account_without_ca_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    assert complaint(None, environ, tmp_path).startswith(f"service account: {tmp_path}: ")
    (tmp_path / "ca.crt").write_text("no certificate")
    assert "CA or client certificate cannot be used" in complaint(None, environ, tmp_path)
