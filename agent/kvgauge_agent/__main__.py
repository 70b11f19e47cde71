"""`python -m kvgauge_agent -- CMD ARGS...`: runs a program with the agent in every Python process that imports torch.

The command takes this process' place: its signals, exit status and standard streams are its own. It is told of the
agent by a folder in front of PYTHONPATH, which its children inherit. A Python that is run with -I, -E or -S does not
look there, and has no agent.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kvgauge_agent.daemon import INSTANCE_VARIABLE

USAGE = "usage: python -m kvgauge_agent -- COMMAND [ARGUMENT ...]"
LAUNCH_FOLDER = str(Path(__file__).resolve().with_name("launch"))


def main(arguments: list[str]) -> int:
    """Becomes the command; returns an exit status only where that can't be."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command or (command is arguments and command[0].startswith("-")):
        return _said(USAGE, 2)
    try:
        os.execvpe(command[0], command, _environment(dict(os.environ)))  # noqa: S606
    except OSError as error:
        status = 127 if isinstance(error, FileNotFoundError) else 126
        return _said(f"kvgauge_agent: {command[0]}: {error.strerror}", status)


def _environment(inherited: dict[str, str]) -> dict[str, str]:
    path = [part for part in inherited.get("PYTHONPATH", "").split(os.pathsep) if part and part != LAUNCH_FOLDER]
    # The command keeps this process' id, and its children's files name it.
    return {INSTANCE_VARIABLE: str(os.getpid()), **inherited, "PYTHONPATH": os.pathsep.join([LAUNCH_FOLDER, *path])}


def _said(line: str, status: int) -> int:
    sys.stderr.write(f"{line}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
