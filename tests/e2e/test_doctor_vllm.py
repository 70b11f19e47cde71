"""The doctor beside a real vLLM on the CPU with the agent inside: what it says of each link is so."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import urllib3

from tests.doctor.running import Told, doctor

from .agent_engine import AgentEngine
from .processes import until
from .sidecar import Sidecar
from .vllm_server import MODEL_NAME

pytestmark = [pytest.mark.engines, pytest.mark.timeout(400)]

LINKS = ("engine", "metrics", "model", "agent", "sidecar", "page", "sources", "advice")


@pytest.fixture(scope="module")
def server(vllm_python: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentEngine]:
    server = AgentEngine(vllm_python, tiny_folder, tmp_path_factory.mktemp("doctor"), plugins=(), tick_seconds=None)
    try:
        server.start()
        until(lambda: len(server.files()) == 2, 20, "the files of scheduler and worker")
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def beside(server: AgentEngine, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    log = tmp_path_factory.mktemp("doctor-sidecar") / "sidecar.log"
    with closing(Sidecar(server.url, tiny_folder, log, "--spool", str(server.spool))) as running:
        running.await_read()
        yield running


def version_of(server: AgentEngine) -> str:
    return str(urllib3.request("GET", f"{server.url}/version").json()["version"])


def flags(server: AgentEngine, beside: Sidecar) -> list[str]:
    return ["--local", "--engine-url", server.url, "--sidecar-url", beside.url, "--spool", str(server.spool)]


def statuses(told: Told) -> dict[str, str]:
    """Of all links but the card, which this machine may have or not."""
    return {name: told[name].status for name in LINKS}


def test_every_link_of_a_whole_chain(server: AgentEngine, beside: Sidecar, tiny_folder: Path) -> None:
    told = doctor(*flags(server, beside), environ={})
    assert told.code == 0
    assert statuses(told) == dict.fromkeys(LINKS, "ok"), told
    assert told["engine"].found == f"vllm {version_of(server)} at {server.url} serves {MODEL_NAME}"
    assert told["model"].found.startswith(f"llama, 4 layers, bfloat16, from {tiny_folder}; ")
    assert told["agent"].found.startswith(f"2 processes in {server.spool}, ")
    # What the agent tells is not said to be missing.
    untold = told["metrics"].found.partition("not told: ")[2].split(", ")
    assert not {"live_tokens", "reclaimable_tokens"} & set(untold)
    assert {"engine", "agent", "model"} <= {part.split()[0] for part in told["sources"].found.split(", ")}
    safe = beside.advice()["safe_concurrency"]
    assert told["advice"].found.startswith(f"safe {safe}, binding ")


def test_without_being_told_where_it_finds_the_engine_that_the_sidecar_reads(
    server: AgentEngine, beside: Sidecar
) -> None:
    told = doctor("--local", "--sidecar-url", beside.url, environ={})
    assert told.code == 0
    assert statuses(told) == {
        **dict.fromkeys(LINKS, "ok"),
        "engine": "warn",
        "metrics": "skip",
        "model": "skip",
    }
    assert f"at {server.url}" in told["engine"].found
    assert "another folder" in told["agent"].found
    command = told["engine"].next
    assert command is not None
    surroundings = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    answer = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60, env=surroundings
    )
    assert answer.returncode == 0, answer.stdout
    assert f"ok    engine   vllm {version_of(server)} at {server.url}" in answer.stdout


def test_an_engine_that_dies(server: AgentEngine, beside: Sidecar) -> None:
    """The last of these tests: the engine stays dead."""
    server.kill()

    def all_have_noticed() -> Told | None:
        told = doctor(*flags(server, beside), environ={})
        known = told["agent"].status == told["sources"].status == told["advice"].status == "fail"
        return told if known else None

    told = until(all_have_noticed, 30, "an engine that is known to be dead")
    assert told.code == 1
    assert statuses(told) == {
        **dict.fromkeys(LINKS, "ok"),
        "engine": "fail",
        "metrics": "skip",
        "model": "skip",
        "agent": "fail",
        "sources": "fail",
        "advice": "fail",
    }
    assert f"{server.url}: " in told["engine"].found
    assert "(refused); it is down, still loading, or serves elsewhere" in told["engine"].found
    assert "(stale)" in told["agent"].found
    assert "engine (refused, last " in told["sources"].found
