import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.advise.lengths import Lengths, whole_lengths
from kvgauge.advise.working import SATURATION_RATIO, Work, work_of
from kvmodel.latency import StepCost
from tests.advise.stepping_loads import SPEC
from tests.advise.watching import InFlight, Watched, at_rate, chat, long_prompts

COST = StepCost(0.01, 1e-7, 2e-5, 1e-9, 1e-5)


def lengths(*values: int) -> Lengths:
    found = whole_lengths(values)
    assert found is not None
    return found


def work(prompt: int = 1000, output: int = 200, computed_ratio: float = 1.0) -> Work:
    found = work_of(COST, lengths(prompt), lengths(output), computed_ratio)
    assert found is not None
    return found


def test_a_requests_work_is_what_its_steps_take() -> None:
    found = work(1000, 200)
    # Token k of the prompt attends to k before it, decode k reads the prompt and k tokens.
    assert found.prefill_seconds == pytest.approx(COST.seconds(0, 1000, 1000**2 / 2) - COST.fixed_seconds)
    steps = [COST.seconds(1000 + age, 1, 0, 1) - COST.fixed_seconds for age in range(200)]
    assert found.decode_seconds == pytest.approx(math.fsum(steps), rel=1e-6)


def test_what_a_cache_holds_is_not_computed_but_attended_to() -> None:
    found = work(1000, 200, 0.25)
    # The last 250 of 1000 positions.
    assert found.prefill_seconds == pytest.approx(250 * 2e-5 + 1e-9 * 250 * 875)
    assert found.decode_seconds == work(1000, 200).decode_seconds
    assert work(1000, 200, 0.0).prefill_seconds == 0


def test_no_work_is_no_limit() -> None:
    assert work_of(StepCost(0.01, 0, 0), lengths(5), lengths(5), 1.0) is None


@given(st.floats(1, 500))
def test_requests_in_flight_and_those_that_end_follow_from_each_other(requests: float) -> None:
    assert work().in_flight_at(work().requests_per_second(requests)) == pytest.approx(requests)


def test_the_limits_are_where_their_conditions_turn() -> None:
    found = work()
    most = 1 / found.request_seconds
    number = found.saturating()
    assert found.requests_per_second(number) <= SATURATION_RATIO * most < found.requests_per_second(number + 1)
    assert found.in_flight_at(1.001 * most) == math.inf
    number = found.within_tpot(0.05)
    assert found.token_seconds(number) <= 0.05 < found.token_seconds(number + 1)
    assert found.within_tpot(0.001) == 1
    prefills = work(1000, 5)
    assert prefills.within_ttft(0.02) == 1
    assert 1 < prefills.within_ttft(0.05) < prefills.within_ttft(0.1) < 1_000_000
    assert replace(found, prefill_seconds=0.0).within_ttft(0.02) > 1_000_000


@pytest.mark.parametrize(("load", "number"), [(chat, 40), (long_prompts, 12)])
def test_an_engine_ends_as_many_requests_as_is_reckoned(load: object, number: int) -> None:
    watched = InFlight(load, number, SPEC)  # type: ignore[arg-type]
    watched.engine.advance(300)
    before = watched.engine.state()
    watched.engine.advance(900)
    after = watched.engine.state()
    watched.at = 900
    watched.tick()
    learned = watched.history.learned(SPEC.max_model_len)
    assert learned is not None
    found = work_of(SPEC.step_cost, learned.prompts, learned.outputs, 1.0)
    assert found is not None
    seen = (after.finished_total - before.finished_total) / 600
    assert found.requests_per_second(number) == pytest.approx(seen, rel=0.05)


def test_a_load_by_what_arrives_is_told_by_what_arrives() -> None:
    watched = Watched(replace(SPEC, max_model_len=32_768))
    advice = list(watched.ticks(at_rate(chat, 8), 120))[-1]
    terms, said = advice.terms, advice.explanation[-2]
    assert advice.load_ratio is not None
    assert terms["load_by_rate_ratio"] == terms["load_now_ratio"]
    arrivals, safe = terms["arrivals_per_second"], terms["safe_requests_per_second"]
    assert said == (
        f"{advice.running} run and {advice.waiting} wait; {arrivals:.2g} requests arrive a second, {safe:.2g} can "
        f"safely be finished, which is {advice.load_ratio:.0%} of what is safe."
    )


def test_a_load_ratio_that_follows_what_is_now_says_so() -> None:
    watched = Watched(replace(SPEC, max_model_len=32_768))
    *_, before = watched.ticks(at_rate(chat, 16), 120)
    for _ in range(20):
        advice = watched.tick()
    now, said = advice.terms["load_now_ratio"], advice.explanation[-2]
    assert before.load_ratio is not None
    assert advice.load_ratio is not None
    assert isinstance(now, float)
    assert now < advice.load_ratio - 0.05
    assert said.endswith(
        f"which is {now:.0%} of what is safe; the load ratio is still {advice.load_ratio:.0%} and follows within a "
        "minute."
    )
