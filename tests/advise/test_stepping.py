"""What is learned of simulated engines whose true cost is known."""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.advise.stepping import StepLearner, StepModel, StepRecord, reading_seconds
from kvgauge.advise.stepping_records import mean_position
from kvgauge.observe.records import Histogram, RankReading
from kvgauge.simulate.tally import Tally, bounds_1_2_5
from kvmodel.latency import StepCost
from tests.advise.stepping_loads import (
    SPEC,
    Load,
    bursty,
    decode_heavy,
    mixed,
    mostly_idle,
    prefill_heavy,
    readings,
    wrong,
)
from tests.support.facts import RANK, observation, source

TRUE = SPEC.step_cost
WRONGS = ((1.3, 1.3), (0.8, 1.0), (1.0, 1.3), (1.15, 0.85), (1.0, 1.0))
# A step as each load has them: resident tokens, tokens computed, pairs.
STEPS: dict[Load, tuple[float, float, float]] = {
    mixed: (60_000, 150, 100_000),
    prefill_heavy: (30_000, 7_000, 7_000 * 5_000),
    decode_heavy: (60_000, 100, 0),
    mostly_idle: (1_500, 1, 0),
    bursty: (60_000, 60, 0),
}


def learned(seen: Iterable[tuple[float, RankReading]], prior: StepCost | None) -> StepModel:
    learner = StepLearner()
    for at, rank in seen:
        learner.observe((rank,), at, prior, SPEC.max_num_batched_tokens)
    return learner.model()


def known(model: StepModel) -> StepCost:
    assert model.cost is not None
    assert model.why_not is None
    return model.cost


@pytest.mark.parametrize(("memory", "compute"), WRONGS)
@pytest.mark.parametrize("load", STEPS, ids=lambda load: load.__name__)
def test_a_wrong_roofline_comes_out_right_for_the_steps_that_are_seen(
    load: Load, memory: float, compute: float
) -> None:
    model = learned(readings(load, minutes=5), wrong(TRUE, memory, compute))
    assert known(model).seconds(*STEPS[load]) == pytest.approx(TRUE.seconds(*STEPS[load]), rel=0.03)
    assert model.busy_seconds > 30


@pytest.mark.parametrize(("memory", "compute"), WRONGS)
def test_both_sides_come_out_where_prompts_and_decodes_mix(memory: float, compute: float) -> None:
    model = learned(readings(mixed, minutes=4), wrong(TRUE, memory, compute))
    assert (model.memory_scale, model.compute_scale) == pytest.approx((memory, compute), rel=0.03)
    assert model.error_ratio is not None
    assert model.error_ratio < 0.02


def test_what_the_load_leaves_open_stays_as_the_roofline_has_it() -> None:
    model = learned(readings(mostly_idle, minutes=5), wrong(TRUE, 1.3, 1.0))
    assert (model.memory_scale, model.compute_scale) == pytest.approx((1.3, 1.0), rel=0.03)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("load", [mixed, decode_heavy], ids=lambda load: load.__name__)
def test_irregular_and_missing_readings(load: Load, seed: int) -> None:
    seen = readings(load, minutes=6, every=lambda chance: chance.uniform(1, 15), seed=seed)
    model = learned((each for at, each in enumerate(seen) if at % 7), wrong(TRUE, 1.3, 1.3))
    assert known(model).seconds(*STEPS[load]) == pytest.approx(TRUE.seconds(*STEPS[load]), rel=0.03)


def test_rest_between_requests_is_not_taken_for_slowness() -> None:
    """At 15 s a reading can have requests at both ends and none in between."""
    for every in (1.0, 5.0, 15.0):
        model = learned(readings(mostly_idle, 5, every=lambda _, every=every: every), TRUE)  # type: ignore[misc]
        assert known(model).seconds(1_500, 1) == pytest.approx(TRUE.seconds(1_500, 1), rel=0.03)


def test_preemptions_are_not_taken_for_slowness() -> None:
    tight = replace(SPEC, num_blocks=2_500, max_model_len=32_768)
    seen = list(readings(mixed, minutes=4, spec=tight))
    assert seen[-1][1].preemptions_total
    model = learned(seen, TRUE)
    assert known(model).seconds(30_000, 100) == pytest.approx(TRUE.seconds(30_000, 100), rel=0.03)


def test_a_prefix_cache() -> None:
    """Prompts that were found are not computed, though they are counted before their prompts are."""
    spec = replace(SPEC, prefix_caching=True)
    seen = list(readings(mixed, minutes=4, spec=spec))
    assert seen[-1][1].prefix_hits_tokens_total
    model = learned(seen, wrong(TRUE, 1.3, 1.3))
    kv_tokens, tokens, pairs = STEPS[mixed]
    assert known(model).seconds(kv_tokens, tokens, pairs) == pytest.approx(
        TRUE.seconds(kv_tokens, tokens, pairs), rel=0.03
    )


