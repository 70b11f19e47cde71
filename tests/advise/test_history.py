import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.advise import History
from kvgauge.advise.drifting import lengths_drift, resident_drift
from kvgauge.advise.learning import ENOUGH, Learned, exponential, from_running, grown_ages
from kvgauge.advise.lengths import Lengths, whole_lengths
from kvgauge.advise.looking import MOST_BUCKETS, look_at, quantile
from kvgauge.advise.recent import Arrivals, Damper, Trend
from kvgauge.advise.residing import Footprint, resident
from kvgauge.observe.records import Histogram, Observation
from tests.advise.watching import (
    SMALL,
    InFlight,
    Watched,
    at_rate,
    chat,
    false_changes,
    long_outputs,
    longer_chat,
    noticed_after,
    state_bytes,
    sum_of_loads,
)
from tests.support.facts import ENGINE, RANK, histogram, observation
from tests.support.spool import reading as agent_reading
from tests.support.spool import scheduler

MIB = 1 << 20


def ticks_of(history: History, *ticks: Observation) -> Learned | None:
    for seen in ticks:
        history.remember(seen)
    return history.learned(8192)


def done(number: int, at: float, prompt: float = 500, output: float = 300, **rank: Any) -> Observation:
    """So many finished since the engine's start."""
    return observation(
        at=at, prompt_lengths=histogram([prompt] * number), output_lengths=histogram([output] * number), **rank
    )


def test_the_window_forgets_and_the_memory_of_hours_does_not() -> None:
    history = History()
    for at in range(0, 1000, 5):
        history.remember(done(at, at))
    for at in range(1000, 2000, 5):
        history.remember(done(1000, at))
    learned = history.learned(8192)
    assert learned is not None
    assert (learned.source, learned.finished_in_window) == ("memory", 0)
    assert learned.prompts.mean == pytest.approx(500, rel=1e-4)
    # It fades a little in the ten minutes.
    assert 900 < learned.finished < 1000


def test_engines_that_restart_twice_a_minute_are_still_learned_from() -> None:
    history = History()
    learned = None
    for life in range(10):
        learned = ticks_of(history, done(0, 30.0 * life), done(8, 30.0 * life + 20))
    assert learned is not None
    assert learned.sure
    assert learned.source == "window+memory"


def test_other_buckets_begin_anew_and_are_not_mixed() -> None:
    history = History()
    ticks_of(history, done(0, 0), done(100, 100))
    fine = (1.0, 2.0, 500.0, math.inf)
    seen = observation(
        at=105, prompt_lengths=histogram([400] * 60, fine), output_lengths=histogram([2] * 60, fine), finished_total=160
    )
    learned = ticks_of(history, seen)
    assert learned is not None
    assert (learned.source, learned.finished) == ("lifetime", 60)
    assert learned.prompts.mean == pytest.approx(400, rel=1e-4)


def test_a_histogram_of_a_thousand_buckets_is_kept_in_few() -> None:
    bounds = (*map(float, range(1, 1000)), math.inf)
    cumulative = (*map(float, range(999)), 999.0)
    many = Histogram(bounds, cumulative, 500_000.0)
    seen = observation(prompt_lengths=many, output_lengths=many)
    assert seen.engine is not None
    look = look_at(seen, seen.engine)
    assert look.prompts is not None
    assert len(look.prompts.bounds) <= MOST_BUCKETS + 1
    assert (look.prompts.count, look.prompts.bounds[-1], look.prompts.total) == (999, math.inf, 500_000)
    assert all(
        cumulative[int(bound) - 1] == count
        for bound, count in zip(look.prompts.bounds[:-1], look.prompts.cumulative, strict=False)
    )


def test_ranks_with_other_buckets_are_left_out() -> None:
    odd = replace(
        RANK, rank="1", prompt_lengths=histogram([5], (1, math.inf)), output_lengths=histogram([5], (1, math.inf))
    )
    even = replace(RANK, prompt_lengths=histogram([5] * 3), output_lengths=histogram([5] * 3))
    engine = replace(ENGINE, ranks=(even, odd))
    look = look_at(observation(engine=engine), engine)
    assert look.outputs is not None
    assert look.outputs.count == 3
    # Requests are counted by each rank's own count.
    assert look.finished == 4


def test_an_engine_that_is_silent_for_a_minute_loses_nothing_but_the_trend() -> None:
    history = History()
    for at in range(60):
        history.remember(done(2 * at, at, running=10, active_tokens=8000 + 10 * at))
    assert history.trend_tokens_per_second() == pytest.approx(10)
    for at in range(60, 130):
        history.remember(observation(at=at, engine=None))
    history.remember(done(300, 130, running=10, active_tokens=2000))
    learned, seen = history.learned(8192), history.occupancy()
    assert learned is not None
    assert learned.finished_in_window == 300
    assert history.trend_tokens_per_second() is None
    assert seen is not None
    # What was held meanwhile is not known, and not counted.
    assert seen.mean_slots == pytest.approx((8000 + 8590) / 2 / 10, rel=0.01)


