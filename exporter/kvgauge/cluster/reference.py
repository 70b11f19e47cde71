"""Writes docs/aggregator.md from the tables: `python -m kvgauge.cluster.reference > docs/aggregator.md`."""

import sys
from dataclasses import fields

from kvgauge.advise.fleet_history import SILENT_SECONDS
from kvgauge.cluster.fleet import MOST_CHOSEN_PODS, MOST_PODS, MOST_WORKLOADS, TARGET_LOAD_RATIO
from kvgauge.cluster.fleet_past import LOOK_SECONDS as PAST_LOOK_SECONDS
from kvgauge.cluster.fleet_past import PAST_SECONDS
from kvgauge.cluster.fleet_records import FleetFigures, FleetPoint, FleetTotals, PodFigures, WorkloadFigures
from kvgauge.cluster.measuring import FAMILIES
from kvgauge.cluster.metrics import POD_METRICS, REQUIRED_STALE_SECONDS, WORKLOADS
from kvgauge.cluster.names import REQUIRED_REPLICAS
from kvgauge.cluster.polling import LONGEST_PAUSE_SECONDS
from kvgauge.cluster.requiring import LOOK_SECONDS
from kvgauge.cluster.settings import AggregatorSettings

_INTRODUCTION = f"""# The aggregator

`kvgauge aggregator` finds the pods that carry a sidecar (label or annotation `kvgauge.dev/sidecar: "true"`), asks each
once a second for its advice, reckons every {LOOK_SECONDS:.0f} s how many pods each workload needs, and serves both to
autoscalers: as `custom.metrics.k8s.io` to HPA, over gRPC to KEDA ([keda.md](keda.md)), and on request as
`external.metrics.k8s.io`. No Prometheus is in the path. [install.md](install.md) installs it.

**Silence is never 0.** A pod that has told nothing valid for {SILENT_SECONDS:.0f} s while it is ready counts as full
when more pods are reckoned, none is shed meanwhile, and its item is left out of lists. Where nothing is known the
answer is 503, which makes HPA keep what there is. A sidecar that does not answer is asked again after 1, 2, 4 s and so
on, at most {LONGEST_PAUSE_SECONDS:.0f} s.

**A restart forgets the arrivals.** Until 45 s and 30 finished requests were seen it asks for what there is. Of two
replicas each reckons for itself; one that was just started asks for no fewer pods than there are, so that their
answers differ for minutes at most, towards more.

## What can be read

| of | path under `/apis/custom.metrics.k8s.io/v1beta2` | |
|---|---|---|
| pods | `namespaces/NS/pods/*/METRIC?labelSelector=...` | an item for each pod that has told it lately |
| a pod | `namespaces/NS/pods/NAME/METRIC` | |
| a workload | `namespaces/NS/RESOURCE/NAME/{REQUIRED_REPLICAS}` | """

_NAMESPACE = """ |
| a namespace | `namespaces/NS/metrics/METRIC` | all its pods: the sum, the highest usage, the soonest exhaustion |

`v1beta1` has the same. A pod's metrics have no labels of their own: `metricLabelSelector` looks at those of the pod.
Load is rounded up to thousandths, capacity and time left down. Selectors that match no pod with a sidecar are 404, pods
that are all silent 503. As an external metric, every item carries `workload` and `kind`, of a pod `pod` too, and
`labelSelector` chooses by these and by the object's labels; while a selected pod is silent there is no answer, for of a
sum no part may be missing.

| metric of a pod | |
|---|---|
"""

_MEANING = {
    "kvgauge_load_ratio": "demand over safe capacity, the queue included; may exceed 1",
    "kvgauge_safe_concurrency": "requests that may run together",
    "kvgauge_running_requests": "running now",
    "kvgauge_waiting_requests": "waiting now",
    "kvgauge_kv_usage_ratio": "slots of the KV pool that sequences hold",
    "kvgauge_kv_exhaustion_seconds": "until the pool is full at the present trend; no item when not heading there",
}

_BAND = f"""
## The dead band

HPA does nothing while the ratio of a metric to its target is within 10 % of 1: from 10 replicas, 11 are swallowed. Give
the HPA `tolerance: 0` where the cluster has it (1.35; the chart does), and the value is the very number. Where it is
not stated, the aggregator reads what the HPA says and publishes a value that gets through: for one more where that is
swallowed, the least number beyond the band, and from there the right one; or a somewhat larger number from which alone
the right one can be reached, where that costs no more pods for some minutes than it saves from then on. For one fewer
it is the largest value that passes and rounds up to it. From 20 replicas on one fewer cannot be had by any value: then
there is up to a tenth too much, never too little. Without an HPA the value is the number itself. `--hpa-tolerance` is
for clusters with another default.

A number of replicas that was not reckoned anew for {REQUIRED_STALE_SECONDS:.0f} s is not served.

## Who may read

The API server's front proxy, by the CA and the names in `kube-system/extension-apiserver-authentication`, which is
followed as it changes; and bearer tokens, by TokenReview. What they may read is asked by SubjectAccessReview and
remembered for 10 s, a refusal for 2 s; while the API server cannot be asked, what was allowed stays so for a minute.
Whoever sends a front proxy's headers without its certificate gets 403. Only
health is anonymous. HPA's own role allows it to read these groups.
"""

