"""A FAKE cluster to be looked at: the fake API server with a metrics API and pods behind its proxy."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from kvgauge.complaints import InputError
from kvgauge.configuring import validated_role
from kvgauge.doctor.command import examine
from kvgauge.doctor.findings import Finding
from kvgauge.doctor.settings import DoctorSettings
from tests.cluster.fake_api_server import FakeApiServer
from tests.cluster.fake_api_store import Object
from tests.cluster.test_aggregator import a_deployment, a_pod
from tests.cluster.test_reading import PLAIN

CUSTOM = "/apis/custom.metrics.k8s.io/"
APISERVICE = "v1beta2.custom.metrics.k8s.io"


class Cluster(FakeApiServer):
    """A Deployment of two pods with sidecars, an aggregator that serves their metrics, an HPA that follows."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.advice: dict[str, Object | int] = {}
        """By pod, what its sidecar answers, or an HTTP status; PLAIN unless it is here."""
        self.metrics_status = 200
        self.metrics_text: str | None = None
        """What the API server itself says in the place of an answer."""
        self.metrics_age_seconds = 1.0
        self.behind: tuple[str, str] | None = None
        """Address and token of a real aggregator that serves the metrics API."""

    def __enter__(self) -> "Cluster":
        super().__enter__()
        return self

    def fill(self) -> "Cluster":
        deployment = a_deployment(2)
        deployment["spec"]["selector"] = {"matchLabels": {"app": "llama"}}
        self.create("deployments", deployment)
        for number in (1, 2):
            self.create("pods", a_pod(f"llama-{number}", f"127.0.0.{number + 1}", 9838))
        self.create("pods", an_aggregator("kvgauge-aggregator-1"))
        self.create("apiservices", an_apiservice())
        self.create("horizontalpodautoscalers", an_hpa())
        return self

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if "/proxy/" in request.path:
            return self._proxied(request)
        if request.path.startswith(CUSTOM):
            return await self._metrics(request)
        return await super()._serve(request)

    def _proxied(self, request: web.Request) -> web.Response:
        scheme, name, port = request.path.split("/pods/")[1].split("/")[0].split(":")
        assert scheme == "http"
        assert port.isdigit()
        assert request.path.rpartition("/proxy")[2] == "/v1/advice"
        answer = self.advice.get(name, PLAIN)
        if isinstance(answer, int):
            return web.json_response({"kind": "Status", "message": "no", "code": answer}, status=answer)
        return web.json_response(answer)

    async def _metrics(self, request: web.Request) -> web.Response:
        if self.behind is not None:
            address, token = self.behind
            headers = {"Authorization": f"Bearer {token}"}
            async with (
                aiohttp.ClientSession() as session,
                # A test's own certificate on loopback.
                session.get(address + request.path_qs, headers=headers, ssl=False) as answer,
            ):
                return web.Response(body=await answer.read(), status=answer.status, content_type="application/json")
        if self.metrics_text is not None:
            return web.Response(text=self.metrics_text, status=self.metrics_status)
        if self.metrics_status != 200:
            told = {"kind": "Status", "message": "none of the 2 selected pods has told it", "code": self.metrics_status}
            return web.json_response(told, status=self.metrics_status)
        moment = datetime.fromtimestamp(datetime.now(UTC).timestamp() - self.metrics_age_seconds, UTC)
        value = {"timestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ"), "value": "840m", "metricName": "x"}
        items = [{**value, "describedObject": {"name": f"llama-{number}"}} for number in (1, 2)]
        return web.json_response({"kind": "MetricValueList", "metadata": {}, "items": items})


def an_aggregator(name: str, *, ready: bool = True) -> Object:
    labels = {"app.kubernetes.io/name": "kvgauge", "app.kubernetes.io/component": "aggregator"}
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    return {
        "metadata": {"namespace": "kvgauge", "name": name, "labels": labels},
        "spec": {"containers": [{"name": "aggregator"}]},
        "status": {"phase": "Running", "conditions": [condition]},
    }


def an_apiservice(status: str = "True", reason: str = "Passed", message: str = "all checks passed") -> Object:
    condition = {"type": "Available", "status": status, "reason": reason, "message": message}
    return {
        "metadata": {"name": APISERVICE, "labels": {"app.kubernetes.io/name": "kvgauge"}},
        "spec": {"service": {"namespace": "kvgauge", "name": "kvgauge-aggregator", "port": 443}},
        "status": {"conditions": [condition]},
    }


def pods_metric(name: str = "kvgauge_load_ratio") -> Object:
    target = {"type": "AverageValue", "averageValue": "850m"}
    return {"type": "Pods", "pods": {"metric": {"name": name}, "target": target}}


def object_metric(name: str = "kvgauge_required_replicas", of: str = "llama", kind: str = "Deployment") -> Object:
    about = {"apiVersion": "apps/v1" if kind == "Deployment" else "v1", "kind": kind, "name": of}
    target = {"type": "AverageValue", "averageValue": "1"}
    return {"type": "Object", "object": {"metric": {"name": name}, "describedObject": about, "target": target}}


def an_hpa(*metrics: Object, name: str = "llama", target: str = "llama", **conditions: str) -> Object:
    """`conditions`: by type, `Status Reason`, where that is not as it should be."""
    stated = {"AbleToScale": "True Ready", "ScalingActive": "True ValidMetricFound", "ScalingLimited": "False Within"}
    listed = [
        {
            "type": kind,
            "status": told.split()[0],
            "reason": told.split()[1],
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for kind, told in {**stated, **conditions}.items()
    ]
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}
    return {
        "metadata": {"namespace": "llm", "name": name},
        "spec": {"scaleTargetRef": reference, "maxReplicas": 8, "metrics": list(metrics) or [pods_metric()]},
        "status": {"conditions": listed},
    }


def kubeconfig(folder: Path, url: str) -> str:
    cluster = {"name": "c", "cluster": {"server": url}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
    path = folder / "kubeconfig-of-the-doctor"
    path.write_text(json.dumps({**config, "users": [{"name": "u", "user": {}}], "current-context": "x"}))
    return str(path)


def looked(folder: Path, api: FakeApiServer, **more: object) -> Mapping[str, Finding]:
    """What the doctor finds there, by check; of several lines of one check the worst."""
    config = kubeconfig(folder, api.url)
    settings = validated_role(DoctorSettings, {"cluster": True, "kubeconfig": config, **more})
    try:
        found = examine(settings)
    except InputError as error:
        raise AssertionError(str(error)) from None
    assert all(finding.next for finding in found if finding.status in ("warn", "fail")), found
    # Commands ask the cluster that was named.
    named = f" --kubeconfig {config}"
    assert all(named in finding.next for finding in found if finding.next), found
    short = [replace(finding, next=finding.next and finding.next.replace(named, "")) for finding in found]
    worst = ("ok", "skip", "warn", "fail")
    return {finding.check: finding for finding in sorted(short, key=lambda each: worst.index(each.status))}
