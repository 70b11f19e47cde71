"""The program that makes `dashboards/*.json`; `python -m dashboards.building` writes them anew."""

import json
import re
from pathlib import Path

from dashboards.building import capacity, fleet, pod
from dashboards.building.parts import RUNBOOKS
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

FOLDER = Path(__file__).resolve().parent.parent


def built() -> dict[str, str]:
    """The text of each dashboard's file, by the file's name."""
    made = {"capacity": capacity.made(), "fleet": fleet.made(), "pod": pod.made()}
    return {f"{name}.json": _text(board.build()) for name, board in made.items()}


def led_to(runbooks_at: str) -> dict[str, str]:
    """The text of each dashboard's and each rules' file, by its path below this folder, with links to runbooks that are
    read at that URL. Raises ValueError where it is no URL or ends in a slash."""
    if not re.fullmatch(r"https?://[A-Za-z0-9._~:/?&=%@+-]+[A-Za-z0-9]", runbooks_at):
        raise ValueError(f"an http or https URL without a slash at the end is needed: {runbooks_at!r}")
    boards = {name: text.replace(f'"{RUNBOOKS}"', f'"{runbooks_at}"') for name, text in built().items()}
    rules = {
        f"alerts/{file.name}": file.read_text(encoding="utf-8").replace(
            f"runbook_url: {RUNBOOKS}/", f"runbook_url: {runbooks_at}/"
        )
        for file in sorted((FOLDER / "alerts").glob("*.yaml"))
    }
    return boards | rules


def _text(board: Dashboard) -> str:
    members = board.to_json()
    # The kit would have it dark; without this it is the reader's own theme.
    del members["style"]
    # The kit leaves the list out, which not every Grafana takes for an empty one.
    members["annotations"] = {"list": []}
    return json.dumps(members, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
