from pathlib import Path

from kvgauge.cluster.reference import reference


def test_the_page_is_that_of_the_tables() -> None:
    page = Path(__file__).parents[2] / "docs/aggregator.md"
    assert page.read_text() == reference(), (
        "docs/aggregator.md is old: python -m kvgauge.cluster.reference > docs/aggregator.md"
    )
