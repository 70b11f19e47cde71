import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.advise.arrivals import BIN_SECONDS
from kvgauge.advise.demand import Demand
from kvgauge.advise.fleet import (
    GROWN_SECONDS,
    HOLD_SECONDS,
    LEAST_CORRECTION,
    LEAST_FINISHED,
    MOST_CORRECTION,
    FleetAdvice,
    FleetFacts,
    Wish,
    advise_fleet,
)
from kvmodel.latency import StepCost
from tests.advise.fleets import DEMAND, demand, facts, poisson

SYNC_SECONDS = 15.0
HALF_HOUR = 1800.0
COUNTS = st.lists(st.integers(0, 120).map(float), min_size=9, max_size=120)
MIXES = [
    DEMAND,
    replace(DEMAND, ranks=4),
    replace(DEMAND, slo_ttft_seconds=None, slo_tpot_seconds=None),
    demand([8000.0, 20_000.0], [20.0]),
    demand([100.0], [1000.0, 3000.0], pool_slots=40_000.0, slo_tpot_seconds=0.05),
]
FACTS = st.builds(
    facts,
    COUNTS,
    st.integers(0, 30),
    demand=st.sampled_from(MIXES),
    silent=st.integers(0, 3),
    waiting=st.integers(0, 500),
    starting=st.integers(0, 5),
    judged=st.floats(0, 5000),
    slow=st.floats(0, 500),
    start_up_seconds=st.floats(0, 600),
)
LONG = tuple(Wish(10_000.0 - SYNC_SECONDS * step, 1) for step in range(40, 0, -1))
"""For long, one pod would have been enough."""


def needed(told: FleetFacts) -> int:
    """What the replay alone asks for."""
    found = advise_fleet(told).terms["replicas_by_replay"]
    assert isinstance(found, int)
    return found


def followed(counts: Sequence[float], begin_bin: int, replicas: int, asked: Demand = DEMAND) -> Iterator[FleetAdvice]:
    """The answers from that bin on, every 15 s, each followed at once."""
    wishes: tuple[Wish, ...] = ()
    grown = -1e9
    for end in range(begin_bin, len(counts) + 1, round(SYNC_SECONDS / BIN_SECONDS)):
        now = end * BIN_SECONDS
        seen = counts[max(end - 360, 0) : end]
        told = facts(seen, replicas, now, demand=asked, since_growth_seconds=now - grown)
        advice = advise_fleet(told, wishes)
        if advice.replicas > replicas:
            grown = now
        replicas, wishes = advice.replicas, advice.wishes
        yield advice


@given(FACTS)
@settings(max_examples=60, deadline=None)
def test_the_answer_is_whole_and_can_be_written(told: FleetFacts) -> None:
    advice = advise_fleet(told, LONG)
    assert 1 <= advice.replicas <= max(1000, told.replicas)
    json.dumps(dict(advice.terms), allow_nan=False)
    assert {
        "arrivals_per_second",
        "least_level_per_second",
        "most_level_per_second",
        "trend_per_second2",
        "due_level_per_second",
        "burstiness",
        "minute_burstiness",
        "slow_correction_ratio",
        "prefill_seconds_per_request",
        "decode_seconds_per_request",
        "start_up_seconds",
        "replicas_by_replay",
        "replicas_by_backlog",
        "replicas_to_shed_to",
        "backlog_requests",
        "replicas_starting",
        "pods_silent",
    } <= advice.terms.keys()
    assert len(advice.explanation) >= 3
    assert all(sentence.endswith(".") and " " in sentence for sentence in advice.explanation)


@given(FACTS)
@settings(max_examples=30, deadline=None)
def test_the_same_facts_have_the_same_answer_and_stay_as_they_are(told: FleetFacts) -> None:
    counts, ready = list(told.counts), list(told.ready)
    first = advise_fleet(told, LONG)
    assert advise_fleet(told, LONG) == first
    assert (told.counts, told.ready) == (counts, ready)


