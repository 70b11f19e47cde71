"""The sidecar as its users meet it: a process, its exit codes, its page in good and bad days."""

import gzip
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import threading
import time
import urllib.error
from contextlib import closing
from pathlib import Path

import pytest

from kvgauge.listening import bind, local_url
from kvgauge.sidecar import DriftLog
from tests.assess.living import HOUR, MINUTE, Life, using
from tests.support.facts import GIB
from tests.support.process import KVGAUGE, eventually, sidecar
from tests.support.web import Behaviour, dripping, endless, page, serving, silent, status

CAPTURE = (Path(__file__).parent / "captures/vllm/0.32.0/smallcache_under_pressure.prom").read_bytes()
LOADED = (Path(__file__).parent / "captures/vllm/0.32.0/smallcache_after_prefix_hits.prom").read_bytes()


def run(*arguments: str, environ: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*KVGAUGE, *arguments], capture_output=True, text=True, timeout=30, env={**os.environ, **(environ or {})}
    )


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["sidecar", "--port", "nine"], "port"),
        (["sidecar", "--engine-url", "ftp://x"], "engine_url"),
        (["sidecar", "--config", "/nowhere.toml"], "config"),
        (["sidecar", "--frobnicate"], "--frobnicate"),
        (["demo", "--seconds", "x"], "--seconds"),
        (["demo", "--port", "-3"], "port"),
        (["serve"], "serve"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], name: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert name in result.stderr


def test_a_port_in_use_is_bad_input_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("sidecar", "--host", "127.0.0.1", "--port", str(port))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("kvgauge: port: ")


def test_help_and_version_and_print_config() -> None:
    assert "sidecar" in run("--help").stdout
    assert run("--version").stdout.startswith("kvgauge ")
    assert "--engine-url" in run("sidecar", "--help").stdout
    printed = run("sidecar", "--print-config", environ={"KVGAUGE_PORT": "1234", "KVGAUGE_ENGINE_API_KEY": "hush"})
    assert printed.returncode == 0
    assert "port = 1234" in printed.stdout
    assert "hush" not in printed.stdout


def test_routes() -> None:
    with serving({"/metrics": page(CAPTURE)}) as url, sidecar("--engine-url", url) as running:
        assert running.get("/livez") == b"ok\n"
        assert running.get("/readyz") == b"ok\n"
        deadline = time.monotonic() + 10
        while not (advice := running.json("/v1/advice"))["valid"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert {
            "valid", "safe_concurrency", "limits", "binding_limit", "load_ratio", "kv_exhaustion_seconds", "running",
            "waiting", "age_seconds", "explanation", "terms",
        } <= set(advice)  # fmt: skip
        assert (advice["running"], advice["waiting"], advice["valid"]) == (7, 1, True)
        assert running.json("/v1/observation")["engine"]["ranks"][0]["used_blocks"] == 167
        assert running.json("/v1/assessment")["pools"][0]["active_tokens"] == 167 * 32
        assert running.json("/v1/history")[-1]["running"] == 7
        assert "/v1/advice" in running.json("/openapi.json")["paths"]
        for path in ("/", "/docs"):
            assert b"<html" in running.get(path)
        with pytest.raises(urllib.error.HTTPError) as missing:
            running.get("/nothing")
        assert missing.value.code == 404
        missing.value.close()


def test_the_planner_answers_over_http() -> None:
    config = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    config |= {"intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 64}
    with serving({"/metrics": page(CAPTURE)}) as url, sidecar("--engine-url", url) as running:

        def post(body: bytes) -> tuple[int, dict[str, object]]:
            with closing(http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=5)) as connection:
                connection.request("POST", "/v1/plan", body)
                answer = connection.getresponse()
                return answer.status, json.loads(answer.read())

        code, result = post(json.dumps({"config": config, "available_kv_bytes": 1 << 20}).encode())
        assert (code, result["error"]) == (200, None)
        assert isinstance(result["ideal"], dict)
        assert result["ideal"]["growth_bytes_per_token"] == 2 * 4 * 16 * 2 * 2
        code, result = post(json.dumps({"config": config, "tp": 0}).encode())
        assert (code, result["error"]["field"]) == (422, "tp")  # type: ignore[index]
        assert post(b"{")[0] == 422
        assert post(b"[]")[0] == 422
        assert post(b'{"model": "/etc"}')[0] == 422
        with closing(http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=5)) as connection:
            connection.putrequest("POST", "/v1/plan")
            connection.putheader("Content-Length", "2000000")
            connection.endheaders()
            assert connection.getresponse().status == 413


