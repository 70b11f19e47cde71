import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.advise import Advice, History, advise
from kvgauge.advise.history import quantile
from kvgauge.assess import EngineFlags, assess
from kvgauge.observe.records import Observation
from tests.support.facts import ENGINE, RANK, histogram, observation


def advice_for(*ticks: Observation, max_num_seqs: int | None = None) -> Advice:
    history = History()
    for seen in ticks:
        history.remember(seen)
    return advise(assess(ticks[-1], EngineFlags()), history, max_num_seqs=max_num_seqs)


def finished(prompts: Sequence[float], outputs: Sequence[float], at: float = 1000.0, **rank: Any) -> Observation:
    return observation(at=at, prompt_lengths=histogram(prompts), output_lengths=histogram(outputs), **rank)


def test_mean_length_concurrency() -> None:
    advice = advice_for(finished([500] * 10, [300] * 10, running=4, active_tokens=2000, waiting=2))
    # 800 tokens are 50 blocks; 15,984 slots are usable, of which 95 % are advised.
    assert advice.terms["tokens_per_request"] == 800
    assert advice.safe_concurrency == advice.limits["kv"] == math.floor(15_984 * 0.95 / 800) == 18
    assert advice.binding_limit == "kv"
    assert advice.load_ratio == (4 * 800 + 2 * 800) / (16_000 * 0.95)
    assert advice.valid
    assert advice.age_seconds == 0.5


def test_lengths_are_rounded_up_to_blocks() -> None:
    assert advice_for(finished([500], [301])).terms["tokens_per_request"] == 816


def test_worst_case_is_told_and_never_binds() -> None:
    advice = advice_for(finished([5], [5]), max_num_seqs=4096)
    assert advice.limits["kv_worst_case"] == 15_984 // 8192 == 1
    assert advice.binding_limit == "kv"


def test_the_smallest_limit_binds_and_sets_the_unit_of_the_load() -> None:
    advice = advice_for(finished([500], [300], running=6, waiting=3), max_num_seqs=6)
    assert (advice.safe_concurrency, advice.binding_limit) == (6, "max_num_seqs")
    assert advice.load_ratio == 9 / 6
    assert "max_num_seqs" in advice.explanation[0]


def test_load_is_not_clipped() -> None:
    advice = advice_for(finished([500], [300], running=18, waiting=180, active_tokens=15_000))
    assert advice.load_ratio is not None
    assert advice.load_ratio > 10


def test_what_is_held_counts_when_it_is_more_than_the_mean_says() -> None:
    advice = advice_for(finished([5], [5], running=1, active_tokens=15_200))
    assert advice.load_ratio == 1.0


def test_only_the_window_counts_once_requests_finish_in_it() -> None:
    long_ago = finished([50] * 100, [50] * 100, at=0)
    now = finished([50] * 100 + [500], [50] * 100 + [300], at=300)
    advice = advice_for(long_ago, now)
    assert (advice.terms["tokens_per_request"], advice.terms["lengths_from"]) == (800, "window")
    assert advice_for(now).terms["lengths_from"] == "lifetime"


def test_before_any_request_finished_only_the_worst_case_is_promised() -> None:
    advice = advice_for(finished([], [], running=10, active_tokens=8000, waiting=2))
    assert advice.safe_concurrency == advice.limits["kv_worst_case"] == 1
    assert advice.load_ratio == (8000 + 2 * 800) / (16_000 * 0.95)
    assert "at least" in advice.explanation[1]
    idle = advice_for(finished([], [], running=0, active_tokens=0))
    assert (idle.valid, idle.safe_concurrency, idle.load_ratio) == (True, 1, 0)


def test_a_restarted_engine_is_learned_anew() -> None:
    history = History()
    history.remember(finished([500] * 10, [300] * 10, at=0))
    history.remember(finished([500] * 12, [300] * 12, at=100))
    history.remember(finished([10], [10], at=105))
    lengths = history.lengths()
    assert lengths is not None
    assert (lengths[0].count, lengths[2]) == (1, "lifetime")


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


def test_ranks_are_added_and_an_unknown_one_makes_the_sum_unknown() -> None:
    two = replace(ENGINE, ranks=(RANK, replace(RANK, rank="1", running=2)))
    advice = advice_for(observation(engine=two))
    assert advice.running == 12
    assert advice.terms["capacity_tokens"] == 32_000
    broken = replace(ENGINE, ranks=(RANK, replace(RANK, rank="1", running=None)))
    assert not advice_for(observation(engine=broken)).valid


def test_quantiles_are_those_of_promql() -> None:
    lengths = histogram([5] * 50 + [50] * 50)
    assert quantile(lengths, 0.5) == 10
    assert quantile(lengths, 0.75) == 55
    assert quantile(histogram([5000]), 0.99) == 1000
    assert quantile(histogram([]), 0.5) is None


@given(
    prompts=st.lists(st.integers(1, 5000), min_size=1, max_size=20),
    running=st.integers(0, 100),
    waiting=st.integers(0, 100),
    active=st.integers(0, 16_000),
)
def test_load_and_concurrency_agree(prompts: list[int], running: int, waiting: int, active: int) -> None:
    advice = advice_for(
        finished(list(map(float, prompts)), [7.0], running=running, waiting=waiting, active_tokens=active)
    )
    assert advice.safe_concurrency is not None
    assert advice.load_ratio is not None
    tokens = advice.terms["tokens_per_request"]
    assert isinstance(tokens, int)
    assert tokens % 16 == 0
    assert advice.safe_concurrency * tokens <= 16_000 * 0.95
    if running + waiting > advice.safe_concurrency + 1:
        assert advice.load_ratio > 1 - tokens / (16_000 * 0.95)
    assert advice.load_ratio >= active / (16_000 * 0.95)
