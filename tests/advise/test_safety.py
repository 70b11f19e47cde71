import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.advise.lengths import whole_lengths
from kvgauge.advise.residing import Footprint, Resident, Window, moments_from_histograms, resident
from kvgauge.advise.safety import (
    FULL_RATIO,
    PREEMPTED_RATIO,
    Running,
    forecast,
    preempted_ratio,
    running_requests,
    safe_requests,
    typical_requests,
)
from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.spec import EngineSpec, FinishedRequest, Request
from tests.advise.test_lengths import page

ORDINARY = Resident(
    mean_slots=1250,
    variance_slots2=560.0**2,
    third_slots3=2 * 560.0**3,
    prompt_slots=1150,
    growth_slots=250,
    together_slots=1300,
    largest_slots=15_000,
    requests=1000,
)


def alike(prompt: int, output: int, block: int) -> Resident:
    found = moments_from_histograms(page([prompt] * 60), page([output] * 60), Footprint(block))
    assert found is not None
    return found


@given(st.integers(1, 20_000), st.integers(1, 5_000), st.sampled_from([1, 16, 32, 64]), st.integers(1, 400_000))
def test_equal_requests_obey_the_law_of_vllm(prompt: int, output: int, block: int, blocks: int) -> None:
    law = (blocks - 1) // math.ceil((prompt + output - 1) / block)
    assert safe_requests(alike(prompt, output, block), (blocks - 1) * block).requests == law


def test_the_measured_case() -> None:
    # vLLM 0.32: 10 requests of 200 + 400 tokens ran in 200 blocks of 32 (one of them null), the eleventh preempted.
    assert safe_requests(alike(200, 400, 32), 199 * 32).requests == 10


def test_a_hybrid_with_windows() -> None:
    # gpt-oss-20b with 4 GiB: 10,922 blocks, shared by a full group and one of windows of 128. Its scheduler runs 130.
    footprint = Footprint(16, windows=(Window(128),))
    found = moments_from_histograms(page([1000] * 60), page([200] * 60), footprint)
    assert found is not None
    assert 117 <= safe_requests(found, 10_921 * 16).requests <= 130


def test_never_fewer_than_fit_whatever_comes() -> None:
    outputs = page([1] * 999 + [7000])
    found = moments_from_histograms(page([1000] * 1000), outputs, Footprint())
    assert found is not None
    without, floor = safe_requests(found, 34_000), safe_requests(found, 34_000, longest_slots=8192)
    assert without.requests < 4 or without.requests == floor.requests
    assert floor.requests >= 34_000 // 8192


def test_a_request_larger_than_the_pool() -> None:
    assert safe_requests(alike(5000, 100, 16), 4000).requests == 0


@given(st.integers(20_000, 2_000_000), st.integers(1, 100_000))
def test_a_larger_pool_holds_no_fewer(pool: int, more: int) -> None:
    assert safe_requests(ORDINARY, pool + more).requests >= safe_requests(ORDINARY, pool).requests


@given(st.integers(20_000, 2_000_000))
def test_each_bound_is_kept(pool: int) -> None:
    found = safe_requests(ORDINARY, pool)
    assert found.requests <= min(found.by_preemptions, found.by_room, found.by_together)
    assert found.by_preemptions <= found.by_room <= pool / ORDINARY.mean_slots
    assert preempted_ratio(ORDINARY, found.by_preemptions, pool) <= PREEMPTED_RATIO


def test_longer_tails_preempt_more_where_few_are_preempted() -> None:
    straight, tailed = (replace(ORDINARY, third_slots3=skewness * 560.0**3) for skewness in (0, 9))
    assert preempted_ratio(tailed, 32, 48_000) > 1.5 * preempted_ratio(straight, 32, 48_000)
    # Near the middle of the distribution a skewed one has less, as what is far out is missing there.
    assert preempted_ratio(tailed, 36, 48_000) < preempted_ratio(straight, 36, 48_000)


def test_prompts_may_fill_the_pool_since_they_wait_and_outputs_may_not() -> None:
    # The same size and spread; what differs is by what the requests come to it.
    reading, writing = replace(ORDINARY, growth_slots=20), replace(ORDINARY, growth_slots=1000, prompt_slots=400)
    assert safe_requests(writing, 48_000).by_preemptions < safe_requests(reading, 48_000).by_preemptions
    assert safe_requests(reading, 48_000).by_preemptions == safe_requests(reading, 48_000).by_room


