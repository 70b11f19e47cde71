"""The agent in real Transformers programs that know nothing of it: its file against a count of the known lengths.

transformers_agent.py runs in the engine's Python, launched by `python -m kvgauge_agent`, and stands still where its
caches hold a known number of tokens; then the next files that the agent writes are compared with what it says.
"""

import subprocess
from pathlib import Path

import pytest

from .agent_program import compare_pool, in_order, program

pytestmark = [pytest.mark.engines, pytest.mark.timeout(240)]


@pytest.mark.parametrize("scene", ["kept", "dynamic", "static", "static_sliding"])
def test_bytes_and_tokens_of_caches(vllm_python: Path, tmp_path: Path, scene: str) -> None:
    with program(vllm_python, scene, tmp_path / "spool") as running:
        looks = 0
        for expected, found in running.standstills():
            assert in_order(found["caches"]) == in_order(expected["caches"])
            assert found["engine"] == "transformers"
            assert found["engine_version"] == expected["transformers"]
            assert found.get("model") == expected.get("model")
            assert not [key for key in found["missing"] if key.startswith("caches")]
            looks += 1
        assert looks


@pytest.fixture(scope="session")
def quanto(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the package that quantizes caches."""
    folder = tmp_path_factory.mktemp("quanto")
    install = [str(vllm_python), "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(folder)]
    subprocess.run([*install, "optimum-quanto==0.2.7"], check=True, timeout=120)
    return str(folder)


def test_bytes_and_tokens_of_a_quantized_cache(vllm_python: Path, tmp_path: Path, quanto: str) -> None:
    with program(vllm_python, "quantized", tmp_path / "spool", packages=quanto) as running:
        ((expected, found),) = running.standstills()
        assert in_order(found["caches"]) == in_order(expected["caches"])


@pytest.mark.parametrize("scene", ["batching", "batching_shared", "batching_hybrid"])
def test_blocks_and_tokens_of_continuous_batching(vllm_python: Path, tmp_path: Path, scene: str) -> None:
    with program(vllm_python, scene, tmp_path / "spool") as running:
        looks = list(running.standstills())
    (expected, found), (_, idle), (_, stopped) = looks
    (pool,), scheduler = found["caches"], found["scheduler"]
    assert pool["kind"] == "paged"
    assert found["role"] == "scheduler"
    assert found["model"] == "tiny/random"
    compare_pool(expected, pool, scheduler)
    for view in (scheduler, idle["scheduler"]):
        assert view["num_blocks"] == view["used_blocks"] + view["cached_blocks"] + view["free_blocks"]
        slots = sum(group["used_blocks"] * group["block_tokens"] for group in view["groups"])
        assert slots == view["live_tokens"] + view["tail_tokens"]
    for name in ("used_blocks", "live_tokens", "running", "waiting"):
        assert idle["scheduler"][name] == idle["caches"][0][name] == 0
    assert idle["scheduler"]["steps"] > scheduler["steps"]
    assert stopped["caches"] == []
    assert "scheduler" not in stopped
