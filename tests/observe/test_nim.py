"""The page of 1.x is constructed (`captures/nim/README.md`); from 2.0 on it is vLLM's or SGLang's own page."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given

from kvgauge.observe.engines import vllm
from kvgauge.observe.engines.contract import FACTS, Hints
from kvgauge.observe.engines.nim import ENGINE
from kvgauge.observe.exposition import sample_names
from kvgauge.observe.records import EngineReading, SourceError
from tests.support.odd import assert_sound, mutated_json, mutated_page
from tests.support.pages import Body, GivenPages

CAPTURES = Path(__file__).parent.parent / "captures"
PAGE = (CAPTURES / "nim/1.3/metrics.prom").read_text()
VLLM_PAGE = (CAPTURES / "vllm/0.32.0/smallcache_under_pressure.prom").read_bytes()
SIDE_PAGES: dict[str, Body] = {
    "/v1/version": {"release": "1.3.3", "api": "1.3.0"},
    "/v1/models": {
        "object": "list",
        "data": [{"id": "meta/llama-3.1-8b-instruct", "owned_by": "system", "root": "meta/llama-3.1-8b-instruct"}],
    },
}


def read(bodies: Mapping[str, Body], hints: Hints | None = None) -> EngineReading:
    reading = ENGINE.read(GivenPages(bodies, hints))
    assert_sound(reading)
    return reading


@pytest.mark.parametrize("path", ["/v1/metrics", "/metrics"])
def test_1x(path: str) -> None:
    reading = read(SIDE_PAGES | {path: PAGE})
    (rank,) = reading.ranks
    assert (rank.running, rank.waiting, rank.usage_ratio) == (12, 3, 0.3125)
    assert (rank.capacity_tokens, rank.active_tokens) == (None, None)
    assert (rank.prompt_tokens_total, rank.generation_tokens_total) == (15000, 8000)
    assert rank.prompt_lengths is not None
    assert (rank.prompt_lengths.count, rank.prompt_lengths.total) == (12, 15000)
    assert rank.output_lengths is not None
    assert (rank.output_lengths.count, rank.output_lengths.total) == (12, 8000)
    assert rank.progress is None
    assert (reading.model, reading.version, reading.max_num_seqs) == ("meta/llama-3.1-8b-instruct", "1.3.3", 256)
    assert reading.started_seconds == 1.73e9
    assert set(reading.missing) == {"max_model_len", "kv_dtype", "tp", "pp"}


def test_a_stated_capacity() -> None:
    (rank,) = read({"/v1/metrics": PAGE}, Hints(capacity_tokens=160_000)).ranks
    assert (rank.capacity_tokens, rank.active_tokens, rank.free_tokens) == (160_000, 50_000, 110_000)


@pytest.mark.parametrize("value", ["NaN", "-1.0", "31.25", "+Inf"])
def test_a_usage_that_is_no_fraction(value: str) -> None:
    reading = read({"/v1/metrics": PAGE.replace("} 0.3125", f"}} {value}")}, Hints(capacity_tokens=1000))
    assert reading.ranks[0].active_tokens is None
    assert reading.bad_values == 1


def test_from_2_0_on_the_engine_behind_is_read() -> None:
    bodies: dict[str, Body] = {"/v1/metrics": VLLM_PAGE, "/version": {"version": "0.32.0"}}
    behind = vllm.ENGINE.read(GivenPages({"/metrics": VLLM_PAGE, "/version": {"version": "0.32.0"}}))
    assert ENGINE.read(GivenPages(bodies)) == behind
    assert behind.engine == "vllm"
    assert behind.ranks[0].used_blocks == 167


def test_sglang_behind() -> None:
    reading = ENGINE.read(GivenPages({"/v1/metrics": (CAPTURES / "sglang/0.5.9/loaded.prom").read_bytes()}))
    assert reading.engine == "sglang"
    assert reading.ranks[0].capacity_tokens is not None


def test_nobody_behind() -> None:
    assert read({"/v1/metrics": "node_load1 1\n"}).ranks == ()


def test_no_page_at_all() -> None:
    with pytest.raises(SourceError) as failure:
        read(SIDE_PAGES)
    assert failure.value.message == "GET /v1/metrics answered 404"


def test_how_it_is_known() -> None:
    body = PAGE.encode()
    assert ENGINE.marks.page(frozenset(sample_names(body)), body)
    assert not ENGINE.marks.page(frozenset(sample_names(VLLM_PAGE)), VLLM_PAGE)
    ((path, is_its),) = ENGINE.marks.json
    assert path == "/v1/version"
    assert is_its({"release": "2.0.1", "api": "2.0.0"})
    assert not is_its({"version": "0.32.0"})
    assert not is_its([])


def test_every_fact_is_accounted_for() -> None:
    assert tuple(ENGINE.facts) == FACTS
    assert all(text.startswith(("exact", "derived: ", "unavailable")) for text in ENGINE.facts.values())


@given(mutated_page(PAGE))
def test_odd_pages_never_raise(body: bytes) -> None:
    read(SIDE_PAGES | {"/v1/metrics": body}, Hints(capacity_tokens=160_000))


@given(mutated_json(SIDE_PAGES["/v1/models"]), mutated_json(SIDE_PAGES["/v1/version"]))
def test_odd_side_pages_never_raise(models: dict[str, object], version: dict[str, object]) -> None:
    read({"/v1/metrics": PAGE, "/v1/models": models, "/v1/version": version})
