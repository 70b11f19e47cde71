"""Rules, their tests and their runbooks, held against each other and against what is exported."""

import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import yaml

from kvgauge.advise.fleet_history import USUAL_START_UP_SECONDS
from kvgauge.publish.families import FAMILIES
from tests.dashboards.replaying import ALERTS, ROOT, RULES

Rule = Mapping[str, object]

RUNBOOKS = ROOT / "docs/runbooks"
TESTS = sorted((ALERTS / "tests").glob("*.test.yaml"))
_SEVERITIES = {"info", "warning", "critical"}
_METRIC = re.compile(r"\bkvgauge(?:_\w+|:[\w:]+)")
_HEADINGS = ["## What it means", "## How to confirm it", "## What to do"]


@cache
def rules() -> tuple[Rule, ...]:
    return tuple(
        rule
        for file in RULES
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    )


def alerts() -> dict[str, Rule]:
    return {str(rule["alert"]): rule for rule in rules() if "alert" in rule}


def annotation(rule: Rule, name: str) -> str:
    annotations = rule["annotations"]
    assert isinstance(annotations, dict)
    return str(annotations[name])


def known() -> set[str]:
    """Names of series: the sidecar's, the aggregator's by its document, and those that are recorded."""
    aggregator = (ROOT / "docs/aggregator.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(kvgauge_\w+)` \| (?:gauge|counter|histogram) \|", aggregator, re.MULTILINE))
    assert "kvgauge_required_replicas" in documented
    return (
        {family.name for family in FAMILIES}
        | documented
        | {str(rule["record"]) for rule in rules() if "record" in rule}
    )


def test_without_a_start_seen_the_lead_time_is_the_one_that_the_aggregator_takes() -> None:
    (expr,) = (str(rule["expr"]) for rule in rules() if rule.get("record") == "kvgauge:start_up:seconds")
    assert f" or {USUAL_START_UP_SECONDS:.0f} * " in f" {' '.join(expr.split())}"


@pytest.mark.prometheus
def test_promtool_takes_the_rules() -> None:
    result = subprocess.run(["promtool", "check", "rules", *RULES], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.prometheus
@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_alerts_fire_in_time_and_resolve(file: Path) -> None:
    result = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_tested_to_fire_not_to_fire_before_and_to_resolve() -> None:
    checks = [
        check
        for file in TESTS
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]
        for check in test.get("alert_rule_test", ())
    ]
    for name in alerts():
        fires = [bool(check["exp_alerts"]) for check in checks if check["alertname"] == name]
        assert True in fires, name
        first = fires.index(True)
        assert False in fires[:first], name
        assert False in fires[first:], name


@pytest.mark.parametrize("name", alerts())
def test_an_alert_has_a_severity_a_time_numbers_or_a_name_and_a_runbook(name: str) -> None:
    rule = alerts()[name]
    labels = rule["labels"]
    assert isinstance(labels, dict)
    assert labels["severity"] in _SEVERITIES
    assert re.fullmatch(r"\d+[mh]", str(rule["for"]))
    summary = annotation(rule, "summary")
    # Either the figure, or the time that stands in `for`.
    assert "$value" in summary or re.search(r"\d+ minutes|within the hour", summary)
    assert "$labels.namespace" in summary
    url = annotation(rule, "runbook_url")
    assert url.startswith("docs/runbooks/")
    assert f"`{name}`" in (ROOT / url).read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_use_only_series_that_there_are(rule: Rule) -> None:
    used = set(_METRIC.findall(str(rule["expr"])))
    assert used
    assert used <= known()


def test_every_runbook_says_what_to_type_and_is_of_an_alert() -> None:
    books = sorted(file for file in RUNBOOKS.glob("*.md") if file.stem != "README")
    assert {annotation(rule, "runbook_url") for rule in alerts().values()} == {
        f"docs/runbooks/{book.name}" for book in books
    }
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    for book in books:
        text = book.read_text(encoding="utf-8")
        assert [line for line in text.splitlines() if line.startswith("## ")] == _HEADINGS, book
        assert "```sh" in text.partition(_HEADINGS[1])[2].partition(_HEADINGS[2])[0], book
        assert f"({book.name})" in index
        assert set(_METRIC.findall(text)) <= known(), book
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert (RUNBOOKS / link).is_file(), f"{book}: {link}"
