"""The program that makes `dashboards/*.json`; `python -m dashboards.building` writes them anew."""

import json
from pathlib import Path

from dashboards.building import capacity, fleet, pod
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

FOLDER = Path(__file__).resolve().parent.parent


def built() -> dict[str, str]:
    """The text of each dashboard's file, by the file's name."""
    made = {"capacity": capacity.made(), "fleet": fleet.made(), "pod": pod.made()}
    return {f"{name}.json": _text(board.build()) for name, board in made.items()}


def _text(board: Dashboard) -> str:
    members = board.to_json()
    # The kit would have it dark; without this it is the reader's own theme.
    del members["style"]
    return json.dumps(members, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
