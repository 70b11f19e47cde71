"""Other people's servers, run for as long as a block lasts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import urllib3

from tests.e2e.processes import Child, until

_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


@contextmanager
def running(command: Sequence[str], log: Path, *, ready: str) -> Iterator[Child]:
    """A program until the block ends; begins once the address `ready` answers 200. Raises AssertionError with the end
    of its log when it exits before."""
    child = Child(command, log, _ENVIRONMENT)

    def is_ready() -> bool:
        if not child.alive:
            raise AssertionError(f"{command[0]} exited; its log ends:\n{child.last_lines()}")
        return answers(ready) is not None

    try:
        until(is_ready, 30, f"{command[0]} at {ready}")
        yield child
    finally:
        child.terminate()


def answers(url: str) -> bytes | None:
    """What is there; None where nothing is, or another status than 200."""
    try:
        answer = urllib3.request("GET", url, timeout=2, retries=False)
    except urllib3.exceptions.HTTPError:
        return None
    return answer.data if answer.status == 200 else None
