"""Alert and recording rules, by Prometheus' own promtool."""

import subprocess

import pytest

from tests.helm.rendering import ROOT


@pytest.mark.prometheus
def test_promtool_takes_every_file_of_rules() -> None:
    files = [file for file in sorted((ROOT / "dashboards/alerts").glob("*.yaml")) if "test" not in file.stem]
    assert files
    result = subprocess.run(["promtool", "check", "rules", *files], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
