"""The page is constructed from LMDeploy's sources of the version that its folder names."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings

from kvgauge.observe.engines.contract import Hints
from kvgauge.observe.engines.lmdeploy import ENGINE
from kvgauge.observe.records import EngineReading, SourceError
from tests.support.odd import assert_sound, mutated_json, mutated_page
from tests.support.pages import Body, GivenPages

PAGE = (Path(__file__).parent.parent / "captures" / "lmdeploy" / "0.11.0" / "two_ranks.prom").read_text()
MODELS = {"data": [{"id": "tiny-7b", "owned_by": "lmdeploy"}]}


def read(page: Body, models: Body | None = None, hints: Hints | None = None) -> EngineReading:
    reading = ENGINE.read(
        GivenPages({"/metrics": page} | ({"/v1/models": models} if models is not None else {}), hints)
    )
    assert_sound(reading)
    return reading


def test_usage_holds_the_prefix_cache_and_is_not_taken_for_activity() -> None:
    reading = read(PAGE, MODELS, Hints(capacity_tokens=100_000, max_model_len=8192, kv_dtype="int8"))
    first, second = reading.ranks
    assert (first.rank, first.usage_ratio, first.running, first.waiting) == ("0", 0.625, 4, 1)
    assert (second.rank, second.usage_ratio, second.running, second.waiting) == ("1", 0.3125, 2, 0)
    assert first.capacity_tokens == 100_000
    assert (first.active_tokens, first.reclaimable_tokens, first.free_tokens) == (None, None, None)
    assert "prefix cache" in first.missing["active_tokens"]
    assert (first.prompt_tokens_total, first.generation_tokens_total) == (31_000, 9500)
    assert first.prompt_lengths is not None
    assert (first.prompt_lengths.count, first.prompt_lengths.total) == (31, 30_500)
    assert (reading.model, reading.max_model_len, reading.kv_dtype) == ("tiny-7b", 8192, "int8")


def test_without_a_hint_there_is_no_capacity() -> None:
    (first, _) = read(PAGE).ranks
    assert first.capacity_tokens is None
    assert first.missing["capacity_tokens"]


def test_cached_tokens_where_they_are_counted() -> None:
    assert read(PAGE).ranks[0].prefix_hits_tokens_total is None
    (first, second) = read(PAGE + 'lmdeploy:cached_tokens_total{engine="0",model_name="tiny-7b"} 700.0\n').ranks
    assert (first.prefix_queries_tokens_total, first.prefix_hits_tokens_total) == (31_000, 700)
    assert second.prefix_hits_tokens_total is None


def test_outputs_move_between_the_renewals_of_the_gauges() -> None:
    (before, other), (after, same) = read(PAGE).ranks, read(PAGE.replace("} 9500.0", "} 9508.0")).ranks
    assert before.progress != after.progress
    assert other.progress == same.progress


def test_names_without_the_colon() -> None:
    assert read(PAGE.replace("lmdeploy:", "lmdeploy_")).ranks[0].usage_ratio == 0.625


@pytest.mark.parametrize("value", ["NaN", "-0.1", "62.5", "+Inf"])
def test_a_usage_that_is_no_fraction_is_unknown(value: str) -> None:
    reading = read(PAGE.replace("} 0.625", f"}} {value}"))
    assert reading.ranks[0].usage_ratio is None
    assert reading.ranks[1].usage_ratio == 0.3125
    assert reading.bad_values == 1


def test_marks() -> None:
    assert ENGINE.marks.page(frozenset({b"lmdeploy:num_requests_running"}), b"")
    assert not ENGINE.marks.page(frozenset({b"vllm:num_requests_running"}), b"")
    assert ENGINE.marks.owned_by == {"lmdeploy"}
    assert read("python_info 1.0\n").ranks == ()


@given(mutated_page(PAGE), mutated_json(MODELS))
@settings(deadline=None)
def test_odd_answers(page: bytes, models: Body) -> None:
    with contextlib.suppress(SourceError):
        read(page, models, Hints(capacity_tokens=100_000))
