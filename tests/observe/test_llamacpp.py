"""Answers that are not recordings are constructed: in the shape that llama.cpp's `tools/server` had in the year that
the test names, with figures of our own."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.observe.engines.contract import Hints
from kvgauge.observe.engines.llamacpp import ENGINE
from kvgauge.observe.exposition import sample_names
from kvgauge.observe.records import EngineReading, RankReading, SourceError
from tests.support.odd import assert_sound, mutated_json, mutated_page
from tests.support.pages import Body, GivenPages

CAPTURES = Path(__file__).parent.parent / "captures" / "llamacpp" / "b11434"
SECRET = "a prompt that nobody may see"
SPLIT = Hints(kv_unified=False)
UNIFIED = Hints(kv_unified=True)

IDLE: dict[str, Body] = {
    "/props": (CAPTURES / "props.json").read_text(),
    "/metrics": (CAPTURES / "metrics_idle.prom").read_text(),
    "/slots": (CAPTURES / "slots_idle.json").read_text(),
}
LOADED = IDLE | {
    "/metrics": (CAPTURES / "metrics_load.prom").read_text(),
    "/slots": (CAPTURES / "slots_load.json").read_text(),
}


def pages_read(bodies: dict[str, Body], hints: Hints = SPLIT) -> tuple[EngineReading, list[str]]:
    pages = GivenPages(bodies, hints)
    reading = ENGINE.read(pages)
    assert_sound(reading, SECRET)
    return reading, pages.asked


def read(bodies: dict[str, Body], hints: Hints = SPLIT) -> EngineReading:
    return pages_read(bodies, hints)[0]


def rank_of(bodies: dict[str, Body], hints: Hints = SPLIT) -> RankReading:
    (rank,) = read(bodies, hints).ranks
    return rank


def props(**changed: object) -> dict[str, object]:
    answer = json.loads((CAPTURES / "props.json").read_text())
    assert isinstance(answer, dict)
    return answer | changed


def slot(**fields: object) -> dict[str, object]:
    """A slot of 2026 with a request."""
    used = {"id": 0, "n_ctx": 2048, "is_processing": True, "id_task": 3, "n_prompt_tokens": 100}
    return used | {"next_token": [{"n_decoded": 40}]} | fields


def test_under_load() -> None:
    reading, asked = pages_read(LOADED)
    assert asked == ["/props", "/metrics", "/slots"]
    (rank,) = reading.ranks
    assert (rank.capacity_tokens, rank.block_tokens) == (4096, None)
    # Prompt and output together: 26 + 681 and 26 + 682.
    assert rank.active_tokens == rank.live_tokens == 707 + 708
    assert (rank.reclaimable_tokens, rank.free_tokens, rank.reserved_tokens) == (0, 4096 - 1415, 4096)
    assert (rank.running, rank.waiting) == (2, 4)
    assert (rank.prompt_tokens_total, rank.generation_tokens_total) == (52, 0)
    assert (rank.prefix_hits_tokens_total, rank.prefix_queries_tokens_total) == (0, 52)
    assert rank.progress is not None
    assert 624 in rank.progress
    assert (reading.model, reading.model_path) == ("tiny.gguf", "tiny.gguf")
    assert (reading.version, reading.max_model_len, reading.max_num_seqs) == ("b0-unknown", 2048, 2)
    assert reading.asleep is False
    assert reading.bad_values == 0


def test_an_idle_server_that_could_sleep_is_left_alone() -> None:
    reading, asked = pages_read(IDLE)
    assert asked == ["/props", "/metrics"]
    (rank,) = reading.ranks
    assert (rank.running, rank.waiting, rank.active_tokens, rank.live_tokens, rank.reserved_tokens) == (0, 0, 0, 0, 0)
    assert (rank.reclaimable_tokens, rank.free_tokens) == (None, 4096)
    assert "asleep" in rank.missing["reclaimable_tokens"]


def test_a_sleeping_server_is_not_woken() -> None:
    reading, asked = pages_read(LOADED | {"/props": props(is_sleeping=True)})
    assert asked == ["/props"]
    assert reading.asleep
    (rank,) = reading.ranks
    assert (rank.capacity_tokens, rank.active_tokens, rank.free_tokens, rank.running) == (4096, None, None, None)
    assert "sleeps" in rank.missing["active_tokens"]


def test_what_idle_slots_hold_is_reclaimable() -> None:
    rank = rank_of(LOADED | {"/slots": [slot(), slot(is_processing=False, n_prompt_tokens=900)]})
    assert (rank.running, rank.active_tokens, rank.reclaimable_tokens, rank.free_tokens) == (1, 100, 900, 3096)
    assert rank.reserved_tokens == 2048


def test_without_metrics() -> None:
    switched_off = {"/props": props(endpoint_metrics=False), "/slots": LOADED["/slots"]}
    reading, asked = pages_read(switched_off)
    assert asked == ["/props", "/slots"]
    (rank,) = reading.ranks
    assert (rank.running, rank.waiting, rank.active_tokens) == (2, None, 1415)
    assert "--metrics" in rank.missing["waiting"]
    assert rank.progress is not None
    later = rank_of(switched_off | {"/slots": [slot(n_prompt_tokens=102), slot()]})
    assert later.progress != rank.progress


def test_without_slots() -> None:
    reading, asked = pages_read(LOADED | {"/props": props(endpoint_slots=False)})
    assert asked == ["/props", "/metrics"]
    (rank,) = reading.ranks
    assert (rank.running, rank.waiting, rank.active_tokens, rank.reserved_tokens) == (2, 4, None, 4096)
    assert (rank.capacity_tokens, rank.free_tokens) == (4096, None)
    assert "--no-slots" in rank.missing["active_tokens"]
    assert "--no-slots" in rank.missing["live_tokens"]


def test_with_neither_only_the_capacity_is_known() -> None:
    rank = rank_of({"/props": props(endpoint_slots=False, endpoint_metrics=False)})
    assert (rank.capacity_tokens, rank.running, rank.active_tokens, rank.progress) == (4096, None, None, None)


def test_pages_that_builds_without_the_probe_refuse() -> None:
    old = {key: value for key, value in props().items() if not key.startswith("endpoint_")}
    rank = rank_of({"/props": old, "/slots": LOADED["/slots"]})
    assert (rank.running, rank.active_tokens) == (2, 1415)
    assert "--metrics" in rank.missing["waiting"]
    assert rank_of({"/props": old, "/metrics": LOADED["/metrics"]}).running == 2


def test_slots_that_share_one_pool() -> None:
    rank = rank_of(LOADED, UNIFIED)
    assert (rank.capacity_tokens, rank.active_tokens, rank.free_tokens) == (2048, 1415, 633)
    assert rank.reserved_tokens is None
    # Several answers to one prompt share its cells, which every slot counts.
    shared = rank_of(LOADED | {"/slots": [slot(n_prompt_tokens=1500)] * 2}, UNIFIED)
    assert (shared.active_tokens, shared.free_tokens) == (2048, 0)


def test_whether_slots_share_a_pool_is_not_guessed() -> None:
    rank = rank_of(LOADED, Hints())
    assert (rank.capacity_tokens, rank.free_tokens, rank.reserved_tokens) == (None, None, None)
    assert (rank.active_tokens, rank.running) == (1415, 2)
    assert "--kv-unified" in rank.missing["capacity_tokens"]
    assert rank_of(LOADED, Hints(capacity_tokens=3000)).capacity_tokens == 3000
    one = rank_of(LOADED | {"/props": props(total_slots=1), "/slots": [slot()]}, Hints())
    assert (one.capacity_tokens, one.reserved_tokens, one.free_tokens) == (2048, 2048, 1948)


PAGE_OF_2024 = """\
llamacpp:prompt_tokens_total 18292
llamacpp:tokens_predicted_total 1406
llamacpp:n_decode_total 739
llamacpp:n_busy_slots_per_decode -nan(ind)
llamacpp:kv_cache_usage_ratio 0.5
llamacpp:kv_cache_tokens 4096
llamacpp:requests_processing 1
llamacpp:requests_deferred 0
"""
PROPS_OF_2024 = {
    "default_generation_settings": {"n_ctx": 4096, "prompt": SECRET},
    "total_slots": 2,
    "model_path": "/models/acme-8b.gguf",
    "build_info": "b4300-abcdef0",
    "chat_template": "",
}
SLOTS_OF_2024 = [
    {
        "id": 0,
        "id_task": 9,
        "n_ctx": 4096,
        "state": 1,
        "n_past": 1000,
        "prompt": SECRET,
        "next_token": {"n_decoded": 7},
    },
    {"id": 1, "id_task": 8, "n_ctx": 4096, "state": 0, "n_past": 3096, "prompt": SECRET, "next_token": {}},
]
OF_2024: dict[str, Body] = {"/props": PROPS_OF_2024, "/metrics": PAGE_OF_2024, "/slots": SLOTS_OF_2024}


def test_a_server_of_2024() -> None:
    reading = read(OF_2024, Hints())
    (rank,) = reading.ranks
    assert (rank.capacity_tokens, rank.usage_ratio, rank.running, rank.waiting) == (8192, 0.5, 1, 0)
    assert (rank.active_tokens, rank.reclaimable_tokens, rank.free_tokens) == (1000, 3096, 4096)
    assert (rank.prefix_hits_tokens_total, rank.prefix_queries_tokens_total) == (None, None)
    assert (reading.model, reading.version, reading.bad_lines) == ("/models/acme-8b.gguf", "b4300-abcdef0", 0)


def test_a_server_of_2024_that_is_idle_has_its_used_cells_in_reserve() -> None:
    idle = PAGE_OF_2024.replace("requests_processing 1", "requests_processing 0")
    rank = rank_of({"/props": PROPS_OF_2024, "/metrics": idle}, Hints())
    assert (rank.active_tokens, rank.reclaimable_tokens, rank.free_tokens) == (0, 4096, 4096)


def test_slots_of_2025_do_not_tell_their_tokens() -> None:
    slots = [
        {"id": 0, "id_task": 5, "n_ctx": 2048, "is_processing": True, "next_token": {"n_decoded": 99}},
        {"id": 1, "id_task": -1, "n_ctx": 2048, "is_processing": False, "next_token": {"n_decoded": 0}},
    ]
    rank = rank_of(LOADED | {"/slots": slots})
    assert (rank.running, rank.active_tokens, rank.reclaimable_tokens) == (1, None, None)
    assert "does not tell" in rank.missing["active_tokens"]
    # Output alone would seem to stand still while a long prompt is computed.
    assert rank_of({"/props": props(endpoint_metrics=False), "/slots": slots}).progress is None


def test_a_router_is_refused_with_what_to_do() -> None:
    router = {"role": "router", "model_alias": "llama-server", "default_generation_settings": {"n_ctx": 0}}
    with pytest.raises(SourceError, match="router") as failure:
        read({"/props": router | {"build_info": "b11434-0"}})
    assert failure.value.reason == "no_engine_series"


@pytest.mark.parametrize("reason", ["unauthorized", "timeout"])
def test_a_page_that_fails_is_not_taken_for_one_that_is_switched_off(reason: str) -> None:
    class Failing(GivenPages):
        def json(self, path: str) -> dict[str, object]:
            if path == "/slots":
                raise SourceError(reason, "made up")
            return props()

    with pytest.raises(SourceError) as failure:
        ENGINE.read(Failing(LOADED, SPLIT))
    assert failure.value.reason == reason


def test_values_that_are_no_numbers() -> None:
    page = str(LOADED["/metrics"])
    reading = read(LOADED | {"/metrics": page.replace("requests_deferred 4", "requests_deferred -nan(ind)")})
    assert (reading.bad_lines, reading.ranks[0].waiting, reading.ranks[0].running) == (1, None, 2)
    reading = read(LOADED | {"/metrics": page.replace("requests_deferred 4", "requests_deferred -4")})
    assert (reading.bad_values, reading.ranks[0].waiting) == (1, None)
    assert reading.ranks[0].missing["waiting"] == "requests_deferred is -4"


@pytest.mark.parametrize("tokens", [-1, 2049, 10**400, "many", None, [], 1e300])
def test_a_slot_that_cannot_hold_what_it_says(tokens: object) -> None:
    reading = read(LOADED | {"/slots": [slot(), slot(n_prompt_tokens=tokens)]})
    (rank,) = reading.ranks
    assert (rank.running, rank.active_tokens, rank.live_tokens) == (2, None, None)
    assert rank.missing["active_tokens"]
    assert reading.bad_values == 1 or tokens is None


@pytest.mark.parametrize("slots", [[], {}, [7, "x"], [slot()] * 5000])
def test_slots_in_impossible_numbers(slots: Body) -> None:
    rank = rank_of(LOADED | {"/slots": slots})
    assert (rank.running, rank.active_tokens, rank.reclaimable_tokens) == (2, None, None)


def test_its_marks() -> None:
    names = frozenset(sample_names(str(IDLE["/metrics"]).encode()))
    assert ENGINE.marks.page(names, b"")
    assert not ENGINE.marks.page(frozenset({b"vllm:num_requests_running"}), b"")
    ((path, is_its),) = ENGINE.marks.json
    assert path == "/props"
    assert is_its(props())
    assert not is_its({"build_info": "b1"})
    assert not is_its([1])
    served = json.loads((CAPTURES / "v1_models.json").read_text())
    assert served["data"][0]["owned_by"] in ENGINE.marks.owned_by


@settings(deadline=None)
@given(
    mutated_json(props()),
    mutated_json(json.loads(str(LOADED["/slots"]))),
    st.sampled_from([Hints(), SPLIT, UNIFIED, Hints(capacity_tokens=100)]),
)
def test_odd_json(odd_props: Body, slots: Body, hints: Hints) -> None:
    with contextlib.suppress(SourceError):
        read(LOADED | {"/props": odd_props, "/slots": slots}, hints)


@settings(deadline=None)
@given(mutated_json(PROPS_OF_2024), mutated_json(SLOTS_OF_2024))
def test_odd_json_of_2024(odd_props: Body, slots: Body) -> None:
    with contextlib.suppress(SourceError):
        read(OF_2024 | {"/props": odd_props, "/slots": slots}, Hints())


@settings(deadline=None)
@given(st.sampled_from([PAGE_OF_2024, str(LOADED["/metrics"])]).flatmap(mutated_page))
def test_odd_pages(page: bytes) -> None:
    with contextlib.suppress(SourceError):
        read(LOADED | {"/metrics": page})
