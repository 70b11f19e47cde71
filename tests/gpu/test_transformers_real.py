"""The agent in real Transformers programs on a GPU: bytes and tokens of their caches against the known lengths."""

from pathlib import Path

import pytest

from ..e2e.agent_program import compare_pool, in_order, program

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]


@pytest.mark.parametrize("scene", ["kept", "dynamic", "static", "static_sliding", "offloaded", "static_by_hand"])
def test_bytes_and_tokens_of_caches(torch_python: Path, tmp_path: Path, scene: str) -> None:
    with program(torch_python, scene, tmp_path / "spool", device="cuda") as running:
        looks = 0
        for expected, found in running.standstills():
            assert in_order(found["caches"]) == in_order(expected["caches"])
            (allocator,) = found["allocators"]
            assert allocator["allocated_bytes"] > sum(entry["allocated_bytes"] for entry in found["caches"])
            missing = [key for key in found["missing"] if key.startswith("caches")]
            assert sorted(missing) == sorted(expected.get("missing", []))
            looks += 1
        assert looks


@pytest.mark.parametrize("scene", ["batching", "batching_shared", "batching_hybrid"])
def test_blocks_and_tokens_of_continuous_batching(torch_python: Path, tmp_path: Path, scene: str) -> None:
    with program(torch_python, scene, tmp_path / "spool", device="cuda") as running:
        (expected, found), (_, idle), (_, stopped) = running.standstills()
    (pool,) = found["caches"]
    compare_pool(expected, pool, found["scheduler"])
    (allocator,) = found["allocators"]
    assert allocator["allocated_bytes"] > pool["allocated_bytes"]
    assert idle["scheduler"]["used_blocks"] == 0
    assert stopped["caches"] == []
