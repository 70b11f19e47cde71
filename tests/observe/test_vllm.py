"""Pages that are not recordings are constructed from vLLM's sources, of the versions that the tests name."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.observe.engines.vllm import ENGINE
from kvgauge.observe.records import EngineReading
from tests.support.pages import Body, GivenPages

CAPTURES = Path(__file__).parent.parent / "captures" / "vllm" / "0.32.0"


def read(page: str | bytes, version: str | None = None, models: dict[str, object] | None = None) -> EngineReading:
    bodies: dict[str, Body] = {"/metrics": page}
    if version is not None:
        bodies["/version"] = {"version": version}
    if models is not None:
        bodies["/v1/models"] = models
    return ENGINE.read(GivenPages(bodies))


def captured(name: str) -> EngineReading:
    return read((CAPTURES / f"{name}.prom").read_bytes(), "0.32.0")


def test_under_pressure() -> None:
    reading = captured("smallcache_under_pressure")
    (rank,) = reading.ranks
    assert (rank.capacity_tokens, rank.block_tokens, rank.num_blocks) == (6400, 32, 200)
    assert rank.usage_ratio is not None
    assert rank.used_blocks == 167 == rank.usage_ratio * 199
    assert rank.active_tokens == 167 * 32
    assert rank.free_tokens == 6400 - 167 * 32
    assert rank.reclaimable_tokens is None
    assert (rank.running, rank.waiting, rank.preemptions_total) == (7, 1, 14)
    assert rank.prompt_lengths is not None
    assert (rank.prompt_lengths.count, rank.prompt_lengths.total) == (22, 9327)
    assert rank.output_lengths is not None
    assert (rank.output_lengths.count, rank.output_lengths.total) == (22, 6371)
    assert reading.max_model_len == 2048
    assert reading.num_blocks_override == 200
    assert reading.prefix_caching is True
    assert reading.asleep is False
    assert "reclaimable_tokens" in rank.missing


def test_many_running() -> None:
    (rank,) = captured("load30_peak_bs128").ranks
    assert (rank.capacity_tokens, rank.used_blocks, rank.active_tokens) == (1048576, 98, 98 * 128)


def test_a_hybrid_states_its_own_capacity() -> None:
    reading = captured("hybrid_gemma3_idle")
    (rank,) = reading.ranks
    assert rank.num_blocks is not None
    assert rank.block_tokens is not None
    assert rank.capacity_tokens == 5273 < rank.num_blocks * rank.block_tokens
    assert reading.max_model_len == 4096


def page_of(
    usage: float,
    *,
    name: str = "vllm:kv_cache_usage_perc",
    config: str = 'block_size="16",num_gpu_blocks="1001"',
    labels: str = 'engine="0",model_name="m"',
) -> str:
    return (
        f"{name}{{{labels}}} {usage!r}\n"
        f"vllm:num_requests_running{{{labels}}} 3.0\n"
        f"vllm:num_requests_waiting{{{labels}}} 0.0\n"
        f"vllm:cache_config_info{{{config}}} 1.0\n"
    )


@pytest.mark.parametrize(
    ("version", "divisor"),
    [("0.9.2", 1001), ("0.10.0", 1000), ("0.33.0", 1000), ("0.21.0rc1", 1000), ("0.6.6.post1", 1001)],
)
def test_the_null_block_by_version(version: str, divisor: int) -> None:
    (rank,) = read(page_of(500 / divisor), version).ranks
    assert rank.used_blocks == 500
    assert rank.active_tokens == 8000


@pytest.mark.parametrize("divisor", [1000, 1001])
def test_the_null_block_without_a_version_is_told_by_whole_blocks(divisor: int) -> None:
    (rank,) = read(page_of(501 / divisor)).ranks
    assert rank.used_blocks == 501


def test_v0_of_0_6_as_its_page_was() -> None:
    labels = 'model_name="facebook/opt-125m"'
    page = page_of(
        0.5,
        name="vllm:gpu_cache_usage_perc",
        labels=labels,
        config='block_size="16",cache_dtype="auto",gpu_memory_utilization="0.9",num_gpu_blocks="7282",'
        'num_gpu_blocks_override="None",sliding_window="None"',
    )
    reading = read(page + f"vllm:num_requests_swapped{{{labels}}} 2.0\n")
    (rank,) = reading.ranks
    assert (rank.rank, rank.model, rank.swapped) == ("0", "facebook/opt-125m", 2)
    assert (rank.capacity_tokens, rank.used_blocks) == (7282 * 16, 3641)
    assert reading.num_blocks_override is None


def test_0_8_does_not_know_its_blocks() -> None:
    (rank,) = read(page_of(0.25, config='block_size="16",num_gpu_blocks="None"')).ranks
    assert rank.capacity_tokens is None
    assert rank.active_tokens is None
    assert rank.usage_ratio == 0.25
    assert "capacity_tokens" in rank.missing
    assert "active_tokens" in rank.missing


def test_data_parallel_engines_share_the_stated_blocks() -> None:
    usage = "".join(f'vllm:kv_cache_usage_perc{{engine="{rank}",model_name="m"}} {rank / 10}\n' for rank in range(11))
    config = "".join(
        f'vllm:cache_config_info{{block_size="16",engine="{rank}",num_gpu_blocks="11011"}} 1.0\n' for rank in range(11)
    )
    reading = read(usage + config, "0.30.0")
    assert [rank.rank for rank in reading.ranks] == [str(rank) for rank in range(11)]
    assert {rank.num_blocks for rank in reading.ranks} == {1001}
    assert reading.ranks[3].used_blocks == 300
    assert reading.ranks[10].used_blocks == 1000


def test_one_live_row_among_those_of_many_api_servers() -> None:
    rows = "".join(f'vllm:kv_cache_usage_perc{{engine="0",model_name="m",pid="{pid}"}} 0.0\n' for pid in range(7))
    page = rows + page_of(0.653, labels='engine="0",model_name="m",pid="99"')
    (rank,) = read(page, "0.11.0").ranks
    assert rank.used_blocks == 653


def test_rays_names() -> None:
    for prefix in ("vllm_", "ray_vllm_"):
        page = page_of(0.5, labels='engine="0",model_name="m",WorkerId="w"').replace("vllm:", prefix)
        (rank,) = read(page, "0.30.0").ranks
        assert (rank.used_blocks, rank.running) == (500, 3)


def test_a_sleeping_engine_has_no_occupancy() -> None:
    sleep = 'vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="awake"} 0.0\n'
    reading = read(page_of(0.0) + sleep, "0.30.0")
    (rank,) = reading.ranks
    assert reading.asleep
    assert (rank.usage_ratio, rank.active_tokens, rank.free_tokens) == (None, None, None)
    assert rank.capacity_tokens == 16016
    assert rank.running == 3


def test_whether_an_engine_sleeps_is_known_only_where_it_says_so() -> None:
    page = page_of(0.0)
    awake = 'vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="awake"} 1.0\n'
    assert read(page, "0.9.0").asleep is None
    assert read(page + awake, "0.30.0").asleep is False
    # Of two ranks one still serves.
    other = page_of(0.0, labels='engine="1",model_name="m"')
    assert read(page + other + awake.replace("1.0", "0.0"), "0.30.0").asleep is False


def test_max_length_from_the_labels_and_from_the_served_model() -> None:
    config = 'block_size="784",num_gpu_blocks="208",kv_cache_size_tokens="141994",kv_cache_max_concurrency="{}"'
    assert read(page_of(0, config=config.format(13 / 3))).max_model_len == 32768
    assert read(page_of(0, config=config.format("None"))).max_model_len is None
    models: dict[str, object] = {
        "data": [{"id": "lora", "max_model_len": 1}, {"id": "m", "root": "/models/m", "max_model_len": 4096}]
    }
    reading = read(page_of(0), models=models)
    assert (reading.max_model_len, reading.model_path) == (4096, "/models/m")
    assert read(page_of(0), models={"data": "odd"}).model_path is None


@given(blocks=st.integers(2, 100_000), max_model_len=st.integers(1, 1_000_000), block=st.sampled_from([1, 16, 32, 128]))
def test_the_labels_give_the_length_back_or_nothing(blocks: int, max_model_len: int, block: int) -> None:
    concurrency = blocks / math.ceil(max_model_len / block)
    size = int(concurrency * max_model_len)
    config = (
        f'block_size="{block}",num_gpu_blocks="{blocks}",kv_cache_size_tokens="{size}",'
        f'kv_cache_max_concurrency="{concurrency}"'
    )
    reading = read(page_of(1.0, config=config), "0.32.0")
    assert reading.max_model_len in {None, max_model_len}
    if concurrency > 1.01:
        assert reading.max_model_len == max_model_len


def test_engines_own_token_usage_is_a_measurement() -> None:
    page = page_of(0.6) + 'vllm:kv_cache_token_usage_perc{engine="0",model_name="m"} 0.365\n'
    (rank,) = read(page, "0.33.0").ranks
    assert rank.live_tokens == round(0.365 * 16016)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1.0", "66.7"])
def test_a_usage_that_is_no_fraction_is_unknown(value: str) -> None:
    page = page_of(0.0).replace("0.0\n", f"{value}\n", 1)
    reading = read(page, "0.32.0")
    (rank,) = reading.ranks
    assert (rank.usage_ratio, rank.used_blocks, rank.active_tokens) == (None, None, None)
    assert rank.running == 3
    assert rank.missing["usage_ratio"]
    assert reading.bad_values == 1


@given(st.text(max_size=60), st.text(max_size=20))
def test_hostile_labels_never_raise(value: str, other: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    config = f'block_size="{quoted}",num_gpu_blocks="{quoted}",kv_cache_size_tokens="{quoted}",engine="0"'
    read(page_of(0.5, config=config), other)
