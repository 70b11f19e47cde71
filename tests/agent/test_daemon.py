"""The agent's thread and file, with parts made for the purpose; forks and exits in processes of their own."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import kvgauge_agent
from kvgauge_agent import log
from kvgauge_agent.daemon import INSTANCE_VARIABLE, Agent
from kvgauge_agent.spool import MAX_BYTES, Spool

SECRET = "the text of a request"


class FixedPart:
    """Says the same each time, or raises it."""

    def __init__(self, name: str, answer: Mapping[str, object] | Exception) -> None:
        self.name = name
        self.answer = answer
        self.asked = 0

    def collect(self) -> Mapping[str, object]:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_said", set())


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(str(tmp_path))


@pytest.fixture
def agent(spool: Spool) -> Iterator[Agent]:
    agent = Agent(spool)
    yield agent
    agent.stop()


def written(spool: Spool) -> dict[str, Any]:
    content = Path(spool.path).read_bytes()
    assert len(content) <= MAX_BYTES
    facts: dict[str, Any] = json.loads(content)
    return facts


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_version_is_that_of_the_distribution() -> None:
    assert version("kvgauge") == kvgauge_agent.AGENT_VERSION


def test_the_file_has_what_the_parts_say(agent: Agent, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INSTANCE_VARIABLE, raising=False)
    agent.describe({"role": "worker", "engine": "vllm", "tp_rank": 0, "model": None})
    agent.register(FixedPart("one", {"memory": {"weights_bytes": 7}, "missing": {"memory.graphs_bytes": "no graphs"}}))
    agent.register(FixedPart("two", {"caches": []}))
    before = time.monotonic()
    agent.tick()
    agent.tick()
    facts = written(spool)
    assert before <= facts["monotonic_seconds"] <= time.monotonic()
    assert abs(facts["wall_seconds"] - time.time()) < 5
    assert (facts["schema"], facts["pid"], facts["instance"], facts["sequence"]) == (1, os.getpid(), os.getpid(), 1)
    assert 0 < facts["tick_seconds"] < 1
    assert (facts["role"], facts["engine"], facts["tp_rank"]) == ("worker", "vllm", 0)
    assert "model" not in facts
    assert facts["memory"] == {"weights_bytes": 7}
    assert facts["caches"] == []
    assert facts["missing"] == {"memory.graphs_bytes": "no graphs"}
    monkeypatch.setenv(INSTANCE_VARIABLE, "17")
    agent.tick()
    assert written(spool)["instance"] == 17


@pytest.mark.parametrize(
    "answer",
    [ValueError(SECRET), {"caches": object()}, {"caches": float("nan")}, {"missing": 3}, 3],
    ids=["raises", "no JSON", "not a number", "no reasons", "no mapping"],
)
def test_a_part_that_fails_is_off_and_the_others_go_on(
    agent: Agent, spool: Spool, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    bad, good = FixedPart("bad", answer), FixedPart("good", {"memory": {}})
    agent.register(bad)
    agent.register(good)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            agent.tick()
        agent.register(bad)
        agent.tick()
    assert (bad.asked, good.asked) == (1, 4)
    assert len(caplog.records) == 1
    assert list(written(spool)["missing"]) == ["bad"]
    assert ".py:" in written(spool)["missing"]["bad"]
    assert "memory" in written(spool)
    assert SECRET not in caplog.text + str(written(spool))


def test_a_file_that_would_be_too_large_loses_its_largest_part(agent: Agent, spool: Spool) -> None:
    agent.register(FixedPart("large", {"caches": list(range(20000)), "scheduler": {"running": 3}}))
    agent.tick()
    facts = written(spool)
    assert facts["scheduler"] == {"running": 3}
    assert facts["missing"] == {"caches": "too large"}
    agent.register(FixedPart("wordy", {"missing": {str(index): "no" for index in range(20000)}}))
    agent.tick()
    assert written(spool)["missing"] == {}
    agent.describe({"model": "a" * MAX_BYTES})
    with pytest.raises(ValueError, match="too large"):
        agent.tick()


def test_the_thread_writes_until_it_is_stopped(agent: Agent, spool: Spool) -> None:
    agent.run()
    agent.run()
    assert [thread.name for thread in threading.enumerate()].count("kvgauge-agent") == 1
    wait_for(lambda: Path(spool.path).exists())
    agent.stop()
    assert not Path(spool.path).exists()
    assert "kvgauge-agent" not in [thread.name for thread in threading.enumerate()]


def test_a_spool_that_cannot_be_written_is_said_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvgauge_agent.daemon.RETRY_SECONDS", 0.01)
    spool = Spool(str(tmp_path / "not" / "yet"))
    agent = Agent(spool)
    part = FixedPart("asked", {})
    agent.register(part)
    with caplog.at_level(logging.WARNING):
        agent.run()
        wait_for(lambda: part.asked > 3)
        (tmp_path / "not").mkdir()
        wait_for(lambda: Path(spool.path).exists())
        agent.stop()
    assert len(caplog.records) == 1
    assert "No such file" in caplog.text


def run_program(program: str, spool: Path) -> "subprocess.CompletedProcess[str]":
    """A Python process with the agent in it, its spool in `spool`."""
    environment = {**os.environ, "KVGAUGE_SPOOL": str(spool)}
    environment.pop(INSTANCE_VARIABLE, None)
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


COMMON = """
import json, multiprocessing, os, sys, threading, time
from pathlib import Path
import kvgauge_agent
spool = Path(os.environ["KVGAUGE_SPOOL"])
def names():
    return sorted(path.name.split("-")[-1] for path in spool.glob("*.json"))
