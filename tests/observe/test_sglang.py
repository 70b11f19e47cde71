"""The pages are constructed from SGLang's sources of the versions that the tests name."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.observe.engines.contract import Hints
from kvgauge.observe.engines.sglang import ENGINE
from kvgauge.observe.records import EngineReading, SourceError
from tests.support.odd import assert_sound, mutated_json, mutated_page
from tests.support.pages import Body, GivenPages

CAPTURES = Path(__file__).parent.parent / "captures" / "sglang"
SECRETS = ("sk-very-secret", "sk-admin-secret")
MODELS = {"data": [{"id": "acme/tiny-8b", "owned_by": "sglang", "max_model_len": 32768}]}
GIB = 1 << 30


def page(name: str) -> str:
    return (CAPTURES / f"{name}.prom").read_text()


def answer(name: str) -> dict[str, object]:
    parsed = json.loads((CAPTURES / f"{name}.json").read_text())
    assert isinstance(parsed, dict)
    return parsed


def read(bodies: dict[str, Body], hints: Hints | None = None) -> EngineReading:
    reading = ENGINE.read(GivenPages(bodies, hints))
    assert_sound(reading, *SECRETS)
    return reading


def everything(**changed: Body) -> dict[str, Body]:
    bodies: dict[str, Body] = {
        "/v1/loads": answer("0.5.23/loads"),
        "/metrics": page("0.5.23/two_ranks"),
        "/server_info": answer("0.5.23/server_info"),
        "/v1/models": MODELS,
    }
    return bodies | {f"/{path.replace('_of_', '/')}": body for path, body in changed.items()}


def loads_with(**changed: object) -> dict[str, object]:
    loads = answer("0.5.23/loads")
    entries = loads["loads"]
    assert isinstance(entries, list)
    entries[:] = [entries[0] | changed]
    return loads


def test_loads_page_and_settings_together() -> None:
    reading = read(everything())
    first, second = reading.ranks
    assert (first.rank, second.rank) == ("0", "1")
    assert (first.capacity_tokens, first.active_tokens, first.reclaimable_tokens) == (200_000, 64_000, 30_000)
    assert first.free_tokens == 106_000
    assert first.live_tokens == 64_000
    assert first.usage_ratio == 0.32
    assert (first.running, first.waiting, first.swapped) == (13, 7, None)
    assert (first.block_tokens, first.num_blocks, first.used_blocks) == (1, 200_000, 64_000)
    assert (first.preemptions_total, second.preemptions_total) == (7, 0)
    assert (second.running, second.waiting, second.active_tokens) == (6, 0, 25_500)
    assert (reading.version, reading.model, reading.model_path) == ("0.5.23", "acme/tiny-8b", "/models/tiny-8b")
    assert (reading.max_model_len, reading.max_num_seqs, reading.kv_dtype) == (32768, 256, "fp8_e4m3")
    assert (reading.tp, reading.pp) == (2, 1)
    assert (reading.gpu_memory_utilization, reading.prefix_caching) == (0.88, True)
    assert reading.memory_bytes == {
        "weights": round(15.018 * GIB),
        "kv_pool": round(24.414 * GIB),
        "graphs": round(0.75 * GIB),
    }


def test_what_is_counted_for_the_engine_as_a_whole_stands_on_one_rank() -> None:
    first, second = read(everything()).ranks
    assert (first.prompt_tokens_total, first.generation_tokens_total) == (100_000, 50_000)
    assert (first.prefix_queries_tokens_total, first.prefix_hits_tokens_total) == (100_000, 20_000)
    assert first.prompt_lengths is not None
    assert (first.prompt_lengths.count, first.prompt_lengths.total) == (50, 100_000)
    assert (second.prompt_tokens_total, second.prompt_lengths) == (None, None)
    assert "first" in second.missing["prompt_lengths"]


def test_the_page_alone() -> None:
    reading = read({"/metrics": page("0.5.23/two_ranks")})
    first, second = reading.ranks
    assert (first.active_tokens, first.reclaimable_tokens, first.free_tokens) == (60_000, 30_000, 110_000)
    assert (first.running, first.waiting) == (12, 5)
    assert (second.running, second.waiting) == (6, 0)
    assert first.usage_ratio == 0.3
    assert second.usage_ratio == 25_000 / 200_000
    assert reading.max_model_len == 32768
    assert (reading.version, reading.tp, reading.max_num_seqs) == (None, None, None)
    assert "http_status" in reading.missing["version"]


def test_the_loads_alone() -> None:
    reading = read({"/v1/loads": answer("0.5.23/loads"), "/v1/models": MODELS})
    (first, _) = reading.ranks
    assert (first.active_tokens, first.free_tokens, first.running, first.waiting) == (64_000, 136_000, 13, 7)
    assert first.reclaimable_tokens is None
    assert "--enable-metrics" in first.missing["reclaimable_tokens"]
    assert "--enable-metrics" in first.missing["prompt_lengths"]
    assert reading.model == "acme/tiny-8b"
    assert first.progress is not None


def test_0_5_9_pages_of_64_tokens() -> None:
    (rank,) = read({"/metrics": page("0.5.9/loaded")}).ranks
    assert (rank.capacity_tokens, rank.block_tokens, rank.num_blocks, rank.used_blocks) == (102_400, 64, 1600, 320)
    assert rank.live_tokens == 20_215
    assert rank.reclaimable_tokens is None
    assert "0.5.15" in rank.missing["reclaimable_tokens"]
    assert rank.preemptions_total == 5
    # What was found in host memory was not in the pool.
    assert rank.prefix_hits_tokens_total == 8000
    assert "prompt_lengths" in rank.missing


@pytest.mark.parametrize("lengths", [313, 20_480 - 8 * 64 - 1, 20_481, 90_000])
def test_lengths_that_do_not_fit_the_pages_in_use_are_not_believed(lengths: int) -> None:
    changed = page("0.5.9/loaded").replace("} 20215.0", f"}} {lengths}")
    (rank,) = read({"/metrics": changed}).ranks
    assert rank.live_tokens is None
    assert "decode_sum_seq_lens" in rank.missing["live_tokens"]


def test_0_4_has_its_capacity_from_the_settings() -> None:
    settings: dict[str, object] = {
        "tp_size": 1,
        "max_total_num_tokens": 400_000,
        "page_size": 1,
        "version": "0.4.6.post5",
    }
    reading = read({"/metrics": page("0.4.6/loaded"), "/get_server_info": settings})
    (rank,) = reading.ranks
    assert (rank.capacity_tokens, rank.active_tokens, rank.free_tokens) == (400_000, 52_000, 348_000)
    # 0.13 on the page is 52000 / 400000 in two decimals.
    assert rank.usage_ratio == 0.13
    assert (rank.running, rank.waiting, rank.live_tokens) == (24, 4, 52_000)
    assert reading.version == "0.4.6.post5"


def test_without_a_capacity_the_stated_usage_is_all_there_is() -> None:
    (rank,) = read({"/metrics": page("0.4.6/loaded")}).ranks
    assert (rank.capacity_tokens, rank.active_tokens, rank.free_tokens, rank.usage_ratio) == (None, 52_000, None, 0.13)
    (rank,) = read({"/metrics": page("0.4.6/loaded")}, Hints(capacity_tokens=401_000)).ranks
    assert (rank.capacity_tokens, rank.usage_ratio) == (401_000, 52_000 / 401_000)


def test_get_load_is_the_last_resort() -> None:
    bodies: dict[str, Body] = {"/get_load": [{"dp_rank": 0, "num_reqs": 9, "num_waiting_reqs": 4, "num_tokens": 5000}]}
    (rank,) = read(bodies).ranks
    assert (rank.running, rank.waiting) == (5, 4)
    # Up to 0.5.9 the tokens of those that wait are in it, and can't be told apart.
    assert rank.active_tokens is None
    entry = {"dp_rank": 0, "num_reqs": 9, "num_waiting_reqs": 4, "num_tokens": 5000, "num_pending_tokens": 1200}
    (rank,) = read({"/get_load": [entry]}).ranks
    assert rank.active_tokens == 3800


def test_nothing_answers() -> None:
    with pytest.raises(SourceError) as caught:
        read({"/server_info": answer("0.5.23/server_info")})
    assert caught.value.reason == "http_status"


def test_the_fullest_pool_is_the_usage() -> None:
    (rank,) = read(everything(v1_of_loads=loads_with(token_usage=0.71), metrics="\n")).ranks
    assert (rank.usage_ratio, rank.active_tokens) == (0.71, 64_000)
    full = page("0.5.23/two_ranks").replace("sglang:mamba_usage{", "sglang:mamba_usage{", 1)
    full = "\n".join(line.replace("} 0.0", "} 0.93") if "mamba_usage{" in line else line for line in full.splitlines())
    assert [rank.usage_ratio for rank in read(everything(metrics=full)).ranks] == [0.93, 0.93]


def test_retracted_requests_have_a_queue_of_their_own_only_on_decode_servers() -> None:
    transfer = {"mode": "decode", "decode_retracted_queue_reqs": 3}
    queues = {"waiting": 1, "grammar": 0, "retracted": 2}
    loads = loads_with(disaggregation=transfer, queues=queues, num_waiting_reqs=5)
    rank = read(everything(v1_of_loads=loads)).ranks[0]
    assert (rank.waiting, rank.swapped) == (2, 3)
    rank = read(everything(v1_of_loads=loads_with(queues=queues, num_waiting_reqs=5))).ranks[0]
    assert (rank.waiting, rank.swapped) == (5, None)


def test_more_tokens_than_the_pool_holds_are_refused() -> None:
    reading = read(everything(v1_of_loads=loads_with(num_used_tokens=230_000)))
    assert reading.ranks[0].active_tokens is None
    assert reading.bad_values == 1
    assert read(everything(v1_of_loads=loads_with(num_used_tokens=200_100))).ranks[0].active_tokens == 200_000


def test_steps_move_and_nothing_else_does() -> None:
    def progress(**changed: object) -> tuple[float, ...] | None:
        return read(everything(v1_of_loads=loads_with(**changed), metrics="\n")).ranks[0].progress

    still = progress()
    assert still == progress(timestamp=1764000009.5, num_waiting_reqs=9)
    for moved in ({"num_used_tokens": 64_013}, {"gen_throughput": 905.2}, {"decode_moments": [4105.0]}):
        assert progress(**moved) != still


def test_the_tokens_of_finished_requests_are_no_sign_of_work() -> None:
    finished = (
        page("0.5.9/loaded")
        .replace("} 31000.0", "} 32000.0")
        .replace('mode="decode"} 32000.0', 'mode="decode"} 31000.0')
    )
    (before,), (after,) = read({"/metrics": page("0.5.9/loaded")}).ranks, read({"/metrics": finished}).ranks
    assert before.generation_tokens_total != after.generation_tokens_total
    assert before.progress == after.progress


def test_too_many_ranks_are_refused() -> None:
    rows = "".join(f'sglang:num_running_reqs{{dp_rank="{rank}"}} 1.0\n' for rank in range(300))
    with pytest.raises(SourceError) as caught:
        read({"/metrics": rows})
    assert caught.value.reason == "too_many_ranks"


def test_a_page_of_other_series_has_no_ranks() -> None:
    assert read({"/metrics": "sglang:http_requests_total 3.0\n"}).ranks == ()


def test_marks() -> None:
    assert ENGINE.marks.page(frozenset({b"sglang:num_running_reqs"}), b"")
    assert not ENGINE.marks.page(frozenset({b"sglang_router_up"}), b"")
    (_, is_its), _ = ENGINE.marks.json
    assert is_its({"model_path": "m", "tokenizer_path": "m", "is_generation": True})
    assert not is_its({"model_id": "m"})
    assert not is_its([])


@given(mutated_json(answer("0.5.23/loads")), mutated_json(answer("0.5.23/server_info")), mutated_json(MODELS))
@settings(deadline=None)
def test_odd_json(loads: Body, info: Body, models: Body) -> None:
    with contextlib.suppress(SourceError):
        read(everything() | {"/v1/loads": loads, "/server_info": info, "/v1/models": models})


@given(
    mutated_json([{"dp_rank": 0, "num_reqs": 9, "num_waiting_reqs": 4, "num_tokens": 5000, "num_pending_tokens": 9}])
)
@settings(deadline=None)
def test_odd_answers_of_get_load(loads: Body) -> None:
    with contextlib.suppress(SourceError):
        read({"/get_load": loads})


@given(
    st.sampled_from(["0.4.6/loaded", "0.5.9/loaded", "0.5.23/two_ranks"]).flatmap(lambda name: mutated_page(page(name)))
)
@settings(deadline=None)
def test_odd_pages(body: bytes) -> None:
    with contextlib.suppress(SourceError):
        read({"/metrics": body})
    with contextlib.suppress(SourceError):
        read(everything(metrics=body))
