"""A real sidecar beside a full engine, a real Prometheus, and an alert that reaches a real Alertmanager."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.dashboards.test_runbooks_at import written
from tests.e2e.processes import free_port, until
from tests.support.process import sidecar
from tests.support.programs import answers, running
from tests.support.web import page, serving

pytestmark = pytest.mark.prometheus

# Its pool, filled up: 7 requests run, one waits.
_PAGE = Path(__file__).parents[1] / "captures/vllm/0.32.0/smallcache_under_pressure.prom"
_FOR_SECONDS = 2
RUNBOOKS_AT = "https://wiki.example.com/kvgauge/runbooks"

Labels = Mapping[str, str]


def full(text: str) -> bytes:
    """The engine's page with 99 % of the pool in use."""
    lines = [
        f"{line.rpartition(' ')[0]} 0.99" if line.startswith("vllm:kv_cache_usage_perc{") else line
        for line in text.splitlines()
    ]
    return ("\n".join(lines) + "\n").encode()


def hastened(folder: Path) -> list[str]:
    """The rules with a `for` and an interval of seconds, otherwise as they are written for runbooks elsewhere."""
    files = []
    for shipped in sorted((written(folder / "elsewhere", RUNBOOKS_AT) / "alerts").glob("*.yaml")):
        rules = yaml.safe_load(shipped.read_text(encoding="utf-8"))
        for group in rules["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                if "alert" in rule:
                    rule["for"] = f"{_FOR_SECONDS}s"
        (folder / shipped.name).write_text(json.dumps(rules), encoding="utf-8")
        files.append(str(folder / shipped.name))
    return files


def told(alertmanager: str) -> dict[str, Mapping[str, Labels]]:
    """What Alertmanager has now, by the name of the alert."""
    body = answers(f"{alertmanager}/api/v2/alerts")
    return {} if body is None else {alert["labels"]["alertname"]: alert for alert in json.loads(body)}


def test_a_full_pool_reaches_alertmanager_with_numbers_and_runbook(tmp_path: Path) -> None:
    prometheus, alertmanager = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    with ExitStack() as stack:
        engine = stack.enter_context(serving({"/metrics": page(full(_PAGE.read_text(encoding="utf-8")))}))
        watching = stack.enter_context(sidecar("--engine-url", engine))
        (tmp_path / "alertmanager.yml").write_text(
            json.dumps({"route": {"receiver": "r"}, "receivers": [{"name": "r"}]})
        )
        stack.enter_context(
            running(
                [
                    "prometheus-alertmanager",
                    f"--config.file={tmp_path}/alertmanager.yml",
                    f"--storage.path={tmp_path}/alertmanager",
                    f"--web.listen-address={alertmanager.removeprefix('http://')}",
                    "--cluster.listen-address=",
                ],
                tmp_path / "alertmanager.log",
                ready=f"{alertmanager}/-/ready",
            )
        )
        (tmp_path / "prometheus.yml").write_text(json.dumps(scraping(watching.url, alertmanager, hastened(tmp_path))))
        stack.enter_context(
            running(
                [
                    "prometheus",
                    f"--config.file={tmp_path}/prometheus.yml",
                    f"--storage.tsdb.path={tmp_path}/prometheus",
                    f"--web.listen-address={prometheus.removeprefix('http://')}",
                ],
                tmp_path / "prometheus.log",
                ready=f"{prometheus}/-/ready",
            )
        )
        found = until(lambda: told(alertmanager).get("KvgaugeKvPressure"), 30, "the alert in Alertmanager")
        others = set(told(alertmanager))
    assert found["labels"]["severity"] == "warning"
    assert (found["labels"]["namespace"], found["labels"]["pod"]) == ("a", "p")
    assert found["annotations"]["summary"] == "The KV pool of a/p is 99% full, and requests wait."
    assert found["annotations"]["runbook_url"] == f"{RUNBOOKS_AT}/kv-pressure.md"
    # An engine that answers is no source that is down, and a sidecar that is scraped no page that is.
    assert not others & {"KvgaugePageDown", "KvgaugeSourceDown", "KvgaugeEngineNotSeen", "KvgaugeQueueStuck"}


def scraping(target: str, alertmanager: str, rules: list[str]) -> dict[str, object]:
    """Prometheus' configuration."""
    labels = {"namespace": "a", "pod": "p"}
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": rules,
        "scrape_configs": [
            {
                "job_name": "kvgauge",
                "static_configs": [{"targets": [target.removeprefix("http://")], "labels": labels}],
            }
        ],
        "alerting": {
            "alertmanagers": [{"static_configs": [{"targets": [alertmanager.removeprefix("http://")]}]}],
        },
    }