def test_arrivals_never_fall_and_go_on_over_a_restart() -> None:
    history = History()
    history.remember(done(10, 0, running=4, waiting=2, swapped=1))
    assert history.arrivals.total == 17
    history.remember(done(12, 1, running=1, waiting=0))
    assert history.arrivals.total == 17
    history.remember(done(0, 5, running=3, waiting=0))
    assert history.arrivals.total == 20


def test_requests_that_vanish_do_not_hide_those_that_come() -> None:
    history = History()
    history.remember(done(10, 0, running=10, waiting=0))
    for at in range(1, 20):
        history.remember(done(10, at, running=2, waiting=0))
    history.remember(done(10, 20, running=5, waiting=0))
    assert history.arrivals.total == 23


def test_a_burst_is_in_the_rate_at_once_and_chance_is_not() -> None:
    def rate(burst: int) -> float:
        arrivals = Arrivals()
        for at in range(61):
            seen = observation(at=at, finished_total=5.0 * at + (burst if at > 50 else 0), running=0, waiting=0)
            assert seen.engine is not None
            arrivals.add(look_at(seen, seen.engine))
        found = arrivals.per_second()
        assert found is not None
        return found

    assert rate(0) == 5
    assert rate(20) == pytest.approx(5 + 20 / 60)
    assert rate(300) > 15


def test_the_damper_lets_bursts_through_and_holds_noise() -> None:
    damper = Damper()
    assert damper.follow(0.5, 100, 0) == 0.5
    assert damper.follow(0.6, 100, 1) == pytest.approx(0.5, abs=0.01)
    assert damper.follow(2.0, 400, 2) == 2.0
    assert damper.follow(0.0, 1, 32) == pytest.approx(2 / math.e)
    # A clock that goes back is a new one.
    assert damper.follow(0.3, 1, 0) == 0.3


@given(st.lists(st.tuples(st.floats(0.5, 3), st.floats(0, 1e6)), min_size=4, max_size=80))
def test_the_trend_is_that_of_least_squares(steps: list[tuple[float, float]]) -> None:
    trend, at = Trend(), 1e6
    points: list[tuple[float, float]] = []
    for elapsed, slots in steps:
        at += elapsed
        trend.add(at, slots)
        points.append((at, slots))
    points = [point for point in points if at - point[0] <= 60]
    found = trend.slots_per_second()
    if len(points) < 3 or points[-1][0] - points[0][0] < 10:
        assert found is None
        return
    time = sum(each for each, _ in points) / len(points)
    slope = sum((each - time) * slots for each, slots in points) / sum((each - time) ** 2 for each, _ in points)
    assert found == pytest.approx(slope, rel=1e-6, abs=1e-3)


def test_requests_that_run_are_not_taken_for_short_ones() -> None:
    history = History()
    # All that finished are short; ten are under way that have generated 400 tokens each.
    history.remember(done(0, 0, output=20, running=0, active_tokens=0, waiting=0, generation_tokens_total=0.0))
    generated = 60 * 20 + 10 * 400
    seen = done(60, 60, output=20, running=10, active_tokens=9000, generation_tokens_total=float(generated))
    learned = ticks_of(history, seen)
    assert learned is not None
    assert learned.censored == 10
    assert learned.outputs.mean > 60
    assert learned.output_summary.mean == 20


def test_in_a_steady_state_those_that_run_change_nothing() -> None:
    watched = InFlight(chat, 30)
    for _ in range(600):
        watched.tick()
    learned = watched.history.learned(watched.spec.max_model_len)
    assert learned is not None
    assert learned.outputs.mean == pytest.approx(learned.output_summary.mean, rel=0.02)


@given(st.lists(st.floats(0, 1e5), max_size=30))
def test_ages_that_have_not_grown_are_counted_already(ages: list[float]) -> None:
    assert grown_ages(ages, ages) == []
    assert sorted(grown_ages(ages, [])) == sorted(ages)


def test_an_agents_books_tell_lengths_where_no_histogram_does() -> None:
    history = History()
    books = scheduler(books={"running_tokens": [[500, 600], [500, 700], [500, 800]]})
    for at in range(0, 600, 5):
        agent = agent_reading(books)
        seen = observation(at=at, running=3, generation_tokens_total=300.0 * at)
        history.remember(replace(seen, agent=agent))
    learned = history.learned(8192)
    assert learned is not None
    assert learned.source == "agent"
    assert learned.prompts.mean == pytest.approx(500)
    # Half of the mean age's double is still to come: those that run have generated 200 on average.
    assert learned.outputs.mean == pytest.approx(201)
    assert learned.finished == pytest.approx(300 * 595 / 201)


