"""`python -m kvgauge_agent.bundle DEST`: lays the agent out in a folder that one puts on an engine's PYTHONPATH.

The folder then holds the package and the metadata by which vLLM finds its entry point; nothing is installed.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from kvgauge_agent.daemon import AGENT_VERSION

DISTRIBUTION = "kvgauge_agent"
ENTRY_POINTS = "[vllm.general_plugins]\nkvgauge = kvgauge_agent.vllm:register\n"
METADATA = f"Metadata-Version: 2.1\nName: kvgauge-agent\nVersion: {AGENT_VERSION}\n"


def lay_out(destination: Path) -> Path:
    """Puts the agent into `destination`, made where absent, in place of an older one there; returns it."""
    package = Path(__file__).parent
    destination.mkdir(parents=True, exist_ok=True)
    for old in [destination / package.name, *destination.glob(f"{DISTRIBUTION}-*.dist-info")]:
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(package, destination / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    information = destination / f"{DISTRIBUTION}-{AGENT_VERSION}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(METADATA, encoding="utf-8")
    (information / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    return destination


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m kvgauge_agent.bundle", description="Lays the agent out in a folder."
    )
    parser.add_argument("destination", type=Path)
    lay_out(parser.parse_args().destination)


if __name__ == "__main__":
    main()
