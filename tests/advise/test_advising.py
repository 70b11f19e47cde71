import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.advise import Advice, History, advise
from kvgauge.assess import EngineFlags, assess
from kvgauge.observe.records import Observation
from kvmodel.latency import StepCost
from tests.support.facts import ENGINE, RANK, histogram, observation

COST = StepCost(0.01, 1e-7, 2e-5, 1e-9, 1e-5)


def advice_for(
    *ticks: Observation, max_num_seqs: int | None = None, cost: StepCost | None = None, **objectives: float
) -> Advice:
    history = History()
    for seen in ticks[:-1]:
        history.remember(seen)
    history.remember(ticks[-1])
    assessment = replace(assess(ticks[-1], EngineFlags()), step_cost=cost)
    return advise(assessment, history, max_num_seqs=max_num_seqs, **objectives)


def finished(prompts: Sequence[float], outputs: Sequence[float], at: float = 1000.0, **rank: Any) -> Observation:
    return observation(at=at, prompt_lengths=histogram(prompts), output_lengths=histogram(outputs), **rank)


def test_requests_count_with_what_they_hold_while_they_run_and_alike_ones_as_a_whole() -> None:
    advice = advice_for(finished([500] * 60, [300] * 60, running=4, active_tokens=2000, waiting=2))
    # All lie in one bucket each, so all may be alike: 799 stored tokens are 50 blocks, and 19 of them fit 15,984 slots.
    assert advice.safe_concurrency == advice.limits["kv"] == 15_984 // 800 == 19
    assert advice.binding_limit == "kv"
    size = advice.terms["tokens_per_request"]
    assert isinstance(size, float)
    assert 500 < size < 800
    assert advice.load_ratio == pytest.approx((4 + 2) / 19)
    assert (advice.valid, advice.age_seconds, advice.terms["lengths_from"]) == (True, 0.5, "lifetime")


def test_mixed_requests_leave_room_for_chance() -> None:
    outputs = [50.0] * 200 + [900.0] * 40 + [4000.0] * 10
    advice = advice_for(finished([90] * 250, outputs))
    size = advice.terms["tokens_per_request"]
    assert isinstance(size, float)
    # Long ones are met more often than they finish: the mean is far above that of those that finished.
    assert size > 90 + sum(outputs) / 250
    assert advice.safe_concurrency is not None
    assert advice.safe_concurrency * size < 0.9 * 15_984
    assert "lose their place" in advice.explanation[0] or "too full" in advice.explanation[0]


def test_worst_case_is_told_and_never_binds() -> None:
    advice = advice_for(finished([5] * 60, [5] * 60), max_num_seqs=4096)
    assert advice.limits["kv_worst_case"] == 15_984 // 8192 == 1
    assert advice.binding_limit == "kv"


def test_the_smallest_limit_binds_and_sets_the_unit_of_the_load() -> None:
    advice = advice_for(finished([500] * 60, [300] * 60, running=6, waiting=3, active_tokens=3000), max_num_seqs=6)
    assert (advice.safe_concurrency, advice.binding_limit) == (6, "max_num_seqs")
    assert advice.load_ratio == 9 / 6
    assert "max_num_seqs" in advice.explanation[0]


def test_load_is_not_clipped() -> None:
    advice = advice_for(finished([500] * 60, [300] * 60, running=18, waiting=180, active_tokens=12_000))
    assert advice.load_ratio is not None
    assert advice.load_ratio > 10


def test_requests_that_were_swapped_out_wait_too() -> None:
    some = finished([500] * 60, [300] * 60, running=4, active_tokens=2000, waiting=2, swapped=3)
    advice = advice_for(some)
    assert advice.load_ratio == pytest.approx(9 / 19)
    assert (advice.waiting, advice.terms["swapped"]) == (2, 3)
    assert "3 are swapped out" in advice.explanation[2]


