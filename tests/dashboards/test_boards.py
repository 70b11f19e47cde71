"""What the dashboards' files say, without a Prometheus."""

import json
import re
from typing import Any

import pytest
from dashboards.building import built
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.dashboards.boards import FOLDER, NAMES, load, metrics, panels, queries

_DOCS = FOLDER.parent / "docs"


def test_the_files_are_what_the_program_builds() -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert found == built(), "run: python -m dashboards.building"


@pytest.mark.parametrize("name", NAMES)
def test_the_types_know_every_key(name: str) -> None:
    register_default_plugins()
    read = Dashboard.from_json(load(name)).to_json()
    del read["style"]  # which the kit sets where it is missing
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == load(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_says_what_it_is(name: str) -> None:
    for panel in panels(name):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"], panel
        assert len(panel["description"]) > 30, panel["title"]
        assert defaults["unit"], panel["title"]
        assert defaults["noValue"] == "no data", panel["title"]
        assert defaults["thresholds"]["steps"], panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_leads_to_a_runbook_that_exists(name: str) -> None:
    for panel in panels(name):
        url = panel["links"][0]["url"]
        assert url.startswith("${runbooks:raw}/"), panel["title"]
        assert (_DOCS / "runbooks" / url.removeprefix("${runbooks:raw}/")).is_file(), url


@pytest.mark.parametrize("name", NAMES)
def test_no_more_than_40_queries(name: str) -> None:
    assert 0 < len(list(queries(name))) <= 40


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_asked_twice(name: str) -> None:
    asked = [expr for _, expr in queries(name)]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("name", NAMES)
def test_panel_ids_are_unique_and_panels_do_not_overlap(name: str) -> None:
    found = load(name)["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        place = panel["gridPos"]
        left = place.get("x", 0)
        cells = {(x, y) for x in range(left, left + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert left + place["w"] <= 24, panel["title"]
        assert not taken & cells, panel["title"]
        taken |= cells


def test_uids_are_unique() -> None:
    assert len({load(name)["uid"] for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_datasource_is_hard_wired(name: str) -> None:
    sources = list(_sources(load(name)))
    assert sources
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


@pytest.mark.parametrize("name", NAMES)
def test_variables_named_are_variables_there_are(name: str) -> None:
    own = {"__rate_interval", "__data", "__value", "__url_time_range", "__all"}
    there = {variable["name"] for variable in load(name)["templating"]["list"]}
    assert {"datasource", "namespace", "pod", "model"} <= there
    assert set(re.findall(r"\$\{?(\w+)", (FOLDER / f"{name}.json").read_text(encoding="utf-8"))) <= there | own


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_is_documented(name: str) -> None:
    documented = metrics((_DOCS / "metrics.md").read_text() + (_DOCS / "aggregator.md").read_text())
    assert {metric for _, expr in queries(name) for metric in metrics(expr)} <= documented


@pytest.mark.parametrize("name", NAMES)
def test_missing_is_never_made_0(name: str) -> None:
    for title, expr in queries(name):
        assert not re.search(r"\bor\b|vector\(|absent", expr), title
    for panel in panels(name):
        assert panel["fieldConfig"]["defaults"].get("custom", {}).get("spanNulls", False) is False


@pytest.mark.parametrize("name", NAMES)
def test_no_theme_is_forced(name: str) -> None:
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert "style" not in load(name)
    assert not re.search(r"#[0-9a-fA-F]{6}", text)


def _sources(node: Any) -> list[Any]:
    if isinstance(node, list):
        return [source for item in node for source in _sources(item)]
    if not isinstance(node, dict):
        return []
    own = [node["datasource"]] if "datasource" in node else []
    return own + [source for item in node.values() for source in _sources(item)]