def wait(count):
    deadline = time.monotonic() + 10
    while len(names()) != count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(names()) == count, names()
"""


def test_starting_is_idempotent_and_a_clean_exit_takes_the_file_away(tmp_path: Path) -> None:
    program = f"""{COMMON}
class Part:
    name = "caches"
    def collect(self):
        return {{"caches": [{{"kind": "dynamic"}}]}}
kvgauge_agent.describe(model="a model")
kvgauge_agent.register(Part())
kvgauge_agent.start("server", "vllm", engine_version="1")
kvgauge_agent.start()
assert threading.active_count() == 2
wait(1)
time.sleep(1.2)
facts = json.loads(next(spool.glob("*.json")).read_bytes())
assert (facts["role"], facts["engine"], facts["engine_version"]) == ("server", "vllm", "1"), facts
assert facts["model"] == "a model"
assert facts["caches"] == [{{"kind": "dynamic"}}]
assert facts["missing"] == {{"allocators": "torch is not loaded"}}, facts
print("well")
"""
    done = run_program(program, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_has_an_agent_only_where_it_starts_one(tmp_path: Path, method: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(f"""{COMMON}
def child(starts):
    assert threading.active_count() == 1
    if starts:
        kvgauge_agent.start("worker", "vllm")
        wait(2)
        print("two", flush=True)
if __name__ == "__main__":
    kvgauge_agent.start("scheduler", "vllm")
    wait(1)
    for starts in (False, True):
        process = multiprocessing.get_context("{method}").Process(target=child, args=[starts])
        process.start()
        process.join()
        assert process.exitcode == 0
        assert names() == [f"{{os.getpid()}}.json"]
    print("well")
""")
    spool = tmp_path / "spool"
    spool.mkdir()
    environment = {**os.environ, "KVGAUGE_SPOOL": str(spool)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "two\nwell\n", "")
    assert not list(spool.iterdir())


def test_a_killed_process_leaves_its_file(tmp_path: Path) -> None:
    done = run_program(f"{COMMON}\nkvgauge_agent.start()\nwait(1)\nos.kill(os.getpid(), 9)", tmp_path)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