def test_the_share_of_time_that_the_pool_is_full() -> None:
    draw = random.Random(1)
    outputs = [max(round(draw.lognormvariate(4, 1)), 1) for _ in range(500)]
    prompts = [max(round(draw.lognormvariate(7, 0.8)), 1) for _ in range(500)]
    known_prompts, known_outputs = whole_lengths(prompts), whole_lengths(outputs)
    assert known_prompts is not None
    assert known_outputs is not None
    size = resident(known_prompts, known_outputs, Footprint())
    count = safe_requests(size, 60_000).by_room
    sums = []
    for _ in range(4000):
        lasting = draw.choices(outputs, weights=outputs, k=count)
        sums.append(sum(draw.choice(prompts) + draw.randrange(output) for output in lasting))
    assert sum(total > 60_000 for total in sums) / len(sums) == pytest.approx(FULL_RATIO, abs=0.06)


def _preempted(lengths: list[tuple[int, int]], in_flight: int, blocks: int) -> float:
    """Share of requests preempted by an engine that always has `in_flight`."""
    spec = EngineSpec(
        num_blocks=blocks,
        max_model_len=8192,
        kv_bytes_per_token=262_144,
        weights_bytes=65_500_000_000,
        parameters=32_800_000_000,
        bandwidth_bytes_per_second=2.4e12,
        flops_per_second=5e14,
    )
    queue = iter(lengths)
    hit: list[bool] = []

    def send(finished: FinishedRequest | None = None) -> None:
        if finished is not None:
            hit.append(finished.preemptions > 0)
        following = next(queue, None)
        if following is not None:
            engine.submit(Request(finished.finished_seconds if finished else 0.0, *following))

    engine = PagedEngine(spec, send)
    for _ in range(in_flight):
        send()
    clock = 0.0
    while len(hit) < len(lengths):
        clock += 60.0
        engine.advance(clock)
    return sum(hit) / len(hit)


def test_an_engine_preempts_as_few_as_said_and_more_beyond() -> None:
    draw = random.Random(4)
    lengths = [
        (
            min(max(round(draw.lognormvariate(math.log(300), 0.7)), 1), 4000),
            min(max(round(draw.lognormvariate(math.log(250), 0.7)), 1), 4000),
        )
        for _ in range(1500)
    ]
    size = moments_from_histograms(
        page([prompt for prompt, _ in lengths]), page([output for _, output in lengths]), Footprint(16)
    )
    assert size is not None
    safe = safe_requests(size, 2999 * 16).requests
    assert _preempted(lengths, safe, 3000) <= 2 * PREEMPTED_RATIO
    assert _preempted(lengths, round(1.2 * safe), 3000) > 5 * PREEMPTED_RATIO


RUNNING = st.lists(st.tuples(st.integers(1, 500), st.integers(0, 40)), min_size=1, max_size=12)


@given(RUNNING, st.integers(1, 4000))
def test_the_forecast_is_what_stepping_would_find(batch: list[tuple[int, int]], pool: int) -> None:
    found = forecast([Running(held, remaining) for held, remaining in batch], pool)
    occupied = [sum(held + step for held, left in batch if left >= step) for step in range(41)]
    assert found.peak_slots == max(occupied)
    first = next((step for step, slots in enumerate(occupied) if slots > pool), math.inf)
    # Stepping sees the pool pass its end at the first whole step after it.
    assert (found.exhaustion_steps == math.inf) == (first == math.inf)
    if first < math.inf:
        assert math.floor(found.exhaustion_steps) <= first <= math.floor(found.exhaustion_steps) + 1


def test_several_alike_count_as_many() -> None:
    one_by_one = forecast([Running(100, 50)] * 3 + [Running(40, 10)], 460)
    assert forecast([Running(100, 50, 3), Running(40, 10)], 460) == one_by_one
    assert one_by_one.peak_slots == 450
    assert one_by_one.exhaustion_steps == math.inf


def test_nothing_runs() -> None:
    found = forecast([], 1000)
    assert (found.peak_slots, found.exhaustion_steps) == (0, math.inf)


def test_running_requests_of_which_not_all_are_told_of() -> None:
    outputs = whole_lengths([100, 300])
    assert outputs is not None
    told = running_requests([(1000, 1050), (500, 700)], outputs, running=4, longest_tokens=1100)
    assert told == [Running(1050, 50, 2), Running(700, 100, 2)]


@given(st.floats(1, 1e6), st.integers(1, 300))
def test_typical_requests_hold_what_is_active(active: float, running: int) -> None:
    outputs = whole_lengths([10, 200, 3000])
    assert outputs is not None
    found = typical_requests(active, running, outputs)
    assert math.fsum(request.held_slots * request.requests for request in found) == pytest.approx(active)
    assert math.fsum(request.requests for request in found) == pytest.approx(running)


def test_typical_ages_are_those_of_a_random_moment() -> None:
    outputs = whole_lengths([100, 900])
    assert outputs is not None
    found = typical_requests(10_000, 10, outputs, steps=100)
    # The longer ones run nine tenths of the time: mean age (100^2 + 900^2) / (2 x 1000).
    mean_age = math.fsum(request.held_slots for request in found) / 100 - found[0].held_slots
    assert mean_age == pytest.approx(410, rel=0.02)
