"""The aggregator's own metrics page: one table of families over the store and its neighbours.

Pods' own figures are on their sidecars' pages; here is what only the whole shows.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kvgauge import __version__
from kvgauge.cluster.durations import Durations
from kvgauge.cluster.records import PodState, Workload, is_fresh
from kvgauge.cluster.store import Store

WORKLOAD_LABELS = ("namespace", "kind", "workload")
Row = tuple[tuple[str, ...], float | Durations | None]


@dataclass(frozen=True, slots=True)
class Sources:
    """What the page is made of."""

    store: Store
    polls: Counter[str]
    """Polls by outcome."""
    stale_after_seconds: float
    ages: Callable[[], Mapping[str, float | None]] = field(default=dict)
    """Seconds since each watched kind was last known to be in step with the API server."""
    leading: Callable[[], bool | None] = field(default=lambda: None)
    """Whether this replica writes; None where nothing is written."""
    clock: Callable[[], float] = time.monotonic
    poll_durations: Durations | None = None

    def reading_age(self, state: PodState) -> float | None:
        """Seconds since the figures of a pod; None where it never told."""
        return None if state.reading is None else max(self.clock() - state.reading.read_seconds, 0.0)

    def state_of(self, state: PodState) -> str:
        """One of STATES."""
        if state.pod.deleting:
            return "terminating"
        if not state.pod.ready:
            return "starting"
        telling = is_fresh(state.reading, self.clock(), self.stale_after_seconds) and state.reading.valid
        return "telling" if telling else "silent"


STATES = ("telling", "silent", "starting", "terminating")
"""Of pods that carry a sidecar: ready with valid advice that is fresh; ready without; not ready; on their way out."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family. `rows` gives (label values, value); a value of None leaves the sample out. A histogram's
    values are Durations."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...]
    rows: Callable[[Sources], Iterable[Row]]


def _labels(workload: Workload) -> tuple[str, str, str]:
    return workload.key.namespace, workload.kind, workload.key.name


def _labels_of(store: Store, state: PodState) -> tuple[str, str, str]:
    """Of the pod's workload; of a pod without one that is known, the namespace alone."""
    workload = store.workload(state.pod.workload) if state.pod.workload is not None else None
    return _labels(workload) if workload is not None else (state.pod.key.namespace, "", "")


def _pods_by_state(sources: Sources) -> Iterator[Row]:
    counts: Counter[tuple[str, str, str, str]] = Counter()
    seen = set()
    for state in sources.store.pods():
        labels = _labels_of(sources.store, state)
        seen.add(labels)
        counts[*labels, sources.state_of(state)] += 1
    # Of a workload that is known every state is known: here 0 is a fact.
    return (((*labels, state), float(counts[*labels, state])) for labels in sorted(seen) for state in STATES)


def _oldest(sources: Sources) -> Iterator[Row]:
    ages: dict[tuple[str, str, str], float] = {}
    for state in sources.store.pods():
        age = sources.reading_age(state)
        if age is None or state.pod.deleting or not state.pod.ready:
            continue
        labels = _labels_of(sources.store, state)
        ages[labels] = max(ages.get(labels, 0.0), age)
    return iter(sorted(ages.items()))


FAMILIES = (
    Family(
        "kvgauge_required_replicas",
        "gauge",
        "Pods that the workload needs, by the fleet rule; absent while nothing was heard of its pods.",
        WORKLOAD_LABELS,
        lambda sources: [(_labels(each.workload), each.replicas) for each in sources.store.all_required()],
    ),
    Family(
        "kvgauge_workload_replicas",
        "gauge",
        "Pods that are asked for in the workload's spec.",
        WORKLOAD_LABELS,
        lambda sources: [
            (_labels(each.workload), each.workload.spec_replicas) for each in sources.store.all_required()
        ],
    ),
    Family(
        "kvgauge_pods",
        "gauge",
        "Pods with a sidecar: telling (ready, valid fresh advice), silent (ready without), starting, terminating.",
        (*WORKLOAD_LABELS, "state"),
        _pods_by_state,
    ),
    Family(
        "kvgauge_signal_age_seconds",
        "gauge",
        "Age of the oldest figures among the workload's ready pods.",
        WORKLOAD_LABELS,
        _oldest,
    ),
    Family(
        "kvgauge_start_up_seconds",
        "gauge",
        "Longest of the last starts of its pods, from a pod's coming to its being ready; absent until one was seen.",
        WORKLOAD_LABELS,
        lambda sources: [(_labels(each.workload), each.start_up_seconds) for each in sources.store.all_required()],
    ),
    Family(
        "kvgauge_polls_total",
        "counter",
        "Polls of sidecars by outcome: ok, or why there was no reading.",
        ("outcome",),
        lambda sources: [((outcome,), float(count)) for outcome, count in sorted(sources.polls.items())],
    ),
    Family(
        "kvgauge_poll_duration_seconds",
        "histogram",
        "How long polls of sidecars took, answered or not.",
        (),
        lambda sources: [((), sources.poll_durations)],
    ),
    Family(
        "kvgauge_watch_age_seconds",
        "gauge",
        "Seconds since what is watched of the API server was last known to be in step with it.",
        ("kind",),
        lambda sources: [((kind,), age) for kind, age in sorted(sources.ages().items())],
    ),
    Family(
        "kvgauge_leader",
        "gauge",
        "1 on the replica that writes to the API server, else 0; absent where nothing is written.",
        (),
        lambda sources: [((), None if (leads := sources.leading()) is None else float(leads))],
    ),
    Family(
        "kvgauge_build_info",
        "gauge",
        "1; the version is in the label.",
        ("version",),
        lambda _: [((__version__,), 1.0)],
    ),
)


_METRIC_TYPES: dict[str, Any] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
}


class AggregatorCollector(Collector):
    """The families, collected at each scrape."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            metric = _METRIC_TYPES[family.kind](family.name, family.help, labels=family.labels)
            for labels, value in family.rows(self._sources):
                if isinstance(value, Durations):
                    metric.add_metric(labels, buckets=value.buckets(), sum_value=value.sum_seconds)
                elif value is not None:
                    metric.add_metric(labels, value)
            if metric.samples:
                yield metric
