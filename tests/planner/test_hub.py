"""`--hub` against a server that stands for the Hub, behind a stand-in of its client."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.model.known import LLAMA_8B
from tests.model.test_weights import write_tensors

CLIENT = """
import os
def hf_hub_url(repo, filename, revision=None, endpoint=None):
    if repo.count("/") != 1:
        raise ValueError(repo)
    return f"{os.environ['STAND_IN_HUB']}/{repo}/resolve/{revision}/{filename}"
"""
UTILS = """
class HFValidationError(ValueError):
    pass
def build_hf_headers(token=None):
    return {"Authorization": "Bearer x"}
"""
SHAPE = {"num_hidden_layers": 2, "hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, whole files only, and notes what was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args: object) -> None:
        """Silence."""


class Hub:
    """A folder of repositories on a local server."""

    def __init__(self, folder: Path, url: str, asked: list[str]) -> None:
        self.folder, self.asked = folder, asked
        self._environ = {**os.environ, "STAND_IN_HUB": url, "PYTHONPATH": f"{folder / 'client'}:{Path.cwd()}"}

    def add(self, repo: str, config: str, tensors: dict[str, Any]) -> None:
        files = self.folder / repo / "resolve" / "main"
        files.mkdir(parents=True)
        (files / "config.json").write_text(config)
        if tensors:
            write_tensors(files / "model.safetensors", tensors)

    def plan(self, *arguments: str, given: str = "", client: bool = True) -> "subprocess.CompletedProcess[str]":
        hidden = "" if client else "sys.modules['huggingface_hub'] = None; "
        code = f"import sys; {hidden}from kvgauge.planner import main; main(sys.argv[1:])"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self._environ,
        )


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    package = tmp_path / "client" / "huggingface_hub"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(CLIENT)
    (package / "utils.py").write_text(UTILS)
    asked: list[str] = []
    handler = type("Noting", (Handler,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    made = Hub(tmp_path, f"http://127.0.0.1:{server.server_port}", asked)
    made.add("org/small", json.dumps({**LLAMA_8B, **SHAPE}), {"model.layers.0.w": ("BF16", [2**20])})
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def test_config_and_weights_come_from_the_hub(hub: Hub) -> None:
    ran = hub.plan("--hub", "--model", "org/small", "--gpu", "l4", "--tp", "1,2", "--json")
    assert ran.returncode == 0, ran.stderr
    one, two = json.loads(ran.stdout)
    assert one["model"] == two["model"] == "org/small"
    assert one["ideal"]["growth_bytes_per_token"] == 2 * 2 * 1024 * 2
    # 2 MiB of tensors, rotary tables beside them, whole on each rank.
    tables = 131072 * 128 * 2
    assert [result["memory"]["weights_bytes"] - tables for result in (one, two)] == [2**21, 2**20]
    # Each file once, for both plans.
    assert [path.rpartition("/")[2] for path in hub.asked] == [
        "config.json",
        "model.safetensors.index.json",
        "model.safetensors",
    ]


def test_the_weights_of_each_way_to_cut_are_its_own(hub: Hub) -> None:
    ran = hub.plan("--hub", "--model", "org/small", "--gpu", "l4", "--fit", "--concurrency", "9", "--gpus-max", "2")
    assert ran.returncode == 0, ran.stderr
    assert "GPU carries 9 requests" in ran.stdout


def test_stated_weights_are_not_fetched(hub: Hub) -> None:
    ran = hub.plan("--hub", "--model", "org/small", "--gpu", "l4", "--params", "1000000", "--json")
    assert ran.returncode == 0, ran.stderr
    assert [path.rpartition("/")[2] for path in hub.asked] == ["config.json"]


def test_training_counts_what_is_stored(hub: Hub) -> None:
    ran = hub.plan("--hub", "--model", "org/small", "--train", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["parameters"] == 2**20


def test_a_batch_names_what_is_missing_and_goes_on(hub: Hub) -> None:
    hub.add("org/broken", "{", {})
    hub.add("org/config-only", json.dumps({**LLAMA_8B, **SHAPE}), {})
    models = ["org/nowhere", "org/broken", "org/config-only", "not a repository", "org/small"]
    cases = [{"model": model, "available_kv_gib": 1} for model in models]
    ran = hub.plan("--hub", "--batch", "-", given="\n".join(map(json.dumps, cases)))
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    fields = [result["error"] and result["error"]["field"] for result in results]
    assert fields == ["config", "config", "weights", "repo", None]
    assert "config.json" in results[0]["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "org/nowhere"], "config: there is no such file (in http://"),
        (["--model", "nowhere"], "repo: 'nowhere' is not the name of a repository"),
        ([], "model: is missing"),
        (["--measure-cache"], "--hub fetches no weights"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(hub: Hub, arguments: list[str], complaint: str) -> None:
    ran = hub.plan("--hub", "--gpu", "l4", *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert complaint in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_without_the_hubs_client_the_missing_package_is_named(hub: Hub) -> None:
    ran = hub.plan("--hub", "--model", "org/small", client=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "kvgauge: huggingface_hub: is not installed: it is needed to read from the Hub\n"


def test_nothing_is_fetched_unasked(hub: Hub) -> None:
    ran = hub.plan("--model", "org/small", "--gpu", "l4")
    assert ran.returncode == 2
    assert "'org/small' is no config.json, folder or .gguf file here" in ran.stderr
    assert not hub.asked