def test_an_engine_that_slows_down_is_followed() -> None:
    """Half the clock, from some minute on: nothing else of what is counted changes."""
    learner, slow = StepLearner(), 0.0
    for at, rank in readings(decode_heavy, minutes=12):
        slow += 1.0 if at > 240 else 0.0
        assert rank.inter_token_seconds is not None
        factor = 2 if at > 240 else 1
        between = replace(rank.inter_token_seconds, total=rank.inter_token_seconds.total * factor)
        learner.observe((replace(rank, inter_token_seconds=between),), at + slow, TRUE)
    memory = learner.model().memory_scale
    assert memory is not None
    assert memory > 1.8


def test_one_odd_window_moves_little() -> None:
    seen = list(readings(decode_heavy, minutes=4))
    late = [(at + (8.0 if at > 200 else 0.0), rank) for at, rank in seen]
    moved, still = learned(late, TRUE), learned(seen, TRUE)
    assert known(moved).seconds(*STEPS[decode_heavy]) == pytest.approx(
        known(still).seconds(*STEPS[decode_heavy]), rel=0.03
    )


def test_without_a_roofline_a_line_is_drawn() -> None:
    for load in (mixed, decode_heavy):
        cost = known(model := learned(readings(load, minutes=4), None))
        kv_tokens, tokens, pairs = STEPS[load]
        assert cost.kv_token_seconds == cost.pair_seconds == 0
        assert cost.seconds(0, tokens) == pytest.approx(TRUE.seconds(kv_tokens, tokens, pairs), rel=0.15)
        assert model.memory_scale is None


def test_a_line_needs_time_and_variety() -> None:
    early = learned(itertools.islice(readings(mixed, minutes=1), 20), None)
    assert early.cost is None
    assert "too little" in (early.why_not or "")
    even = learned(readings(lambda _: (1 / 3, 200, 800), minutes=4), None)
    assert even.cost is None
    assert "too even" in (even.why_not or "")


def test_before_anything_is_seen_the_roofline_stands() -> None:
    learner = StepLearner()
    assert learner.model().cost is None
    learner.observe((replace(RANK, running=0),), 1.0, TRUE)
    model = learner.model()
    assert model.cost == TRUE
    assert (model.memory_scale, model.compute_scale, model.busy_seconds, model.error_ratio) == (1, 1, 0, None)


def test_another_roofline_begins_anew() -> None:
    learner = StepLearner()
    for at, rank in readings(mixed, minutes=2):
        learner.observe((rank,), at, wrong(TRUE, 1.3, 1.3))
    learner.observe((RANK,), 121.0, TRUE)
    assert learner.model().busy_seconds == 0
    assert learner.model().cost == TRUE


def test_a_roofline_that_cannot_be_asked_for_a_while_stays() -> None:
    learner, prior = StepLearner(), wrong(TRUE, 1.3, 1.3)
    for at, rank in readings(mixed, minutes=2):
        learner.observe((rank,), at, None if 60 < at < 90 else prior)
    model = learner.model()
    assert (model.memory_scale, model.compute_scale) == pytest.approx((1.3, 1.3), rel=0.03)


def test_an_engine_that_begins_to_count_anew_is_learned_on() -> None:
    first = list(readings(mixed, minutes=2))
    again = [(at + 125, rank) for at, rank in readings(mixed, minutes=2, seed=7)]
    model = learned([*first, *again], wrong(TRUE, 1.3, 1.3))
    assert (model.memory_scale, model.compute_scale) == pytest.approx((1.3, 1.3), rel=0.05)


def test_a_reading_that_is_repeated_says_nothing() -> None:
    seen = list(readings(mixed, minutes=2))
    twice = [each for pair in zip(seen, seen, strict=True) for each in pair]
    assert learned(twice, wrong(TRUE, 1.3, 1.3)).cost == learned(seen, wrong(TRUE, 1.3, 1.3)).cost


def test_a_repeated_reading_keeps_its_time() -> None:
    seen = observation(at=100.0)
    assert reading_seconds(seen) == 99.5
    later = replace(seen, monotonic_seconds=103.0, sources=(source("engine", age_seconds=3.5),))
    assert reading_seconds(later) == 99.5


def test_ranks_are_learned_from_together() -> None:
    learner = StepLearner()
    both = zip(readings(mixed, minutes=2), readings(mixed, minutes=2, seed=9), strict=True)
    for (at, first), (_, second) in both:
        learner.observe((first, replace(second, rank="1")), at, wrong(TRUE, 1.3, 1.3))
    model = learner.model()
    assert (model.memory_scale, model.compute_scale) == pytest.approx((1.3, 1.3), rel=0.03)
    assert model.busy_seconds > 150


def test_engines_that_do_not_count_steps_are_learned_from_by_the_time_between_tokens() -> None:
    seen = ((at, replace(rank, step_tokens=None)) for at, rank in readings(decode_heavy, minutes=4))
    model = learned(seen, wrong(TRUE, 1.3, 1.3))
    assert known(model).seconds(*STEPS[decode_heavy]) == pytest.approx(TRUE.seconds(*STEPS[decode_heavy]), rel=0.05)


