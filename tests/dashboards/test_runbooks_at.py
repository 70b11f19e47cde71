"""Dashboards and rules whose links lead to where somebody's runbooks are."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.dashboards.boards import FOLDER
from tests.dashboards.replaying import ROOT

URL = "https://wiki.example.com/kvgauge/runbooks"


def building(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dashboards.building", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def written(folder: Path, url: str) -> Path:
    """The folder, with all files for runbooks at that URL."""
    result = building("--runbooks-at", url, "--into", str(folder))
    assert (result.returncode, result.stderr) == (0, "")
    return folder


def test_all_links_and_nothing_else_are_changed(tmp_path: Path) -> None:
    files = [*FOLDER.glob("*.json"), *FOLDER.glob("alerts/*.yaml")]
    found = {path.relative_to(tmp_path) for path in written(tmp_path, URL).rglob("*") if path.is_file()}
    assert found == {file.relative_to(FOLDER) for file in files}
    for file in files:
        shipped = file.read_text(encoding="utf-8").splitlines()
        lines = (tmp_path / file.relative_to(FOLDER)).read_text(encoding="utf-8").splitlines()
        changed = {(before, after) for before, after in zip(shipped, lines, strict=True) if before != after}
        assert all(after == before.replace("docs/runbooks", URL) for before, after in changed)
        assert bool(changed) is (file.name != "recording.yaml")
        assert not any("runbook_url: docs" in line or '"docs/runbooks"' in line for line in lines)


@pytest.mark.prometheus
def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    files = sorted((written(tmp_path, URL) / "alerts").glob("*.yaml"))
    result = subprocess.run(["promtool", "check", "rules", *files], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "url", ["docs/runbooks", "https://wiki.example.com/", 'https://wiki.example.com/"', "https://"]
)
def test_what_is_no_url_is_refused(tmp_path: Path, url: str) -> None:
    result = building("--runbooks-at", url, "--into", str(tmp_path / "new"))
    assert result.returncode == 2
    assert "--runbooks-at" in result.stderr.splitlines()[-1]
    assert url in result.stderr.splitlines()[-1]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("flags", [("--runbooks-at", URL), ("--into", "elsewhere")])
def test_the_files_here_are_never_written_with_other_links(flags: tuple[str, str]) -> None:
    result = building(*flags)
    assert result.returncode == 2
    assert "go together" in result.stderr
