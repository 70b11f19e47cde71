"""What the sidecar costs: `scripts/bench sidecar [--minutes M]`.

The real sidecar, as a process of its own, reads a recorded 700-line vLLM page from another process at 1 Hz.
"""

import argparse
import http.client
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.processes import free_port
from tests.support.pages import GivenPages

from bench.table import Figure, report
from kvgauge.observe.engines.vllm import ENGINE
from kvgauge.simulate.model_folder import write_model_folder

PAGE = Path(__file__).parent.parent / "tests/captures/vllm/0.32.0/smallcache_under_pressure.prom"
MIB = 1 << 20


@contextmanager
def recorded_engine() -> Iterator[str]:
    """A web server in a process of its own that answers the recorded page."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "metrics").write_bytes(PAGE.read_bytes())
        command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            try:
                assert server.stdout is not None
                match = re.search(r"port (\d+)", server.stdout.readline())
                assert match is not None
                yield f"http://127.0.0.1:{match[1]}"
            finally:
                server.kill()


@contextmanager
def sidecar(engine_url: str, port: int, model: Path) -> Iterator[tuple["subprocess.Popen[bytes]", float]]:
    """(the sidecar's process, seconds from its start to its first full page)."""
    command = [sys.executable, "-m", "kvgauge", "sidecar", "--engine-url", engine_url, "--model", str(model)]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--port", str(port), "--host", "127.0.0.1"], stderr=subprocess.DEVNULL, env=environ
    )
    try:
        while not _has_page(port):
            time.sleep(0.002)
        yield process, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(10)


def _has_page(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return b"kvgauge_kv_tokens" in answer.read()
    except (urllib.error.URLError, ConnectionError):
        return False


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def scrape_latencies(port: int, per_second: float, seconds: float) -> list[float]:
    """Seconds of each GET /metrics on a kept-alive connection, sent by the clock whatever the last one took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    latencies = []
    began = time.perf_counter()
    for number in range(int(per_second * seconds)):
        due = began + number / per_second
        time.sleep(max(due - time.perf_counter(), 0))
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200
        assert body
        latencies.append(time.perf_counter() - due)
    return latencies


def page_seconds(rounds: int = 300) -> float:
    """Median seconds to read and normalise the recorded page."""
    body = PAGE.read_bytes()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        reading = ENGINE.read(GivenPages({"/metrics": body}))
        times.append(time.perf_counter() - began)
        assert reading.ranks[0].used_blocks == 167
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench sidecar")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long RSS and CPU are watched (default 5)")
    minutes: float = parser.parse_args().minutes
    starts = []
    with recorded_engine() as engine_url, tempfile.TemporaryDirectory() as folder:
        model = write_model_folder(Path(folder) / "model")
        for _ in range(5):
            with sidecar(engine_url, free_port(), model) as (_, seconds):
                starts.append(seconds)
        port = free_port()
        with sidecar(engine_url, port, model) as (process, _):
            latencies = sorted(scrape_latencies(port, per_second=50, seconds=40))
            before, began = cpu_seconds(process.pid), time.perf_counter()
            time.sleep(minutes * 60)
            cpu_share = (cpu_seconds(process.pid) - before) / (time.perf_counter() - began)
            rss = rss_bytes(process.pid)
    figures = [
        Figure(f"RSS after {minutes:g} minutes at 1 Hz", "MiB", 64, rss / MIB),
        Figure(f"CPU over {minutes:g} minutes at 1 Hz", "% core", 1, 100 * cpu_share),
        Figure("GET /metrics p99 at 50 requests/s", "ms", 5, 1e3 * latencies[int(0.99 * len(latencies))]),
        Figure("start to first full page, median of 5", "s", 1, statistics.median(starts)),
        Figure("vLLM page of 700 lines read and normalised, median", "ms", 3, 1e3 * page_seconds()),
    ]
    notes = [
        (
            f"GET /metrics p50 {1e3 * statistics.median(latencies):.2f} ms, slowest {1e3 * latencies[-1]:.2f} ms; "
            f"starts {', '.join(f'{seconds:.2f}' for seconds in sorted(starts))} s"
        )
    ]
    report("sidecar", figures, notes)


if __name__ == "__main__":
    main()
