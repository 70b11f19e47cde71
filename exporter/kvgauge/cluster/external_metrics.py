"""`external.metrics.k8s.io` v1beta1, where it is asked for: the same figures, which an autoscaler adds up.

Of a sum no part may be missing: while a selected pod is silent, there is no answer.
"""

from collections.abc import Mapping

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from kvgauge.cluster.access import Attributes, Authorize
from kvgauge.cluster.answers import EXTERNAL, EXTERNAL_VERSIONS, Failure, Value, external_values, resource_list
from kvgauge.cluster.custom_metrics import json_response, selector_of
from kvgauge.cluster.metrics import POD_METRICS, Figures
from kvgauge.cluster.names import REQUIRED_REPLICAS
from kvgauge.cluster.selectors import Selector
from kvgauge.cluster.store import Store

Labelled = tuple[Mapping[str, str], Value]


def external_routes(store: Store, figures: Figures, authorize: Authorize) -> APIRouter:
    """Discovery and reads of the group.

    `labelSelector` chooses: of `kvgauge_required_replicas` by the labels `workload` and `kind` beside those of the
    workload, of a pod's metrics by `pod`, `workload` and `kind` beside those of the pod.
    """
    router = APIRouter(prefix=f"/apis/{EXTERNAL}")

    @router.get("/{version}")
    async def resources(request: Request, version: str) -> Response:
        await authorize(request, None)
        _check_version(version)
        names = dict.fromkeys((REQUIRED_REPLICAS, *POD_METRICS), True)
        return json_response(resource_list(f"{EXTERNAL}/{version}", names, "ExternalMetricValueList"))

    @router.get("/{version}/namespaces/{namespace}/{metric}")
    async def values(request: Request, version: str, namespace: str, metric: str) -> Response:
        await authorize(request, Attributes("list", EXTERNAL, version, metric, "", namespace, ""))
        _check_version(version)
        chosen = selector_of(request, "labelSelector")
        if metric == REQUIRED_REPLICAS:
            found = _of_workloads(store, figures, namespace, chosen)
        elif metric in POD_METRICS:
            found = _of_pods(store, figures, namespace, metric, chosen)
        else:
            raise Failure(404, "no such metric")
        return json_response(external_values(metric, found))

    return router


def _of_workloads(store: Store, figures: Figures, namespace: str, chosen: Selector) -> list[Labelled]:
    found: list[Labelled] = []
    for workload in store.workloads():
        labels = {"workload": workload.key.name, "kind": workload.kind}
        if workload.key.namespace == namespace and chosen.matches({**workload.labels, **labels}):
            # One that is not known makes the whole sum unknown.
            found.append((labels, figures.workload(workload.key)))
    if not found:
        raise Failure(404, "no workloads are selected")
    return found


def _of_pods(store: Store, figures: Figures, namespace: str, metric: str, chosen: Selector) -> list[Labelled]:
    found: list[Labelled] = []
    for state in store.pods(namespace):
        pod = state.pod
        labels = {"pod": pod.key.name}
        if pod.workload is not None:
            workload = store.workload(pod.workload)
            labels |= {"workload": pod.workload.name, "kind": workload.kind if workload is not None else ""}
        if pod.deleting or not pod.ready or not chosen.matches({**pod.labels, **labels}):
            continue
        found.append((labels, figures.pod(pod.key, metric)))
    if not found:
        raise Failure(404, "no ready pods with a sidecar are selected")
    return found


def _check_version(version: str) -> None:
    if version not in EXTERNAL_VERSIONS:
        raise Failure(404, f"{EXTERNAL} is served in {' and '.join(EXTERNAL_VERSIONS)}")
