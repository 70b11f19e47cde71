"""Runs `kvgauge doctor`, as a process or not, and finds lines in what it says."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from kvgauge.doctor.command import examine
from kvgauge.doctor.settings import load
from tests.support.process import KVGAUGE

DOCTOR = (*KVGAUGE, "doctor")


@dataclass(frozen=True)
class Line:
    check: str
    status: str
    found: str
    next: str | None


@dataclass(frozen=True)
class Told:
    """What it said, by check; of several lines of one check the last."""

    code: int
    lines: dict[str, Line]

    def __getitem__(self, check: str) -> Line:
        return self.lines[check]

    def statuses(self) -> dict[str, str]:
        return {name: line.status for name, line in self.lines.items()}


def run(*arguments: str, environ: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """The process, away from any kubeconfig or account of the surroundings."""
    apart = {name: text for name, text in os.environ.items() if not name.startswith(("KVGAUGE_", "KUBE", "POD_"))}
    surroundings = {**apart, "HOME": "/nonexistent", **(environ or {})}
    return subprocess.run(
        [*DOCTOR, *arguments], capture_output=True, text=True, check=False, timeout=40, env=surroundings
    )


def doctor(*arguments: str, environ: Mapping[str, str] | None = None) -> Told:
    """What is found; by a process of its own where its surroundings matter. Every complaint has its command."""
    if environ is None:
        settings, _, _ = load(arguments, {})
        found = examine(settings, flags=arguments)
        lines = [Line(each.check, each.status, each.found, each.next) for each in found]
        code = int(any(line.status == "fail" for line in lines))
    else:
        answer = run("--json", *arguments, environ=environ)
        lines = [Line(**each) for each in json.loads(answer.stdout)]
        code = answer.returncode
        assert code == int(any(line.status == "fail" for line in lines)), answer.stderr
    assert all(line.next for line in lines if line.status in ("warn", "fail")), lines
    return Told(code, {line.check: line for line in lines})
