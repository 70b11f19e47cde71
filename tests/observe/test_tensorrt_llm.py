"""Pages are constructed from TensorRT-LLM's sources; `captures/tensorrt-llm/README.md` says of which versions."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.observe.detecting import detect
from kvgauge.observe.engines.contract import FACTS, Hints
from kvgauge.observe.engines.tensorrt_llm import ENGINE
from kvgauge.observe.exposition import sample_names
from kvgauge.observe.fetching import Endpoint
from kvgauge.observe.records import EngineReading, SourceError
from tests.support.odd import assert_sound, mutated_json, mutated_page
from tests.support.pages import Body, GivenPages
from tests.support.web import Exchange, serving
from tests.support.web import page as web_page

CAPTURES = Path(__file__).parent.parent / "captures" / "tensorrt-llm"
PAGE = "/prometheus/metrics"
SIDE_PAGES: dict[str, Body] = {
    "/version": {"version": "1.3.0rc9"},
    "/v1/models": {"object": "list", "data": [{"id": "Qwen/Qwen3-8B", "owned_by": "tensorrt_llm"}]},
}
OURS = Hints(read_iteration_stats=True)


def page(version: str) -> str:
    return (CAPTURES / version / "prometheus.prom").read_text()


def records() -> list[dict[str, object]]:
    parsed = json.loads((CAPTURES / "1.1" / "records.json").read_text())
    assert isinstance(parsed, list)
    return parsed


def read(bodies: dict[str, Body], hints: Hints | None = None) -> EngineReading:
    reading = ENGINE.read(GivenPages(SIDE_PAGES | bodies, hints))
    assert_sound(reading)
    return reading


def test_the_whole_page_of_main() -> None:
    reading = read({PAGE: page("main-2026")})
    (rank,) = reading.ranks
    assert (rank.num_blocks, rank.used_blocks, rank.block_tokens) == (4096, 1024, 32)
    assert (rank.capacity_tokens, rank.active_tokens, rank.free_tokens) == (131072, 32768, 98304)
    assert rank.usage_ratio == 0.25
    assert rank.reclaimable_tokens is None
    assert (rank.running, rank.waiting, rank.swapped) == (24, 6, 2)
    assert (rank.prefix_hits_tokens_total, rank.prefix_queries_tokens_total) == (15360, 61440)
    assert rank.generation_tokens_total == 24000
    assert (reading.model, reading.model_path, reading.version) == ("Qwen/Qwen3-8B", "/models/qwen3-8b", "1.3.0rc9")
    assert (reading.max_model_len, reading.max_num_seqs, reading.kv_dtype) == (16384, 256, "fp8")
    assert (reading.tp, reading.pp, reading.prefix_caching) == (2, 1, True)
    assert not reading.missing


def test_a_page_that_ages_accuses_nobody() -> None:
    assert read({PAGE: page("main-2026")}).ranks[0].progress is None


def test_1_3_tells_a_fraction_only() -> None:
    (rank,) = read({PAGE: page("1.3")}).ranks
    assert rank.usage_ratio == 0.375
    assert (rank.capacity_tokens, rank.active_tokens, rank.free_tokens, rank.running) == (None, None, None, None)
    (rank,) = read({PAGE: page("1.3")}, Hints(capacity_tokens=80_000)).ranks
    assert (rank.capacity_tokens, rank.active_tokens, rank.free_tokens) == (80_000, 30_000, 50_000)


def test_1_1_names_neither_itself_nor_its_model() -> None:
    reading = read({PAGE: page("1.1")})
    (rank,) = reading.ranks
    assert reading.model == rank.model == "Qwen/Qwen3-8B"
    assert (rank.usage_ratio, rank.running, rank.capacity_tokens) == (None, None, None)
    assert set(reading.missing) == {"model_path", "max_model_len", "kv_dtype", "tp", "pp"}


def test_dynamo_0_7_put_a_colon() -> None:
    (rank,) = read({PAGE: page("main-2026").replace("trtllm_", "trtllm:")}).ranks
    assert rank.used_blocks == 1024


def test_before_the_first_request_there_are_no_series() -> None:
    assert read({PAGE: ""}).ranks == ()
    assert read({PAGE: "process_start_time_seconds 1\n"}).ranks == ()


def test_a_capacity_of_zero_is_unknown() -> None:
    (rank,) = read({PAGE: page("main-2026").replace("} 4096.0", "} 0.0")}).ranks
    assert (rank.num_blocks, rank.capacity_tokens, rank.active_tokens) == (None, None, 32768)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1.0", "9999.0", "1e+300"])
def test_used_blocks_that_cannot_be(value: str) -> None:
    odd = page("main-2026").replace("} 1024.0", f"}} {value}").replace("} 0.25", "} NaN")
    reading = read({PAGE: odd})
    (rank,) = reading.ranks
    assert (rank.used_blocks, rank.active_tokens, rank.usage_ratio) == (None, None, None)
    assert rank.capacity_tokens == 131072
    assert reading.bad_values >= 1


def test_a_utilization_that_is_no_fraction() -> None:
    reading = read({PAGE: page("1.3").replace("0.375", "37.5")})
    assert reading.ranks[0].usage_ratio is None
    assert reading.bad_values == 1


def test_the_records_are_left_alone_unless_they_are_ours() -> None:
    for version, hints in (("1.1", Hints()), ("1.3", OURS), ("main-2026", OURS)):
        pages = GivenPages(SIDE_PAGES | {PAGE: page(version), "/metrics": records()}, hints)
        ENGINE.read(pages)
        assert "/metrics" not in pages.asked
    with pytest.raises(SourceError) as failure:
        ENGINE.read(GivenPages({"/metrics": records()}))
    assert failure.value.reason == "http_status"


@pytest.mark.parametrize("bodies", [{PAGE: page("1.1")}, {PAGE: ""}, {}])
def test_the_last_record_of_each_rank(bodies: dict[str, Body]) -> None:
    reading = read(bodies | {"/metrics": records()}, OURS)
    first, second = reading.ranks
    assert (first.rank, second.rank) == ("0", "1")
    assert (first.num_blocks, first.used_blocks, first.capacity_tokens) == (2000, 320, 64000)
    assert (first.active_tokens, first.free_tokens) == (320 * 32, 1680 * 32)
    # Ten as the iteration began, of which it completed two.
    assert (first.running, first.waiting, first.swapped) == (8, 3, 1)
    assert (first.prefix_hits_tokens_total, first.prefix_queries_tokens_total) == (110 * 32, 930 * 32)
    assert (first.progress, second.progress) == ((41.0,), (41.0,))
    assert (second.used_blocks, second.running) == (50, 3)
    assert (reading.max_num_seqs, reading.model) == (64, "Qwen/Qwen3-8B")


def test_no_record_is_not_zero_requests() -> None:
    (rank,) = read({PAGE: page("1.1"), "/metrics": []}, OURS).ranks
    assert (rank.running, rank.waiting, rank.active_tokens, rank.capacity_tokens) == (None, None, None, None)
    assert rank.progress is None
    assert "no step" in rank.missing["running"]
    stated = Hints(read_iteration_stats=True, capacity_tokens=64000)
    assert read({"/metrics": []}, stated).ranks[0].capacity_tokens == 64000


def test_an_object_is_no_list_of_records() -> None:
    with pytest.raises(SourceError) as failure:
        read({"/metrics": {"iter": 1}}, OURS)
    assert failure.value.reason == "not_json"


def test_how_it_is_known() -> None:
    def is_its(text: str) -> bool:
        return ENGINE.marks.page(frozenset(sample_names(text.encode())), text.encode())

    assert all(is_its(page(version)) for version in ("1.1", "1.3", "main-2026"))
    captures = CAPTURES.parent
    assert not is_its((captures / "nim/1.3/metrics.prom").read_text())
    assert not is_its((captures / "vllm/0.32.0/load30_peak_bs128.prom").read_text())
    assert not is_its((captures / "triton/2025/metrics.prom").read_text())
    assert not is_its('sglang:e2e_request_latency_seconds_sum{engine_type="unified"} 1\n')
    assert ENGINE.marks.owned_by == {"tensorrt_llm"}


def test_finding_out_takes_no_record_away() -> None:
    asked: list[str] = []

    def records_page(exchange: Exchange) -> None:
        asked.append("/metrics")
        web_page(b"[]", "application/json")(exchange)

    models = b'{"data": [{"id": "m", "owned_by": "tensorrt_llm"}]}'
    with serving({"/metrics": records_page, "/v1/models": web_page(models)}) as url:
        assert detect(Endpoint(url, timeout_seconds=1), (ENGINE,)) is ENGINE
    assert not asked


def test_every_fact_is_accounted_for() -> None:
    assert tuple(ENGINE.facts) == FACTS
    assert all(text.startswith(("exact", "derived: ", "unavailable")) for text in ENGINE.facts.values())


@given(mutated_page(page("main-2026")))
def test_odd_pages_never_raise(body: bytes) -> None:
    read({PAGE: body})


@given(mutated_json(records()), st.sampled_from(["1.1", "1.3"]))
def test_odd_records_never_raise(answer: list[object], version: str) -> None:
    read({PAGE: page(version), "/metrics": answer}, OURS)


@given(mutated_json(SIDE_PAGES["/v1/models"]), mutated_json(SIDE_PAGES["/version"]))
def test_odd_side_pages_never_raise(models: dict[str, object], version: dict[str, object]) -> None:
    with contextlib.suppress(SourceError):
        read({PAGE: page("1.1"), "/v1/models": models, "/version": version})
