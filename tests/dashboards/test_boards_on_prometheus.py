"""Every query of every dashboard on a real Prometheus that scrapes a real sidecar beside the embedded engine."""

import http.server
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.dashboards.asking import Prometheus, prometheus_with, scraping
from tests.dashboards.boards import NAMES, choices, filled, metrics, queries
from tests.e2e.processes import free_port
from tests.support.process import eventually
from tests.support.programs import running

pytestmark = pytest.mark.prometheus

VALUES = {
    "namespace": "a",
    "pod": "p",
    "model": ".*",
    "gpu_price": "2.5",
    "tokens": "4000",
    "requests": "100",
    "__rate_interval": "8s",
}
NOT_HERE = {
    "kvgauge_allocator_bytes": "no agent in the engine",
    "kvgauge_allocator_fragmentation_ratio": "no agent in the engine",
    "kvgauge_memory_calibrated_bytes": "an engine is learned once it has run steadily for longer than this test",
    "kvgauge_memory_drift_bytes": "drift is looked for from two minutes on",
    "kvgauge_source_errors_total": "nothing fails here",
}
AGGREGATOR = b"""kvgauge_required_replicas{namespace="a",kind="Deployment",workload="w"} 2
kvgauge_workload_replicas{namespace="a",kind="Deployment",workload="w"} 3
kvgauge_pods{namespace="a",kind="Deployment",workload="w",state="telling"} 2
kvgauge_pods{namespace="a",kind="Deployment",workload="w",state="silent"} 1
kvgauge_signal_age_seconds{namespace="a",kind="Deployment",workload="w"} 0.4
kvgauge_start_up_seconds{namespace="a",kind="Deployment",workload="w"} 90
"""


class _AggregatorLike(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(AGGREGATOR)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        pass


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    with ExitStack() as stack:
        sidecar, page = free_port(), stack.enter_context(_aggregator_like())
        demo = [sys.executable, "-m", "kvgauge", "demo", "--port", str(sidecar)]
        stack.enter_context(running(demo, folder / "demo.log", ready=f"http://127.0.0.1:{sidecar}/readyz"))
        pages = {"kvgauge": f"127.0.0.1:{sidecar}", "aggregator": f"127.0.0.1:{page}"}
        asked = stack.enter_context(prometheus_with(scraping(pages, rules=[], namespace="a", pod="p"), folder))
        needed = {metric for name in NAMES for _, expr in queries(name) for metric in metrics(expr)} - NOT_HERE.keys()
        eventually(lambda: needed <= asked.names(), 45, "every series the dashboards ask for")
        rate = 'rate(kvgauge_preemptions_total{pod="p"}[8s])'
        eventually(lambda: bool(asked.ask(rate)), 10, "a second scrape")
        yield asked


@pytest.mark.parametrize("name", NAMES)
def test_every_query_is_answered_with_data(prometheus: Prometheus, name: str) -> None:
    empty = []
    for title, expr in queries(name):
        asked = filled(expr, VALUES)
        found = prometheus.ask(asked)
        if not found and not metrics(expr) & NOT_HERE.keys():
            empty.append((title, asked))
    assert not empty


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_finds_values(prometheus: Prometheus, name: str) -> None:
    asked = list(choices(name))
    assert {label for label, _ in asked} == {"namespace", "model", "pod"}
    for label, selector in asked:
        values = prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": filled(selector, VALUES)})
        assert values, label


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_that_is_not_there_has_no_data(prometheus: Prometheus, name: str) -> None:
    nowhere = {**VALUES, "namespace": "none", "pod": "none"}
    for title, expr in queries(name):
        assert prometheus.ask(filled(expr, nowhere)) == [], title


def test_waste_in_gpus_is_a_small_part_of_one(prometheus: Prometheus) -> None:
    expr = dict(queries("fleet"))["Memory wasted, in GPUs"]
    assert 0 < float(prometheus.ask(filled(expr, VALUES))[0]["value"][1]) < 0.2


def test_two_replicas_of_the_aggregator_count_once(prometheus: Prometheus) -> None:
    assert len(prometheus.ask('kvgauge_pods{state="silent"}')) == 2
    of = dict(queries("fleet"))
    assert [sample["value"][1] for sample in prometheus.ask(filled(of["Silent pods"], VALUES))] == ["1"]
    assert [sample["value"][1] for sample in prometheus.ask(filled(of["Replicas missing"], VALUES))] == ["-1"]


def test_a_source_that_never_was_there_is_not_lost(prometheus: Prometheus) -> None:
    expr = filled(dict(queries("fleet"))["Sources lost"], {**VALUES, "namespace": "a"})
    assert [sample["value"][1] for sample in prometheus.ask(expr)] == ["0"]


def test_gpus_of_pods_not_required(prometheus: Prometheus) -> None:
    of = dict(queries("fleet"))
    assert float(prometheus.ask(filled(of["GPUs of pods not required"], VALUES))[0]["value"][1]) == 1
    assert float(prometheus.ask(filled(of["Pods not required, money a month"], VALUES))[0]["value"][1]) == 2.5 * 730


def test_pods_for_so_many_requests(prometheus: Prometheus) -> None:
    expr = dict(queries("capacity"))["Pods for so many requests"]
    # The embedded pool has 476,016 slots: 119 requests of 4,000 tokens.
    assert float(prometheus.ask(filled(expr, VALUES))[0]["value"][1]) == 1
    assert float(prometheus.ask(filled(expr, {**VALUES, "requests": "120"}))[0]["value"][1]) == 2


@contextmanager
def _aggregator_like() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _AggregatorLike)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