def test_answers_on_a_kept_alive_connection_do_not_wait_for_acknowledgements() -> None:
    with serving({"/metrics": page(CAPTURE)}) as url, sidecar("--engine-url", url) as running:
        connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=5)
        times = []
        for _ in range(21):
            began = time.perf_counter()
            connection.request("GET", "/metrics")
            connection.getresponse().read()
            times.append(time.perf_counter() - began)
        connection.close()
    # Nagle's algorithm against delayed acknowledgements would make each of them 40 ms.
    assert statistics.median(times) < 0.03


def test_sigterm_ends_it_without_waiting_for_idle_connections() -> None:
    with serving({"/metrics": page(CAPTURE)}) as url, sidecar("--engine-url", url) as running:
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as idle:
            idle.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(100)
            began = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(20) == 0
            # Idle connections are kept for 5 s.
            assert time.monotonic() - began < 4


def test_an_engine_that_hangs_does_not_delay_the_end(over: threading.Event) -> None:
    arguments = ("--engine-timeout", "30s")
    with serving({"/metrics": silent(over)}) as url, sidecar("--engine-url", url, *arguments) as running:
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0
        assert time.monotonic() - began < 10


@pytest.fixture
def over() -> "threading.Event":
    return threading.Event()


def test_every_bad_engine_leaves_the_page_up_and_the_memory_bounded(over: threading.Event) -> None:
    bomb = gzip.compress(b"vllm:x 1\n" * 5_000_000)
    bad: dict[str, Behaviour] = {
        "http_status": status(500),
        "not_metrics": page(b"<html>no</html>", "text/html"),
        "body_too_large": endless(50_000_000),
        "content_encoding": lambda exchange: exchange.answer(bomb, headers={"Content-Encoding": "gzip"}),
        "too_many_lines": page(CAPTURE + b'vllm:x{a="b"} 1\n' * 200_000),
        "timeout": dripping(over),
        "no_engine_series": page(b"up 1\n"),
    }
    routes: dict[str, Behaviour] = {"/metrics": page(CAPTURE)}
    with serving(routes) as url, sidecar("--engine-url", url, "--stale-after", "1s") as running:
        eventually(lambda: running.up("engine") == 1)
        for reason, behaviour in bad.items():
            routes["/metrics"] = behaviour
            eventually(lambda reason=reason: running.errors("engine").get(reason, 0) > 0, what=reason)  # type: ignore[misc]
            eventually(lambda: running.up("engine") == 0, what=f"down for {reason}")
            eventually(lambda: "kvgauge_kv_tokens" not in running.samples(), what=f"series gone for {reason}")
            assert running.samples()["kvgauge_advice_valid"][0].value == 0
            assert running.json("/v1/advice")["safe_concurrency"] is None
        over.set()
        assert running.rss_bytes() < 128 * 1024 * 1024
        routes["/metrics"] = page(CAPTURE)
        eventually(lambda: running.up("engine") == 1, what="recovery")
        eventually(lambda: "kvgauge_kv_tokens" in running.samples())
        assert "Traceback" not in "".join(running.log)


def test_one_bad_line_or_value_costs_only_itself() -> None:
    lines = CAPTURE.replace(
        b"vllm:num_requests_waiting{", b'vllm:num_requests_waiting{x="y} 1\nvllm:num_requests_waiting{'
    )
    nan = CAPTURE.replace(b"0.8391959798994975", b"NaN")
    huge = CAPTURE.replace(b"vllm:num_preemptions_total{", b'vllm:num_preemptions_total{x="' + b"z" * 1_000_000 + b'",')
    routes: dict[str, Behaviour] = {"/metrics": page(lines)}
    with serving(routes) as url, sidecar("--engine-url", url) as running:
        eventually(lambda: running.errors("engine").get("bad_line", 0) > 0)
        assert running.up("engine") == 1
        assert running.samples()["kvgauge_kv_tokens"][0].value == 167 * 32
        routes["/metrics"] = page(nan)
        eventually(lambda: running.errors("engine").get("bad_value", 0) > 0)
        eventually(lambda: "kvgauge_kv_tokens" not in running.samples())
        assert running.samples()["kvgauge_requests"][0].value == 7
        routes["/metrics"] = page(huge)
        eventually(lambda: "kvgauge_preemptions_total" not in running.samples())
        assert running.up("engine") == 1
        state = next(state for state in running.json("/v1/observation")["sources"] if state["source"] == "engine")
        assert state["reason"] == "bad_line"


