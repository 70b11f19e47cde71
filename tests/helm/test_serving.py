"""A role as the chart starts it: its own arguments, the certificate that the chart made, the probes' paths."""

import base64
import http.client
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helm.rendering import NAMESPACE, Manifest, named, render

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
def running(arguments: list[str]) -> Iterator[tuple[int, int]]:
    """(TLS port, plain port) of a role as a process, ended as a pod ends."""
    with subprocess.Popen([sys.executable, "-m", "kvgauge", *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = ""
            while not (ports := re.search(r"on port (\d+), metrics on port (\d+)", said)):
                line = process.stderr.readline()
                assert line, said
                said += line
            yield int(ports[1]), int(ports[2])
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


def started(manifests: list[Manifest], role: str, folder: Path) -> list[str]:
    """Arguments of a role's container, on free ports and with its Secret in a folder."""
    for key, value in named(manifests, "Secret", f"kvgauge-{role}-tls")["data"].items():
        (folder / key).write_bytes(base64.b64decode(value))
    (container,) = named(manifests, "Deployment", f"kvgauge-{role}")["spec"]["template"]["spec"]["containers"]
    (place,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "tls"]
    arguments = [argument.replace(place, str(folder)) for argument in container["args"]]
    return [re.sub(r"^--(metrics-)?port=\d+$", r"--\1port=0", argument) for argument in arguments]


def test_the_api_server_reaches_the_injector_and_gets_a_pod_with_a_sidecar(tmp_path: Path) -> None:
    manifests = render({"certificates": {"mode": "chart"}, "sidecar": {"native": "always"}})
    client = named(manifests, "MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"]
    name = f"{client['service']['name']}.{NAMESPACE}.svc"
    with running(started(manifests, "injector", tmp_path)) as (port, plain):
        for path in ("/livez", "/readyz", "/metrics"):
            with urllib.request.urlopen(f"http://127.0.0.1:{plain}{path}") as answer:
                assert answer.status == 200
        with verified(name, port, client["caBundle"]) as connection:
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request("POST", f"{client['service']['path']}?timeout=3s", json.dumps(REVIEW), headers)
            response = json.loads(connection.getresponse().read())["response"]
    assert (response["uid"], response["allowed"]) == ("7", True)
    patch = {one["path"]: one["value"] for one in json.loads(base64.b64decode(response["patch"]))}
    (sidecar,) = patch["/spec/initContainers"]
    assert sidecar["image"] == "kvgauge:0.1.0"
