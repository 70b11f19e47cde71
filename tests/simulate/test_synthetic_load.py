"""The synthetic load: repeatable, in order, within bounds, and with something to see on the embedded device."""

from itertools import islice, takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.simulate import H100_LLAMA_31_8B, EngineState, Lengths, PagedEngine, Phase, SyntheticLoad

seeds = st.integers(0, 2**32)


@settings(deadline=None)
@given(seeds, st.integers(2, 200_000))
def test_same_seed_same_requests_in_order_and_within_bounds(seed: int, max_model_len: int) -> None:
    load = SyntheticLoad(seed, max_model_len)
    first = list(islice(load, 200))
    assert first == list(islice(SyntheticLoad(seed, max_model_len), 200)) == list(islice(load, 200))
    arrivals = [request.arrival_seconds for request in first]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] > 0
    assert all(request.total_tokens <= max_model_len for request in first)


@settings(deadline=None)
@given(seeds)
def test_another_seed_gives_another_load(seed: int) -> None:
    assert list(islice(SyntheticLoad(seed, 8192), 20)) != list(islice(SyntheticLoad(seed + 1, 8192), 20))


@settings(deadline=None)
@given(seeds)
def test_each_phase_keeps_its_rate(seed: int) -> None:
    load = SyntheticLoad(seed, 8192, (Phase(100, 5.0), Phase(50, 0.0), Phase(100, 20.0)), spread_ratio=0.0)
    arrivals = [request.arrival_seconds for request in takewhile(lambda one: one.arrival_seconds < 250, load)]
    slow, none, fast = (sum(low <= at < high for at in arrivals) for low, high in ((0, 100), (100, 150), (150, 250)))
    # Six standard deviations of a Poisson count either way.
    assert abs(slow - 500) < 6 * 500**0.5
    assert none == 0
    assert abs(fast - 2000) < 6 * 2000**0.5


def test_lengths_have_the_median_and_the_spread_they_say() -> None:
    load = SyntheticLoad(3, 8192, (Phase(1000, 10.0),), prompts=Lengths(1000, 0.5), outputs=Lengths(300, 0.0))
    requests = list(islice(load, 4001))
    prompts = sorted(request.prompt_tokens for request in requests)
    assert prompts[2000] == pytest.approx(1000, rel=0.05)
    # One standard deviation up in the logarithm: 84 % of a lognormal lies below median x e^sigma.
    assert prompts[round(4001 * 0.8413)] == pytest.approx(1000 * 2.71828**0.5, rel=0.05)
    assert {request.output_tokens for request in requests} == {300}


def _states(seed: int, seconds: int) -> list[EngineState]:
    """The embedded device under its own load, second by second from second 0."""
    engine = PagedEngine(H100_LLAMA_31_8B.spec)
    states = [engine.state()]
    pending = iter(SyntheticLoad(seed, engine.spec.max_model_len))
    upcoming = next(pending)
    for second in range(1, seconds + 1):
        while upcoming.arrival_seconds <= second:
            engine.submit(upcoming)
            upcoming = next(pending)
        engine.advance(second)
        states.append(engine.state())
    return states


@pytest.mark.parametrize("seed", range(1, 11))
def test_the_demo_shows_idle_busy_queueing_and_preemption(seed: int) -> None:
    usable = H100_LLAMA_31_8B.spec.usable_blocks
    states = _states(seed, 450)
    assert states[20].running >= 10
    assert states[20].finished_total >= 10
    assert states[20].used_blocks > 0.05 * usable
    assert any(state.running == 0 for state in states[60:])
    assert any(0 < state.running <= 5 for state in states[60:])
    assert max(state.used_blocks for state in states) > 0.95 * usable
    assert max(state.waiting for state in states) > 10
    assert 0 < states[-1].preemptions_total < 0.2 * states[-1].finished_total


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_model_len": 1}, "max_model_len must be at least 2, not 1"),
        ({"spread_ratio": 1.0}, "spread_ratio must be from 0 to below 1, not 1.0"),
        ({"phases": (Phase(10, 0.0),)}, "phases must have one with seconds and requests_per_second above 0"),
    ],
)
def test_refuses_a_load_that_cannot_be(changed: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"seed": 1, "max_model_len": 100} | changed
    with pytest.raises(ValueError, match=message):
        SyntheticLoad(**settings)  # type: ignore[arg-type]
