import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.advise.attaining import STEPS, Attainment
from kvgauge.advise.demand import Demand, thinned
from kvgauge.advise.lengths import whole_lengths
from kvgauge.advise.residing import Footprint, resident
from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.spec import EngineSpec, FinishedRequest, Request
from kvmodel.latency import StepCost
from tests.advise.fleets import DEMAND, demand

LENGTHS = st.lists(st.floats(1, 30_000), min_size=1, max_size=5).map(sorted)
COSTS = st.builds(
    StepCost,
    st.floats(0.001, 0.05),
    st.floats(0, 1e-6),
    st.floats(1e-7, 1e-3),
    st.floats(0, 1e-8),
    st.floats(0, 1e-4),
)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    return demand(
        draw(LENGTHS),
        draw(LENGTHS),
        cost=draw(COSTS),
        computed_ratio=draw(st.floats(0, 1)),
        pool_slots=draw(st.floats(60_000, 1e6)),
        slo_ttft_seconds=draw(st.none() | st.floats(0.1, 10)),
        slo_tpot_seconds=draw(st.none() | st.floats(0.01, 0.5)),
    )


@pytest.mark.parametrize("lacking", [{"cost": None}, {"pool_slots": None}, {"cost": StepCost(0.01, 0.0, 0.0)}])
def test_what_cannot_be_modelled_is_refused(lacking: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="demand"):
        Attainment(replace(DEMAND, **lacking))  # type: ignore[arg-type]


@given(demands(), st.integers(1, 40))
def test_misses_are_shares_that_grow_with_the_rate(asked: Demand, engines: int) -> None:
    model = Attainment(asked)
    tables = model.table(engines)
    for shares in tables:
        assert len(shares) == STEPS + 1
        assert shares == sorted(shares)
        assert all(0 <= share <= 1 for share in shares)
    rates = [model.most_per_second * step / 37 for step in range(45)]
    found = [model.misses(rate, engines) for rate in rates]
    for before, after in itertools.pairwise(found):
        assert after.slow >= before.slow - 1e-12
        assert after.late >= before.late - 1e-12
    assert (found[-1].slow, found[-1].late) == (1.0, 1.0)


@given(demands(), st.floats(0.05, 3), st.integers(1, 30))
def test_more_engines_leave_fewer_late_of_the_same_load(asked: Demand, load: float, engines: int) -> None:
    model = Attainment(asked)
    rate = load * engines * model.most_per_second
    few, more = (model.misses(rate / count, count) for count in (engines, engines + 1))
    # Where a share misses more often than not already, less variance can make it a little more.
    assert more.late <= max(few.late, 0.5) + 1e-6
    assert more.slow <= max(few.slow, 0.5) + 0.02


def test_without_objectives_only_room_is_missed() -> None:
    model = Attainment(replace(DEMAND, slo_ttft_seconds=None, slo_tpot_seconds=None))
    assert model.misses(0.3 * model.most_per_second, 1).late < 1e-6
    assert model.misses(0.9 * model.most_per_second, 1).slow == 0
    tight = Attainment(replace(DEMAND, slo_ttft_seconds=None, slo_tpot_seconds=None, pool_slots=6000.0))
    assert tight.misses(0.5 * tight.most_per_second, 1).late > 0.9


def test_the_number_of_sequences_is_room_too() -> None:
    asked = replace(DEMAND, slo_ttft_seconds=None, max_num_seqs=4)
    model = Attainment(asked)
    assert model.misses(0.4 * model.most_per_second, 1).late > 0.5
    assert Attainment(replace(asked, max_num_seqs=None)).misses(0.4 * model.most_per_second, 1).late < 0.01


@given(demands())
def test_saturation_is_a_rate_that_the_arithmetic_bears(asked: Demand) -> None:
    model = Attainment(asked)
    found = model.saturation_per_second()
    assert 0 < found < 1 / model.work_seconds
    assert asked.pool_slots is not None
    wider = Attainment(replace(asked, pool_slots=2 * asked.pool_slots)).saturation_per_second()
    assert wider >= found
    assert Attainment(replace(asked, max_num_seqs=1)).saturation_per_second() <= found


