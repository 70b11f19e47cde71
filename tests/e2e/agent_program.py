"""A scene of transformers_agent.py, launched by `python -m kvgauge_agent`, and the file that the agent writes of it."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .processes import until

AGENT = Path(__file__).parents[2] / "agent"
PROGRAM = Path(__file__).with_name("transformers_agent.py")
FRESH_FILES = 2
"""A file written after the standstill may have been read before it; the next one was not."""


class Program:
    """One scene of transformers_agent.py under the agent, with a spool of its own."""

    def __init__(self, python: Path, scene: str, spool: Path, device: str, packages: str) -> None:
        path = [str(AGENT), *([packages] if packages else [])]
        self._spool = spool
        self._process = subprocess.Popen(
            [str(python), "-m", "kvgauge_agent", "--", str(python), str(PROGRAM), scene, device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join(path),
                "KVGAUGE_SPOOL": str(spool),
                "OMP_NUM_THREADS": "1",
            },
        )

    def standstills(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """What is expected at each standstill, and the file found there; ends when the program has."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            expected = json.loads(line)
            if "done" in expected:
                break
            yield expected, self._fresh_file()
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        assert self._process.wait(timeout=30) == 0
        assert not list(self._spool.iterdir())

    def _fresh_file(self) -> dict[str, Any]:
        started = self._file()["sequence"] if list(self._spool.glob("*.json")) else -1
        fresh = until(lambda: self._newer(started + FRESH_FILES), 30, "a file written after the program stood still")
        assert fresh["pid"] == fresh["instance"] == self._process.pid
        return fresh

    def _newer(self, sequence: int) -> dict[str, Any] | None:
        found = self._file() if list(self._spool.glob("*.json")) else None
        return found if found is not None and found["sequence"] >= sequence else None

    def _file(self) -> dict[str, Any]:
        (path,) = self._spool.glob("*.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait(timeout=30)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


@contextmanager
def program(python: Path, scene: str, spool: Path, device: str = "cpu", packages: str = "") -> Iterator[Program]:
    """Runs a scene; `packages` is a folder of packages that it needs besides."""
    spool.mkdir()
    running = Program(python, scene, spool, device, packages)
    try:
        yield running
    finally:
        running.close()


def in_order(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of `caches` as they compare, in whatever order they and their keys come."""
    return sorted((dict(sorted(entry.items())) for entry in entries), key=json.dumps)


def compare_pool(expected: dict[str, Any], pool: dict[str, Any], scheduler: dict[str, Any]) -> None:
    """Every figure of the script's count, in each place where the file says it."""
    groups = expected.pop("groups", {})
    del expected["transformers"]
    for name, figure in expected.items():
        places = [place[name] for place in (pool, scheduler) if name in place]
        # The scheduler counts slots, of which a token takes one in each group.
        if groups and name == "live_tokens":
            places = [pool[name]]
        assert places
        assert places == [figure] * len(places), name
    found = {group["kind"]: group for group in scheduler["groups"]}
    for kind, figures in groups.items():
        assert found[kind] == {**found[kind], **figures}
