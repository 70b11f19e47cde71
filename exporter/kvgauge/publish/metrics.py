"""Renders the table of families as a Prometheus page."""

import math
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from kvgauge.publish.families import FAMILIES, Snapshot

_METRIC_TYPES: dict[str, type[GaugeMetricFamily] | type[CounterMetricFamily]] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
}


def render(snapshot: Snapshot) -> tuple[bytes, bytes]:
    """The page in Prometheus' text format 0.0.4 and in OpenMetrics 1.0.0."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(list(_metrics(snapshot))))
    openmetrics: bytes = generate_openmetrics(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), openmetrics


def _metrics(snapshot: Snapshot) -> Iterator[Metric]:
    for family in FAMILIES:
        metric = _METRIC_TYPES[family.kind](family.name, family.help, labels=family.labels)
        for labels, value in family.rows(snapshot):
            if value is not None and not math.isnan(value):
                metric.add_metric(labels, value)
        if metric.samples:
            yield metric


class _Collected(Collector):
    """What was collected once, for both formats."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics
