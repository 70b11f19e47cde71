"""Which engine answers. The engines here are made up: what is tested is the order and the care of asking."""

import json
from collections.abc import Mapping
from contextlib import closing

import pytest

from kvgauge.observe.detecting import detect
from kvgauge.observe.engines.contract import Engine, Marks, Pages, names_start_with
from kvgauge.observe.fetching import Endpoint
from kvgauge.observe.records import EngineReading, SourceError
from tests.support.web import Behaviour, Exchange, page, serving, status


def unread(_: Pages) -> EngineReading:
    raise AssertionError("detection does not read")


def made_up(name: str, marks: Marks) -> Engine:
    return Engine(name=name, title=name, marks=marks, read=unread, versions="", facts={})


APPLE = made_up("apple", Marks(page=names_start_with(b"apple:"), owned_by=frozenset({"apple-org"})))
PEAR = made_up("pear", Marks(page=names_start_with(b"pear:")))
BASKET = made_up("basket", Marks(page=names_start_with(b"basket_"), wraps=True))
NUT = made_up("nut", Marks(json=(("/nut", lambda answer: isinstance(answer, Mapping) and "shell" in answer),)))
DRAINED = made_up("drained", Marks(owned_by=frozenset({"tensorrt_llm"})))
CRATE = made_up(
    "crate", Marks(json=(("/crate", lambda answer: isinstance(answer, Mapping) and "lid" in answer),), wraps=True)
)
ENGINES = (APPLE, PEAR, BASKET, NUT, DRAINED, CRATE)


def detected(routes: dict[str, Behaviour]) -> str:
    with serving(routes) as url, closing(Endpoint(url, timeout_seconds=2)) as endpoint:
        return detect(endpoint, ENGINES).name


def refused(routes: dict[str, Behaviour]) -> SourceError:
    with pytest.raises(SourceError) as failure:
        detected(routes)
    return failure.value


def as_json(content: object) -> Behaviour:
    return page(json.dumps(content).encode(), "application/json")


def test_by_the_names_on_its_page_wherever_that_is() -> None:
    for path in ("/metrics", "/prometheus/metrics", "/v1/metrics"):
        assert detected({path: page(b"other 1\napple:running 2\n")}) == "apple"


def test_a_wrapper_wins_over_what_it_passes_through() -> None:
    assert detected({"/metrics": page(b"apple:running 2\nbasket_blocks 0\n")}) == "basket"
    assert detected({"/v1/metrics": page(b"apple:running 2\n"), "/crate": as_json({"lid": 1})}) == "crate"


def test_a_page_that_mixes_engines_is_refused_by_name() -> None:
    error = refused({"/metrics": page(b"apple:running 2\npear:running 2\n")})
    assert error.reason == "several_engines"
    assert "apple, pear" in error.message


def test_by_a_json_page_that_only_it_has() -> None:
    assert detected({"/nut": as_json({"shell": 1})}) == "nut"
    assert detected({"/metrics": page(b"node_load1 1\n"), "/nut": as_json({"shell": 1})}) == "nut"
    assert refused({"/nut": as_json(["shell"])}).reason == "http_status"


def test_by_what_its_models_page_says() -> None:
    assert detected({"/v1/models": as_json({"data": [{"id": "m", "owned_by": "apple-org"}]})}) == "apple"


@pytest.mark.parametrize("models", [[], {}, {"data": 1}, {"data": []}, {"data": [1]}, {"data": [{"owned_by": 3}]}])
def test_an_odd_models_page_says_nothing(models: object) -> None:
    assert refused({"/v1/models": as_json(models), "/metrics": status(404)}).reason == "http_status"


def test_a_page_that_reading_empties_is_not_read() -> None:
    def drain(_: Exchange) -> None:
        raise AssertionError("this takes the records away from whoever else reads them")

    owned = as_json({"data": [{"id": "m", "owned_by": "tensorrt_llm"}]})
    assert detected({"/v1/models": owned, "/metrics": drain}) == "drained"


def test_what_metrics_answered_is_the_complaint() -> None:
    assert refused({"/metrics": status(401)}).reason == "unauthorized"
    assert refused({"/metrics": page(b"<html>")}).reason == "not_metrics"
    assert refused({"/metrics": page(b"node_load1 1\n")}).reason == "no_engine_series"
