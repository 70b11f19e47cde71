import subprocess
from collections import Counter
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kvgauge.cluster.durations import Durations
from kvgauge.cluster.measuring import FAMILIES, AggregatorCollector, Sources

from .stocking import NOW_SECONDS, pod, put, reading, required, stocked


class Page:
    """What the collector gives, as a scrape reads it."""

    def __init__(self, sources: Sources) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(AggregatorCollector(sources))
        families = text_string_to_metric_families(generate_latest(registry).decode())
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self._samples.get((name, frozenset(labels.items())))

    def has(self, name: str) -> bool:
        return any(sample == name for sample, _ in self._samples)


WORKLOAD = {"namespace": "llm", "kind": "Deployment", "workload": "llama"}


def sources() -> Sources:
    durations = Durations()
    for seconds in (0.0005, 0.001, 0.3, 60.0):
        durations.add(seconds)
    return Sources(
        stocked(),
        Counter({"ok": 5, "timeout": 1}),
        10.0,
        ages=lambda: {"pods": 0.5, "horizontalpodautoscalers": None},
        leading=lambda: True,
        clock=lambda: NOW_SECONDS,
        poll_durations=durations,
    )


def test_the_page() -> None:
    page = Page(sources())
    assert page.value("kvgauge_required_replicas", **WORKLOAD) == 3
    assert page.value("kvgauge_workload_replicas", **WORKLOAD) == 2
    counts = {"telling": 2, "silent": 1, "starting": 0, "terminating": 1}
    assert {state: page.value("kvgauge_pods", **WORKLOAD, state=state) for state in counts} == counts
    assert page.value("kvgauge_signal_age_seconds", **WORKLOAD) == 60
    assert page.value("kvgauge_polls_total", outcome="timeout") == 1
    assert page.value("kvgauge_watch_age_seconds", kind="pods") == 0.5
    assert page.value("kvgauge_watch_age_seconds", kind="horizontalpodautoscalers") is None
    assert page.value("kvgauge_leader") == 1
    buckets = [
        page.value("kvgauge_poll_duration_seconds_bucket", le=bound) for bound in ("0.001", "0.5", "2.5", "+Inf")
    ]
    assert buckets == [2, 3, 3, 4]
    assert page.value("kvgauge_poll_duration_seconds_sum") == 60.3015


def test_how_long_pods_take_to_start_is_told_once_a_start_was_seen() -> None:
    given = sources()
    assert not Page(given).has("kvgauge_start_up_seconds")
    given.store.put_required(replace(required(3), start_up_seconds=85.0))
    assert Page(given).value("kvgauge_start_up_seconds", **WORKLOAD) == 85


def test_what_is_not_known_has_no_series() -> None:
    given = sources()
    given.store.put_required(required(None))
    page = Page(Sources(given.store, Counter(), 10.0, clock=lambda: NOW_SECONDS))
    assert not page.has("kvgauge_required_replicas")
    assert not page.has("kvgauge_leader")
    assert not page.has("kvgauge_poll_duration_seconds_count")
    assert page.has("kvgauge_pods")


def test_a_pod_with_advice_that_is_not_valid_is_silent() -> None:
    given = sources()
    put(given.store, pod("a"), reading(valid=False))
    assert Page(given).value("kvgauge_pods", **WORKLOAD, state="silent") == 2


@pytest.mark.prometheus
def test_promtool_finds_nothing() -> None:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(AggregatorCollector(sources()))
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(registry), capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr.decode()) == (0, "")


def test_names_are_told_once() -> None:
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))