_FLEET = f"""
## The fleet's page

On the plain port (`--metrics-port`): `kubectl -n kvgauge port-forward deploy/kvgauge-aggregator 9839`, then
`localhost:9839`. It says whether the fleet is safe, who is not, why, for how long, and what to do. A workload that is
chosen shows its pods, its load of the last quarter of an hour and why it needs so many; the choice stands in the
address, so that a link to it can be sent. The page is one file without parts from elsewhere, asks every two seconds,
and says since when it is stale. What it remembers is of this process alone: a restart forgets it, and each replica
tells what it heard itself.

![The page over a fleet that is over its limit](fleet.png)

*Real sidecars and a real aggregator: four demos, two beside engines with a third of the demos' load, and a pod on
whose port nothing listens. Names, Deployments and the API server are made up.*

| a workload stands | when |
|---|---|
| over | the load that its pods have now (their load ratio follows a fall within a minute) is more than they are |
| silent | a ready pod does not tell, so that nobody can say |
| near | past {TARGET_LOAD_RATIO} for each pod, or one pod is over its limit, or more pods are required than there are |
| safe | else |
| none | no pod is ready |

The whole stands as its worst. A silent pod says why it is: refused, no answer in time, no fresh figures, not advice.

`GET /v1/fleet` is what the page is made from: `totals`, at most {MOST_WORKLOADS} `workloads` and {MOST_PODS} `pods`,
the worst first, and how many are left out. With `?namespace=NS&workload=NAME`, and `&kind=Deployment` where two have
the name, `chosen` is that one, `explanation` says why it needs so many, and `pods` are its own, at most
{MOST_CHOSEN_PODS}; an empty `workload=` means the pods of no known workload. `GET /v1/fleet/history` has the load every
{PAST_LOOK_SECONDS:.0f} s of the last {PAST_SECONDS / 60:.0f} minutes, of all or of the chosen one, and with
`after_wall_seconds=` only what is newer. A bad query is 422; before the pods were listed it is 503. What is not known
is null, and what a pod told too long ago is not known.

| of | keys |
|---|---|
"""

_METRICS = """
**Who may look.** Whoever reaches the port, as with its metrics; `networkPolicy.monitoringFrom` in the chart restricts
both. The page and its JSON tell the names of namespaces, workloads and pods, what the sidecars' own open pages tell of
each pod, and replicas. They tell no label, annotation, address or node, and nothing that a user sent.

## Its own metrics

On the plain port with `/livez` and `/readyz`. It is ready once the pods were listed.

| name | type | labels | meaning |
|---|---|---|---|
"""

_RECORDS = {
    "`/v1/fleet`": FleetFigures,
    "`totals`": FleetTotals,
    "each of `workloads`, and `chosen`": WorkloadFigures,
    "each of `pods`": PodFigures,
    "each point of the history": FleetPoint,
}

_SETTINGS = """
## Settings

Each is a flag, a variable `KVGAUGE_` with the name in capitals, and a key of the file `--config` names.

| flag | default | |
|---|---|---|
"""


def reference() -> str:
    """The page, as Markdown."""
    resources = ", ".join(f"`{resource}`" for resource in WORKLOADS)
    metrics = (f"| `{name}` | {_MEANING[name]} |\n" for name in POD_METRICS)
    families = (
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |\n"
        for family in FAMILIES
    )
    settings = (
        f"| `--{name.replace('_', '-')}` | {_default(field.default)} | {field.description} |\n"
        for name, field in AggregatorSettings.model_fields.items()
    )
    keys = (
        f"| {what} | {', '.join(f'`{field.name}`' for field in fields(record))} |\n"
        for what, record in _RECORDS.items()
    )
    fleet = (_FLEET, *keys, _METRICS)
    return "".join((_INTRODUCTION, resources, _NAMESPACE, *metrics, _BAND, *fleet, *families, _SETTINGS, *settings))


def _default(value: object) -> str:
    if value is None:
        return ""
    return ("on" if value else "off") if isinstance(value, bool) else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
