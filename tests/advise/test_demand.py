import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.advise.demand import Demand, read_demand, thinned, to_json
from kvgauge.advise.lengths import Lengths, whole_lengths
from kvgauge.advise.residing import Footprint, resident
from kvmodel.latency import StepCost

PROMPTS = Lengths((100.0, 900.0), (0.5, 0.5), 40.0)
OUTPUTS = Lengths((20.0, 300.0, 2000.0), (0.3, 0.6, 0.1), 40.0)
DEMAND = Demand(
    arrived_total=70.0,
    prompts=PROMPTS,
    outputs=OUTPUTS,
    computed_ratio=0.75,
    resident=resident(PROMPTS, OUTPUTS, Footprint(16)),
    pool_slots=48_000.0,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    cost=StepCost(0.01, 1e-7, 1e-5, 1e-9, 1e-5),
    slo_ttft_seconds=2.0,
    slo_tpot_seconds=None,
    finished=40.0,
    ranks=2,
)


def test_what_was_written_as_json_is_read_back() -> None:
    assert read_demand(json.loads(json.dumps(to_json(DEMAND)))) == DEMAND


def test_a_skewed_resident_comes_back_with_its_sign() -> None:
    assert DEMAND.resident is not None
    lop = replace(DEMAND, resident=replace(DEMAND.resident, third_slots3=-5e6))
    assert read_demand(to_json(lop)) == lop


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": None},
        {"prompts": {"length_tokens": [], "share_ratio": [], "requests": 1}},
        {"prompts": {"length_tokens": [5, 4], "share_ratio": [0.5, 0.5], "requests": 1}},
        {"prompts": {"length_tokens": [5, 6], "share_ratio": [0.5, 0.9], "requests": 1}},
        {"prompts": {"length_tokens": [5, 6], "share_ratio": [0.5, math.nan], "requests": 1}},
        {"prompts": {"length_tokens": list(range(1, 101)), "share_ratio": [0.01] * 100, "requests": 1}},
        {"outputs": {"length_tokens": ["a"], "share_ratio": [1], "requests": 1}},
        {"computed_ratio": -1},
        {"finished": True},
        {"ranks": 0},
    ],
)
def test_what_is_no_demand_is_none(change: dict[str, object]) -> None:
    assert read_demand({**to_json(DEMAND), **change}) is None


@pytest.mark.parametrize("stored", [None, 5, "x", [], {}])
def test_what_is_no_object_is_none(stored: object) -> None:
    assert read_demand(stored) is None


def test_a_part_that_cannot_be_read_is_not_known() -> None:
    found = read_demand({**to_json(DEMAND), "cost": {"fixed_seconds": math.inf}, "resident": 5, "pool_slots": "many"})
    assert found == replace(DEMAND, cost=None, resident=None, pool_slots=None)


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=300))
def test_thinning_keeps_mean_spread_and_skew(lengths: list[int]) -> None:
    whole = whole_lengths(lengths)
    assert whole is not None
    thin = thinned(whole)
    assert len(thin.points) <= 24
    assert list(thin.points) == sorted(thin.points)
    assert whole.points[0] <= thin.points[0]
    assert thin.points[-1] <= whole.points[-1]
    assert math.fsum(thin.shares) == pytest.approx(1)
    for power in (1, 2, 3):
        assert thin.moment(power) == pytest.approx(whole.moment(power), rel=1e-6)
