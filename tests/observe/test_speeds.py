"""What each engine tells of its own speed. Captured pages where they have it; otherwise rows in the engine's names."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from kvgauge.observe.engines import by_name
from kvgauge.observe.engines.contract import Hints
from kvgauge.observe.records import Histogram, RankReading
from tests.support.odd import assert_sound
from tests.support.pages import Body, GivenPages

CAPTURES = Path(__file__).parent.parent / "captures"
RECORDED = "vllm/0.32.0/smallcache_after_prefix_hits"
SPEEDS = (
    "ttft_seconds",
    "queue_seconds",
    "prefill_seconds",
    "inter_token_seconds",
    "step_tokens",
    "prompt_computed_tokens_total",
    "finished_total",
)


def page(name: str) -> str:
    return (CAPTURES / f"{name}.prom").read_text()


def ranks(engine: str, body: str, path: str = "/metrics", **others: Body) -> tuple[RankReading, ...]:
    bodies: dict[str, Body] = {path: body} | {f"/{name}": answer for name, answer in others.items()}
    reading = by_name(engine).read(GivenPages(bodies, Hints()))
    assert_sound(reading)
    return reading.ranks


def rows(name: str, labels: str, counts: Sequence[float], total: float) -> str:
    """A histogram of bounds 0.1, 1 and +Inf."""
    bounds = ("0.1", "1.0", "+Inf")
    buckets = (f'{name}_bucket{{{labels},le="{bound}"}} {count}\n' for bound, count in zip(bounds, counts, strict=True))
    return "".join((*buckets, f"{name}_sum{{{labels}}} {total}\n", f"{name}_count{{{labels}}} {counts[-1]}\n"))


def told(histogram: Histogram | None) -> tuple[float, float]:
    assert histogram is not None
    return histogram.count, histogram.total


def known(rank: RankReading) -> set[str]:
    return {name for name in SPEEDS if getattr(rank, name) is not None}


def test_a_recorded_page_of_vllm_tells_everything() -> None:
    (rank,) = ranks("vllm", page(RECORDED))
    assert known(rank) == set(SPEEDS)
    assert told(rank.ttft_seconds) == pytest.approx((33, 239.006608))
    assert told(rank.inter_token_seconds) == pytest.approx((10073, 261.863289))
    assert told(rank.step_tokens) == (1303, 24033)
    assert told(rank.queue_seconds)[0] == told(rank.prefill_seconds)[0] == 33
    assert rank.prompt_computed_tokens_total == 13927
    assert rank.finished_total == 33
    # What this version's steps count is prompts computed and tokens generated, the first of each request with them.
    assert rank.generation_tokens_total is not None
    assert told(rank.step_tokens)[1] == rank.prompt_computed_tokens_total + rank.generation_tokens_total
    assert rank.generation_tokens_total - told(rank.ttft_seconds)[0] == told(rank.inter_token_seconds)[0]


def test_vllm_before_it_counted_prompts_by_source_and_renamed_the_time_between_tokens() -> None:
    body = page(RECORDED).replace("prompt_tokens_by_source", "other").replace("inter_token_lat", "other_lat")
    labels = 'engine="0",model_name="tiny"'
    (rank,) = ranks("vllm", body + rows("vllm:time_per_output_token_seconds", labels, (5, 6, 7), 2.5))
    assert told(rank.inter_token_seconds) == (7, 2.5)
    assert rank.prompt_computed_tokens_total == 15911 - 1984


def test_vllm_prefers_the_new_name_where_both_stand() -> None:
    labels = 'engine="0",model_name="tiny"'
    (rank,) = ranks("vllm", page(RECORDED) + rows("vllm:time_per_output_token_seconds", labels, (5, 6, 7), 2.5))
    assert told(rank.inter_token_seconds)[0] == 10073


def test_vllm_without_hits_does_not_guess_what_was_computed() -> None:
    body = page(RECORDED).replace("prompt_tokens_by_source", "other").replace("prefix_cache_hits", "other")
    (rank,) = ranks("vllm", body)
    assert rank.prompt_computed_tokens_total is None
    assert "prefix cache" in rank.missing["prompt_computed_tokens_total"]


def test_each_rank_of_vllm_has_its_own() -> None:
    body = page(RECORDED)
    second = "".join(
        line.replace('engine="0"', 'engine="1"') + "\n"
        for line in body.splitlines()
        if line.startswith("vllm:") and "iteration_tokens" not in line
    )
    first, other = ranks("vllm", body + second)
    assert known(first) == set(SPEEDS)
    assert known(other) == set(SPEEDS) - {"step_tokens"}
    assert "iteration_tokens_total" in other.missing["step_tokens"]


def test_dead_api_servers_of_vllm_add_nothing() -> None:
    dead = "".join(
        f'vllm:{name}{{engine="0",model_name="tiny",pid="7",{label}}} 0.0\n'
        for name, label in (
            ("prompt_tokens_by_source_total", 'source="local_compute"'),
            ("request_success_total", 'finished_reason="length"'),
            ("iteration_tokens_total_bucket", 'le="+Inf"'),
        )
    )
    (rank,) = ranks("vllm", page(RECORDED) + dead)
    assert told(rank.step_tokens) == (1303, 24033)
    assert (rank.prompt_computed_tokens_total, rank.finished_total) == (13927, 33)


def test_a_count_that_is_none_is_refused() -> None:
    body = page(RECORDED).replace('source="local_compute"} 13927.0', 'source="local_compute"} NaN')
    (rank,) = ranks("vllm", body)
    # The hits still tell it.
    assert rank.prompt_computed_tokens_total == 15911 - 1984


def test_sglang_adds_up_streamed_and_other_requests_and_keeps_queues_by_rank() -> None:
    model = 'model_name="acme/tiny-8b"'
    body = (
        page("sglang/0.5.23/two_ranks")
        + rows("sglang:time_to_first_token_seconds", f'{model},is_streaming="true"', (1, 2, 3), 1.5)
        + rows("sglang:time_to_first_token_seconds", f'{model},is_streaming="false"', (1, 2, 4), 2.5)
        + rows("sglang:inter_token_latency_seconds", model, (90, 95, 100), 4.0)
        + rows("sglang:queue_time_seconds", f'{model},dp_rank="1",tp_rank="1"', (6, 7, 8), 0.5)
        + f'sglang:num_requests_total{{{model},is_streaming="true"}} 3\n'
        + f'sglang:num_requests_total{{{model},is_streaming="false"}} 4\n'
        + f'sglang:realtime_tokens_total{{{model},dp_rank="1",mode="prefill_compute"}} 500\n'
        + f'sglang:realtime_tokens_total{{{model},dp_rank="1",mode="decode"}} 900\n'
    )
    first, second = ranks("sglang", body)
    assert told(first.ttft_seconds) == (7, 4.0)
    assert told(first.inter_token_seconds) == (100, 4.0)
    assert first.finished_total == 7
    assert known(second) == {"queue_seconds", "prompt_computed_tokens_total"}
    assert told(second.queue_seconds) == (8, 0.5)
    assert second.prompt_computed_tokens_total == 500
    assert "first" in second.missing["ttft_seconds"]
    assert "steps" in second.missing["step_tokens"]


def test_sglang_counts_what_it_computes_as_it_does() -> None:
    (rank,) = ranks("sglang", page("sglang/0.5.9/loaded"))
    assert rank.prompt_computed_tokens_total == 50_000


def test_tensorrt_llm() -> None:
    labels = 'model_name="Qwen/Qwen3-8B",engine_type="trtllm"'
    body = "".join(
        rows(f"trtllm_{name}_seconds", labels, (1, 2, 3), total)
        for name, total in (("time_to_first_token", 1.0), ("request_queue_time", 2.0), ("request_prefill_time", 3.0))
    )
    (rank,) = ranks("tensorrt-llm", page("tensorrt-llm/main-2026/prometheus") + body, "/prometheus/metrics")
    assert (told(rank.ttft_seconds), told(rank.queue_seconds), told(rank.prefill_seconds)) == ((3, 1), (3, 2), (3, 3))
    assert rank.prompt_tokens_total is not None
    assert rank.prefix_hits_tokens_total is not None
    assert rank.prompt_computed_tokens_total == rank.prompt_tokens_total - rank.prefix_hits_tokens_total
    assert rank.finished_total is not None
    assert rank.finished_total > 0
    assert "mean" in rank.missing["inter_token_seconds"]


def test_tgi() -> None:
    body = page("tgi/3.3.6/loaded") + rows("tgi_request_queue_duration", 'a="b"', (1, 2, 3), 0.5)
    (rank,) = ranks("tgi", body)
    assert known(rank) == {"queue_seconds", "finished_total"}
    assert told(rank.queue_seconds) == (3, 0.5)
    assert "mean" in rank.missing["inter_token_seconds"]


def test_lmdeploy() -> None:
    labels = 'engine="1",model_name="tiny-7b"'
    body = (
        page("lmdeploy/0.11.0/two_ranks")
        + rows("lmdeploy:time_to_first_token_seconds", labels, (1, 2, 3), 1.5)
        + rows("lmdeploy:iter_token_latency", labels, (7, 8, 9), 0.9)
        + f'lmdeploy:request_success_total{{{labels},finished_reason="stop"}} 5\n'
        + f'lmdeploy:request_success_total{{{labels},finished_reason="length"}} 6\n'
    )
    first, second = ranks("lmdeploy", body)
    assert known(first) == set()
    assert known(second) == {"ttft_seconds", "inter_token_seconds", "finished_total"}
    assert (told(second.ttft_seconds), told(second.inter_token_seconds)) == ((3, 1.5), (9, 0.9))
    assert second.finished_total == 11
    assert "outputs" in second.missing["step_tokens"]


def test_nim_1x() -> None:
    labels = 'model_name="meta/llama-3.1-8b-instruct"'
    body = (
        page("nim/1.3/metrics")
        + rows("time_to_first_token_seconds", labels, (1, 2, 3), 1.5)
        + rows("time_per_output_token_seconds", labels, (7, 8, 9), 0.9)
    )
    (rank,) = ranks("nim", body)
    assert known(rank) == {"ttft_seconds", "inter_token_seconds", "finished_total"}
    assert told(rank.inter_token_seconds) == (9, 0.9)


def test_max_tells_milliseconds() -> None:
    body = (
        page("max/26.5/loaded")
        + rows("maxserve_time_to_first_token_milliseconds", 'a="b"', (1, 2, 3), 1500)
        + rows("maxserve_itl_milliseconds", 'a="b"', (7, 8, 9), 90)
    )
    (rank,) = ranks("max", body)
    assert rank.ttft_seconds is not None
    assert rank.ttft_seconds.bounds[:2] == (0.0001, 0.001)
    assert (told(rank.ttft_seconds), told(rank.inter_token_seconds)) == ((3, 1.5), (9, 0.09))
    assert rank.prompt_computed_tokens_total == 24_000


def test_llama_cpp_computes_what_no_slot_had() -> None:
    folder = CAPTURES / "llamacpp" / "b11434"
    (rank,) = ranks(
        "llama.cpp",
        (folder / "metrics_after.prom").read_text(),
        props=(folder / "props.json").read_text(),
        slots=(folder / "slots_idle.json").read_text(),
    )
    assert known(rank) == {"prompt_computed_tokens_total"}
    assert rank.prompt_computed_tokens_total == rank.prompt_tokens_total


def test_dynamos_frontend_and_what_its_workers_pass_through() -> None:
    model = 'model="qwen/qwen3-8b"'
    frontend = page("dynamo/0.7/frontend") + rows("dynamo_frontend_time_to_first_token_seconds", model, (1, 2, 3), 1.5)
    (rank,) = ranks("dynamo", frontend)
    assert known(rank) == {"ttft_seconds"}
    (behind,) = ranks("dynamo", page(RECORDED) + page("dynamo/0.7/worker_unwired"))
    assert told(behind.step_tokens) == (1303, 24033)
