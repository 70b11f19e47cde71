"""*Fleet*: are we safe, who is not, are there as many pods as it takes, and what does waste cost."""

from dashboards.building.parts import (
    LOAD,
    MODELS,
    PODS,
    USAGE,
    About,
    Column,
    Panel,
    Query,
    board,
    figure,
    fill,
    lines,
    listing,
    number,
)
from grafana_foundation_sdk.builders.dashboard import Dashboard

_RED_FROM_ONE = ((1.0, "red"),)
_BY_POD = "max by (namespace, pod, model)"
_NAMESPACE = 'namespace=~"$namespace"'


def _told(metric: str, also: str = "") -> str:
    """The aggregator's figure of each workload: each of its replicas tells it, so it would count twice."""
    return f"max by (namespace, kind, workload) ({metric}{{{_NAMESPACE}{also}}})"


# Of a pod: bytes on one GPU, over what one GPU has, times its GPUs. Ranks have GPUs of like size.
_WASTED_GPUS = (
    f"avg by (namespace, pod) (sum by (namespace, pod, rank) (kvgauge_waste_bytes{{{MODELS}}}))"
    f" / on (namespace, pod) avg by (namespace, pod) (kvgauge_gpu_memory_total_bytes{{{PODS}}})"
    f" * on (namespace, pod) count by (namespace, pod) (kvgauge_gpu_memory_total_bytes{{{PODS}}})"
)

_SURPLUS_GPUS = (
    f"sum by (namespace) (clamp_min({_told('kvgauge_workload_replicas')}"
    f" - {_told('kvgauge_required_replicas')}, 0))"
    f" * on (namespace) avg by (namespace) (count by (namespace, pod) (kvgauge_gpu_memory_total_bytes{{{_NAMESPACE}}}))"
)
_MONTH_HOURS = 730
_SILENT = ',state="silent"'
_WASTE_ALERT = ((0.1, "orange"),)
"""A pod that wastes more for hours is an alert."""


def made() -> Dashboard:
    """The dashboard."""
    about = "Are the pods safe, which are not, are there enough, what is wasted."
    price = "What a GPU costs for an hour, in your money. The default is only an example."
    empty = board("fleet", "kvgauge / Fleet", about)
    empty.with_variable(number("gpu_price", "Price of a GPU-hour", "2.5", price))
    return fill(
        empty,
        [("Are we safe?", _safe()), ("Who is not?", _who()), ("Replicas", _replicas()), ("Waste", _waste())],
    )


def _safe() -> list[Panel]:
    return [
        figure(
            About(
                "Highest load",
                "Demand over safe capacity of the fullest pod, the queue included. From 1 on requests wait or lose "
                "their place in the pool: add pods, or see which limit binds.",
                "percentunit",
                "kv-pressure",
                LOAD,
            ),
            Query(f"max(kvgauge_load_ratio{{{MODELS}}})"),
        ),
        figure(
            About(
                "Pods above safe load",
                "Pods that are asked for more than they can safely hold. The table below names them.",
                "short",
                "kv-pressure",
                _RED_FROM_ONE,
            ),
            Query(f"sum(max by (namespace, pod) (kvgauge_load_ratio{{{MODELS}}}) > bool 1)"),
        ),
        figure(
            About(
                "Pods full within 10 minutes",
                "Pods whose KV pool will be full within 10 minutes at the present trend. Send them less, or add pods.",
                "short",
                "kv-exhaustion-near",
                _RED_FROM_ONE,
            ),
            Query(f"sum(min by (namespace, pod) (kvgauge_kv_exhaustion_seconds{{{MODELS}}}) < bool 600)"),
        ),
        figure(
            About(
                "Pods without valid advice",
                "Pods whose advice stands on old or missing facts; those whose engine was put to sleep are left out. "
                "Their other figures are not to be trusted: look at the sources.",
                "short",
                "advice-invalid",
                _RED_FROM_ONE,
            ),
            Query(
                f"sum((min by (namespace, pod) (kvgauge_advice_valid{{{PODS}}}) < bool 1) unless on (namespace, pod)"
                f" (max by (namespace, pod) (kvgauge_engine_asleep{{{PODS}}}) == 1))"
            ),
        ),
        figure(
            About(
                "Silent pods",
                "Ready pods that tell the aggregator nothing valid. They count as full. Of all models of the "
                "namespace. Needs the aggregator's page.",
                "short",
                "page-down",
                _RED_FROM_ONE,
            ),
            Query(f"sum({_told('kvgauge_pods', _SILENT)})"),
        ),
        figure(
            About(
                "Sources lost",
                "Sources that a sidecar could not read at its last try, and could within the hour, in the whole "
                "namespace. One that never was there, such as an agent, is not counted.",
                "short",
                "source-down",
                _RED_FROM_ONE,
            ),
            Query(
                f"sum((1 - kvgauge_source_up{{{_NAMESPACE}}}) * max_over_time(kvgauge_source_up{{{_NAMESPACE}}}[1h]))"
            ),
        ),
    ]


