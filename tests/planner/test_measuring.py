"""What the cache is worth, measured by real torch and Transformers."""

import importlib.metadata
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.tiny_model import TinyShape, write
from tests.planner.running import without

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Our packages in the engine's environment, which does not have them installed."""
    folder = tmp_path_factory.mktemp("installed")
    version = importlib.metadata.version("kvgauge")
    metadata = folder / f"kvgauge-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: kvgauge\nVersion: {version}\n")
    paths = [ROOT / "model", ROOT / "exporter", ROOT, folder]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def measured(environ: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    named = os.environ.get("KVGAUGE_VLLM_PYTHON")
    if not named:
        pytest.fail("KVGAUGE_VLLM_PYTHON is not set: run these tests by scripts/test --engines", pytrace=False)
    return subprocess.run(
        [named, "-m", "tests.planner.standin", "--measure-cache", "--device", "cpu", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env=environ,
    )


@pytest.mark.engines
def test_a_real_model_is_faster_with_its_cache_which_has_the_size_expected(
    environ: dict[str, str], tmp_path: Path
) -> None:
    shape = TinyShape()
    write(tmp_path, shape)
    prompt, new = 256, 48
    made = measured(environ, "--model", str(tmp_path), "--prompt-tokens", "256", "--new-tokens", "48", "--json")
    assert (made.returncode, made.stderr) == (0, "")
    answer = json.loads(made.stdout)
    assert (answer["device"], answer["dtype"]) == ("cpu", "bfloat16")
    assert answer["speed_up"] > 1
    assert answer["with_cache"]["cache_bytes"] == (prompt + new - 1) * shape.kv_bytes_per_token
    assert answer["ideal_cache_bytes"] == answer["with_cache"]["cache_bytes"]
    assert answer["without_cache"]["cache_bytes"] is None
    assert answer["without_cache"]["peak_bytes"] > 0


@pytest.mark.engines
def test_without_a_model_a_small_one_is_measured_and_told_as_a_table(environ: dict[str, str]) -> None:
    made = measured(environ, "--prompt-tokens", "64", "--new-tokens", "32")
    assert (made.returncode, made.stderr) == (0, "")
    assert "times as fast" in made.stdout
    assert "\x1b" not in made.stdout


@pytest.mark.engines
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--model", "/nowhere"], "model"),
        (["--device", "tpu"], "device"),
        (["--new-tokens", "1"], "new_tokens"),
        (["--new-tokens", "2000000"], "new_tokens"),
    ],
)
def test_bad_input_is_one_line(environ: dict[str, str], arguments: list[str], name: str) -> None:
    made = measured(environ, *arguments)
    assert (made.returncode, made.stdout) == (2, "")
    (line,) = made.stderr.splitlines()
    assert line.startswith(f"kvgauge: {name}: ")


def test_without_torch_one_line_names_the_extra() -> None:
    made = without("torch", "--measure-cache")
    assert (made.returncode, made.stdout) == (2, b"")
    (line,) = made.stderr.decode().splitlines()
    assert "torch is missing" in line
    assert "kvgauge[torch]" in line