def test_a_giant_counts_as_it_is() -> None:
    advice = advice_for(finished([5] * 60, [5] * 60, running=1, active_tokens=15_200))
    assert advice.load_ratio is not None
    assert advice.load_ratio > 0.9
    before = advice_for(finished([5], [5], running=1, active_tokens=15_200))
    assert before.load_ratio == 1.0


def test_only_the_window_counts_once_enough_finish_in_it() -> None:
    long_ago = finished([50] * 100, [50] * 100, at=0)
    now = finished([50] * 100 + [500] * 60, [50] * 100 + [300] * 60, at=300)
    advice = advice_for(long_ago, now)
    assert (advice.limits["kv"], advice.terms["lengths_from"]) == (19, "window")
    assert advice.prompt_tokens is not None
    assert advice.prompt_tokens.mean == 500
    assert advice_for(now).terms["lengths_from"] == "lifetime"


def test_few_that_finished_are_made_up_to_fifty_from_older_ones() -> None:
    long_ago = finished([50] * 100, [50] * 100, at=0)
    now = finished([50] * 100 + [500] * 25, [50] * 100 + [300] * 25, at=300)
    advice = advice_for(long_ago, now)
    assert (advice.terms["lengths_from"], advice.terms["finished_in_window"]) == ("window+lifetime", 25)
    assert advice.terms["mean_prompt_tokens"] == pytest.approx(275, rel=0.01)
    assert "lately and since the engine started" in advice.explanation[1]


def test_before_any_request_finished_only_the_worst_case_is_promised() -> None:
    advice = advice_for(finished([], [], running=10, active_tokens=8000, waiting=2))
    assert advice.safe_concurrency == advice.limits["kv_worst_case"] == 1
    assert advice.load_ratio == (8000 + 2 * 800) / (16_000 * 0.95)
    assert "at least" in advice.explanation[1]
    idle = advice_for(finished([], [], running=0, active_tokens=0))
    assert (idle.valid, idle.safe_concurrency, idle.load_ratio) == (True, 1, 0)


def test_until_fifty_have_finished_only_the_worst_case_is_promised() -> None:
    few = advice_for(finished([500] * 49, [300] * 49, running=4, active_tokens=2000))
    assert few.safe_concurrency == few.limits["kv_worst_case"] == 1
    assert "Until 50 have finished" in few.explanation[1]
    assert few.load_ratio == pytest.approx(4 * few.terms["tokens_per_request"] / (16_000 * 0.95))  # type: ignore[operator]
    assert advice_for(finished([500] * 50, [300] * 50)).safe_concurrency == 19


def test_a_restarted_engine_is_measured_by_what_it_served_before() -> None:
    advice = advice_for(
        finished([500] * 70, [300] * 70, at=0),
        finished([500] * 170, [300] * 170, at=100),
        finished([10], [10], at=105),
    )
    assert (advice.terms["lengths_from"], advice.terms["finished_in_window"]) == ("memory", 0)
    assert advice.terms["finished_requests"] == 100
    assert "in the last hours" in advice.explanation[1]


def test_another_model_is_learned_from_nothing() -> None:
    other = replace(ENGINE, model="other", ranks=(replace(RANK, model="other"),))
    advice = advice_for(
        finished([500] * 70, [300] * 70, at=0),
        finished([500] * 170, [300] * 170, at=100),
        observation(at=105, engine=other),
    )
    assert advice.terms["lengths_from"] is None


def test_no_advice_from_nothing() -> None:
    gone = advice_for(observation(engine=None))
    assert (gone.valid, gone.safe_concurrency, gone.load_ratio, gone.limits) == (False, None, None, {})
    asleep = advice_for(observation(engine=replace(ENGINE, asleep=True)))
    assert not asleep.valid
    assert "asleep" in asleep.explanation[0]
    blind = advice_for(observation(active_tokens=None))
    assert not blind.valid
    unknown = advice_for(observation(engine=replace(ENGINE, max_model_len=None), running=0, active_tokens=0))
    assert unknown.valid is False


