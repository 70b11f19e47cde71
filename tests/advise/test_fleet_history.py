import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.advise.arrivals import BIN_SECONDS
from kvgauge.advise.fleet import WINDOW_SECONDS
from kvgauge.advise.fleet_history import SILENT_SECONDS, USUAL_START_UP_SECONDS, FleetHistory, PodReport
from tests.advise.fleets import DEMAND, demand

Pods = Callable[[float], list[PodReport]]


def pod(name: str = "a", now: float | None = 0.0, arrived: float | None = 0.0, **changes: object) -> PodReport:
    """A ready pod that told at `now`."""
    return replace(PodReport(name, ready=True, read_seconds=now, arrived_total=arrived), **changes)  # type: ignore[arg-type]


def watched(pods: Pods, times: Iterable[float]) -> FleetHistory:
    history = FleetHistory()
    for now in times:
        history.remember(pods(now), now)
    return history


def every(seconds: float, begin: float, end: float) -> list[float]:
    return [begin + seconds * number for number in range(round((end - begin) / seconds) + 1)]


def counts(history: FleetHistory, pods: Pods, now: float) -> list[float]:
    return list(history.facts(pods(now), 1, now).counts)


def steady(now: float) -> list[PodReport]:
    """Two pods with 2 requests/s each."""
    return [pod("a", now, 2 * now), pod("b", now, 1000 + 2 * now)]


def test_arrivals_are_counted_in_the_bins_in_which_they_came() -> None:
    history = watched(steady, every(5, 1000, 1100))
    assert counts(history, steady, 1100)[1:] == [20.0] * 20
    # A bin that is under way is not counted yet.
    for now in (1101.0, 1104.0):
        history.remember(steady(now), now)
        assert counts(history, steady, now)[1:] == [20.0] * 20


@given(st.lists(st.floats(0.2, 14.0), min_size=5, max_size=60))
def test_no_arrival_is_lost_however_often_pods_are_read(gaps: list[float]) -> None:
    times = [1000.0]
    for gap in gaps:
        times.append(times[-1] + gap)
    history = watched(steady, times)
    end = math.ceil(times[-1] / BIN_SECONDS) * BIN_SECONDS + BIN_SECONDS
    history.remember(steady(times[-1]), end)
    found = history.facts([], 1, end).counts
    assert sum(found) == pytest.approx(4 * (times[-1] - 1000))


def test_a_pods_first_reading_only_begins_its_count() -> None:
    def one(now: float) -> list[PodReport]:
        return [pod("a", now, 1e6, judged_total=1e6, slow_total=9e5)]

    history = watched(one, every(5, 1000, 1100))
    facts = history.facts(one(1100), 1, 1100)
    assert (sum(facts.counts), facts.judged, facts.slow) == (0, 0, 0)


def starting(ready_at: float) -> Pods:
    """Beside one that serves, a pod that is seen from its beginning on."""

    def pods(now: float) -> list[PodReport]:
        young = PodReport("young", ready=now >= ready_at, read_seconds=None)
        if now >= ready_at:
            served = 3 * (now - ready_at)
            young = replace(young, read_seconds=now, arrived_total=served, judged_total=served, slow_total=served / 2)
        return [pod("old", now, 0.0), *([young] if now > 1000 else [])]

    return pods


def test_a_pod_that_was_seen_to_begin_counts_from_its_start() -> None:
    pods = starting(1090)
    history = watched(pods, every(5, 1000, 1150))
    facts = history.facts(pods(1150), 2, 1150)
    assert sum(facts.counts) == pytest.approx(180)
    assert (facts.judged, facts.slow) == (180, 90)
    assert facts.start_up_seconds == 85


