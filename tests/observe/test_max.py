"""The pages are constructed from MAX's instruments, spelled as OpenTelemetry's Prometheus exporter spells them."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings

from kvgauge.observe.engines.contract import Hints
from kvgauge.observe.engines.max import ENGINE
from kvgauge.observe.records import EngineReading, SourceError
from tests.support.odd import assert_sound, mutated_page
from tests.support.pages import Body, GivenPages

CAPTURES = Path(__file__).parent.parent / "captures" / "max"
PAGE = (CAPTURES / "26.5" / "loaded.prom").read_text()
OLD_PAGE = (CAPTURES / "25.6" / "loaded.prom").read_text()


def read(page: Body, hints: Hints | None = None) -> EngineReading:
    reading = ENGINE.read(GivenPages({"/metrics": page}, hints))
    assert_sound(reading)
    return reading


def test_blocks_and_requests() -> None:
    reading = read(PAGE)
    (rank,) = reading.ranks
    assert (rank.num_blocks, rank.used_blocks, rank.usage_ratio) == (1200, 300, 0.25)
    assert (rank.capacity_tokens, rank.active_tokens, rank.free_tokens) == (None, None, None)
    assert "blocks" in rank.missing["capacity_tokens"]
    # Nine are in flight; two of them are queued, one has not come as far.
    assert (rank.running, rank.waiting) == (6, 3)
    assert rank.preemptions_total == 4
    assert (rank.prefix_queries_tokens_total, rank.prefix_hits_tokens_total) == (30_000, 6000)
    assert (rank.prompt_tokens_total, rank.generation_tokens_total) == (31_000, 9000)
    assert rank.prompt_lengths is not None
    assert rank.output_lengths is not None
    assert (rank.prompt_lengths.count, rank.output_lengths.total) == (30, 9000)
    assert rank.progress == (8040,)


def test_a_given_capacity_tells_the_size_of_a_block() -> None:
    (rank,) = read(PAGE, Hints(capacity_tokens=1200 * 128)).ranks
    assert (rank.block_tokens, rank.active_tokens, rank.free_tokens) == (128, 300 * 128, 900 * 128)
    (rank,) = read(PAGE, Hints(capacity_tokens=1200 * 128 + 1)).ranks
    assert rank.block_tokens is None


def test_levels_that_were_added_up_are_not_believed() -> None:
    (rank,) = read(OLD_PAGE).ranks
    assert (rank.num_blocks, rank.used_blocks, rank.usage_ratio) == (None, None, None)
    assert "counter" in rank.missing["num_blocks"]
    assert (rank.running, rank.waiting) == (7, 2)
    assert rank.preemptions_total == 4


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("num_used_blocks", "num_used_blocks_blocks"),
        ("cache_preemption_count_total", "cache_preemption_count"),
        ("cache_hits_tokens_total", "cache_hits_total"),
        ("input_tokens_per_request_tokens_", "input_tokens_per_request_"),
        ("maxserve_", "maxserve:"),
    ],
)
def test_other_spellings(before: str, after: str) -> None:
    assert read(PAGE.replace(before, after)).ranks == read(PAGE).ranks


def test_more_blocks_in_use_than_there_are() -> None:
    reading = read(PAGE.replace("} 300.0", "} 1300.0"))
    assert (reading.ranks[0].used_blocks, reading.ranks[0].usage_ratio, reading.bad_values) == (None, None, 1)


def test_parts_that_disagree_for_a_moment() -> None:
    (rank,) = read(PAGE.replace("num_requests_queued{", 'num_requests_queued{x="1",').replace("} 9.0", "} 1.0")).ranks
    assert (rank.running, rank.waiting) == (0, 3)


def test_marks() -> None:
    assert ENGINE.marks.page(frozenset({b"maxserve_request_count_total"}), b"")
    assert read("target_info 1.0\n").ranks == ()


@given(mutated_page(PAGE))
@settings(deadline=None)
def test_odd_pages(page: bytes) -> None:
    with contextlib.suppress(SourceError):
        read(page, Hints(capacity_tokens=1200 * 128))