def test_without_a_longest_length_what_finished_has_to_do() -> None:
    seen = finished([500] * 9, [300] * 9)
    assert seen.engine is not None
    advice = advice_for(replace(seen, engine=replace(seen.engine, max_model_len=None)))
    assert advice.limits == {"kv": 19}


def test_without_histograms_means_are_taken_and_it_is_said() -> None:
    counters: dict[str, Any] = {"finished_total": 100.0, "prompt_tokens_total": 5e4, "generation_tokens_total": 3e4}
    advice = advice_for(observation(**counters))
    assert advice.terms["lengths_from"] == "means"
    assert advice.terms["mean_prompt_tokens"] == pytest.approx(500)
    assert advice.terms["mean_output_tokens"] == pytest.approx(300)
    assert "no length histograms" in advice.explanation[1]
    assert "guess" in advice.explanation[1]
    alike = advice_for(finished([500] * 100, [300] * 100))
    assert advice.safe_concurrency is not None
    assert alike.safe_concurrency is not None
    assert 1 < advice.safe_concurrency < alike.safe_concurrency


def test_without_any_count_of_requests_what_they_hold_tells() -> None:
    ticks = [
        observation(
            at=at, running=10, active_tokens=8000, prompt_tokens_total=50.0 * at, generation_tokens_total=30.0 * at
        )
        for at in range(0, 310, 10)
    ]
    advice = advice_for(*ticks)
    assert advice.terms["lengths_from"] == "occupancy"
    assert advice.terms["mean_prompt_tokens"] == pytest.approx(500)
    assert advice.terms["mean_output_tokens"] == pytest.approx(300)
    assert "tells no lengths" in advice.explanation[1]


def test_the_limits_of_speed_bind_where_a_step_is_known() -> None:
    prefills = finished([900] * 60, [5] * 60, running=3, active_tokens=2700)
    advice = advice_for(prefills, cost=COST, max_num_seqs=256)
    assert advice.binding_limit == "token_rate"
    assert 1 <= advice.limits["token_rate"] < advice.limits["kv"]
    assert "token_rate" not in advice_for(prefills).limits
    assert "85%" in advice.explanation[0]


def test_objectives_make_a_limit_of_latency() -> None:
    seen = finished([500] * 60, [300] * 60, running=3, active_tokens=1700)
    assert "latency" not in advice_for(seen, cost=COST).limits
    loose = advice_for(seen, cost=COST, slo_tpot_seconds=0.05)
    tight = advice_for(seen, cost=COST, slo_tpot_seconds=0.011)
    assert tight.binding_limit == "latency"
    assert tight.limits["latency"] < loose.limits["latency"]
    assert "slo_tpot" in tight.explanation[0]
    impossible = advice_for(seen, cost=COST, slo_tpot_seconds=0.001)
    assert impossible.safe_concurrency == 1
    prefills = finished([900] * 60, [5] * 60, running=1, active_tokens=900)
    first = advice_for(prefills, cost=COST, slo_ttft_seconds=0.035, slo_tpot_seconds=1.0)
    assert first.binding_limit == "latency"
    assert "slo_ttft" in first.explanation[0]


def test_time_to_exhaustion() -> None:
    rising = [observation(at=second, active_tokens=1000 + 50 * second) for second in range(31)]
    advice = advice_for(*rising)
    assert advice.kv_exhaustion_seconds == pytest.approx((16_000 - 2500) / 50)
    assert advice_for(*[replace_at(seen) for seen in rising]).kv_exhaustion_seconds == math.inf
    assert advice_for(*rising[:5]).kv_exhaustion_seconds is None


def replace_at(seen: Observation) -> Observation:
    engine = seen.engine
    assert engine is not None
    return observation(at=seen.monotonic_seconds, active_tokens=8000)


