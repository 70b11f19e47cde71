"""The embedded engine's page against a page recorded from vLLM 0.32 (`vllm_0_32_page.txt`: the families it serves)."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from kvgauge.simulate import H100_LLAMA_31_8B, EngineSpec, PagedEngine, Request
from kvgauge.simulate.page import VllmPage

RECORDED = (Path(__file__).parent / "vllm_0_32_page.txt").read_text(encoding="utf-8")
# The engine that was recorded: 200 blocks of 32 tokens, 2048 tokens at most.
RECORDED_SPEC = EngineSpec(
    num_blocks=200,
    max_model_len=2048,
    kv_bytes_per_token=1000,
    weights_bytes=1_000_000,
    parameters=500_000,
    bandwidth_bytes_per_second=1e9,
    flops_per_second=1e10,
    block_tokens=32,
    max_num_seqs=64,
    max_num_batched_tokens=2048,
)


def page_of(engine: PagedEngine, model_name: str = "tiny") -> str:
    page = VllmPage(
        engine.state, engine.spec, model_name=model_name, gpu_memory_utilization=0.92, started_seconds=1.7e9
    )
    return page.render().decode()


def samples_of(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    rows: list[Sample] = [row for family in text_string_to_metric_families(text) for row in family.samples]
    values = {(row.name, frozenset(row.labels.items())): float(row.value) for row in rows}
    assert len(values) == len(rows)
    return values


def shape(text: str) -> list[str]:
    """The page without its values; of cache_config_info, whose values are settings, only the labels' names."""
    lines = [line if line.startswith("#") else line.rpartition(" ")[0] for line in text.splitlines()]
    return [re.sub(r'="[^"]*"', "", line) if line.startswith("vllm:cache_config_info") else line for line in lines]


def test_every_line_is_named_typed_labelled_and_ordered_as_recorded() -> None:
    assert shape(page_of(PagedEngine(RECORDED_SPEC))) == shape(RECORDED)


def test_the_recorded_settings_give_the_recorded_cache_config() -> None:
    def config(text: str) -> dict[str, str]:
        (labels,) = (labels for name, labels in samples_of(text) if name == "vllm:cache_config_info")
        return dict(labels)

    ours, recorded = config(page_of(PagedEngine(RECORDED_SPEC))), config(RECORDED)
    # What that run asked for by flag, and the prefix cache that the embedded engine does without.
    asked_for = {
        "enable_prefix_caching",
        "kv_cache_memory_bytes",
        "num_gpu_blocks_override",
        "user_specified_block_size",
    }
    assert {name for name in recorded if ours[name] != recorded[name]} == asked_for
    assert (ours["kv_cache_size_tokens"], ours["kv_cache_max_concurrency"]) == ("6400", "3.125")


def test_the_values_are_the_engines() -> None:
    engine = PagedEngine(RECORDED_SPEC)
    for _ in range(12):
        engine.submit(Request(0.0, 500, 200))
    engine.advance(0.75)
    state = engine.state()
    values = samples_of(page_of(engine))

    def value(name: str, **labels: str) -> float:
        own = {"engine": "0", "model_name": "tiny"} | labels
        return values[f"vllm:{name}", frozenset(own.items())]

    assert state.running > 0
    assert state.waiting > 0
    assert state.preemptions_total > 0
    assert value("num_requests_running") == state.running
    assert value("num_requests_waiting") == state.waiting == value("num_requests_waiting_by_reason", reason="capacity")
    assert value("num_requests_waiting_by_reason", reason="deferred") == 0
    assert value("kv_cache_usage_perc") * 199 == state.used_blocks
    assert value("num_preemptions_total") == state.preemptions_total
    assert value("prompt_tokens_total") == state.prompt_tokens_total
    assert value("generation_tokens_total") == state.generation_tokens_total
    assert value("prefix_cache_queries_total") == value("prefix_cache_hits_total") == 0
    assert value("engine_sleep_state", sleep_state="awake") == 1
    assert value("time_to_first_token_seconds_count") == state.ttft_seconds.count
    assert value("inter_token_latency_seconds_bucket", le="+Inf") == state.inter_token_seconds.count


def test_finished_requests_reach_counters_and_histograms() -> None:
    engine = PagedEngine(RECORDED_SPEC)
    engine.submit(Request(0.0, 500, 20))
    engine.submit(Request(0.0, 1000, 1048))
    engine.advance(30.0)
    values = samples_of(page_of(engine))
    own = {"engine": "0", "model_name": "tiny"}

    def value(name: str, **labels: str) -> float:
        return values[f"vllm:{name}", frozenset((own | labels).items())]

    assert value("request_success_total", finished_reason="stop") == 1
    assert value("request_success_total", finished_reason="length") == 1
    prompts = [value("request_prompt_tokens_bucket", le=le) for le in ("200.0", "500.0", "1000.0", "+Inf")]
    assert prompts == [0, 1, 2, 2]
    assert value("request_prompt_tokens_sum") == 1500
    assert value("request_generation_tokens_sum") == 1068
    assert value("e2e_request_latency_seconds_count") == value("request_queue_time_seconds_count") == 2


def test_the_embedded_device_states_the_capacity_that_was_measured() -> None:
    values = samples_of(page_of(PagedEngine(H100_LLAMA_31_8B.spec)))
    (labels,) = (dict(labels) for name, labels in values if name == "vllm:cache_config_info")
    assert labels["num_gpu_blocks"] == "29751"
    assert labels["kv_cache_size_tokens"] == "476016"
    assert round(float(labels["kv_cache_max_concurrency"]), 2) == 58.11
