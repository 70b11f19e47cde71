"""Log lines for people or for machines, on stderr. They carry states and reasons, never what an engine sent."""

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

logger = logging.getLogger("kvgauge")


def set_up(log_format: str, level: str) -> None:
    """`log_format` is ``console`` or ``json``; `level` a level's name."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(
            JsonFormatter(
                "{asctime}{levelname}{name}{message}",
                style="{",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            )
        )
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # urllib3 warns of every retry and broken header by itself; the watcher counts and reports these.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