@given(FACTS, st.integers(0, 8), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_more_arrivals_all_along_never_need_fewer(told: FleetFacts, place: int, more: int) -> None:
    plenty = replace(told, counts=[count * (1 + more / 20) for count in told.counts])
    # A higher level has a smaller relative chance in it: by that much its upper end may come down.
    assert needed(plenty) >= needed(told)


@given(st.sampled_from(MIXES), st.integers(0, 120))
@settings(max_examples=60, deadline=None)
def test_a_steady_load_needs_more_where_it_is_higher(asked: Demand, count: int) -> None:
    few, many = (needed(facts([float(each)] * 100, demand=asked)) for each in (count, count + 3))
    assert many >= few


@given(FACTS)
@settings(max_examples=60, deadline=None)
def test_where_one_starts_to_look_does_not_matter(told: FleetFacts) -> None:
    """More pods are always enough where fewer were: the search finds the same from either side."""
    assert needed(replace(told, replicas=1)) == needed(replace(told, replicas=40))


@given(FACTS)
@settings(max_examples=60, deadline=None)
def test_a_silent_pod_never_shrinks_the_fleet(told: FleetFacts) -> None:
    assert advise_fleet(replace(told, silent=1), LONG).replicas >= told.replicas


def test_too_little_seen_changes_nothing() -> None:
    for counts in ([], [1000.0] * 8):
        assert advise_fleet(facts(counts, 7), LONG).replicas == 7
    assert advise_fleet(facts([1000.0] * 9, 7), LONG).replicas > 7


@pytest.mark.parametrize("asked", [None, replace(DEMAND, finished=LEAST_FINISHED - 1.0)])
def test_without_requests_that_finished_nothing_is_changed(asked: Demand | None) -> None:
    advice = advise_fleet(facts([1000.0] * 20, 7, demand=asked, load_ratio=50.0), LONG)
    assert advice.replicas == 7
    assert "finished" in advice.explanation[0]


@pytest.mark.parametrize(
    "lacking",
    [{"cost": None}, {"pool_slots": None}, {"cost": StepCost(0.01, 0.0, 0.0)}],
)
def test_without_a_model_the_pods_loads_decide(lacking: dict[str, object]) -> None:
    asked = replace(DEMAND, **lacking)  # type: ignore[arg-type]
    told = facts([5.0] * 100, 3, demand=asked, load_ratio=4.2)
    advice = advise_fleet(told, LONG)
    assert advice.replicas == 5
    json.dumps(dict(advice.terms), allow_nan=False)
    assert "load ratio" in advice.explanation[0]
    assert advise_fleet(replace(told, load_ratio=0.8), LONG).replicas == 1
    assert advise_fleet(replace(told, load_ratio=0.8, silent=1), LONG).replicas == 3
    assert advise_fleet(replace(told, load_ratio=1e30), LONG).replicas == 1000
    assert advise_fleet(replace(told, load_ratio=None), LONG).replicas == 3


def test_no_arrivals_shrink_to_one_once_it_was_so_for_long_enough() -> None:
    quiet = [0.0] * 200
    answers = [advice.replicas for advice in followed(quiet, 12, 9)]
    held = round(HOLD_SECONDS / SYNC_SECONDS)
    assert set(answers[:held]) == {9}
    assert set(answers[held + 2 :]) == {1}


def test_nothing_is_shed_before_a_smaller_fleet_was_enough_for_long() -> None:
    told = facts([1.0] * 100, 9)
    assert advise_fleet(told).replicas == 9
    assert advise_fleet(told, LONG).replicas == 1
    # A wish of ten within the hold counts, one from before it does not.
    for age, kept in ((HOLD_SECONDS - 1, 6), (HOLD_SECONDS + 1, 1)):
        wishes = sorted((*LONG, Wish(10_000.0 - age, 6)), key=lambda wish: wish.seconds)
        assert advise_fleet(told, wishes).replicas == kept


def test_nothing_is_shed_soon_after_more_were_asked_for() -> None:
    told = facts([1.0] * 100, 9, since_growth_seconds=GROWN_SECONDS - 1)
    assert advise_fleet(told, LONG).replicas == 9
    assert advise_fleet(replace(told, since_growth_seconds=GROWN_SECONDS), LONG).replicas == 1


def test_wishes_do_not_pile_up_and_those_of_the_future_are_dropped() -> None:
    wishes: tuple[Wish, ...] = (Wish(1e9, 50),)
    for step in range(200):
        wishes = advise_fleet(facts([1.0] * 20, 2, 10_000.0 + SYNC_SECONDS * step), wishes).wishes
    assert len(wishes) <= HOLD_SECONDS / SYNC_SECONDS + 3
    assert max(wish.seconds for wish in wishes) == 10_000.0 + SYNC_SECONDS * 199


def test_a_fleet_sheds_only_what_a_safer_one_would_not_need() -> None:
    """Between the two sizes nothing moves."""
    for level in range(5, 200, 5):
        terms = advise_fleet(facts([float(level)] * 100)).terms
        fewest, safe = terms["replicas_by_replay"], terms["replicas_to_shed_to"]
        assert isinstance(fewest, int)
        assert isinstance(safe, int)
        assert fewest <= safe
        wishes = [replace(wish, replicas=safe) for wish in LONG]
        for replicas in range(fewest, safe + 1):
            assert advise_fleet(facts([float(level)] * 100, replicas), wishes).replicas == replicas


def test_a_backlog_asks_for_pods_that_work_it_off() -> None:
    told = facts([5.0] * 100, 2)
    usual = advise_fleet(replace(told, waiting=4)).terms
    assert (usual["backlog_requests"], usual["replicas_by_backlog"]) == (0, 1)
    advice = advise_fleet(replace(told, waiting=1004))
    assert advice.terms["backlog_requests"] == 1000
    assert advice.replicas == advice.terms["replicas_by_backlog"]
    assert advice.replicas > 2
    assert any("wait" in sentence for sentence in advice.explanation)
    more = [advise_fleet(replace(told, waiting=waiting)).replicas for waiting in range(0, 4000, 250)]
    assert more == sorted(more)
    assert advise_fleet(replace(told, waiting=10**9)).replicas == 1000


def test_ranks_share_the_load() -> None:
    counts = poisson(30.0, HALF_HOUR)
    alone, four = (needed(facts(counts, demand=replace(DEMAND, ranks=ranks))) for ranks in (1, 4))
    assert alone / 4 <= four <= alone / 4 + 1


def test_slow_requests_ask_for_more_and_their_absence_for_less() -> None:
    counts = poisson(60.0, HALF_HOUR)
    told = facts(counts, demand=replace(DEMAND, slo_tpot_seconds=0.035))
    usual = needed(told)
    told = replace(told, replicas=usual, ready=[usual] * len(counts), judged=sum(counts))
    many, none = (needed(replace(told, slow=share * told.judged)) for share in (0.3, 0.0))
    assert none < usual < many
    assert advise_fleet(replace(told, slow=told.judged)).terms["slow_correction_ratio"] == MOST_CORRECTION
    assert advise_fleet(told).terms["slow_correction_ratio"] == pytest.approx(LEAST_CORRECTION, abs=0.2)


def test_a_rise_is_met_before_it_is_there() -> None:
    counts = [100.0] * 300 + [100 + 2.0 * step for step in range(48)]
    soon, late = (needed(facts(counts, start_up_seconds=seconds)) for seconds in (10.0, 600.0))
    assert late > soon


def test_chance_alone_moves_the_answer_by_a_pod_at_most() -> None:
    still = looks = 0
    for seed in range(12):
        counts = poisson(8.0, HALF_HOUR + 900, seed)
        found = [needed(facts(counts[end - 360 : end])) for end in range(360, len(counts), 12)]
        middle = sorted(found)[len(found) // 2]
        looks += len(found)
        still += sum(abs(each - middle) <= 1 for each in found)
    assert still >= 0.95 * looks


def test_a_step_up_is_followed_within_a_minute_and_one_down_is_seen_within_three() -> None:
    asked = demand([2000.0, 6000.0], [300.0, 900.0])
    low, high = (needed(facts(poisson(rate, HALF_HOUR, "x"), demand=asked)) for rate in (2.0, 4.0))
    assert high > low
    rose = fell = 0
    for seed in range(10):
        rise = poisson(2.0, HALF_HOUR, f"a{seed}") + poisson(4.0, 60.0, f"b{seed}")
        rose += max(advice.replicas for advice in followed(rise, 360, low, asked)) > low
        fall = poisson(4.0, HALF_HOUR, f"a{seed}") + poisson(2.0, 180.0, f"b{seed}")
        fell += needed(facts(fall[-360:], demand=asked)) < needed(facts(fall[:360], demand=asked))
    assert rose >= 9
    assert fell >= 9


def test_a_burst_is_not_forgotten_in_the_quiet_minutes() -> None:
    """ON and OFF, two minutes each: in the OFF minutes the fleet stays."""
    counts: list[float] = []
    for turn in range(10):
        counts += poisson(20.0, 120.0, f"on {turn}") + [0.0] * 24
    answers = [advice.replicas for advice in followed(counts, 180, 6)]
    assert min(answers) >= 3
    assert max(answers) <= 3 * min(answers)
