"""`custom.metrics.k8s.io`, v1beta2 and v1beta1: what autoscalers read of pods, workloads and namespaces."""

import json

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from kvgauge.cluster.access import Attributes, Authorize
from kvgauge.cluster.answers import CUSTOM, CUSTOM_VERSIONS, Failure, Value, custom_values, resource_list
from kvgauge.cluster.metrics import POD_METRICS, WORKLOADS, Figures
from kvgauge.cluster.names import REQUIRED_REPLICAS
from kvgauge.cluster.records import PodKey, WorkloadKey
from kvgauge.cluster.selectors import Selector, SelectorError, parse

_ALL = "*"
_EVERYTHING = Selector()


def json_response(document: object, code: int = 200) -> Response:
    """JSON, whatever was asked for: every client of these APIs takes it."""
    return Response(json.dumps(document, separators=(",", ":")), code, media_type="application/json")


def custom_routes(figures: Figures, authorize: Authorize) -> APIRouter:
    """Discovery and reads of the group."""
    router = APIRouter(prefix=f"/apis/{CUSTOM}")

    @router.get("/{version}")
    async def resources(request: Request, version: str) -> Response:
        await authorize(request, None)
        _check_version(version)
        names = {f"pods/{metric}": True for metric in POD_METRICS}
        names |= {f"{resource}/{REQUIRED_REPLICAS}": True for resource in WORKLOADS}
        names |= {f"namespaces/{metric}": False for metric in POD_METRICS}
        return json_response(resource_list(f"{CUSTOM}/{version}", names, "MetricValueList"))

    @router.get("/{version}/namespaces/{namespace}/metrics/{metric}")
    async def of_namespace(request: Request, version: str, namespace: str, metric: str) -> Response:
        await authorize(request, Attributes("get", CUSTOM, version, "namespaces", metric, namespace, namespace))
        _check_version(version)
        _check_pod_metric(metric)
        value = figures.namespace(namespace, metric, selector_of(request, "metricLabelSelector"))
        return json_response(custom_values(version, metric, [value]))

    @router.get("/{version}/namespaces/{namespace}/{resource}/{name}/{metric}")
    async def of_object(
        request: Request, version: str, namespace: str, resource: str, name: str, metric: str
    ) -> Response:
        await authorize(request, Attributes("get", CUSTOM, version, resource, metric, namespace, name))
        _check_version(version)
        if resource == "pods":
            values = _of_pods(figures, request, namespace, name, metric)
        else:
            values = _of_workloads(figures, request, namespace, resource, name, metric)
        return json_response(custom_values(version, metric, values))

    return router


def selector_of(request: Request, parameter: str) -> Selector:
    """The selector in a query parameter; everything where there is none. Raises Failure 400."""
    text = request.query_params.get(parameter, "")
    try:
        return parse(text) if text else _EVERYTHING
    except SelectorError as error:
        raise Failure(400, f"{parameter}: {error}") from None


def _of_pods(figures: Figures, request: Request, namespace: str, name: str, metric: str) -> list[Value]:
    _check_pod_metric(metric)
    if name != _ALL:
        return [figures.pod(PodKey(namespace, name), metric)]
    # A pod's metrics have no labels of their own: a selector of theirs looks at the pod's.
    both = selector_of(request, "labelSelector"), selector_of(request, "metricLabelSelector")
    chosen = Selector((*both[0].requirements, *both[1].requirements))
    return [value for _, value in figures.pods(namespace, metric, chosen)]


def _of_workloads(
    figures: Figures, request: Request, namespace: str, resource: str, name: str, metric: str
) -> list[Value]:
    kind = WORKLOADS.get(resource)
    if kind is None or metric != REQUIRED_REPLICAS:
        raise Failure(404, "no such metric of that resource")
    if name != _ALL:
        return [figures.workload(WorkloadKey(namespace, kind.group, kind.resource, name))]
    return figures.workloads(namespace, kind, selector_of(request, "labelSelector"))


def _check_version(version: str) -> None:
    if version not in CUSTOM_VERSIONS:
        raise Failure(404, f"{CUSTOM} is served in {' and '.join(CUSTOM_VERSIONS)}")


def _check_pod_metric(metric: str) -> None:
    if metric not in POD_METRICS:
        raise Failure(404, "no such metric of that resource")
