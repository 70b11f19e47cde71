from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.advise.demand import Demand
from kvgauge.advise.lengths import Lengths
from kvgauge.advise.pooling import pooled
from kvmodel.latency import StepCost
from tests.advise.fleets import COST, DEMAND, demand


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    lengths = st.lists(st.floats(1, 30_000), min_size=1, max_size=24).map(sorted)
    return demand(
        draw(lengths),
        draw(lengths),
        finished=draw(st.sampled_from([0.0, 1.0, 7.0, 900.0])),
        computed_ratio=draw(st.floats(0, 1)),
    )


def test_nobody_who_has_seen_an_end_is_none() -> None:
    assert pooled([]) is None
    assert pooled([replace(DEMAND, finished=0.0)]) is None


@given(st.lists(demands(), min_size=1, max_size=6))
def test_lengths_keep_their_moments(told: list[Demand]) -> None:
    found = pooled(told)
    count = sum(each.finished for each in told)
    if found is None:
        assert not count
        return
    assert found.finished == count
    for power in (1, 2, 3):
        expected = sum(each.outputs.moment(power) * each.finished for each in told) / count
        assert found.outputs.moment(power) == pytest.approx(expected, rel=1e-6)
        expected = sum(each.prompts.moment(power) * each.finished for each in told) / count
        assert found.prompts.moment(power) == pytest.approx(expected, rel=1e-6)
    assert sum(found.prompts.shares) == pytest.approx(1)
    assert len(found.prompts.points) <= 24
    assert 0 <= found.computed_ratio <= 1
    assert found.resident is not None
    assert found.resident.largest_slots == max(
        each.resident.largest_slots for each in told if each.resident is not None and each.finished
    )


def test_alike_pods_are_as_one_of_them() -> None:
    found = pooled([DEMAND, DEMAND, DEMAND])
    assert found is not None
    assert (found.cost, found.pool_slots, found.slo_tpot_seconds) == (COST, 350_000.0, 0.08)
    assert found.arrived_total is None
    assert found.prompts.mean == pytest.approx(DEMAND.prompts.mean)


def test_a_pod_counts_by_the_requests_that_it_stands_on() -> None:
    short, long = (Lengths((tokens,), (1.0,), 1.0) for tokens in (100.0, 500.0))
    found = pooled([replace(DEMAND, prompts=short, finished=300.0), replace(DEMAND, prompts=long, finished=100.0)])
    assert found is not None
    assert found.prompts.mean == pytest.approx(200)


def test_what_some_pods_do_not_tell_comes_from_those_that_do() -> None:
    dumb = replace(DEMAND, cost=None, pool_slots=None, resident=None, max_num_seqs=None, slo_tpot_seconds=None)
    found = pooled([dumb, DEMAND])
    assert found is not None
    assert (found.cost, found.pool_slots, found.max_num_seqs, found.slo_tpot_seconds) == (COST, 350_000.0, 256, 0.08)
    assert found.resident == replace(DEMAND.resident, requests=500.0) if DEMAND.resident else False
    nothing = pooled([dumb, dumb])
    assert nothing is not None
    assert (nothing.cost, nothing.pool_slots, nothing.resident) == (None, None, None)


def test_the_step_costs_what_it_costs_on_average() -> None:
    slow = StepCost(*(2 * getattr(COST, name) for name in COST.__slots__))
    found = pooled([DEMAND, replace(DEMAND, cost=slow, finished=1.0)])
    assert found is not None
    assert found.cost is not None
    assert found.cost.fixed_seconds == pytest.approx(1.5 * COST.fixed_seconds)
