"""The pages are constructed from TGI's sources of about the versions that the tests name."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings

from kvgauge.observe.engines.contract import Hints
from kvgauge.observe.engines.tgi import ENGINE
from kvgauge.observe.records import EngineReading, SourceError
from tests.support.odd import assert_sound, mutated_json, mutated_page
from tests.support.pages import Body, GivenPages

CAPTURES = Path(__file__).parent.parent / "captures" / "tgi"
PAGE = (CAPTURES / "3.3.6" / "loaded.prom").read_text()
INFO_2_0: dict[str, object] = json.loads((CAPTURES / "2.0.4" / "info.json").read_text())
INFO_3_3: dict[str, object] = json.loads((CAPTURES / "3.3.6" / "info.json").read_text())


def read(page: Body, info: Body | None = None, hints: Hints | None = None) -> EngineReading:
    bodies: dict[str, Body] = {"/metrics": page}
    if info is not None:
        bodies["/info"] = info
    reading = ENGINE.read(GivenPages(bodies, hints))
    assert_sound(reading)
    return reading


def test_up_to_2_2_the_capacity_is_told() -> None:
    reading = read(PAGE, INFO_2_0)
    (rank,) = reading.ranks
    assert (rank.capacity_tokens, rank.reserved_tokens, rank.active_tokens) == (40_960, 20_480, 20_480)
    assert (rank.free_tokens, rank.usage_ratio) == (20_480, 0.5)
    assert (rank.running, rank.waiting) == (7, 5)
    assert (rank.live_tokens, rank.preemptions_total) == (None, None)
    assert rank.prompt_lengths is not None
    assert (rank.prompt_lengths.count, rank.prompt_lengths.total) == (52, 26_000)
    assert rank.output_lengths is not None
    assert (rank.output_lengths.count, rank.generation_tokens_total) == (40, 9800)
    assert (reading.model, reading.version, reading.max_model_len) == ("acme/tiny-7b", "2.0.4", 4096)
    assert (reading.kv_dtype, reading.max_num_seqs) == ("auto", None)


def test_from_2_3_on_only_the_operator_tells_it() -> None:
    reading = read(PAGE, INFO_3_3)
    (rank,) = reading.ranks
    assert (rank.capacity_tokens, rank.reserved_tokens, rank.active_tokens) == (None, 20_480, 20_480)
    assert (rank.free_tokens, rank.usage_ratio) == (None, None)
    assert "--max-batch-total-tokens" in rank.missing["capacity_tokens"]
    assert reading.kv_dtype is None
    (rank,) = read(PAGE, INFO_3_3, Hints(capacity_tokens=102_400)).ranks
    assert (rank.free_tokens, rank.usage_ratio) == (81_920, 0.2)


def test_a_page_that_states_the_capacity_is_believed() -> None:
    (rank,) = read(PAGE + "tgi_batch_max_total_tokens 81920\n", INFO_3_3).ranks
    assert (rank.capacity_tokens, rank.usage_ratio) == (81_920, 0.25)


@pytest.mark.parametrize("page", ["", "\n", "# nothing yet\n"])
def test_before_first_use_the_page_is_empty(page: str) -> None:
    reading = read(page, INFO_2_0)
    (rank,) = reading.ranks
    assert (rank.capacity_tokens, rank.running, rank.waiting, rank.active_tokens) == (40_960, None, None, None)
    assert "first use" in rank.missing["running"]
    assert reading.model == "acme/tiny-7b"
    assert reading.bad_values == 0


def test_an_empty_page_of_nobody_has_no_ranks() -> None:
    assert read("").ranks == ()


def test_shared_prefixes_can_reserve_more_than_there_is() -> None:
    page = PAGE.replace("max_tokens 20480", "max_tokens 50000")
    (rank,) = read(page, INFO_3_3, Hints(capacity_tokens=40_960)).ranks
    assert (rank.reserved_tokens, rank.active_tokens, rank.free_tokens) == (50_000, 40_960, 0)
    # Up to 2.2 nothing is shared.
    reading = read(page, INFO_2_0)
    assert (reading.ranks[0].reserved_tokens, reading.bad_values) == (None, 1)


def test_each_step_moves() -> None:
    (before,), (after,) = read(PAGE).ranks, read(PAGE.replace(" 9120", " 9121")).ranks
    assert before.progress != after.progress
    waiting = read(PAGE.replace("tgi_queue_size 5", "tgi_queue_size 6").replace("_count 52", "_count 53"))
    assert before.progress == waiting.ranks[0].progress


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "1e300"])
def test_a_reservation_that_cannot_be(value: str) -> None:
    reading = read(PAGE.replace("max_tokens 20480", f"max_tokens {value}"), INFO_2_0)
    (rank,) = reading.ranks
    assert (rank.reserved_tokens, rank.active_tokens, rank.free_tokens) == (None, None, None)
    assert reading.bad_values == 1


def test_marks() -> None:
    assert ENGINE.marks.page(frozenset({b"tgi_queue_size"}), b"")
    ((path, is_its),) = ENGINE.marks.json
    assert path == "/info"
    assert is_its(INFO_2_0)
    assert is_its(INFO_3_3)
    # Text Embeddings Inference has the first two as well.
    assert not is_its({"model_id": "m", "max_concurrent_requests": 512, "max_batch_tokens": 16384})


@given(mutated_page(PAGE))
@settings(deadline=None)
def test_odd_pages(page: bytes) -> None:
    with contextlib.suppress(SourceError):
        read(page, INFO_2_0)


@given(mutated_json(INFO_2_0))
@settings(deadline=None)
def test_odd_info(info: Body) -> None:
    with contextlib.suppress(SourceError):
        read(PAGE, info)
