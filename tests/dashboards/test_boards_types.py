"""Whether the types that Grafana's own releases publish know every key of the dashboards and of their panels.

No Grafana runs here. Its package of types does for each release from 10 to 13, and TypeScript says what does not fit.
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards.boards import NAMES, load, panels

pytestmark = pytest.mark.grafana

RELEASES = ("10", "11", "12", "13")
PANELS = ("stat", "table", "timeseries")
_ENUM = re.compile(r"(export )?(?:declare )?enum (\w+) \{(.*?)\}", re.DOTALL)
_MEMBER = re.compile(r"=\s*(\"[^\"]*\"|-?\d+)")
_COMPILER = ("--noEmit", "--strict", "--skipLibCheck", "--target", "es2020", "--moduleResolution", "node")


@pytest.fixture(scope="module")
def packages() -> Path:
    folder = os.environ.get("KVGAUGE_GRAFANA_TYPES")
    if folder is None:
        pytest.fail("KVGAUGE_GRAFANA_TYPES is not set: run these tests by scripts/test --grafana", pytrace=False)
    return Path(folder) / "node_modules"


def _plain(declarations: str) -> str:
    """Enums as the values that JSON has in their place."""
    return _ENUM.sub(
        lambda found: f"{found[1] or ''}type {found[2]} = {' | '.join(_MEMBER.findall(found[3])) or 'never'};",
        declarations,
    )


def _without_what_is_left_aside(board: dict[str, Any]) -> dict[str, Any]:
    """What the kit writes and a release does not know and leaves aside: keys of old on every variable, and a
    table's footer that is off, which is the field's since 12."""
    for variable in board["templating"]["list"]:
        for key in ("id", "auto", "auto_count", "auto_min"):
            variable.pop(key, None)
    for panel in board["panels"]:
        if panel["type"] == "table" and not panel["options"]["footer"]["show"]:
            del panel["options"]["footer"]
    return board


def _copied(package: Path, folder: Path) -> Path:
    """The package's declarations where TypeScript looks for them."""
    home = folder / "node_modules/@grafana/schema"
    for pattern in ("*.d.ts", "*.d.cts"):
        for file in package.rglob(pattern):
            copy = home / file.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(_plain(file.read_text(encoding="utf-8")), encoding="utf-8")
    about = json.loads((package / "package.json").read_text(encoding="utf-8"))
    (home / "package.json").write_text(json.dumps({"name": "@grafana/schema", "types": about["types"]}))
    return home


def _typed(board: dict[str, Any], shown: list[dict[str, Any]], home: Path) -> str:
    """A program that claims the dashboard, and each panel's options, to be of Grafana's types."""

    def of(pattern: str) -> str:
        file = min(home.rglob(pattern))
        return "./" + file.relative_to(home.parents[2]).as_posix().removesuffix(".d.ts")

    lines = [f"import type {{ Dashboard }} from '{of('raw/dashboard/x/*.d.ts')}';"]
    lines += [f"import type * as {kind} from '{of(f'composable/{kind}/panelcfg/x/*.d.ts')}';" for kind in PANELS]
    lines.append(f"export const board: Dashboard = {json.dumps(board)};")
    for panel in shown:
        kind, number, defaults = panel["type"], panel["id"], panel["fieldConfig"]["defaults"]
        lines.append(f"export const o{number}: Partial<{kind}.Options> = {json.dumps(panel['options'])};")
        if "custom" in defaults and kind != "stat":
            custom = json.dumps(defaults["custom"])
            lines.append(f"export const f{number}: Partial<{kind}.FieldConfig> = {custom};")
    return "\n".join(lines)


def _complaints(packages: Path, release: str, folder: Path, boards: dict[str, dict[str, Any]]) -> list[str]:
    home = _copied(packages / f"grafana-{release}", folder)
    for name, board in boards.items():
        shown = [panel for panel in board["panels"] if panel["type"] != "row"]
        (folder / f"{name}.ts").write_text(_typed(board, shown, home), encoding="utf-8")
    compiler = packages / "typescript/bin/tsc"
    command = ["node", str(compiler), *_COMPILER, *(f"{name}.ts" for name in boards)]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return told.stdout.splitlines()


@pytest.mark.parametrize("release", RELEASES)
def test_grafanas_own_types_take_every_dashboard(packages: Path, release: str, tmp_path: Path) -> None:
    boards = {name: _without_what_is_left_aside(load(name)) for name in NAMES}
    assert {panel["type"] for name in NAMES for panel in panels(name)} == set(PANELS)
    assert _complaints(packages, release, tmp_path, boards) == []


@pytest.mark.parametrize("release", RELEASES)
def test_they_notice_what_is_wrong(packages: Path, release: str, tmp_path: Path) -> None:
    board = _without_what_is_left_aside(load("pod"))
    shown = [panel for panel in board["panels"] if panel["type"] == "timeseries"]
    shown[0]["options"]["legend"]["displayMode"] = "lisst"
    shown[1]["fieldConfig"]["defaults"]["custom"]["lineWidht"] = 2
    board["refrsh"] = "10s"
    found = " ".join(_complaints(packages, release, tmp_path, {"pod": board}))
    assert all(word in found for word in ("lisst", "lineWidht", "refrsh")), found
