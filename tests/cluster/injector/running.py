"""The injector as a process, behind a certificate made here."""

import base64
import http.client
import json
import os
import re
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.certificates import self_made
from tests.support.process import KVGAUGE

Json = dict[str, Any]


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """(chain, key) for 127.0.0.1, valid for a day."""
    pair, chain, key = self_made(), folder / "tls.crt", folder / "tls.key"
    chain.write_bytes(pair.chain)
    key.write_bytes(pair.key)
    return chain, key


def review(pod: object, **fields: object) -> Json:
    """What the API server sends when a pod is made."""
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "llm",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": pod,
            "oldObject": None,
            "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
            **fields,
        },
    }


def patch_of(response: Json) -> list[Json]:
    """The patch of an answer, empty where there is none."""
    if "patch" not in response:
        return []
    assert response["patchType"] == "JSONPatch"
    found: list[Json] = json.loads(base64.b64decode(response["patch"], validate=True))
    return found


@dataclass
class Injector:
    process: "subprocess.Popen[str]"
    port: int
    metrics_port: int
    chain: Path
    log: list[str]

    def connection(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.chain))
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=context)

    def post(self, body: bytes, headers: Mapping[str, str] | None = None, path: str = "/inject") -> tuple[int, bytes]:
        connection = self.connection()
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ask(self, document: Json) -> Json:
        """The response to a review."""
        status, body = self.post(json.dumps(document).encode())
        assert status == 200, body
        answer = json.loads(body)
        assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        response: Json = answer["response"]
        assert response["uid"] == document["request"]["uid"]
        assert response["allowed"] is True
        return response

    def operations(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def injections(self) -> dict[tuple[str, str], int]:
        """Counts by (result, reason), those of 0 left out."""
        rows = re.findall(
            r'^kvgauge_injections_total\{reason="(\w+)",result="(\w+)"\} ([0-9.]+)$',
            self.operations("/metrics")[1],
            re.MULTILINE,
        )
        return {(result, reason): int(float(count)) for reason, result, count in rows if float(count)}

    def rss_bytes(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


Served = tuple["subprocess.Popen[str]", int, int]


@contextmanager
def served(*arguments: str, log: list[str] | None = None) -> Iterator[Served]:
    """(`kvgauge injector` once it serves, its port, that of its metrics). `log` gets its lines."""
    lines = [] if log is None else log
    command = [*KVGAUGE, "injector", "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ports = None
        for line in process.stderr:
            lines.append(line)
            ports = re.search(r"injects on port (\d+), metrics on port (\d+)", line)
            if ports:
                break
        assert ports is not None, lines
        reader = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
        reader.start()
        try:
            yield process, int(ports[1]), int(ports[2])
        finally:
            process.kill()
            reader.join()


@contextmanager
def injector(folder: Path, *arguments: str) -> Iterator[Injector]:
    """`kvgauge injector` with a certificate in `folder`, once it serves."""
    chain, key = write_certificate(folder)
    log: list[str] = []
    with served("--tls-cert", str(chain), "--tls-key", str(key), *arguments, log=log) as (process, port, metrics_port):
        yield Injector(process, port, metrics_port, chain, log)
