"""The table of engines, and docs/engines.md that is made of it."""

from pathlib import Path

import pytest

from kvgauge.observe.engines import ENGINES, PAGELESS
from kvgauge.observe.engines.contract import FACTS, Engine
from kvgauge.observe.engines.reference import reference

by_name = pytest.mark.parametrize("engine", [*ENGINES, *PAGELESS], ids=lambda engine: engine.name)


@by_name
def test_every_engine_says_how_each_fact_is_had(engine: Engine) -> None:
    assert set(engine.facts) == set(FACTS)
    for fact, how in engine.facts.items():
        assert how.split(maxsplit=1)[0].rstrip(":;,") in {"exact", "derived", "unavailable"}, (fact, how)
        assert "\n" not in how
        assert "|" not in how


def test_the_page_is_that_of_the_code() -> None:
    path = Path(__file__).parent.parent.parent / "docs" / "engines.md"
    assert path.read_text() == reference(), (
        "docs/engines.md is old: python -m kvgauge.observe.engines.reference > docs/engines.md"
    )
