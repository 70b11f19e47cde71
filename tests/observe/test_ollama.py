"""Answers are constructed in the shape of Ollama's docs; `captures/ollama/README.md` says of which versions."""

import json
from collections.abc import Mapping
from pathlib import Path

from hypothesis import given

from kvgauge.observe.detecting import detect
from kvgauge.observe.engines.contract import FACTS, Hints
from kvgauge.observe.engines.ollama import ENGINE
from kvgauge.observe.fetching import Endpoint
from kvgauge.observe.records import EngineReading
from tests.support.odd import assert_sound, mutated_json
from tests.support.pages import Body, GivenPages
from tests.support.web import page as web_page
from tests.support.web import serving

CAPTURES = Path(__file__).parent.parent / "captures" / "ollama"
VERSION: Body = {"version": "0.12.6"}


def answer(name: str) -> dict[str, object]:
    parsed = json.loads((CAPTURES / f"{name}.json").read_text())
    assert isinstance(parsed, dict)
    return parsed


def read(loaded: Mapping[str, object], hints: Hints | None = None, version: Body = VERSION) -> EngineReading:
    pages = GivenPages({"/api/ps": loaded, "/api/version": version}, hints)
    reading = ENGINE.read(pages)
    assert set(pages.asked) <= {"/api/ps", "/api/version"}
    assert_sound(reading)
    return reading


def test_one_model() -> None:
    reading = read(answer("0.12/ps_one"), Hints(parallel=4, kv_dtype="q8_0"))
    (rank,) = reading.ranks
    assert (rank.rank, rank.model, rank.capacity_tokens) == ("0", "qwen3:8b", 4 * 8192)
    assert (rank.running, rank.waiting, rank.active_tokens, rank.usage_ratio, rank.progress) == (None,) * 5
    assert (reading.version, reading.max_model_len, reading.max_num_seqs) == ("0.12.6", 8192, 4)
    assert reading.memory_bytes == {"estimate_at_load": 6_000_000_000}
    assert set(reading.missing) == {"model_path", "tp", "pp"}


def test_the_capacity_is_unknown_without_the_parallel_requests() -> None:
    reading = read(answer("0.12/ps_one"))
    (rank,) = reading.ranks
    assert rank.capacity_tokens is None
    assert "OLLAMA_NUM_PARALLEL" in rank.missing["capacity_tokens"]
    assert reading.max_num_seqs is None


def test_before_0_10_there_is_no_context_length() -> None:
    reading = read(answer("0.5/ps"), Hints(parallel=4))
    assert reading.ranks[0].capacity_tokens is None
    assert "context_length" in reading.ranks[0].missing["capacity_tokens"]
    assert read(answer("0.5/ps"), Hints(max_model_len=2048, capacity_tokens=2048)).ranks[0].capacity_tokens == 2048


def test_each_loaded_model_has_a_pool() -> None:
    reading = read(answer("0.12/ps_two"), Hints(parallel=2))
    assert [(rank.rank, rank.model, rank.capacity_tokens) for rank in reading.ranks] == [
        ("qwen3:8b", "qwen3:8b", 16384),
        ("gemma3:4b", "gemma3:4b", 8192),
    ]
    assert reading.max_model_len is None
    assert reading.memory_bytes == {"estimate_at_load": 9_500_000_000}


def test_no_model_is_at_rest_and_not_broken() -> None:
    answers: tuple[dict[str, object], ...] = ({"models": []}, {"models": None}, {})
    for loaded in answers:
        reading = read(loaded)
        (rank,) = reading.ranks
        assert (rank.rank, rank.model, rank.capacity_tokens, rank.running) == ("0", "", None, None)
        assert set(rank.missing.values()) == {"no model is loaded"}
        assert reading.memory_bytes == {}


def test_on_the_cpu_there_is_no_gpu_memory() -> None:
    loaded = json.loads(json.dumps(answer("0.12/ps_one")).replace('"size_vram": 6000000000', '"size_vram": 0'))
    assert read(loaded).memory_bytes == {}


def test_how_it_is_known() -> None:
    ((path, is_its),) = ENGINE.marks.json
    assert path == "/api/ps"
    assert is_its(answer("0.5/ps"))
    assert is_its({"models": []})
    assert not is_its({"data": []})
    assert not is_its([])
    routes = {
        "/api/ps": web_page(b'{"models": []}', "application/json"),
        "/v1/models": web_page(b'{"object": "list", "data": null}', "application/json"),
    }
    with serving(routes) as url:
        assert detect(Endpoint(url, timeout_seconds=1), (ENGINE,)) is ENGINE


def test_every_fact_is_accounted_for() -> None:
    assert tuple(ENGINE.facts) == FACTS
    assert all(text.startswith(("exact", "derived: ", "unavailable")) for text in ENGINE.facts.values())


@given(mutated_json(answer("0.12/ps_two")), mutated_json(VERSION))
def test_odd_answers_never_raise(loaded: dict[str, object], version: dict[str, object]) -> None:
    read(loaded, Hints(parallel=4), version)
