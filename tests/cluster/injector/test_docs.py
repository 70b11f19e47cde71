"""docs/injector.md names every annotation, reason and mode there is, and no other."""

import re
from pathlib import Path

from kvgauge.cluster.injector import annotations
from kvgauge.cluster.injector.admission import PATH
from kvgauge.cluster.names import PORT

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/injector.md").read_text()
SOURCES = "".join(path.read_text() for path in (ROOT / "exporter/kvgauge/cluster/injector").glob("*.py"))


def cells(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_annotations() -> None:
    named = {name for row in cells("Annotations") for name in re.findall(r"`([^`]+)`", row[0])}
    known = {
        value for value in vars(annotations).values() if isinstance(value, str) and value.startswith("kvgauge.dev/")
    }
    assert named == (known | {PORT}) - {annotations.STATUS}
    assert annotations.STATUS in PAGE


def test_reasons() -> None:
    named = {name for row in cells("Why a pod has no sidecar") for name in re.findall(r"`([^`]+)`", row[1])}
    raised = set(re.findall(r'SkipError\(\s*"(\w+)"', SOURCES))
    counted = set(re.findall(r'(?:Outcome|count)\(\s*"\w+", "(\w+)"', SOURCES))
    assert named == raised | counted | {"new", "completed"}


def test_modes() -> None:
    assert [row[0].strip("`") for row in cells("GPU views")] == list(annotations.GPU_MODES)


def test_the_chart_calls_the_path_that_is_served() -> None:
    webhook = (ROOT / "helm/kvgauge/templates/injector/webhook.yaml").read_text()
    assert re.findall(r"^ +path: (.+)$", webhook, re.MULTILINE) == [PATH]
