"""The fleet: nobody is lost, nothing is counted twice, and the slow world keeps its rules."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.simulate.fleet import Fleet, FleetPlan, FleetResult, FleetView, UnservedError
from kvgauge.simulate.spec import EngineSpec, Request
from kvgauge.simulate.state import EngineState

SPEC = EngineSpec(
    num_blocks=101,
    max_model_len=1024,
    kv_bytes_per_token=131_072,
    weights_bytes=16_000_000_000,
    parameters=8_000_000_000,
    bandwidth_bytes_per_second=2.4e12,
    flops_per_second=5e14,
)
"""About 10 ms a step; 1,600 tokens in the pool, so that it preempts."""
PLAN = FleetPlan(
    SPEC, 1.0, 0.05, start_up_seconds=60.0, min_replicas=1, max_replicas=6, initial_replicas=1, warm_up_seconds=0.0
)
MOMENT = 0.05
"""Longer than any step here."""


class Scripted:
    """Wishes in turn, the last one for ever; keeps every view, and checks what holds in each."""

    name = "scripted"
    scrape_seconds = 5.0

    def __init__(self, wishes: Sequence[int] = (1,), *, emptiest_first: bool = False) -> None:
        self.emptiest_first = emptiest_first
        self._wishes = wishes
        self._asked = 0
        self.looks: list[float] = []
        self.syncs: list[float] = []
        self.asked_for: list[int] = []
        self.states: list[EngineState] = []
        self.in_flight: list[dict[str, int]] = []
        self._leaving: dict[str, int] = {}

    def observe(self, view: FleetView) -> None:
        self.looks.append(view.now_seconds)
        self._check(view)
        self.in_flight.append({pod.name: pod.in_flight for pod in view.pods})
        self.states += [pod.state for pod in view.pods if pod.state is not None]

    def replicas(self, view: FleetView) -> int:
        self.syncs.append(view.now_seconds)
        self._check(view)
        self.asked_for.append(view.spec_replicas)
        wish = self._wishes[min(self._asked, len(self._wishes) - 1)]
        self._asked += 1
        return wish

    def _check(self, view: FleetView) -> None:
        names = [pod.name for pod in view.pods]
        assert len(names) == len(set(names))
        assert sum(not pod.deleting for pod in view.pods) == view.spec_replicas
        assert view.plan.min_replicas <= view.spec_replicas <= view.plan.max_replicas
        for pod in view.pods:
            assert pod.in_flight >= 0
            if not pod.ready:
                assert pod.in_flight == 0
            if pod.deleting:
                # It gets no more.
                assert pod.in_flight <= self._leaving.get(pod.name, pod.in_flight)
                self._leaving[pod.name] = pod.in_flight
            if pod.state is not None:
                assert 0 <= pod.state.used_blocks <= view.plan.spec.usable_blocks
                assert pod.state.clock_seconds <= view.now_seconds
        if view.gateway_requests:
            assert not any(pod.ready and not pod.deleting for pod in view.pods)


def requests(*rows: tuple[float, int, int]) -> list[Request]:
    return [Request(*row) for row in rows]


def steady(begin: float, end: float, gap: float, prompt: int = 100, output: int = 50) -> list[Request]:
    return [Request(begin + gap * number, prompt, output) for number in range(round((end - begin) / gap))]


def ran(
    load: Sequence[Request],
    wishes: Sequence[int] = (1,),
    plan: FleetPlan = PLAN,
    *,
    duration: float = 300.0,
    signal: Scripted | None = None,
    scrape: Callable[[str, float], bool] = lambda _name, _now: True,
) -> FleetResult:
    return Fleet(plan, signal or Scripted(wishes), scrape=scrape, keep_samples=True).run(load, duration)


def _two_of_three(name: str, now: float) -> bool:
    return (int(name.removeprefix("pod-")) + round(now)) % 3 > 0


@st.composite
def loads(draw: st.DrawFn) -> list[Request]:
    at, found = 0.0, []
    for _ in range(draw(st.integers(0, 60))):
        at += draw(st.sampled_from([0.0, 0.0, 0.001, 0.5, 5.0, 15.0]))
        prompt = draw(st.integers(1, 700))
        found.append(Request(at, prompt, draw(st.integers(1, 300))))
    return found


PLANS = st.builds(
    lambda least, first, start, seed: replace(
        PLAN, min_replicas=least, initial_replicas=max(first, least), start_up_seconds=start, seed=seed
    ),
    st.integers(1, 2),
    st.integers(0, 6),
    st.sampled_from([0.0, 20.0, 100.0]),
    st.integers(0, 5),
)
WISHES = st.lists(st.sampled_from([-3, 0, 1, 2, 5, 1000]), min_size=1, max_size=20)


@given(loads(), PLANS, WISHES, st.booleans(), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_every_request_is_served_and_counted_once(
    load: list[Request], plan: FleetPlan, wishes: list[int], emptiest_first: bool, duration: int
) -> None:
    signal = Scripted(wishes, emptiest_first=emptiest_first)
    result = ran(load, plan=plan, duration=duration, signal=signal, scrape=_two_of_three)
    assert result.requests == sum(request.arrival_seconds < duration for request in load)
    ratios = result.attainment_ratio, result.ttft_attainment_ratio, result.tpot_attainment_ratio
    assert all(0 <= ratio <= 1 for ratio in ratios)
    assert result.attainment_ratio <= min(ratios[1:])
    most = max(plan.max_replicas, plan.initial_replicas)
    assert plan.min_replicas * duration <= result.gpu_hours * 3600 * (1 + 1e-9)
    # Pods that serve to their end overlap with those that take their place.
    assert result.gpu_hours * 3600 <= 2 * most * duration * (1 + 1e-9)
    assert result.mean_replicas == pytest.approx(result.gpu_hours * 3600 / duration)
    assert signal.looks == [5.0 * number for number in range(1, duration // 5 + 1)]
    assert signal.syncs == [15.0 * number for number in range(1, duration // 15 + 1)]
    assert all(0 <= sample.kv_ratio <= 1 for sample in result.samples)


@given(loads(), PLANS, WISHES)
@settings(max_examples=20, deadline=None)
def test_the_same_seed_gives_the_same_result(load: list[Request], plan: FleetPlan, wishes: list[int]) -> None:
    assert ran(load, wishes, plan) == ran(load, wishes, plan)


def test_no_load_is_no_trouble() -> None:
    result = ran([], [2], duration=600)
    assert (result.requests, result.attainment_ratio, result.ttft_p99_seconds, result.preempted_per_1000) == (
        0,
        0,
        0,
        0,
    )
    assert result.gpu_hours * 3600 == pytest.approx(600 + 585)
    assert ran([], duration=0.0).requests == 0


def test_wishes_are_kept_within_the_limits() -> None:
    signal = Scripted([0, 1000, -5, 1000])
    ran(steady(0, 60, 1), duration=75, signal=signal)
    assert signal.asked_for == [1, 1, 6, 1, 6]


def test_a_pod_costs_from_its_creation_until_its_last_request_is_done() -> None:
    # Two more from 15 s on, ready at 75 s at most; down to one at 120 s. Without requests both are gone at once.
    wishes = [3] * 7 + [1]
    idle = ran([], wishes)
    assert idle.gpu_hours * 3600 == pytest.approx(300 + 2 * 105)
    # The newest are taken out: each has one of three requests that came together and has not ended.
    alike = requests(*[(100.0, 20, 800)] * 3)
    alone = ran(alike[:1])
    last_seconds = 800 * 0.01
    assert alone.requests == 1
    late = ran([replace(each, arrival_seconds=118.0) for each in alike], wishes)
    assert late.requests == 3
    served = (late.gpu_hours - idle.gpu_hours) * 3600 / 2
    # From the 120th second to the end of a request that came at 118 s: its steps take 7 ms of reading and 3 ms more.
    assert served == pytest.approx(118 + last_seconds - 120, rel=0.25)
    whole = ran([replace(each, arrival_seconds=100.0) for each in alike], wishes)
    assert whole.gpu_hours == idle.gpu_hours


def test_the_end_of_a_drain_does_not_wait_for_the_next_look() -> None:
    load = [Request(118.0, 20, 800), Request(118.0, 20, 800)]
    costs = set()
    for look in (1.0, 5.0, 60.0):
        signal = Scripted([2] * 7 + [1])
        signal.scrape_seconds = look
        costs.add(ran(load, duration=400.0, signal=signal).gpu_hours)
    assert len({round(cost * 3600, 6) for cost in costs}) == 1


def test_what_comes_in_the_warm_up_is_served_and_not_judged() -> None:
    load = steady(0, 200, 2)
    whole, part = ran(load), ran(load, plan=replace(PLAN, warm_up_seconds=100.0))
    assert (whole.requests, part.requests) == (100, 50)
    assert part.gpu_hours * 3600 == pytest.approx(200)
    assert part.mean_replicas == pytest.approx(1)
    assert ran(load, plan=replace(PLAN, warm_up_seconds=1e9)).requests == 0


def test_changes_and_flips_are_those_after_the_warm_up() -> None:
    wishes = [3, 3, 2, 2, 4, 4, 6, 1]
    found = ran([], wishes, duration=360.0)
    assert (found.changes_per_hour, found.flips_per_hour) == (50, 30)
    found = ran([], wishes, replace(PLAN, warm_up_seconds=60.0), duration=420.0)
    assert (found.changes_per_hour, found.flips_per_hour) == (30, 10)


ASLEEP = replace(PLAN, min_replicas=0, initial_replicas=0)


def test_without_a_pod_requests_wait_at_the_gateway_for_all_of_their_time() -> None:
    signal = Scripted([1])
    result = ran(requests((1.0, 100, 10), (3.0, 100, 10)), plan=ASLEEP, signal=signal)
    assert result.requests == 2
    # Asked for at 15 s, ready a minute later, give or take 5 %.
    assert 14 + 57 <= result.ttft_p99_seconds <= 14 + 63 + MOMENT
    assert result.ttft_attainment_ratio == 0


def test_a_request_that_came_in_the_warm_up_is_of_the_warm_up_when_it_is_served() -> None:
    plan = replace(ASLEEP, warm_up_seconds=50.0)
    assert ran(requests((1.0, 100, 10), (60.0, 100, 10)), [1], plan).requests == 1


def test_pods_that_start_when_the_load_ends_serve_as_soon_as_they_are_ready() -> None:
    result = ran(requests((1.0, 100, 10)), [1], ASLEEP, duration=20.0)
    assert result.requests == 1
    assert 14 + 57 <= result.ttft_p99_seconds <= 14 + 63 + MOMENT
    assert result.gpu_hours * 3600 == pytest.approx(5)


def test_requests_that_no_pod_will_serve_are_said_to_be_left() -> None:
    with pytest.raises(UnservedError, match="2 requests are left"):
        ran(requests((1.0, 100, 10), (2.0, 100, 10)), [0], ASLEEP, duration=60.0)


def test_requests_of_one_moment_are_spread_evenly() -> None:
    plan = replace(PLAN, initial_replicas=3, min_replicas=3)
    for moment in (7.0, 10.0, 15.0):
        signal = Scripted([3])
        ran(requests(*[(moment, 30, 900)] * 9), plan=plan, duration=60.0, signal=signal)
        after = signal.in_flight[signal.looks.index(5 * (moment // 5) + 5)]
        assert sorted(after.values()) == [3, 3, 3]


def test_the_router_sees_who_has_finished() -> None:
    """The pod with the long request gets nothing while the other is free again each time."""
    signal = Scripted([2])
    plan = replace(PLAN, initial_replicas=2, min_replicas=2)
    load = requests((1.0, 30, 900), *[(2.0 + 0.2 * number, 30, 5) for number in range(10)])
    ran(load, plan=plan, duration=30.0, signal=signal)
    first = signal.states[1::2][0]
    assert (first.running, first.finished_total) == (0, 10)


def test_scale_in_takes_the_newest_or_the_emptiest() -> None:
    # The third is ready at 78 s at the latest. Each has one request at the sync of 90 s, but the first's has ended.
    load = requests((88.0, 30, 5), (88.0, 30, 900), (88.0, 30, 900))
    left = {}
    for emptiest_first in (False, True):
        signal = Scripted([3] * 5 + [2], emptiest_first=emptiest_first)
        ran(load, plan=replace(PLAN, initial_replicas=2), duration=95.0, signal=signal)
        left[emptiest_first] = signal.in_flight[-1]
    # The newest still serves what it has.
    assert left[False] == {"pod-1": 0, "pod-2": 1, "pod-3": 1}
    assert left[True] == {"pod-2": 1, "pod-3": 1}


def test_scale_in_takes_those_first_that_are_not_ready() -> None:
    signal = Scripted([3, 1])
    ran([Request(1.0, 30, 900)], duration=40.0, signal=signal)
    assert set(signal.in_flight[4]) == {"pod-1", "pod-2", "pod-3"}
    assert set(signal.in_flight[-1]) == {"pod-1"}


def test_preempted_requests_are_served_too() -> None:
    result = ran(requests(*[(1.0 + 0.01 * number, 200, 700) for number in range(30)]), duration=60.0)
    assert result.requests == 30
    assert 0 < result.preempted_per_1000 <= 1000


def test_a_page_that_cannot_be_read_is_seen_as_it_was() -> None:
    signal = Scripted([2])
    ran(
        steady(0, 100, 0.5),
        plan=replace(PLAN, initial_replicas=2),
        duration=100.0,
        signal=signal,
        scrape=lambda name, now: name != "pod-1" or now < 30,
    )
    assert {state.clock_seconds for state in signal.states[-2:]} == {25.0, 100.0}
    assert ran(steady(0, 100, 0.5)).requests == 200


def test_progress_is_told_at_each_sync() -> None:
    told: list[float] = []
    Fleet(PLAN, Scripted()).run([], 50.0, told.append)
    assert told == [15.0, 30.0, 45.0]
