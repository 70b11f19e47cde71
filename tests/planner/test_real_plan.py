"""The command over the real planner."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvgauge.planner.fitting import fit_context
from kvmodel.plan import plan
from tests.model.known import LLAMA_8B

CASE: dict[str, object] = {"config": LLAMA_8B, "gpu": "h100-80gb"}
MAIN = "import sys; from kvgauge.planner import main; main(sys.argv[1:])"


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With byte code, as an installed program has it."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("pyc"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder without weights."""
    made = tmp_path_factory.mktemp("llama")
    (made / "config.json").write_text(json.dumps(LLAMA_8B))
    return made


def children_cpu_seconds() -> float:
    """Processor time of the ended children: unlike the clock, it does not grow when others keep the machine busy."""
    times = os.times()
    return times.children_user + times.children_system


def planned(environ: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments], capture_output=True, text=True, timeout=60, env=environ
    )


def result(environ: dict[str, str], *arguments: str) -> Any:
    made = planned(environ, *arguments, "--json")
    assert (made.returncode, made.stderr) == (0, "")
    return json.loads(made.stdout)


def test_one_plan_is_quick_and_is_the_planners_own(environ: dict[str, str], folder: Path) -> None:
    arguments = ("--model", str(folder), "--gpu", "h100-80gb", "--tp", "2", "--tokens-per-request", "2048")
    found = result(environ, *arguments)
    assert found == json.loads(
        json.dumps(plan({"model": str(folder), "gpu": "h100-80gb", "tp": 2, "tokens_per_request": 2048}))
    )
    taken = []
    for _ in range(5):
        started = children_cpu_seconds()
        result(environ, *arguments)
        taken.append(children_cpu_seconds() - started)
    assert min(taken) <= 0.4


def test_tables_of_a_real_plan(environ: dict[str, str], folder: Path) -> None:
    made = planned(environ, "--model", str(folder), "--gpu", "h100-80gb", "--tokens-per-request", "2048")
    assert (made.returncode, made.stderr) == (0, "")
    lines = made.stdout.splitlines()
    assert lines[1].startswith("Fits: ")
    assert "requests of 2,048 tokens at once" in made.stdout
    assert max(map(len, lines)) <= 80


def test_the_largest_context_is_within_the_models_limit() -> None:
    one = fit_context(plan, CASE, 1)
    assert one.value is not None
    assert one.value <= 131072
    many = fit_context(plan, CASE, 64)
    assert many.value is not None
    assert many.value < one.value


def test_a_bad_plan_is_one_line(environ: dict[str, str], folder: Path) -> None:
    made = planned(environ, "--model", str(folder), "--gpu", "h100-80gb", "--tp", "3")
    assert (made.returncode, made.stdout) == (2, "")
    assert made.stderr.startswith("kvgauge: tp: ")
    assert len(made.stderr.splitlines()) == 1


def test_ten_thousand_cases_within_ten_seconds(environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    with file.open("w") as lines:
        for number in range(10_000):
            case = {**CASE, "tp": 2 ** (number % 4), "max_model_len": 1024 + number}
            lines.write(json.dumps(case) + "\n")
    started = children_cpu_seconds()
    made = planned(environ, "--batch", str(file))
    taken = children_cpu_seconds() - started
    results = [json.loads(line) for line in made.stdout.splitlines()]
    assert len(results) == 10_000
    assert all(found["error"] is None for found in results)
    assert taken <= 10