def _who() -> list[Panel]:
    pod = (
        "/d/kvgauge-pod?${datasource:queryparam}&var-namespace=${__data.fields.namespace}"
        "&var-pod=${__value.raw}&${runbooks:queryparam}&${__url_time_range}"
    )
    return [
        listing(
            About(
                "Pods by load",
                "Each pod's load, usage, running and safe requests, and the time until its pool is full. An empty "
                "cell is not known, not 0. Open a pod to see which limit binds and why.",
                "short",
                "kv-pressure",
            ),
            Column(f"sort_desc({_BY_POD} (kvgauge_load_ratio{{{MODELS}}}))", "Load", "percentunit", LOAD),
            Column(f"{_BY_POD} (kvgauge_kv_usage_ratio{{{MODELS}}})", "KV usage", "percentunit", USAGE),
            Column(
                f'sum by (namespace, pod, model) (kvgauge_requests{{{MODELS},state="running"}})', "Running", "short"
            ),
            Column(
                f'sum by (namespace, pod, model) (kvgauge_requests{{{MODELS},state="waiting"}})', "Waiting", "short"
            ),
            Column(f"sum by (namespace, pod, model) (kvgauge_safe_concurrency{{{MODELS}}})", "Safe", "short"),
            Column(
                f"min by (namespace, pod, model) (clamp_max(kvgauge_kv_exhaustion_seconds{{{MODELS}}}, 86400))",
                "Full in (24 h: or never)",
                "s",
            ),
            link=("pod", pod),
        ),
        lines(
            About(
                "Load by pod",
                "Demand over safe capacity of the 10 fullest pods at each time. All near 1: add pods. One alone: the "
                "router sends it too much.",
                "percentunit",
                "kv-pressure",
                LOAD,
            ),
            Query(f"topk(10, max by (namespace, pod) (kvgauge_load_ratio{{{MODELS}}}))", "{{namespace}}/{{pod}}"),
        ),
        lines(
            About(
                "Preemptions by pod",
                "Requests a second that lost their KV blocks and must be computed again, of the 10 pods with most. "
                "Anything that lasts wastes GPU time: less concurrency or more pods.",
                "reqps",
                "preemption-storm",
                ((0.1, "red"),),
            ),
            Query(
                f"topk(10, sum by (namespace, pod) (rate(kvgauge_preemptions_total{{{MODELS}}}[$__rate_interval])))",
                "{{namespace}}/{{pod}}",
            ),
        ),
    ]


def _replicas() -> list[Panel]:
    name = "{{namespace}}/{{workload}}"
    return [
        lines(
            About(
                "Required and actual replicas",
                "Pods that each workload needs, that its spec asks for, and that tell valid figures. Required above "
                "actual for minutes: the autoscaler does not follow. Needs the aggregator's page.",
                "short",
                "autoscaler-not-following",
            ),
            Query(_told("kvgauge_required_replicas"), f"required {name}"),
            Query(_told("kvgauge_workload_replicas"), f"asked for {name}"),
            Query(_told("kvgauge_pods", ',state="telling"'), f"telling {name}"),
        ),
        lines(
            About(
                "Replicas missing",
                "Required less asked for. Above 0 there are too few, below 0 more than it takes.",
                "short",
                "autoscaler-not-following",
                _RED_FROM_ONE,
            ),
            Query(f"{_told('kvgauge_required_replicas')} - {_told('kvgauge_workload_replicas')}", name),
            span=6,
        ),
        lines(
            About(
                "Age of the oldest figures",
                "Of the workload's ready pods, as the aggregator has them. From 15 s on a pod counts as full: see why "
                "it does not tell.",
                "s",
                "advice-invalid",
                ((5.0, "orange"), (15.0, "red")),
            ),
            Query(_told("kvgauge_signal_age_seconds"), name),
            span=6,
        ),
    ]


def _waste() -> list[Panel]:
    return [
        figure(
            About(
                "Memory wasted, in GPUs",
                "Bytes that are taken and hold nothing, or a copy, as a number of whole GPUs. Partly estimated; see "
                "the kinds on the right.",
                "short",
                "waste",
            ),
            Query(f"sum({_WASTED_GPUS})"),
            span=6,
        ),
        figure(
            About(
                "Memory wasted, money a month",
                "The same at the price above, for a month of 730 hours. An estimate: memory alone can't be given back.",
                "short",
                "waste",
            ),
            Query(f"sum({_WASTED_GPUS}) * $gpu_price * {_MONTH_HOURS}"),
            span=6,
        ),
        figure(
            About(
                "GPUs of pods not required",
                "Pods asked for beyond what is required, times the GPUs of a pod of the namespace. An estimate. "
                "Needs the aggregator's page.",
                "short",
                "autoscaler-not-following",
            ),
            Query(f"sum({_SURPLUS_GPUS})"),
            span=6,
        ),
        figure(
            About(
                "Pods not required, money a month",
                "What they would cost for a month of 730 hours at the price above.",
                "short",
                "autoscaler-not-following",
            ),
            Query(f"sum({_SURPLUS_GPUS}) * $gpu_price * {_MONTH_HOURS}"),
            span=6,
        ),
        lines(
            About(
                "Waste by pod, in GPUs",
                "Of the 10 pods that waste most. Open the pod to see what kind it is. Above 0.1 for hours it is an "
                "alert.",
                "short",
                "waste",
                _WASTE_ALERT,
            ),
            Query(f"topk(10, {_WASTED_GPUS})", "{{namespace}}/{{pod}}"),
        ),
        lines(
            About(
                "Waste by kind",
                "Bytes on each GPU, averaged over the ranks. Kinds do not overlap. The method says whether it was "
                "measured or estimated.",
                "bytes",
                "waste",
            ),
            Query(f"avg by (kind, method) (kvgauge_waste_bytes{{{MODELS}}})", "{{kind}} ({{method}})"),
            stacked=True,
        ),
    ]
