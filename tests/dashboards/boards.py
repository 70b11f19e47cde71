"""The checked-in dashboards as the tests ask them: their queries, with variables as Grafana would fill them in."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "dashboards"
NAMES = ("capacity", "fleet", "pod")
_METRIC = re.compile(r"\bkvgauge_[a-z0-9_]+")


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def panels(name: str) -> list[dict[str, Any]]:
    """All but the rows, which hold nothing."""
    return [panel for panel in load(name)["panels"] if panel["type"] != "row"]


def queries(name: str) -> Iterator[tuple[str, str]]:
    """Each panel's title and expression."""
    for panel in panels(name):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def choices(name: str) -> Iterator[tuple[str, str]]:
    """The label and the selector of each variable whose values Prometheus is asked for."""
    for variable in load(name)["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            if found is None:
                raise ValueError(f"{name}: {variable['name']}: {variable['query']}: no label_values")
            yield found[2], found[1]


def metrics(text: str) -> set[str]:
    return set(_METRIC.findall(text))


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with each variable's value in its place; a variable without one is a KeyError."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], text)
