"""The demo: the very commands of its pod, run here."""

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvgauge.simulate.scenario import load_scenario
from tests.helm.rendering import VERSIONS, Manifest, named, render
from tests.helm.switches import SWITCHES


def demo(version: str = VERSIONS[-1]) -> list[Manifest]:
    return render(SWITCHES["demo"], version=version)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    file = tmp_path / "demo.toml"
    file.write_text(named(demo(), "ConfigMap")["data"]["demo.toml"], encoding="utf-8")
    return file


def test_the_load_rises_above_what_one_engine_bears_and_falls_again(scenario: Path) -> None:
    found = load_scenario(str(scenario))
    requests = list(found.load().requests())
    assert 300 <= found.load().duration_seconds <= 1200
    assert requests
    assert max(request.prompt_tokens + request.output_tokens for request in requests) < found.spec().max_model_len


@contextmanager
def running(arguments: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """A role of kvgauge as a process of its own, ended as a pod ends."""
    with subprocess.Popen([sys.executable, "-m", "kvgauge", *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def test_the_engine_starts_from_its_arguments_and_answers_its_probe(scenario: Path) -> None:
    spec = named(demo(), "Deployment", "kvgauge-demo")["spec"]["template"]["spec"]
    (engine,) = spec["containers"]
    replaced = {
        f"--scenario=/etc/kvgauge/{scenario.name}": f"--scenario={scenario}",
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=8000": "--port=0",
    }
    assert set(replaced) <= set(engine["args"])
    with running([replaced.get(argument, argument) for argument in engine["args"]]) as process:
        assert process.stderr is not None
        # Warnings about the load come first.
        said = []
        for line in process.stderr:
            said.append(line)
            if "answers at" in line:
                break
        assert said, "nothing said"
        assert "answers at" in said[-1], said
        url = said[-1].split()[-1]
        base = url.removesuffix("/metrics")
        with urllib.request.urlopen(base + engine["readinessProbe"]["httpGet"]["path"]) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(base + "/v1/models") as answer:
            assert json.load(answer)["data"][0]["owned_by"] == "vllm"
        with urllib.request.urlopen(url) as answer:
            assert b"vllm:num_requests_running" in answer.read()


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_the_sidecar_is_beside_it_in_the_versions_manner(version: str) -> None:
    spec = named(demo(version), "Deployment", "kvgauge-demo")["spec"]["template"]["spec"]
    native = version != VERSIONS[0]
    assert [one["name"] for one in spec.get("initContainers", [])] == (["kvgauge"] if native else [])
    assert [one["name"] for one in spec["containers"]] == (["engine"] if native else ["engine", "kvgauge"])


def test_its_autoscaler_follows_the_count() -> None:
    manifests = demo()
    autoscaler = named(manifests, "HorizontalPodAutoscaler")
    deployment = named(manifests, "Deployment", "kvgauge-demo")
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert autoscaler["spec"]["metrics"][0]["object"]["metric"]["name"] == "kvgauge_required_replicas"
    assert "replicas" not in deployment["spec"], "an upgrade would undo what the autoscaler decided"
    alone = render(SWITCHES["demo without autoscaler"])
    assert named(alone, "Deployment", "kvgauge-demo")["spec"]["replicas"] == 1
