"""A role as the chart starts it: its own arguments, the certificate that the chart made, the probes' paths."""

import base64
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.processes import free_port
from tests.helm import fake_api_server
from tests.helm.rendering import NAMESPACE, Manifest, named, render
from tests.support.process import eventually

POD = {
    "metadata": {"name": "engine", "labels": {"kvgauge.dev/inject": "true"}},
    "spec": {"containers": [{"name": "engine", "image": "vllm-openai:1", "args": ["--model", "m"]}]},
}
REVIEW = {
    "apiVersion": "admission.k8s.io/v1",
    "kind": "AdmissionReview",
    "request": {
        "uid": "7",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "operation": "CREATE",
        "object": POD,
    },
}


@contextmanager
def running(arguments: list[str], **environ: str) -> Iterator[None]:
    """A role as a process, ended as a pod ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "kvgauge", *arguments], stderr=subprocess.PIPE, text=True, env={**os.environ, **environ}
    ) as process:
        try:
            assert process.stderr is not None
            said = ""
            while not re.search(r"kvgauge [\d.]+ (serves|injects)", said):
                line = process.stderr.readline()
                assert line, said
                said += line
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


@contextmanager
def verified(name: str, port: int, authority: str) -> Iterator[http.client.HTTPConnection]:
    """A connection as the API server makes it: verified for the Service's name by the CA that it was told."""
    context = ssl.create_default_context(cadata=base64.b64decode(authority).decode())
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        connection = http.client.HTTPConnection(name)
        connection.sock = secure
        yield connection


@dataclass(frozen=True, slots=True)
class Prepared:
    """Arguments of a role's container, on free ports and with its Secret in a folder."""

    arguments: list[str]
    port: int
    metrics_port: int


def prepared(manifests: list[Manifest], role: str, folder: Path) -> Prepared:
    for key, value in named(manifests, "Secret", f"kvgauge-{role}-tls")["data"].items():
        (folder / key).write_bytes(base64.b64decode(value))
    (container,) = named(manifests, "Deployment", f"kvgauge-{role}")["spec"]["template"]["spec"]["containers"]
    (place,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "tls"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    port, metrics_port = free_port(), free_port()
    replaced = {
        f"--port={ports['https']}": f"--port={port}",
        f"--metrics-port={ports['metrics']}": f"--metrics-port={metrics_port}",
    }
    assert set(replaced) <= set(container["args"])
    arguments = [replaced.get(argument, argument).replace(place, str(folder)) for argument in container["args"]]
    return Prepared(arguments, port, metrics_port)


def status(port: int, path: str) -> int:
    """Of a plain GET."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def probes(manifests: list[Manifest], role: str) -> set[str]:
    """Paths that the kubelet asks for."""
    (container,) = named(manifests, "Deployment", f"kvgauge-{role}")["spec"]["template"]["spec"]["containers"]
    return {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}


def test_the_api_server_reaches_the_injector_and_gets_a_pod_with_a_sidecar(tmp_path: Path) -> None:
    manifests = render({"certificates": {"mode": "chart"}, "sidecar": {"native": "always"}})
    client = named(manifests, "MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"]
    name = f"{client['service']['name']}.{NAMESPACE}.svc"
    role = prepared(manifests, "injector", tmp_path)
    with running(role.arguments):
        for path in (*probes(manifests, "injector"), "/metrics"):
            eventually(lambda path=path: status(role.metrics_port, path) == 200, what=path)  # type: ignore[misc]
        with verified(name, role.port, client["caBundle"]) as connection:
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request("POST", f"{client['service']['path']}?timeout=3s", json.dumps(REVIEW), headers)
            response = json.loads(connection.getresponse().read())["response"]
    assert (response["uid"], response["allowed"]) == ("7", True)
    patch = {one["path"]: one["value"] for one in json.loads(base64.b64decode(response["patch"]))}
    (sidecar,) = patch["/spec/initContainers"]
    assert sidecar["image"] == "kvgauge:0.1.0"


def test_the_api_server_reaches_the_aggregator_which_asks_who_it_is(tmp_path: Path) -> None:
    manifests = render({"certificates": {"mode": "chart"}})
    spec = named(manifests, "APIService", "v1beta2.custom.metrics.k8s.io")["spec"]
    role = prepared(manifests, "aggregator", tmp_path)
    with fake_api_server.serving([], lists=True) as kubeconfig:
        (tmp_path / "kubeconfig").write_text(kubeconfig, encoding="utf-8")
        with running(role.arguments, KUBECONFIG=str(tmp_path / "kubeconfig")):
            for path in (*probes(manifests, "aggregator"), "/metrics"):
                eventually(lambda path=path: status(role.metrics_port, path) == 200, what=path)  # type: ignore[misc]
            name = f"{spec['service']['name']}.{spec['service']['namespace']}.svc"
            with verified(name, role.port, spec["caBundle"]) as connection:
                connection.request("GET", f"/apis/{spec['group']}/{spec['version']}", headers={"Connection": "close"})
                assert connection.getresponse().status == 401