def test_saturation_of_a_large_pool_is_that_of_the_batch() -> None:
    # One sequence at a time: it takes its steps, and the tokens beside them.
    asked = demand([100.0], [100.0], cost=StepCost(0.01, 0.0, 1e-5), max_num_seqs=1, pool_slots=1e9)
    assert Attainment(asked).saturation_per_second() == pytest.approx(1 / (100 * 0.01 + 200 * 1e-5))


SPEC = EngineSpec(
    num_blocks=21_876,
    max_model_len=40_960,
    kv_bytes_per_token=131_072,
    weights_bytes=32_750_000_000,
    parameters=16_400_000_000,
    bandwidth_bytes_per_second=0.72 * 3.35e12,
    flops_per_second=0.52 * 989e12,
)
"""Qwen3-32B on two H100."""
SLO_TTFT_SECONDS = 2.0
FACTOR = 2.5
"""Between modelled and simulated shares, one in a hundred apart."""


def lognormal(median: float, sigma: float, most: int) -> Callable[[random.Random], int]:
    return lambda draw: max(1, min(round(draw.lognormvariate(math.log(median), sigma)), most))


MIXES = {
    "short chat": (lognormal(300, 0.8, 4000), lognormal(180, 0.7, 1000), 0.04),
    "long prompts": (lognormal(4000, 0.6, 20_000), lognormal(150, 0.7, 1000), 0.06),
    "decode-heavy": (lognormal(150, 0.5, 1000), lognormal(700, 0.5, 3000), 0.03),
    "code": (lognormal(1800, 0.8, 7400), lognormal(18, 0.9, 400), 0.08),
}


def simulated(requests: list[tuple[int, int]], rate: float, slo_tpot: float, seed: int) -> tuple[float, float]:
    """Shares of requests that are slow, and late."""
    finished: list[FinishedRequest] = []
    engine = PagedEngine(SPEC, finished.append)
    draw, at = random.Random(seed), 0.0
    for prompt, output in requests:
        at += draw.expovariate(rate)
        engine.submit(Request(at, prompt, output))
    engine.advance(at + 3600)
    rest = finished[len(finished) // 10 :]
    slow = sum(done.tpot_seconds is not None and done.tpot_seconds > slo_tpot for done in rest)
    return slow / len(rest), sum(done.ttft_seconds > SLO_TTFT_SECONDS for done in rest) / len(rest)


@pytest.mark.parametrize("name", MIXES)
def test_misses_are_near_those_of_a_simulated_engine(name: str) -> None:
    prompt, output, slo_tpot = MIXES[name]
    draw = random.Random(name)
    requests = [(prompt(draw), output(draw)) for _ in range(2500)]
    prompts, outputs = (whole_lengths(each) for each in zip(*requests, strict=True))
    assert prompts is not None
    assert outputs is not None
    asked = replace(
        DEMAND,
        prompts=thinned(prompts),
        outputs=thinned(outputs),
        resident=resident(prompts, outputs, Footprint(16)),
        pool_slots=float(SPEC.usable_blocks * 16),
        cost=SPEC.step_cost,
        slo_ttft_seconds=SLO_TTFT_SECONDS,
        slo_tpot_seconds=slo_tpot,
    )
    model = Attainment(asked)
    # Nearer to saturation the model is too friendly where all requests have about the same time per token.
    for load in (0.3, 0.45, 0.55):
        rate = load * model.saturation_per_second()
        modelled = model.misses(rate, 1)
        slow, late = simulated(requests, rate, slo_tpot, 7)
        assert slow / FACTOR - 0.01 <= modelled.slow <= slow * FACTOR + 0.01, load
        assert late / FACTOR - 0.01 <= modelled.late <= late * FACTOR + 0.01, load
