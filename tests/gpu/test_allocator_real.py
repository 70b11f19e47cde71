"""The agent's part for the allocator, in a process that uses a real GPU, against what torch says itself."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .allocator_program import PIECE_BYTES, PIECES

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).parents[2]
SNAPSHOT_LIMIT_SECONDS = 0.005
STATS_LIMIT_SECONDS = 0.002


@pytest.fixture(scope="module")
def looks(torch_python: Path) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [str(torch_python), "-m", "tests.gpu.allocator_program"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "agent")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["look"]: line for line in lines}


def allocator(look: dict[str, Any]) -> dict[str, Any]:
    (found,) = look["found"]["allocators"]
    assert isinstance(found, dict)
    return found


def test_the_agent_is_never_the_first_to_use_a_gpu(looks: dict[str, dict[str, Any]]) -> None:
    look = looks["before CUDA"]
    assert "allocators" in look["found"]["missing"]
    assert look["started"] is False


@pytest.mark.parametrize("name", ["fragmented", "a moment later", "many blocks"])
def test_bytes_are_those_of_torch(looks: dict[str, dict[str, Any]], name: str) -> None:
    found, stats = allocator(looks[name]), looks[name]["stats"]
    for figure in ("allocated", "reserved", "requested", "active", "inactive_split"):
        assert found[f"{figure}_bytes"] == stats[f"{figure}_bytes.all.current"]
    assert (found["alloc_retries"], found["ooms"]) == (stats["num_alloc_retries"], stats["num_ooms"])
    assert found["device"] == 0
    assert found["backend"] == "native"
    if looks[name]["uuid"]:
        assert found["uuid"].removeprefix("GPU-") == looks[name]["uuid"].removeprefix("GPU-")


def test_half_of_a_fragmented_memory_is_held(looks: dict[str, dict[str, Any]]) -> None:
    found = allocator(looks["fragmented"])
    assert found["allocated_bytes"] == PIECES // 2 * PIECE_BYTES
    assert found["reserved_bytes"] >= PIECES * PIECE_BYTES
    assert found["inactive_split_bytes"] > 0


def test_the_largest_free_piece_is_that_of_torchs_snapshot(looks: dict[str, dict[str, Any]]) -> None:
    look = looks["fragmented"]
    found = allocator(look)
    assert found["largest_free_bytes"] == max(look["free"])
    assert found["free_bytes"] == sum(look["free"]) == found["reserved_bytes"] - found["active_bytes"]
    later = allocator(looks["a moment later"])
    assert later["largest_free_bytes"] == found["largest_free_bytes"]
    assert later["snapshot_age_seconds"] > found["snapshot_age_seconds"]


def test_a_look_is_cheap(looks: dict[str, dict[str, Any]]) -> None:
    assert allocator(looks["fragmented"])["snapshot_seconds"] < SNAPSHOT_LIMIT_SECONDS
    assert looks["a moment later"]["seconds"] < STATS_LIMIT_SECONDS


def test_a_snapshot_that_would_take_long_is_left_out(looks: dict[str, dict[str, Any]]) -> None:
    look = looks["many blocks"]
    assert "largest_free_bytes" not in allocator(look)
    assert "blocks would take" in look["found"]["missing"]["allocators.largest_free_bytes"]
    assert look["seconds"] < STATS_LIMIT_SECONDS


def test_memory_that_was_given_back_is_not_reported(looks: dict[str, dict[str, Any]]) -> None:
    assert looks["emptied"]["found"]["allocators"] == []
    assert looks["emptied"]["stats"]["reserved_bytes.all.current"] == 0
