"""Writes docs/aggregator.md from the tables: `python -m kvgauge.cluster.reference > docs/aggregator.md`."""

import sys

from kvgauge.advise.fleet_history import SILENT_SECONDS
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

## Its own page

On the plain port (`--metrics-port`) with `/livez` and `/readyz`. It is ready once the pods were listed.

| name | type | labels | meaning |
|---|---|---|---|
"""

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
    return "".join((_INTRODUCTION, resources, _NAMESPACE, *metrics, _BAND, *families, _SETTINGS, *settings))


def _default(value: object) -> str:
    if value is None:
        return ""
    return ("on" if value else "off") if isinstance(value, bool) else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
