"""The whole aggregator as a process, between a fake API server, pods, kubectl and a client of its KEDA scaler."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc
import pytest

from kvgauge.cluster.tls import self_signed
from tests.e2e.processes import Found
from tests.e2e.processes import until as waited_until

from .fake_api_server import FakeApiServer
from .fake_api_store import Object
from .keda_client import reference
from .test_reading import PLAIN

ROOT = Path(__file__).parents[2]
TOKEN, GUEST = "secret-of-hpa", "secret-of-guest"
CUSTOM = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/llm"
PODS = f"{CUSTOM}/pods/*/kvgauge_load_ratio"


class Sidecars:
    """Answers for every pod, on all loopback addresses, until told to be silent."""

    def __init__(self) -> None:
        sidecars = self
        self.advice: dict[str, object] = dict(PLAIN)
        self.silent = False

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = json.dumps(sidecars.advice).encode()
                self.send_response(503 if sidecars.silent else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def a_pod(name: str, address: str, port: int) -> Object:
    """As the API server has a Deployment's pod."""
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "llama-6d4cf56db6", "uid": "rs", "controller": True}
    return {
        "metadata": {
            "namespace": "llm",
            "name": name,
            "labels": {"app": "llama", "pod-template-hash": "6d4cf56db6", "kvgauge.dev/sidecar": "true"},
            "annotations": {"kvgauge.dev/port": str(port)},
            "ownerReferences": [owner],
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "engine"}]},
        "status": {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def a_deployment(replicas: int) -> Object:
    return {
        "metadata": {"namespace": "llm", "name": "llama", "labels": {"app": "llama"}},
        "spec": {"replicas": replicas},
        "status": {"replicas": replicas},
    }


def review(kind: str, spec: Object) -> Object:
    """Two tokens are known; the one of a guest may read nothing."""
    if kind == "TokenReview":
        users = {TOKEN: "hpa", GUEST: "guest"}
        user = users.get(spec["token"])
        return {"authenticated": False} if user is None else {"authenticated": True, "user": {"username": user}}
    return {"allowed": spec["user"] == "hpa"}


@dataclass
class Aggregator:
    process: "subprocess.Popen[str]"
    log: Path
    ca: Path
    api: int
    metrics: int
    keda: int | None

    def kubectl(self, *arguments: str, token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
        server = ["--server", f"https://127.0.0.1:{self.api}", "--certificate-authority", str(self.ca)]
        command = ["kubectl", "--kubeconfig=/dev/null", f"--cache-dir={self.ca.parent}/cache", *server]
        return subprocess.run(
            [*command, "--token", token, *arguments], capture_output=True, text=True, check=False, timeout=30
        )

    def raw(self, path: str) -> dict[str, object]:
        """What kubectl gets there. Raises AssertionError with kubectl's own words."""
        answer = self.kubectl("get", "--raw", path)
        assert answer.returncode == 0, answer.stderr
        found: dict[str, object] = json.loads(answer.stdout)
        return found

    def plain(self, path: str) -> tuple[int, str]:
        """The plain port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def until(probe: Callable[[], Found | None], what: str) -> Found:
    return waited_until(probe, 20, what)


@contextmanager
def running(folder: Path, api: FakeApiServer, *flags: str) -> Iterator[Aggregator]:
    pair, ca = self_signed(["127.0.0.1", "localhost"])
    files = {"cert.pem": pair.chain, "key.pem": pair.key, "ca.pem": ca.encode()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    cluster = {"name": "c", "cluster": {"server": api.url}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
    (folder / "kubeconfig").write_text(
        json.dumps({**config, "users": [{"name": "u", "user": {}}], "current-context": "x"})
    )
    log = folder / "log"
    command = [sys.executable, "-m", "tests.cluster.aggregator_process", "--host=127.0.0.1", "--port=0"]
    certificate = [f"--tls-cert={folder}/cert.pem", f"--tls-key={folder}/key.pem"]
    own = [*certificate, "--metrics-port=0", f"--kubeconfig={folder}/kubeconfig", *flags]
    with log.open("w") as errors:
        process = subprocess.Popen([*command, *own], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        told = process.stdout.readline()
        assert told, log.read_text()
        found = Aggregator(process, log, folder / "ca.pem", **json.loads(told))
        until(lambda: found.plain("/readyz")[0] == 200, "an aggregator that is ready")
        yield found
    finally:
        process.kill()
        process.communicate(timeout=10)


@pytest.fixture
def api() -> Iterator[FakeApiServer]:
    with FakeApiServer(review=review) as server:
        yield server
        assert server.complaints == []


@pytest.fixture
def sidecars() -> Iterator[Sidecars]:
    found = Sidecars()
    yield found
    found.close()


@pytest.fixture
def llama(api: FakeApiServer, sidecars: Sidecars) -> FakeApiServer:
    """A Deployment of two pods."""
    api.create("deployments", a_deployment(2))
    for number in (1, 2):
        api.create("pods", a_pod(f"llama-{number}", f"127.0.0.{number + 1}", sidecars.port))
    return api


def names(answer: dict[str, object]) -> list[str]:
    items = answer["items"]
    assert isinstance(items, list)
    return sorted(item["describedObject"]["name"] for item in items)


def told(aggregator: Aggregator, path: str) -> dict[str, object] | None:
    answer = aggregator.kubectl("get", "--raw", path)
    return json.loads(answer.stdout) if answer.returncode == 0 else None


@pytest.mark.kubectl
def test_kubectl_reads_what_the_sidecars_say(tmp_path: Path, llama: FakeApiServer, sidecars: Sidecars) -> None:
    with running(tmp_path, llama) as aggregator:
        until(lambda: (found := told(aggregator, PODS)) and names(found) == ["llama-1", "llama-2"], "both pods")
        versions = aggregator.kubectl("api-versions").stdout.split()
        assert {"custom.metrics.k8s.io/v1beta1", "custom.metrics.k8s.io/v1beta2"} <= set(versions)
        assert "external.metrics.k8s.io/v1beta1" not in versions
        selected = aggregator.raw(f"{PODS}?labelSelector=app%3Dllama,!x")
        assert names(selected) == ["llama-1", "llama-2"]
        path = f"{CUSTOM}/deployments.apps/llama/kvgauge_required_replicas"
        required = until(lambda: told(aggregator, path), "a count of replicas")
        items = required["items"]
        assert isinstance(items, list)
        # Nothing was seen yet that would change the two.
        assert items[0]["value"] == "2"


@pytest.mark.kubectl
def test_who_may_not_read_gets_nothing(tmp_path: Path, llama: FakeApiServer) -> None:
    with running(tmp_path, llama) as aggregator:
        until(lambda: told(aggregator, PODS), "figures")
        for token, word in ((GUEST, "forbidden"), ("nobodys-token", "Unauthorized")):
            answer = aggregator.kubectl("get", "--raw", PODS, token=token)
            assert answer.returncode == 1
            assert word.lower() in answer.stderr.lower() or "logged in" in answer.stderr
            assert "llama" not in answer.stdout
        log = aggregator.log.read_text()
        assert "secret-of" not in log
        assert "nobodys-token" not in log


@pytest.mark.kubectl
def test_silence_is_unavailable_and_the_api_server_may_be_away(
    tmp_path: Path, llama: FakeApiServer, sidecars: Sidecars
) -> None:
    with running(tmp_path, llama, "--stale-after=2s", "--interval=200ms") as aggregator:
        until(lambda: (found := told(aggregator, PODS)) and names(found) == ["llama-1", "llama-2"], "both pods")
        llama.away()
        # What was asked lately of the API server is remembered; what it last told is kept.
        assert names(aggregator.raw(PODS)) == ["llama-1", "llama-2"]
        assert aggregator.plain("/livez")[0] == aggregator.plain("/readyz")[0] == 200
        llama.back()
        sidecars.silent = True
        silent = until(
            lambda: answer.stderr if (answer := aggregator.kubectl("get", "--raw", PODS)).returncode else None,
            "silence",
        )
        assert "none of the 2 selected pods" in silent
        page = aggregator.plain("/metrics")[1]
        assert 'kvgauge_pods{kind="Deployment",namespace="llm",state="silent",workload="llama"} 2.0' in page
        assert 'kvgauge_polls_total{outcome="stale"}' in page
        sidecars.silent = False
        until(lambda: told(aggregator, PODS), "figures again")


def test_keda_is_answered_from_the_same_store(tmp_path: Path, llama: FakeApiServer) -> None:
    with (
        running(tmp_path, llama, "--keda-port=0") as aggregator,
        grpc.insecure_channel(f"127.0.0.1:{aggregator.keda}") as channel,
    ):
        active = channel.unary_unary("/externalscaler.ExternalScaler/IsActive")
        assert active(reference(workload="deployment/llama"), timeout=10)


def test_it_ends_in_an_orderly_way(tmp_path: Path, llama: FakeApiServer) -> None:
    with running(tmp_path, llama, "--scale-in-helper", "--events", "--lease-namespace=kvgauge") as aggregator:
        until(lambda: "kvgauge_leader 1.0" in aggregator.plain("/metrics")[1], "a leader")
        began = time.monotonic()
        aggregator.process.send_signal(signal.SIGTERM)
        assert aggregator.process.wait(timeout=10) == 0
        assert time.monotonic() - began < 3
        assert llama.get("leases", "kvgauge", "kvgauge-aggregator")["spec"]["holderIdentity"] in {"", None}


@pytest.mark.kubectl
def test_external_metrics_are_never_taken_from_another(tmp_path: Path, llama: FakeApiServer) -> None:
    service = {"metadata": {"name": "v1beta1.external.metrics.k8s.io", "labels": {"app.kubernetes.io/name": "keda"}}}
    llama.create("apiservices", service)
    with running(tmp_path, llama, "--external") as aggregator:
        assert "external.metrics.k8s.io/v1beta1" not in aggregator.kubectl("api-versions").stdout
        assert "belongs to another" in aggregator.log.read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tls-cert=/nowhere"], ["tls_cert", "tls_key"]),
        ([], ["tls_cert", "--self-signed"]),
        (["--tls-cert=/nowhere", "--tls-key=/nowhere"], ["tls_cert", "/nowhere"]),
        (["--self-signed", "--kubeconfig=/nowhere"], ["kubeconfig", "/nowhere"]),
        (["--interval=soon"], ["interval", "soon"]),
        (["--hpa-tolerance=2"], ["hpa_tolerance", "2"]),
    ],
)
def test_bad_input_is_one_line_and_code_2(flags: list[str], words: list[str]) -> None:
    command = [sys.executable, "-m", "kvgauge", "aggregator", "--host=127.0.0.1", "--port=0", "--metrics-port=0"]
    answer = subprocess.run([*command, *flags], capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 2
    line = answer.stderr.strip().splitlines()[-1]
    assert line.startswith("kvgauge: ")
    assert all(word in line for word in words), line
