"""The sidecar as a process, and what it serves."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import urllib3
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from .processes import Child, free_port, until

INTERVAL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class SidecarPage:
    """One metrics page of the sidecar's."""

    samples: tuple[Sample, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(tuple(sample for family in text_string_to_metric_families(text) for sample in family.samples))

    def rows(self, name: str, **labels: str) -> list[Sample]:
        """The samples of that name that carry these labels, others besides allowed."""
        return [
            sample for sample in self.samples if sample.name == name and labels.items() <= dict(sample.labels).items()
        ]

    def value(self, name: str, **labels: str) -> float | None:
        """The one sample of that name with these labels, or None; several are an error of the test or of the page."""
        rows = self.rows(name, **labels)
        if len(rows) > 1:
            raise AssertionError(f"{name}{labels} has {len(rows)} series")
        return rows[0].value if rows else None

    def number(self, name: str, **labels: str) -> float:
        """Like `value` for a series that has to be there."""
        value = self.value(name, **labels)
        if value is None:
            raise AssertionError(f"{name}{labels} is not on the page")
        return value


class Sidecar:
    """`kvgauge sidecar` beside one engine; `flags` are further ones."""

    def __init__(self, engine_url: str, model: Path, log: Path, *flags: str) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        # A kept-alive connection may be closed from the other end just as it is used again.
        self._http = urllib3.PoolManager(
            retries=urllib3.Retry(connect=0, read=2), timeout=urllib3.Timeout(connect=2, read=10)
        )
        command = str(Path(sys.executable).with_name("kvgauge"))
        self._child = Child(
            [
                *(command, "sidecar", "--engine-url", engine_url, "--model", str(model)),
                *("--host", "127.0.0.1", "--port", str(port), "--interval", f"{INTERVAL_SECONDS}s"),
                *flags,
            ],
            log,
            {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        )
        try:
            until(self._ready, 30, "the sidecar's /livez")
        except AssertionError as error:
            self._child.kill()
            raise AssertionError(f"{error}; its log ends:\n{self._child.last_lines()}") from None

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.alive

    def close(self) -> int:
        """SIGTERM; returns the exit status."""
        self._http.clear()
        return self._child.terminate()

    def page(self) -> SidecarPage:
        """The metrics page, in the text format."""
        return SidecarPage.parse(self._answer("/metrics").decode())

    def observation(self) -> Mapping[str, object]:
        return self._json("/v1/observation")

    def advice(self) -> Mapping[str, object]:
        return self._json("/v1/advice")

    def await_read(self) -> None:
        """Returns when it publishes a read of the engine that began after this call."""
        now = time.time()
        until(lambda: (self._engine_read_at() or 0.0) > now, 30, "a new read of the engine")

    def _engine_read_at(self) -> float | None:
        """Unix time at which the read of the engine that is now published began."""
        observation = self.observation()
        wall, sources, engine = observation["wall_seconds"], observation["sources"], observation["engine"]
        assert isinstance(wall, float)
        assert isinstance(sources, list)
        state = next(source for source in sources if source["source"] == "engine")
        if state["age_seconds"] is None or state["read_seconds"] is None or not isinstance(engine, dict):
            return None
        # The stated age counts from when the engine last moved.
        return float(wall - (state["age_seconds"] - engine["standing_seconds"]) - state["read_seconds"])

    def _json(self, path: str) -> Mapping[str, object]:
        content = json.loads(self._answer(path))
        if not isinstance(content, dict):
            raise AssertionError(f"{path} did not answer an object")
        return content

    def _answer(self, path: str) -> bytes:
        # On a machine that stood still for seconds the pages are withdrawn until the next tick.
        return until(lambda: self._body(path), 30, f"an answer from {path}")

    def _body(self, path: str) -> bytes | None:
        answer = self._http.request("GET", self.url + path, headers={"Accept": "text/plain, application/json"})
        if answer.status not in {200, 503}:
            raise AssertionError(f"{path} answered {answer.status}; its log ends:\n{self._child.last_lines()}")
        return answer.data if answer.status == 200 else None

    def _ready(self) -> bool | None:
        if not self._child.alive:
            raise AssertionError("the sidecar exited")
        try:
            return self._http.request("GET", f"{self.url}/livez").status == 200
        except urllib3.exceptions.HTTPError:
            return None