def test_versions_that_do_not_tell_what_was_computed() -> None:
    seen = (
        (at, replace(rank, prompt_computed_tokens_total=None, inter_token_seconds=None))
        for at, rank in readings(mixed, minutes=4)
    )
    model = learned(seen, wrong(TRUE, 1.3, 1.3))
    assert known(model).seconds(*STEPS[mixed]) == pytest.approx(TRUE.seconds(*STEPS[mixed]), rel=0.05)


@pytest.mark.parametrize("untold", ["running", "steps and times"])
def test_what_does_not_tell_its_steps_is_left_alone(untold: str) -> None:
    nothing = {"running": None} if untold == "running" else {"step_tokens": None, "inter_token_seconds": None}
    model = learned(((at, replace(rank, **nothing)) for at, rank in readings(mixed, 1)), TRUE)  # type: ignore[arg-type]
    assert (model.cost, model.busy_seconds) == (TRUE, 0)


def test_facts_of_the_last_minutes() -> None:
    model = learned(readings(mostly_idle, minutes=5), TRUE)
    assert model.busy_ratio is not None
    assert 0.1 < model.busy_ratio < 0.7
    busy = learned(readings(prefill_heavy, minutes=5), TRUE)
    assert (busy.busy_ratio, busy.prefill_ratio) == pytest.approx((0.9, 0.8), abs=0.15)
    # 2.2 prompts a second of 10,000 tokens, and some ten more each.
    assert busy.tokens_per_second == pytest.approx(22_000, rel=0.2)
    position = 11_200 / 2
    rate = 1 / (TRUE.token_seconds + position * TRUE.pair_seconds + TRUE.fixed_seconds / 8192)
    assert busy.prefill_tokens_per_second == pytest.approx(rate, rel=0.05)


def test_a_record_brings_back_what_was_known() -> None:
    learner, prior = StepLearner(), wrong(TRUE, 1.3, 1.3)
    for at, rank in readings(mixed, minutes=2):
        learner.observe((rank,), at, prior)
    stored = json.dumps(dataclasses.asdict(learner.record()))
    assert len(stored) < 500
    again = StepLearner(StepRecord.read(json.loads(stored)))
    assert again.model().cost == learner.model().cost
    again.observe((RANK,), 5.0, prior)
    assert again.model().cost == learner.model().cost
    elsewhere = StepLearner(StepRecord.read(json.loads(stored)))
    elsewhere.observe((RANK,), 5.0, TRUE)
    assert elsewhere.model().cost == TRUE


def test_a_record_of_a_line_comes_back_too() -> None:
    learner = StepLearner()
    for at, rank in readings(mixed, minutes=3):
        learner.observe((rank,), at, None)
    record = StepRecord.read(json.loads(json.dumps(dataclasses.asdict(learner.record()))))
    assert known(StepLearner(record).model()) == learner.model().cost


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=6)
            | st.dictionaries(st.sampled_from(["prior", "sums", "squares", "windows", "busy_seconds"]), inner)
        ),
        max_leaves=20,
    )
)
def test_odd_records_are_none_or_sound(stored: object) -> None:
    record = StepRecord.read(stored)
    if record is not None:
        model = StepLearner(record).model()
        assert model.cost is None or all(math.isfinite(value) for value in dataclasses.astuple(model.cost))


counts = st.floats(0, 1e9)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.floats(0, 20), counts, counts, counts, counts, st.integers(0, 300), st.integers(0, 10**6)),
        min_size=2,
        max_size=12,
    )
)
def test_whatever_is_counted_the_cost_stays_sound(
    moments: list[tuple[float, float, float, float, float, int, int]],
) -> None:
    learner, at = StepLearner(), 0.0
    for wait, steps, tokens, prompts, seconds, running, active in moments:
        at += wait
        histogram = Histogram((1.0, math.inf), (0.0, steps), tokens)
        between = Histogram((1.0, math.inf), (0.0, tokens), seconds)
        rank = replace(
            RANK,
            running=running,
            active_tokens=active,
            step_tokens=histogram,
            inter_token_seconds=between,
            prompt_computed_tokens_total=prompts,
            prompt_lengths=histogram,
            output_lengths=between,
        )
        learner.observe((rank,), at, TRUE)
        model = learner.model()
        assert model.memory_scale is not None
        assert model.compute_scale is not None
        assert 0.3 <= model.memory_scale <= 3
        assert 0.3 <= model.compute_scale <= 3
        for ratio in (model.busy_ratio, model.prefill_ratio):
            assert ratio is None or 0 <= ratio <= 1
        StepRecord.read(dataclasses.asdict(learner.record()))


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=40))
def test_the_mean_position_lies_between_what_lengths_allow(lengths: list[int]) -> None:
    tally = Tally(bounds_1_2_5(131_072))
    for length in lengths:
        tally.observe(length)
    seen = tally.snapshot()
    found = mean_position(Histogram(seen.bounds, tuple(map(float, seen.cumulative)), seen.total))
    exact = sum(length**2 for length in lengths) / sum(lengths) / 2
    # A bucket is at most 2.5 times as wide as its lower bound, the first but one twice.
    assert exact / 3 <= found <= exact * 3
    if len(set(lengths)) == 1:
        assert found == pytest.approx(exact)
