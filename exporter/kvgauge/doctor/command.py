"""`kvgauge doctor` from its flags to its lines."""

import asyncio
import io
import json
import os
import sys
import time
from collections.abc import Sequence

from kvgauge.complaints import InputError, fail
from kvgauge.doctor.checking import check
from kvgauge.doctor.findings import Finding, skip, warn, words
from kvgauge.doctor.findings import fail as broken
from kvgauge.doctor.here import Here, invoked
from kvgauge.doctor.looking import Look, Looked, look
from kvgauge.doctor.settings import DoctorSettings, load, started_with, to_toml
from kvgauge.observe.records import GpuReading
from kvgauge.observe.watching import Source

_ALL_SECONDS = 20.0
_INSTALL = "pip install 'kvgauge[cluster]'"
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def main(arguments: Sequence[str]) -> None:
    """Ends with 1 where anything failed, with 2 over bad input."""
    try:
        settings, only_print, as_json = load(arguments, beside=started_with())
        if only_print:
            sys.stdout.write(to_toml(settings))
            return
        found = examine(settings, flags=arguments, program=invoked())
    except InputError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    try:
        show(found, as_json=as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if any(finding.status == "fail" for finding in found):
        raise SystemExit(1)


def examine(
    settings: DoctorSettings,
    devices: Source[tuple[GpuReading, ...]] | None = None,
    *,
    flags: Sequence[str] = (),
    program: str = "kvgauge",
) -> list[Finding]:
    """All findings, this pod's first. Both scopes at a time, some 20 s at most. Raises InputError. `devices` stands in
    for the driver; `flags` and `program` are what was typed, for commands that type it again."""
    deadline = time.monotonic() + _ALL_SECONDS
    here = Here.of(settings, flags=flags, program=program)
    local = Look(lambda: check(look(settings, devices), here)) if settings.looks_here else None
    around = _cluster(settings, program)
    return ([] if local is None else _whole("pod", local.outcome(deadline), program)) + around


def _whole(check_name: str, looked: Looked[list[Finding]], program: str) -> list[Finding]:
    """A fault of the doctor's own is a line like any other, and the other half is told all the same."""
    if looked.error is not None:
        return [broken(check_name, f"the doctor itself failed: {looked.error.message}", f"{program} --version")]
    return looked.value or []


def _cluster(settings: DoctorSettings, program: str) -> list[Finding]:
    if settings.local and not settings.must_look_at_cluster:
        return []
    try:
        from kvgauge.doctor import around
    except ImportError as error:
        if error.name is not None and error.name.startswith("kvgauge."):
            raise
        return [warn("cluster", f"the extra `cluster` is not installed ({words(error.name)} is missing)", _INSTALL)]
    if not settings.must_look_at_cluster and not around.is_near():
        return [skip("cluster", "no kubeconfig and no service account here; --cluster or --kubeconfig asks for it")]
    try:
        return asyncio.run(around.examine(settings.kubeconfig, settings.namespace, time.time(), program))
    except InputError:
        raise
    except Exception as error:
        return [broken("cluster", f"the doctor itself failed: {type(error).__name__}", f"{program} --version")]


def show(found: Sequence[Finding], *, as_json: bool) -> None:
    """Onto stdout: lines for people, coloured on a terminal only; or JSON."""
    if as_json:
        sys.stdout.write(json.dumps([finding.to_json() for finding in found], indent=2) + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name may have letters that this terminal's encoding lacks.
        sys.stdout.reconfigure(errors="replace")
    screen = Console(file=sys.stdout, markup=False, highlight=False, emoji=False, soft_wrap=True)
    width = max((len(finding.check) for finding in found), default=0)
    for finding in found:
        line = Text.assemble((f"{finding.status:4}", _COLOURS[finding.status]), f"  {finding.check:{width}}  ")
        screen.print(line + Text(finding.found))
        if finding.next is not None:
            screen.print(
                Text(f"      {'':{width}}  next: {finding.next}", style="dim" if finding.status == "ok" else "")
            )
