"""Runs the real sidecar as a process."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

KVGAUGE = (sys.executable, "-m", "kvgauge")


@dataclass
class Sidecar:
    """A running `kvgauge sidecar` and its address."""

    process: "subprocess.Popen[str]"
    url: str
    log: list[str]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, headers=dict(headers or {}))
        with urllib.request.urlopen(request, timeout=5) as answer:
            body: bytes = answer.read()
            return body

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def samples(self) -> dict[str, list[Sample]]:
        found: dict[str, list[Sample]] = {}
        for family in text_string_to_metric_families(self.get("/metrics").decode()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample)
        return found

    def up(self, source: str) -> float:
        return next(row.value for row in self.samples()["kvgauge_source_up"] if row.labels["source"] == source)

    def errors(self, source: str) -> dict[str, float]:
        rows = self.samples().get("kvgauge_source_errors_total", [])
        return {row.labels["reason"]: row.value for row in rows if row.labels["source"] == source}

    def rss_bytes(self) -> int:
        with Path(f"/proc/{self.process.pid}/statm").open() as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def eventually(check: Callable[[], bool], seconds: float = 10, what: str = "the condition") -> None:
    """Polls until `check` holds; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not check():
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds} s"
        pause.wait(0.05)


@contextmanager
def sidecar(*arguments: str, environ: Mapping[str, str] | None = None) -> Iterator[Sidecar]:
    """The real sidecar on a free port, fast ticks, until the block ends."""
    command = [*KVGAUGE, "sidecar", "--port", "0", "--host", "127.0.0.1", "--interval", "0.1s", *arguments]
    with _started(command, r"serves on port (\d+)", environ or {}) as running:
        yield running


@contextmanager
def demo(*arguments: str) -> Iterator[Sidecar]:
    """The sidecar that `kvgauge demo` runs beside its engine with a load, until the block ends."""
    with _started([*KVGAUGE, "demo", "--port", "0", *arguments], r"http://127\.0\.0\.1:(\d+)", {}) as running:
        yield running


@contextmanager
def _started(command: Sequence[str], port: str, environ: Mapping[str, str]) -> Iterator[Sidecar]:
    """`port` finds the port in the line that tells it."""
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environ}, start_new_session=True
    )
    log: list[str] = []
    try:
        found = None
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            if match := re.search(port, line):
                found = match[1]
                break
        assert found is not None, "".join(log)
        reader = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
        reader.start()
        running = Sidecar(process, f"http://127.0.0.1:{found}", log)
        eventually(lambda: _answers(running), what="the first page")
        yield running
    finally:
        process.terminate()
        process.wait(10)
        assert process.stderr is not None
        process.stderr.close()


def _answers(running: Sidecar) -> bool:
    try:
        running.get("/readyz")
    except urllib.error.HTTPError as error:
        error.close()
        return False
    return True