def test_few_books_tell_nothing() -> None:
    seen = observation(generation_tokens_total=5.0)
    assert seen.engine is not None
    look = look_at(seen, seen.engine)
    assert from_running([(5, 6)] * 49, look, look) is None


@given(st.floats(1, 1e6))
def test_a_guessed_distribution_has_the_mean(mean: float) -> None:
    assert exponential(mean, 10).mean == pytest.approx(mean)


def test_quantiles_are_those_of_promql() -> None:
    lengths = histogram([5] * 50 + [50] * 50)
    assert quantile(lengths, 0.5) == 10
    assert quantile(lengths, 0.75) == 55
    assert quantile(histogram([5000]), 0.99) == 1000
    assert quantile(histogram([]), 0.5) is None


def test_a_change_of_the_mix_is_told_from_chance() -> None:
    draw = random.Random(5)
    bounds = (*(float(10 * 2**step) for step in range(12)), math.inf)
    one = [draw.lognormvariate(5, 0.8) for _ in range(3000)]
    before, same = histogram(one[:2000], bounds), histogram(one[2000:2200], bounds)
    assert lengths_drift("outputs", same, before, 170) is None
    other = lengths_drift("outputs", histogram([draw.lognormvariate(6, 0.8) for _ in range(60)], bounds), before, 170)
    assert other is not None
    assert other.startswith("outputs, ")
    assert lengths_drift("outputs", histogram([5000.0] * 19, bounds), before, 170) is None
    # A single giant, or two, are no change; a shift inside of a bucket is.
    assert lengths_drift("outputs", histogram([*one[2000:2060], 30_000.0], bounds), before, 170) is None
    inside = (10.0, 1000.0, math.inf)
    assert lengths_drift("outputs", histogram([700] * 60, inside), histogram([300] * 600, inside), 100) is not None
    assert lengths_drift("outputs", histogram([700] * 60, inside), histogram([300] * 600, bounds), 100) is None


def test_what_requests_hold_may_swing_as_a_batch_that_began_together_does() -> None:
    lengths = whole_lengths([500] * 10), whole_lengths([100, 300] * 10)
    assert lengths[0] is not None
    assert lengths[1] is not None
    usual = resident(lengths[0], lengths[1], Footprint(16))
    assert resident_drift(usual.together_slots, usual.mean_slots, 10, usual) is None
    assert resident_drift(usual.prompt_slots, usual.mean_slots, 10, usual) is None
    assert resident_drift(2 * usual.together_slots, usual.mean_slots, 10, usual) is not None
    assert resident_drift(usual.prompt_slots / 2, usual.mean_slots, 10, usual) is not None
    # Where prefixes are shared less is held at all times.
    assert resident_drift(0.5 * usual.prompt_slots, 0.5 * usual.mean_slots, 10, usual) is None
    assert resident_drift(1e6, usual.mean_slots, 1, usual) is None


@pytest.mark.parametrize("after", [long_outputs, at_rate(longer_chat, 3)])
def test_another_mix_is_noticed_within_a_minute(after: object) -> None:
    assert noticed_after(at_rate(chat, 3), after, minutes=6) <= 60  # type: ignore[arg-type]


def test_the_same_mix_is_not_taken_for_another() -> None:
    assert false_changes(at_rate(chat, 3), hours=1) == 0


def test_a_noticed_change_is_said() -> None:
    watched = Watched()
    for _ in watched.ticks(at_rate(chat, 3), 300):
        pass
    advice = list(watched.ticks(long_outputs, 90, seed=2))[-1]
    assert any(sentence.startswith("The mix of requests changed") for sentence in advice.explanation)
    assert advice.terms["mix_changed_seconds_ago"] is not None
    assert isinstance(advice.terms["mean_output_tokens"], float)
    assert advice.terms["mean_output_tokens"] > 500


def test_the_state_stays_small() -> None:
    assert state_bytes(minutes=11) < 2 * MIB


def test_loads_add_up_to_the_pods_needed_however_many_there_are() -> None:
    sums = [sum_of_loads(chat, 12.0, pods, SMALL, seed=3)[0] for pods in (2, 5)]
    assert sums[1] == pytest.approx(sums[0], rel=0.08)


def test_the_safe_number_keeps_nearly_all_in_their_place() -> None:
    watched = InFlight(chat, 20)
    for _ in range(300):
        advice = watched.tick()
    assert advice.safe_concurrency is not None
    full = InFlight(chat, advice.limits["kv"], seed=7)
    for _ in range(600):
        full.tick()
    state = full.engine.state()
    assert state.finished_total > 1000
    assert state.preemptions_total / state.finished_total < 0.04


def test_enough_is_what_the_docs_say() -> None:
    assert ENOUGH == 50
    assert isinstance(exponential(3, 1), Lengths)