def test_start_up_is_the_longest_of_those_measured_lately() -> None:
    history = FleetHistory()
    old = pod("old", None, None)
    history.remember([old], 0.0)
    assert history.facts([old], 1, 0.0).start_up_seconds == USUAL_START_UP_SECONDS
    for number, seconds in enumerate([300.0, *[60.0] * 7]):
        name, begin = f"p{number}", 1000.0 * (number + 1)
        history.remember([old, PodReport(name, ready=False, read_seconds=None)], begin)
        history.remember([old, PodReport(name, ready=True, read_seconds=None)], begin + seconds)
        # It is not measured again where it is unready for a while.
        history.remember([old, PodReport(name, ready=False, read_seconds=None)], begin + seconds + 5)
        history.remember([old, PodReport(name, ready=True, read_seconds=None)], begin + seconds + 500)
        assert history.facts([old], 1, begin).start_up_seconds == 300.0
    history.remember([old, PodReport("last", ready=False, read_seconds=None)], 20_000.0)
    history.remember([old, PodReport("last", ready=True, read_seconds=None)], 20_040.0)
    assert history.facts([old], 1, 20_040.0).start_up_seconds == 60.0


def test_a_pod_that_was_there_before_tells_nothing_of_its_start() -> None:
    """Unready when the history began, it may have been so for long, and have served before."""
    history = FleetHistory()
    history.remember([PodReport("a", ready=False, read_seconds=None)], 1000.0)
    history.remember([pod("a", 1005.0, 50_000.0)], 1005.0)
    history.remember([pod("a", 1010.0, 50_010.0)], 1010.0)
    facts = history.facts([], 1, 1010.0)
    assert sum(facts.counts) == 10
    assert facts.start_up_seconds == USUAL_START_UP_SECONDS


@pytest.mark.parametrize("after", [0.0, 30.0, 30_000.0])
def test_a_total_that_fell_begins_anew(after: float) -> None:
    def restarting(now: float) -> list[PodReport]:
        total = 50_000 + 2 * now if now < 1050 else after + 2 * (now - 1050)
        return [pod("a", now, total, judged_total=total, slow_total=total / 10)]

    history = watched(restarting, every(5, 1000, 1100))
    facts = history.facts(restarting(1100), 1, 1100)
    assert list(facts.counts)[1:] == [10.0] * 9 + [0.0] + [10.0] * 10
    assert facts.judged == pytest.approx(190)
    assert facts.slow == pytest.approx(19)


def test_what_comes_to_light_after_a_gap_is_spread_over_it() -> None:
    def gap(now: float) -> list[PodReport]:
        told = now if now < 1040 or now >= 1340 else 1035.0
        return [pod("a", told, 2 * told), pod("b", now, 0.0)]

    history = watched(gap, every(5, 1000, 1350))
    assert counts(history, gap, 1350)[1:] == pytest.approx([10.0] * 70)


def test_a_reading_that_was_overtaken_is_left_out() -> None:
    history = FleetHistory()
    for now, told in ((1000, 1000), (1005, 1005), (1010, 998), (1015, 1015), (1020, 1020)):
        history.remember([pod("a", told, 2.0 * told)], now)
    assert sum(history.facts([], 1, 1020).counts) == pytest.approx(40)


def silent_from(when: float) -> Pods:
    def pods(now: float) -> list[PodReport]:
        told = min(now, when)
        load = 0.5 if told == now else 0.9
        return [pod("a", now, 2 * now, load_ratio=0.5, waiting=3), pod("b", told, 2 * told, load_ratio=load, waiting=7)]

    return pods


def test_what_a_silent_pod_gets_is_made_up_for_from_the_time_it_is_silent() -> None:
    pods = silent_from(1060)
    history = watched(pods, every(5, 1000, 1120))
    facts = history.facts(pods(1120), 2, 1120)
    assert list(facts.counts)[1:] == pytest.approx([20.0] * 24)
    assert (facts.silent, facts.waiting, facts.load_ratio) == (1, 3, 1.0)
    # Just after its last reading it is merely late.
    assert history.facts(pods(1060 + SILENT_SECONDS), 2, 1060 + SILENT_SECONDS).silent == 0


