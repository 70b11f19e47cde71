"""The doctor in a pod: a real sidecar on the embedded engine, and its links broken one by one."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvgauge.doctor.settings import started_with
from kvgauge.simulate.model_folder import write_model_folder
from kvgauge.simulate.serving import EmbeddedEngine
from tests.support.process import KVGAUGE, Sidecar, eventually, sidecar
from tests.support.spool import process, write
from tests.support.web import page, serving, silent, status
from tests.top.terminal import plain, terminal

from .running import DOCTOR, doctor, run

VLLM = (Path(__file__).parents[1] / "captures/vllm/0.32.0/smallcache_under_pressure.prom").read_bytes()


@dataclass(frozen=True)
class Pod:
    engine_url: str
    sidecar: Sidecar

    @property
    def flags(self) -> list[str]:
        return ["--engine-url", self.engine_url, "--sidecar-url", self.sidecar.url]


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """An engine that works and its sidecar; this machine has no GPU, which is no failure."""
    model = write_model_folder(tmp_path_factory.mktemp("model") / "model")
    with EmbeddedEngine(seed=1, model_path=model) as engine, sidecar("--engine-url", engine.base_url) as running:
        eventually(lambda: running.up("engine") == 1, what="an engine that is seen")
        yield Pod(engine.base_url, running)


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_pod_that_works(pod: Pod) -> None:
    told = doctor("--local", *pod.flags)
    assert told.code == 0
    statuses = told.statuses()
    # With or without a GPU here.
    driver = statuses.pop("driver"), statuses.pop("gpu")
    assert driver in {("ok", "ok"), ("warn", "skip")}
    assert set(statuses.values()) == {"ok"}, told
    assert list(told.lines) == [
        "driver", "gpu", "engine", "metrics", "model", "agent", "sidecar", "page", "sources", "advice",
    ]  # fmt: skip
    assert "vllm 0.19.0" in told["engine"].found
    assert "llama, 32 layers" in told["model"].found
    assert "safe " in told["advice"].found


def test_lines_for_people(pod: Pod) -> None:
    answer = run("--local", *pod.flags)
    assert answer.returncode == 0
    assert "\x1b" not in answer.stdout
    first = [line for line in answer.stdout.splitlines() if not line.lstrip().startswith("next: ")]
    assert len(first) == 10
    assert all(line.split()[0] in {"ok", "warn", "fail", "skip"} for line in first)
    # Each complaint stands above its command.
    complaints = answer.stdout.count("\nwarn ") + answer.stdout.startswith("warn ")
    assert answer.stdout.count("next: ") == complaints


def test_colours_on_a_terminal_only(pod: Pod) -> None:
    command = [*DOCTOR, "--local", *pod.flags]
    with terminal(command, 60, 24) as shown:
        assert shown.end() == 0
        assert "\x1b[" in shown.output
        said = plain(shown.output)
    # Lines are left to the terminal to break, so that a command is copied whole.
    assert any(line.startswith("ok    advice") and "binding" in line for line in said), said
    with terminal(command, 60, 24, {"NO_COLOR": "1"}) as shown:
        shown.end()
        assert "\x1b[3" not in shown.output


def test_an_engine_that_is_down(pod: Pod) -> None:
    away = free_address()
    told = doctor("--local", "--engine-url", away, "--sidecar-url", pod.sidecar.url)
    assert told.code == 1
    assert (told["engine"].status, told["metrics"].status, told["model"].status) == ("fail", "skip", "skip")
    assert "refused" in told["engine"].found
    assert away in told["engine"].found
    # What does not hang on it is looked at all the same.
    assert told["advice"].status == "ok"


def test_the_pod_that_the_injector_tells_is_in_the_command(pod: Pod) -> None:
    where = {"POD_NAME": "llama-1", "POD_NAMESPACE": "llm"}
    told = doctor("--local", "--engine-url", free_address(), "--sidecar-url", pod.sidecar.url, environ=where)
    assert told["engine"].next == "kubectl -n llm logs llama-1 --all-containers --tail=30"


@pytest.mark.parametrize(
    ("routes", "reason", "command"),
    [
        ({"/metrics": page(b"# TYPE other gauge\nother 1\n")}, "no_engine_series", "/metrics | head"),
        ({"/metrics": page(b"<html></html>", "text/html")}, "not_metrics", "/metrics | head"),
        ({}, "http_status", "curl -sSi -m 5 http://127.0.0.1:"),
        ({"/metrics": status(401)}, "unauthorized", "read -rs KVGAUGE_ENGINE_API_KEY; "),
    ],
)
def test_a_program_that_is_no_engine(routes: dict[str, object], reason: str, command: str) -> None:
    with serving(routes) as url:  # type: ignore[arg-type]
        told = doctor("--local", "--engine-url", url, "--sidecar-url", url)
    assert told["engine"].status == "fail"
    assert f"({reason})" in told["engine"].found
    assert command in (told["engine"].next or "")
    # The same program is no sidecar either.
    assert told["sidecar"].status == "fail"
    assert told["advice"].status == "skip"


def test_metrics_that_are_missing() -> None:
    without = b"\n".join(line for line in VLLM.split(b"\n") if b"cache_config_info" not in line)
    with serving({"/metrics": page(without)}) as url:
        told = doctor("--local", "--engine-url", url)
    assert (told["engine"].status, told["metrics"].status) == ("ok", "fail")
    assert "capacity_tokens" in told["metrics"].found
    # vLLM's own series is what is missing: no flag stands in for it.
    assert (told["metrics"].next or "").startswith(f"curl -sS -m 5 {url}/metrics")
    queueless = b"\n".join(line for line in VLLM.split(b"\n") if b"num_requests_waiting" not in line)
    with serving({"/metrics": page(queueless)}) as url:
        told = doctor("--local", "--engine-url", url)
    assert told["metrics"].status == "warn"
    assert "waiting" in told["metrics"].found


def test_a_model_that_is_not_understood(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nobody-knows", "hidden_size": 8}')
    told = doctor("--local", *pod.flags, "--model", str(tmp_path))
    assert told["model"].status == "warn"
    assert "not_understood" in told["model"].found
    told = doctor("--local", *pod.flags, "--model", str(tmp_path / "away"))
    assert "not_found" in told["model"].found
    assert told.code == 0


def test_a_spool(pod: Pod, tmp_path: Path) -> None:
    write(tmp_path, process(now=time.monotonic() - 60), age_seconds=60)
    flags = ["--local", *pod.flags, "--spool", str(tmp_path)]
    told = doctor(*flags)
    assert (told.code, told["agent"].status) == (1, "fail")
    assert "(stale)" in told["agent"].found
    assert told["agent"].next == f"ls -l --full-time {tmp_path}"
    write(tmp_path, process(engine="transformers"))
    told = doctor(*flags)
    # Fresh, but of a program that is not this engine.
    assert told["agent"].status == "warn"
    assert "1 process in" in told["agent"].found
    write(tmp_path, process())
    told = doctor(*flags)
    assert told["agent"].status == "ok", told["agent"]


def test_a_sidecar_that_is_down(pod: Pod) -> None:
    away = free_address()
    told = doctor("--local", "--engine-url", pod.engine_url, "--sidecar-url", away, environ={})
    assert told.code == 1
    names = ("sidecar", "page", "sources", "advice")
    assert [told[name].status for name in names] == ["fail", "skip", "skip", "skip"]
    # As it was called, and where it was looked for.
    started = f"{' '.join(KVGAUGE)} sidecar --engine-url {pod.engine_url} --port {away.rpartition(':')[2]}"
    assert told["sidecar"].next == started


def test_a_sidecar_whose_engine_is_away() -> None:
    away = free_address()
    with sidecar("--engine-url", away) as running:
        told = doctor("--local", "--engine-url", away, "--sidecar-url", running.url)
    assert told["sidecar"].status == "ok"
    assert told["page"].status == "ok"
    assert told["sources"].status == told["advice"].status == "fail"
    assert "engine (refused)" in told["sources"].found
    assert told["sources"].next == "ss -ltnp"
    assert told["advice"].next == f"kvgauge top --once --url {running.url}"


def test_all_that_hangs_is_left_behind() -> None:
    over = threading.Event()
    hangs = dict.fromkeys(("/metrics", "/v1/models", "/v1/advice", "/v1/observation"), silent(over))
    began = time.monotonic()
    with serving(hangs) as url:
        try:
            told = doctor("--local", "--engine-url", url, "--sidecar-url", url)
        finally:
            over.set()
    assert time.monotonic() - began < 15
    assert "(timeout)" in told["engine"].found
    assert "(timeout)" in told["sidecar"].found


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--engine-url", "ftp://x"], "engine_url"),
        (["--sidecar-url", "http://user:pw@x"], "sidecar_url"),
        (["--namespace", "No Such"], "namespace"),
        (["--frobnicate"], "--frobnicate"),
        (["--cluster", "--kubeconfig", "/nowhere"], "kubeconfig"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments: list[str], name: str) -> None:
    answer = run(*arguments)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert len(answer.stderr.splitlines()) == 1
    assert name in answer.stderr


def test_without_the_extra_the_cluster_is_one_line() -> None:
    """A Python that cannot import what the extra brings."""
    program = (
        "import sys\n"
        "for name in ('kubernetes', 'aiohttp', 'grpc', 'cryptography'):\n"
        "    sys.modules[name] = None\n"
        "from kvgauge.cli import main\n"
        "main(['doctor', '--cluster'])\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("warn  cluster")
    assert lines[1].strip() == "next: pip install 'kvgauge[cluster]'"


def test_the_flags_of_the_sidecar_beside_it(tmp_path: Path) -> None:
    line = tmp_path / "cmdline"
    line.write_bytes(b"/opt/kvgauge/bin/python\0/opt/kvgauge/bin/kvgauge\0sidecar\0--port=9900\0--print-config\0")
    assert started_with(line) == ["--port=9900"]
    line.write_bytes(b"/pause\0")
    assert started_with(line) == []
    assert started_with(tmp_path / "away") == []


def test_a_sidecars_own_settings_are_taken(pod: Pod, tmp_path: Path) -> None:
    """Its variables and its file hold as they are: another engine, another port."""
    config = tmp_path / "kvgauge.toml"
    config.write_text(f'engine_url = "{pod.engine_url}"\nmax_num_seqs = 64\nlog_level = "warning"\n')
    port = pod.sidecar.url.rpartition(":")[2]
    told = doctor("--local", environ={"KVGAUGE_CONFIG": str(config), "KVGAUGE_PORT": port})
    assert (told["engine"].status, told["advice"].status) == ("ok", "ok")


def test_the_command_is_listed() -> None:
    answer = subprocess.run([*KVGAUGE, "--help"], capture_output=True, text=True, check=False, env={**os.environ})
    assert "doctor" in answer.stdout
    assert "top" in answer.stdout