def test_counters_that_go_back_are_passed_on() -> None:
    routes: dict[str, Behaviour] = {"/metrics": page(LOADED)}
    with serving(routes) as url, sidecar("--engine-url", url) as running:
        eventually(lambda: running.samples()["kvgauge_preemptions_total"][0].value == 15)
        routes["/metrics"] = page(CAPTURE)
        eventually(lambda: running.samples()["kvgauge_preemptions_total"][0].value == 14)
        assert running.json("/v1/advice")["valid"]


def test_json_logs_carry_no_secret() -> None:
    with (
        serving({"/metrics": status(401)}) as url,
        sidecar("--engine-url", url, "--log-format", "json", environ={"KVGAUGE_ENGINE_API_KEY": "hush"}) as running,
    ):
        eventually(lambda: running.errors("engine").get("unauthorized", 0) > 0)
        entries = [json.loads(line) for line in running.log]
    assert {entry["level"] for entry in entries} <= {"INFO", "WARNING"}
    assert any("unauthorized" in entry["message"] for entry in entries)
    assert "hush" not in "".join(running.log)


def test_objectives_and_the_state_file_reach_the_advice(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text("{")
    arguments = ("--slo-tpot", "50ms", "--slo-ttft", "2s", "--state-file", str(state))
    with serving({"/metrics": page(CAPTURE)}) as url, sidecar("--engine-url", url, *arguments) as running:
        eventually(lambda: running.json("/v1/advice")["valid"])
        terms = running.json("/v1/advice")["terms"]
        assert (terms["slo_ttft_seconds"], terms["slo_tpot_seconds"]) == (2, 0.05)
        eventually(lambda: "state_file" in "".join(running.log))
        (line,) = [line for line in running.log if "state_file" in line]
        assert "ignored: not JSON" in line


def test_drift_is_logged_once_when_it_begins_and_once_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    life, log = Life(), DriftLog()
    life.lives(2 * HOUR, gpus=lambda at: using(70 * GIB + round(at * 0.1 * (1 << 20))))
    life.lives(MINUTE, engine=None)
    life.lives(HOUR, gpus=using(70 * GIB))
    with caplog.at_level("INFO", logger="kvgauge"):
        for assessment in life.seen:
            log.follow(assessment)
    texts = [record.message for record in caplog.records]
    assert len(texts) == 2
    assert "a leak" in texts[0]
    assert texts[1] == "drift leak: over"


def test_the_sidecar_imports_nothing_heavy() -> None:
    probe = (
        "import sys; from kvgauge.sidecar import *; from kvgauge.publish.app import create_app; "
        "print([m for m in ('torch', 'numpy', 'kubernetes', 'grpc', 'pandas') if m in sys.modules])"
    )
    result = subprocess.run([KVGAUGE[0], "-c", probe], capture_output=True, text=True, timeout=30)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("host", "told"),
    [("127.0.0.2", "http://127.0.0.2:"), ("0.0.0.0", "http://127.0.0.1:"), ("::1", "http://[::1]:")],
)
def test_a_server_is_told_where_this_machine_reaches_it(host: str, told: str) -> None:
    listener = bind(host, 0)
    try:
        assert local_url(listener) == f"{told}{listener.getsockname()[1]}"
    finally:
        listener.close()


def test_a_demo_elsewhere_than_at_the_loopbacks_first_address_tells_its_advice_and_ends() -> None:
    result = run("demo", "--host", "127.0.0.2", "--port", "0", "--seconds", "1", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["limits"]
    assert "http://127.0.0.2:" in result.stderr
