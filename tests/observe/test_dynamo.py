"""Pages are constructed in the shape of Dynamo's docs; `captures/dynamo/README.md` says of which versions."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.observe.detecting import detect
from kvgauge.observe.engines import sglang, tensorrt_llm, vllm
from kvgauge.observe.engines.contract import FACTS, Hints
from kvgauge.observe.engines.dynamo import ENGINE
from kvgauge.observe.exposition import sample_names
from kvgauge.observe.fetching import Endpoint
from kvgauge.observe.records import EngineReading, SourceError
from tests.support.odd import assert_sound, mutated_page
from tests.support.pages import GivenPages
from tests.support.web import page as web_page
from tests.support.web import serving

CAPTURES = Path(__file__).parent.parent / "captures"
CONFIG = (
    'vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",kv_cache_max_concurrency="3.125",'
    'kv_cache_size_tokens="128000",num_gpu_blocks="8000"} 1.0\n'
)


def page(name: str) -> str:
    return (CAPTURES / "dynamo" / f"{name}.prom").read_text()


def read(body: str | bytes, hints: Hints | None = None) -> EngineReading:
    return ENGINE.read(GivenPages({"/metrics": body}, hints))


def test_vllm_behind_and_its_blocks_from_dynamo() -> None:
    reading = read(page("0.7/worker_vllm"))
    (rank,) = reading.ranks
    assert (reading.engine, reading.model) == ("vllm", "Qwen/Qwen3-8B")
    assert (rank.running, rank.waiting, rank.usage_ratio) == (4, 1, 0.125)
    assert (rank.num_blocks, rank.used_blocks, rank.block_tokens) == (8000, 1000, None)
    assert rank.capacity_tokens is None
    assert "capacity_tokens" in rank.missing
    assert "used_blocks" not in rank.missing


def test_what_vllm_tells_itself_stays() -> None:
    pages = GivenPages({"/metrics": page("0.7/worker_vllm") + CONFIG})
    (rank,) = ENGINE.read(pages).ranks
    assert (rank.capacity_tokens, rank.block_tokens, rank.num_blocks) == (128000, 16, 8000)
    assert rank.active_tokens == 1000 * 16
    assert pages.asked.count("/metrics") == 1


def test_trtllm_behind() -> None:
    reading = read(page("1.0/worker_trtllm"), Hints(read_iteration_stats=True))
    assert_sound(reading)
    (rank,) = reading.ranks
    assert (reading.engine, reading.model) == ("tensorrt-llm", "Qwen/Qwen3-8B")
    assert (rank.num_blocks, rank.used_blocks, rank.usage_ratio) == (2048, 1024, 0.5)
    assert (rank.capacity_tokens, rank.running) == (None, None)


def test_sglang_behind() -> None:
    theirs = (CAPTURES / "sglang/0.5.9/loaded.prom").read_text()
    reading = read(page("0.7/worker_unwired") + theirs)
    assert_sound(reading)
    assert reading.engine == "sglang"
    assert reading.ranks == sglang.ENGINE.read(GivenPages({"/metrics": theirs})).ranks


def test_zeros_of_an_engine_that_is_not_wired() -> None:
    reading = read(page("0.7/worker_unwired"))
    assert_sound(reading)
    (rank,) = reading.ranks
    assert (reading.engine, reading.model) == ("dynamo", "Qwen/Qwen3-8B")
    assert (rank.num_blocks, rank.used_blocks, rank.usage_ratio, rank.running) == (None, None, None, None)


def test_a_worker_with_dynamos_gauges_alone() -> None:
    reading = read(page("1.0/worker_bare"))
    assert_sound(reading)
    assert [(rank.rank, rank.num_blocks, rank.used_blocks) for rank in reading.ranks] == [
        ("0", 4000, 1000),
        ("1", 4000, 3000),
    ]
    stated = read(page("1.0/worker_bare"), Hints(capacity_tokens=64_000))
    assert [rank.active_tokens for rank in stated.ranks] == [16_000, 48_000]


def test_the_frontend_tells_what_a_worker_is_like() -> None:
    reading = read(page("0.7/frontend"))
    assert_sound(reading)
    (rank,) = reading.ranks
    assert (reading.model, reading.max_model_len, reading.max_num_seqs) == ("Qwen/Qwen3-8B", 40960, 256)
    assert (rank.num_blocks, rank.block_tokens, rank.capacity_tokens) == (8000, 16, 128_000)
    assert (rank.running, rank.waiting, rank.active_tokens) == (None, None, None)
    assert rank.prompt_lengths is not None
    assert (rank.prompt_lengths.count, rank.prompt_lengths.total) == (6, 900)
    assert rank.output_lengths is not None
    assert rank.output_lengths.total == 300


def test_a_frontend_of_two_models() -> None:
    other = page("0.7/frontend").replace("Qwen/Qwen3-8B", "acme/tiny").replace("qwen/qwen3-8b", "acme/tiny")
    reading = read(page("0.7/frontend") + other.replace("} 40960", "} 8192"))
    assert_sound(reading)
    assert [(rank.rank, rank.model) for rank in reading.ranks] == [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("acme/tiny", "acme/tiny"),
    ]
    assert (reading.max_model_len, reading.max_num_seqs) == (None, 256)
    assert "max_model_len" in reading.missing


@pytest.mark.parametrize("value", ["NaN", "-1", "50", "+Inf"])
def test_a_usage_that_is_no_fraction(value: str) -> None:
    reading = read(page("1.0/worker_bare").replace("} 0.25", f"}} {value}"))
    assert_sound(reading)
    assert [rank.used_blocks for rank in reading.ranks] == [None, 3000]
    assert reading.bad_values == 1


def test_other_dynamo_processes_have_no_pool() -> None:
    assert read("dynamo_component_uptime_seconds 1\n").ranks == ()


def test_it_goes_before_the_engines_whose_series_it_passes_through() -> None:
    body = page("0.7/worker_vllm").encode()
    engines = (vllm.ENGINE, tensorrt_llm.ENGINE, sglang.ENGINE, ENGINE)
    with serving({"/metrics": web_page(body)}) as url:
        assert detect(Endpoint(url, timeout_seconds=1), engines).name == "dynamo"
    assert not ENGINE.marks.page(frozenset(sample_names(CONFIG.encode())), CONFIG.encode())


def test_two_engines_without_a_wrapper_are_not_guessed() -> None:
    mixed = (CAPTURES / "tensorrt-llm/1.3/prometheus.prom").read_bytes() + CONFIG.encode()
    with serving({"/metrics": web_page(mixed)}) as url, pytest.raises(SourceError) as failure:
        detect(Endpoint(url, timeout_seconds=1), (vllm.ENGINE, tensorrt_llm.ENGINE, sglang.ENGINE, ENGINE))
    assert failure.value.reason == "several_engines"


def test_every_fact_is_accounted_for() -> None:
    assert tuple(ENGINE.facts) == FACTS
    assert all(text.startswith(("exact", "derived: ", "unavailable")) for text in ENGINE.facts.values())


ODD = st.sampled_from(["0.7/worker_unwired", "1.0/worker_trtllm", "1.0/worker_bare", "0.7/frontend"])


@given(ODD.flatmap(lambda name: mutated_page(page(name))))
def test_odd_pages_never_raise(body: bytes) -> None:
    assert_sound(read(body, Hints(capacity_tokens=64_000)))


@given(mutated_page(page("0.7/worker_vllm") + CONFIG))
def test_odd_pages_with_an_engine_behind_never_raise(body: bytes) -> None:
    read(body)
