"""What losing a pod costs: the arithmetic and the order, without an API server."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.cluster.records import Pod, PodState
from kvgauge.cluster.scale_in import MAX_COST, Change, Pace, changes, clearings, in_turns, is_anothers, managed_cost
from tests.cluster.herd import NOW, pod, reading

PACE = Pace()
POOL = 100_000.0


def heard(name: str, tokens: float | None, cost: int | None = None, usage: float | None = None) -> PodState:
    """A pod of a pool of 100,000 tokens, with the cost that was written on it."""
    mark = None if cost is None else str(cost)
    if usage is None and tokens is not None:
        usage = tokens / POOL
    return PodState(pod(name, cost=mark, mark=mark), reading(tokens, usage))


def costs(*states: PodState, now: float = NOW) -> dict[str, int | None]:
    return {change.pod.key.name: change.cost for change in changes(states, PACE, now)}


def test_the_cost_is_what_the_pod_holds() -> None:
    assert costs(heard("a", 70_000), heard("b", 20_000)) == {"a": 70_000, "b": 20_000}


def test_a_pod_that_holds_nothing_needs_no_mark() -> None:
    assert costs(heard("a", 70_000), heard("b", 0)) == {"a": 70_000}


def test_thousandths_of_the_pool_where_only_a_ratio_is_told() -> None:
    assert costs(heard("a", None, usage=0.7), heard("b", None, usage=0.25)) == {"a": 700, "b": 250}


@pytest.mark.parametrize(("tokens", "written"), [(50_000, {}), (52_400, {}), (47_600, {}), (52_600, {"a": 52_600})])
def test_small_movements_write_nothing(tokens: float, written: dict[str, int]) -> None:
    assert costs(heard("a", tokens, 50_000), heard("b", 90_000, 90_000)) == written


@pytest.mark.parametrize(("tokens", "cost", "written"), [(0, 900, 0), (1, 0, 1), (0.2, None, 1), (900, 900, None)])
def test_empty_or_not_always_counts(tokens: float, cost: int | None, written: int | None) -> None:
    found = costs(heard("a", tokens, cost), heard("b", 90_000, 90_000))
    assert found == ({} if written is None else {"a": written})


@pytest.mark.parametrize(
    "lonely",
    [
        pod("b", ready=False),
        pod("b", deleting=True),
        pod("b", phase="Pending"),
    ],
)
def test_pods_that_go_first_anyway_are_left_alone_and_one_pod_has_no_order(lonely: Pod) -> None:
    other = heard("b", 20_000)
    assert costs(heard("a", 70_000), replace(other, pod=lonely)) == {}


def silent(name: str, cost: int | None, since: float | None, failure: str | None = "timeout") -> PodState:
    mark = None if cost is None else str(cost)
    said = None if since is None else reading(500.0, 0.005, at=NOW - since)
    return PodState(pod(name, cost=mark, mark=mark), said, failure)


@pytest.mark.parametrize(
    ("state", "written"),
    [
        pytest.param(silent("s", None, None), 80_000, id="never heard"),
        pytest.param(silent("s", None, None, None), None, id="not asked yet"),
        pytest.param(silent("s", 500, 30), None, id="for a moment"),
        pytest.param(silent("s", 500, 61), 80_000, id="for long"),
        pytest.param(silent("s", 0, 61), 80_000, id="for long, was empty"),
        pytest.param(silent("s", 79_000, 61), None, id="as full as the fullest already"),
        pytest.param(silent("s", 99_000, 61), None, id="fuller than the fullest"),
        pytest.param(PodState(pod("s"), reading(None, None)), 80_000, id="tells nothing of its pool"),
        pytest.param(PodState(pod("s"), reading(float("nan"), None)), 80_000, id="tells no number"),
    ],
)
def test_a_silent_pod_is_not_an_empty_one(state: PodState, written: int | None) -> None:
    found = costs(heard("a", 80_000, 80_000), heard("b", 20_000, 20_000), state)
    assert found == ({} if written is None else {"s": written})


def test_a_silent_pod_comes_after_those_known_to_be_empty() -> None:
    assert costs(heard("a", 0), heard("b", 0), silent("s", None, None)) == {"s": 1}


def test_where_none_is_heard_nothing_is_written() -> None:
    assert costs(silent("a", 500, 100), silent("b", 700, 100), silent("c", None, None)) == {}


def test_the_measure_that_more_pods_tell_is_taken_and_the_others_count_as_silent() -> None:
    found = costs(heard("a", 30_000), heard("b", 20_000), heard("c", None, usage=0.1))
    assert found == {"a": 300, "b": 200, "c": 100}
    found = costs(heard("a", 30_000), heard("b", 20_000), PodState(pod("c"), reading(10_000.0)))
    assert found == {"a": 30_000, "b": 20_000, "c": 10_000}


@pytest.mark.parametrize(
    ("cost", "mark", "anothers"),
    [
        (None, None, False),
        (None, "500", False),
        ("500", "500", False),
        ("500", None, True),
        ("900", "500", True),
        ("-5", "-5", True),
        ("soon", "soon", True),
        ("٥", "٥", True),
    ],
)
def test_the_cost_of_somebody_else_is_known_and_left_alone(cost: str | None, mark: str | None, anothers: bool) -> None:
    state = PodState(pod("a", cost=cost, mark=mark), reading(70_000.0, 0.7))
    assert is_anothers(state.pod) is anothers
    assert ("a" in costs(state, heard("b", 20_000))) is not anothers
    assert (len(clearings([state])) == 1) is (managed_cost(state.pod) is not None)


def test_only_own_marks_are_taken_off() -> None:
    own, others, none = pod("a", cost="5", mark="5"), pod("b", cost="5"), pod("c")
    assert clearings([PodState(own), PodState(others), PodState(none)]) == [Change(own, None)]


@given(st.lists(st.tuples(st.floats(0, 5e9), st.none() | st.integers(0, MAX_COST)), min_size=2, max_size=12))
def test_pods_that_differ_by_a_step_stand_in_order(pods: list[tuple[float, int | None]]) -> None:
    states = [heard(f"p{i}", tokens, cost, usage=0.5 if tokens else 0.0) for i, (tokens, cost) in enumerate(pods)]
    written = costs(*states)
    assert all(cost is not None and 0 <= cost <= MAX_COST for cost in written.values())
    fullest = max(tokens for tokens, _ in pods)
    step = max(PACE.step_ratio * fullest * 2, 2.0)
    after = sorted(
        (tokens, written.get(f"p{i}", cost) or 0) for i, (tokens, cost) in enumerate(pods) if tokens < MAX_COST - step
    )
    for lesser in after:
        for greater in after:
            if lesser[0] + step <= greater[0]:
                assert lesser[1] <= greater[1]
            if lesser[0] == 0 < greater[0]:
                assert lesser[1] < greater[1]


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=8))
def test_what_was_written_is_not_written_again(held: list[float]) -> None:
    states = [heard(f"p{i}", tokens, usage=0.5) for i, tokens in enumerate(held)]
    written = costs(*states)
    again = [heard(f"p{i}", tokens, written.get(f"p{i}"), usage=0.5) for i, tokens in enumerate(held)]
    assert costs(*again) == {}


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 100)), max_size=30), st.integers(0, 100))
def test_turns_take_all_and_are_fair(patched: list[tuple[int, float]], first: int) -> None:
    workloads: dict[int, list[Change]] = {}
    when: dict[str, float] = {}
    owner: dict[str, int] = {}
    for index, (workload, seconds) in enumerate(patched):
        change = Change(pod(f"p{index}"), 1)
        workloads.setdefault(workload, []).append(change)
        when[change.pod.uid], owner[change.pod.uid] = seconds, workload
    turns = list(in_turns(list(workloads.values()), when, first))
    assert sorted(change.pod.uid for change in turns) == sorted(when)
    for number, of_one in workloads.items():
        ours = [place for place, change in enumerate(turns) if owner[change.pod.uid] == number]
        # The nth pod of a workload waits for no more than n of each other one.
        assert all(place < (nth + 1) * len(workloads) for nth, place in enumerate(ours))
        times = [when[turns[place].pod.uid] for place in ours]
        assert all(one <= other for one, other in pairwise(times))
        assert len(ours) == len(of_one)


def test_a_pod_that_was_never_patched_comes_first_and_workloads_begin_in_turn() -> None:
    a, b, c = Change(pod("a"), 1), Change(pod("b"), 1), Change(pod("c"), 1)
    assert list(in_turns([[a, b], [c]], {"uid-a": 5.0}, 0)) == [b, c, a]
    assert list(in_turns([[a, b], [c]], {"uid-a": 5.0}, 1)) == [c, b, a]
    assert list(in_turns([], {}, 7)) == []


def test_what_was_said_long_ago_counts_no_more() -> None:
    old = reading(70_000.0, 0.7, at=NOW - 11)
    assert costs(PodState(pod("a"), old), heard("b", 20_000), heard("c", 10_000)) == {"b": 20_000, "c": 10_000}
