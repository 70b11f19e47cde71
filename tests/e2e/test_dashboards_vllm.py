"""Every query of every dashboard, and every rule, on a real Prometheus that scrapes the real sidecar beside a real vLLM
with the agent inside, and a real aggregator that polls that sidecar."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from tests.cluster import test_aggregator as cluster
from tests.cluster.fake_api_server import FakeApiServer
from tests.dashboards.asking import Prometheus, prometheus_with, scraping
from tests.dashboards.boards import NAMES, choices, filled, metrics, queries
from tests.dashboards.replaying import RULES

from .agent_engine import AgentEngine
from .load import Load, random_jobs
from .processes import until
from .sidecar import Sidecar
from .vllm_server import MODEL_NAME

pytestmark = [
    pytest.mark.engines,
    pytest.mark.prometheus,
    pytest.mark.timeout(500),
    pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="what is absent is listed for machines without a GPU"),
]

NO_GPU = "no GPU, so nothing of its memory is known, measured or predicted"
NOT_HERE = {
    "kvgauge_gpu_memory_total_bytes": NO_GPU,
    "kvgauge_gpu_memory_used_bytes": NO_GPU,
    "kvgauge_memory_predicted_bytes": NO_GPU,
    "kvgauge_memory_predicted_total_bytes": NO_GPU,
    "kvgauge_memory_actual_bytes": NO_GPU,
    "kvgauge_memory_prediction_error_ratio": NO_GPU,
    "kvgauge_memory_calibrated_bytes": NO_GPU,
    "kvgauge_memory_drift_bytes": NO_GPU,
    "kvgauge_start_up_seconds": "the one pod was there before the aggregator, which saw none start",
    "kvgauge_allocator_bytes": "torch has an allocator of its own on GPUs only",
    "kvgauge_allocator_fragmentation_ratio": "torch has an allocator of its own on GPUs only",
}
"""Series that dashboards ask for and that there can't be here."""
NAMESPACE, POD = "llm", "llama-1"
VALUES = {
    "namespace": NAMESPACE,
    "pod": POD,
    "model": MODEL_NAME,
    "gpu_price": "2.5",
    "tokens": "400",
    "requests": "100",
    "__rate_interval": "8s",
}
ASKED = [(name, title, filled(expr, VALUES)) for name in NAMES for title, expr in queries(name)]


@pytest.fixture(scope="module")
def engine(vllm_python: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentEngine]:
    server = AgentEngine(vllm_python, tiny_folder, tmp_path_factory.mktemp("boards"), plugins=(), tick_seconds=None)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def prometheus(
    engine: AgentEngine, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("boards-prometheus")
    with ExitStack() as stack:
        flags = ("--spool", str(engine.spool))
        sidecar = stack.enter_context(closing(Sidecar(engine.url, tiny_folder, folder / "sidecar.log", *flags)))
        address = sidecar.url.removeprefix("http://")
        api = stack.enter_context(FakeApiServer(review=cluster.review))
        api.create("deployments", cluster.a_deployment(1))
        api.create("pods", cluster.a_pod(POD, "127.0.0.1", int(address.rpartition(":")[2])))
        aggregator = stack.enter_context(cluster.running(folder, api))
        pages = {"kvgauge": address, "aggregator": f"127.0.0.1:{aggregator.metrics}"}
        config = scraping(pages, rules=[str(file) for file in RULES], namespace=NAMESPACE, pod=POD)
        yield stack.enter_context(prometheus_with(config, folder))


def test_every_query_has_data_but_of_what_cannot_be_here(engine: AgentEngine, prometheus: Prometheus) -> None:
    possible = [asked for asked in ASKED if not metrics(asked[2]) & NOT_HERE.keys()]
    seen: set[tuple[str, str, str]] = set()
    for attempt in range(8):
        # Short ones first, whose ends tell of lengths; then more than the pool holds.
        jobs = random_jobs(30, 40, 30, seed=attempt) if attempt < 2 else random_jobs(30, 200, 400, seed=attempt)
        with Load(engine.url, MODEL_NAME, jobs) as load:
            while load.running and not seen >= set(possible):
                seen |= {asked for asked in ASKED if asked not in seen and prometheus.ask(asked[2])}
        if seen >= set(possible):
            break
    assert [asked for asked in possible if asked not in seen] == []
    # The list is exact: what is on it is nowhere, and all that is nowhere is on it.
    assert [asked for asked in ASKED if asked in seen and asked not in possible] == []
    wanted = {metric for _, _, expr in ASKED for metric in metrics(expr)}
    assert wanted - prometheus.names() == NOT_HERE.keys()


def test_every_variable_finds_its_values(prometheus: Prometheus) -> None:
    expected = {"namespace": NAMESPACE, "pod": POD, "model": MODEL_NAME}

    def found() -> dict[tuple[str, str], list[str]]:
        return {
            (name, label): prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": filled(selector, VALUES)})
            for name in NAMES
            for label, selector in choices(name)
        }

    wanted = {(name, label): [expected[label]] for name in NAMES for label, _ in choices(name)}
    with suppress(AssertionError):
        until(lambda: found() == wanted, 20, "the variables' values")
    assert found() == wanted


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    def rules() -> list[tuple[str, str, str]]:
        found = [rule for group in prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]
        return [(rule["name"], rule["health"], rule.get("lastError", "")) for rule in found]

    until(lambda: all(health != "unknown" for _, health, _ in rules()), 20, "an evaluation of every rule")
    assert [rule for rule in rules() if rule[1] != "ok"] == []
    # The aggregator has seen no pod come.
    lead = f'kvgauge:start_up:seconds{{namespace="{NAMESPACE}"}}'
    assert [sample["value"][1] for sample in until(lambda: prometheus.ask(lead) or None, 10, lead)] == ["120"]