def test_ups_and_downs_are_no_trend() -> None:
    noise = [observation(at=second, active_tokens=4000 + 800 * (second * 7 % 11) + 5 * second) for second in range(61)]
    assert advice_for(*noise).kv_exhaustion_seconds == math.inf


def test_a_batch_that_will_outgrow_the_pool_is_foreseen() -> None:
    lengths: dict[str, Any] = {"prompt_lengths": histogram([90] * 60), "output_lengths": histogram([900] * 60)}
    ticks = [
        observation(at=at, running=30, active_tokens=3600, generation_tokens_total=600.0 * at, **lengths)
        for at in range(20)
    ]
    advice = advice_for(*ticks)
    # 30 requests grow by 20 tokens a second each, and none can end before the pool's 15,984 slots are taken.
    assert advice.kv_exhaustion_seconds is not None
    assert advice.kv_exhaustion_seconds == pytest.approx((15_984 - 3600) / 600)
    few = [replace(seen, engine=few_running(seen)) for seen in ticks]
    assert advice_for(*few).kv_exhaustion_seconds == math.inf


def few_running(seen: Observation) -> Any:
    assert seen.engine is not None
    return replace(seen.engine, ranks=(replace(seen.engine.ranks[0], running=5, active_tokens=1500),))


def test_ranks_are_added_and_an_unknown_one_makes_the_sum_unknown() -> None:
    rank = replace(RANK, prompt_lengths=histogram([500] * 30), output_lengths=histogram([300] * 30))
    two = replace(ENGINE, ranks=(rank, replace(rank, rank="1", running=2)))
    advice = advice_for(observation(engine=two), max_num_seqs=100)
    assert advice.running == 12
    assert advice.terms["capacity_tokens"] == 32_000
    assert advice.limits == {"kv": 2 * 19, "kv_worst_case": 2, "max_num_seqs": 200}
    assert advice.demand is not None
    assert (advice.demand.ranks, advice.demand.pool_slots) == (2, 15_984)
    broken = replace(ENGINE, ranks=(RANK, replace(RANK, rank="1", running=None)))
    assert not advice_for(observation(engine=broken)).valid


def test_what_a_fleet_is_reckoned_with() -> None:
    seen = finished(
        [500] * 60,
        [300] * 60,
        running=4,
        waiting=2,
        active_tokens=2000,
        prefix_queries_tokens_total=1000.0,
        prefix_hits_tokens_total=250.0,
    )
    demand = advice_for(seen, cost=COST, slo_tpot_seconds=0.05, max_num_seqs=64).demand
    assert demand is not None
    assert (demand.arrived_total, demand.finished, demand.computed_ratio) == (66, 60, 0.75)
    assert (demand.slo_tpot_seconds, demand.slo_ttft_seconds, demand.max_num_seqs) == (0.05, None, 64)
    assert demand.prompts.mean == pytest.approx(500, rel=1e-4)
    assert demand.outputs.mean == pytest.approx(300, rel=1e-4)
    assert demand.cost == COST
    assert demand.resident is not None
    assert advice_for(finished([], [])).demand is None


@settings(deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 3000)), min_size=50, max_size=80),
    running=st.integers(0, 100),
    waiting=st.integers(0, 100),
    active=st.integers(0, 16_000),
)
def test_load_and_concurrency_agree(lengths: list[tuple[int, int]], running: int, waiting: int, active: int) -> None:
    prompts, outputs = zip(*lengths, strict=True)
    advice = advice_for(finished(prompts, outputs, running=running, waiting=waiting, active_tokens=active))
    assert advice.safe_concurrency is not None
    assert advice.load_ratio is not None
    assert advice.safe_concurrency == min(number for name, number in advice.limits.items() if name != "kv_worst_case")
    assert advice.limits["kv"] >= advice.limits["kv_worst_case"]
    assert advice.load_ratio >= (running + waiting) / max(advice.safe_concurrency, 1) - 1e-9
    assert all(sentence.endswith(".") for sentence in advice.explanation)
