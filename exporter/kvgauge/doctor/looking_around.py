"""Looks at the cluster: what the API server has of pods, aggregator, metrics API and autoscalers, as facts."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from kvgauge.cluster.names import DEFAULT_PORT, SIDECAR
from kvgauge.cluster.projecting import pod_of
from kvgauge.cluster.records import Pod
from kvgauge.doctor.asking import Answer, Asker, part, text
from kvgauge.doctor.autoscalers import Hpa, hpa_of, selector_of

APISERVICE = "v1beta2.custom.metrics.k8s.io"
CUSTOM = "/apis/custom.metrics.k8s.io/v1beta2"
LOAD = "kvgauge_load_ratio"
MOST_PODS = 500
MOST_ASKED = 8
"""Sidecars, namespaces and autoscalers that are looked at one by one."""
_AGGREGATOR = "app.kubernetes.io/name=kvgauge,app.kubernetes.io/component=aggregator"


@dataclass(frozen=True, slots=True)
class Scaled:
    """What one autoscaler is about."""

    hpa: Hpa
    target: Answer | None = None
    """None for a kind that is not known here."""
    described: Mapping[str, Answer] = field(default_factory=dict)
    """Of metrics of type Object: by name of the workload, what the API server says of it."""
    pods: Answer | None = None
    """Those that the target selects; None where there is no selector to ask by."""
    selector: str | None = None
    required: Answer | None = None
    """The metric of type Object, read as HPA reads it."""


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """All that was asked. An empty mapping or None: there was nothing to ask."""

    server: str
    version: Answer
    pods: Answer = field(default_factory=lambda: Answer(0, {}))
    sidecars: Mapping[str, Answer] = field(default_factory=dict)
    """By namespace/name."""
    apiservice: Answer = field(default_factory=lambda: Answer(0, {}))
    aggregators: Answer = field(default_factory=lambda: Answer(0, {}))
    loads: Mapping[str, Answer] = field(default_factory=dict)
    """By namespace, the load of its pods as HPA reads it."""
    hpas: Answer = field(default_factory=lambda: Answer(0, {}))
    scaled: tuple[Scaled, ...] = ()
    namespace: str | None = None


def with_sidecars(answer: Answer) -> list[Pod]:
    """The pods of a list that carry one. What cannot be read of one pod leaves it out."""
    found = []
    for item in answer.items:
        try:
            pod = pod_of(item, DEFAULT_PORT)
        except ValueError:
            continue
        if pod is not None and not pod.deleting:
            found.append(pod)
    return found


async def look_around(asker: Asker, server: str, namespace: str | None) -> ClusterFacts:
    """Asks all. `server` is only told on."""
    version = await asker.get("/version")
    if not version.good:
        return ClusterFacts(server, version, namespace=namespace)
    within = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    limit = ("limit", str(MOST_PODS))
    pods, apiservice, aggregators, hpas = await asyncio.gather(
        asker.get(f"/api/v1{within}/pods", [("labelSelector", f"{SIDECAR}=true"), limit]),
        asker.get(f"/apis/apiregistration.k8s.io/v1/apiservices/{APISERVICE}"),
        asker.get("/api/v1/pods", [("labelSelector", _AGGREGATOR), limit]),
        asker.get(f"/apis/autoscaling/v2{within}/horizontalpodautoscalers", [limit]),
    )
    if aggregators.refused:
        home = text(part(apiservice.document, "spec", "service"), "namespace")
        if home:
            aggregators = await asker.get(f"/api/v1/namespaces/{home}/pods", [("labelSelector", _AGGREGATOR), limit])
    found = with_sidecars(pods)
    asked = [pod for pod in found if pod.ready and pod.address][:MOST_ASKED]
    following = [hpa for item in hpas.items if (hpa := hpa_of(item)) is not None][:MOST_ASKED]
    homes = sorted({pod.key.namespace for pod in found} | {hpa.namespace for hpa in following})[:MOST_ASKED]
    answers, loads, scaled = await asyncio.gather(
        asyncio.gather(*(_sidecar(asker, pod) for pod in asked)),
        asyncio.gather(*(asker.get(f"{CUSTOM}/namespaces/{home}/pods/*/{LOAD}") for home in homes)),
        asyncio.gather(*(_scaled(asker, hpa) for hpa in following)),
    )
    return ClusterFacts(
        server=server,
        version=version,
        pods=pods,
        sidecars={f"{pod.key.namespace}/{pod.key.name}": answer for pod, answer in zip(asked, answers, strict=True)},
        apiservice=apiservice,
        aggregators=aggregators,
        loads=dict(zip(homes, loads, strict=True)),
        hpas=hpas,
        scaled=tuple(scaled),
        namespace=namespace,
    )


async def _sidecar(asker: Asker, pod: Pod) -> Answer:
    """Its advice, through the API server, since pods cannot be reached from everywhere."""
    port = (pod.address or "").rpartition(":")[2]
    return await asker.get(f"/api/v1/namespaces/{pod.key.namespace}/pods/http:{pod.key.name}:{port}/proxy/v1/advice")


async def _scaled(asker: Asker, hpa: Hpa) -> Scaled:
    if not hpa.target.known:
        return Scaled(hpa)
    target = await asker.get(hpa.target.path(hpa.namespace))
    described: dict[str, Answer] = {}
    required = None
    for metric in hpa.metrics:
        if metric.fault or metric.described is None or not metric.described.known:
            continue
        if metric.described != hpa.target:
            described[metric.described.name] = await asker.get(metric.described.path(hpa.namespace))
        about = f"{metric.described.resource}/{quote(metric.described.name, safe='')}/{metric.name}"
        required = await asker.get(f"{CUSTOM}/namespaces/{hpa.namespace}/{about}")
    selector = selector_of(target.document) if target.good else None
    pods = None
    if selector is not None:
        query = [("labelSelector", selector), ("limit", str(MOST_PODS))]
        pods = await asker.get(f"/api/v1/namespaces/{quote(hpa.namespace, safe='')}/pods", query)
    return Scaled(hpa, target, described, pods, selector, required)