def test_a_pod_that_has_just_begun_changes_nothing_of_what_was() -> None:
    history = watched(steady, every(5, 1000, 1100))
    young = PodReport("young", ready=True, read_seconds=None)
    history.remember([*steady(1101), young], 1101.0)
    facts = history.facts([*steady(1101), young], 3, 1101.0)
    assert list(facts.counts)[1:] == [20.0] * 20
    assert facts.silent == 1


def test_when_all_are_silent_nothing_can_be_made_up() -> None:
    history = watched(steady, every(5, 1000, 1060))

    def all_silent(now: float) -> list[PodReport]:
        return steady(1060)

    for now in every(5, 1065, 1100):
        history.remember(all_silent(now), now)
    facts = history.facts(all_silent(1100), 2, 1100)
    assert facts.silent == 2
    assert list(facts.counts)[1:] == [20.0] * 12 + [0.0] * 8
    assert facts.load_ratio is None


def test_slow_requests_of_silent_pods_are_made_up_for_as_are_the_others() -> None:
    def pods(now: float) -> list[PodReport]:
        told = min(now, 1060)
        return [pod(name, at, 2 * at, judged_total=2 * at, slow_total=at) for name, at in (("a", now), ("b", told))]

    history = watched(pods, every(5, 1000, 1160))
    facts = history.facts(pods(1160), 2, 1160)
    assert facts.judged == pytest.approx(sum(facts.counts))
    assert facts.slow == pytest.approx(facts.judged / 2)


def test_pods_that_vanish_leave_what_they_counted() -> None:
    history = watched(steady, every(5, 1000, 1050))
    for now in every(5, 1055, 1100):
        history.remember(steady(now)[:1], now)
    facts = history.facts(steady(1100)[:1], 2, 1100)
    assert list(facts.counts)[1:] == [20.0] * 10 + [10.0] * 10
    assert list(facts.ready)[1:] == [2] * 10 + [1] * 10
    assert (facts.starting, facts.silent) == (1, 0)
    history.remember([], 1105)
    assert history.facts([], 2, 1105).ready[-1] == 0


def test_only_the_last_half_hour_is_kept() -> None:
    history = watched(steady, every(5, 1000, 4000))
    facts = history.facts(steady(4000), 2, 4000)
    assert list(facts.counts) == [20.0] * round(WINDOW_SECONDS / BIN_SECONDS)
    assert len(facts.ready) == len(facts.counts)


def test_a_pause_of_the_history_itself_leaves_empty_bins_that_are_filled() -> None:
    history = watched(steady, [*every(5, 1000, 1050), *every(5, 1200, 1250)])
    assert counts(history, steady, 1250)[1:] == pytest.approx([20.0] * 50)


def test_demand_is_the_pods_that_have_one_and_outlives_them() -> None:
    history = FleetHistory()
    history.remember([pod("a", 0.0)], 0.0)
    assert history.facts([], 1, 0.0).demand is None
    history.remember([pod("a", 5.0), pod("b", 5.0, demand=DEMAND)], 5.0)
    first = history.facts([], 1, 5.0).demand
    assert first is not None
    assert first.prompts == DEMAND.prompts
    # It is pooled anew once a minute.
    other = demand([100.0], [100.0])
    history.remember([pod("b", 10.0, demand=other)], 10.0)
    assert history.facts([], 1, 10.0).demand is first
    history.remember([pod("b", 70.0, demand=other)], 70.0)
    second = history.facts([], 1, 70.0).demand
    assert second is not None
    assert second.prompts == other.prompts
    history.remember([pod("b", 140.0)], 140.0)
    assert history.facts([], 1, 140.0).demand is second


def test_loads_that_are_no_numbers_are_left_out() -> None:
    pods = [pod("a", 0.0, load_ratio=math.nan), pod("b", 0.0, load_ratio=math.inf), pod("c", 0.0, load_ratio=0.25)]
    history = FleetHistory()
    history.remember(pods, 0.0)
    assert history.facts(pods, 3, 0.0).load_ratio == 0.25
