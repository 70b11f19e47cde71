"""The simulated reading is what the reader of vLLM's page makes of the simulated page."""

import random
from dataclasses import replace

import pytest
from tests.support.pages import Body, GivenPages

from kvgauge.observe.engines import by_name
from kvgauge.observe.engines.contract import Hints
from kvgauge.observe.records import RankReading
from kvgauge.simulate import H100_LLAMA_31_8B, EngineSpec, PagedEngine, Request
from kvgauge.simulate.page import VllmPage
from kvgauge.simulate.reading import ENGINE_VERSION, observation_of, reading_of

SPEC = replace(H100_LLAMA_31_8B.spec, num_blocks=3001, max_model_len=4000)

TOLD_BY_PAGE_ALONE = {"progress", "missing", "rank", "model"}


def loaded(spec: EngineSpec) -> PagedEngine:
    draw = random.Random(1)
    engine = PagedEngine(spec)
    for index in range(200):
        prompt = draw.randint(600, 2500)
        engine.submit(Request(0.05 * index, prompt, draw.randint(20, 700), tuple(range(prompt // 512))))
    engine.advance(12.3)
    return engine


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_equals_what_the_reader_makes_of_the_page(prefix_caching: bool) -> None:
    spec = replace(SPEC, prefix_caching=prefix_caching)
    engine = loaded(spec)
    state = engine.state()
    page = VllmPage(engine.state, spec, model_name="m", gpu_memory_utilization=0.9, started_seconds=1.0).render()
    bodies: dict[str, Body] = {
        "/metrics": page.decode(),
        "/version": {"version": ENGINE_VERSION},
        "/v1/models": {"data": [{"id": "m", "max_model_len": spec.max_model_len}]},
    }
    seen = by_name("vllm").read(GivenPages(bodies, Hints()))
    simulated = reading_of(state, spec, "m")
    assert min(state.running, state.waiting, state.preemptions_total, state.finished_total) > 0
    for name in ("engine", "version", "model", "max_model_len", "prefix_caching"):
        assert getattr(simulated, name) == getattr(seen, name), name
    (ours,), (theirs,) = simulated.ranks, seen.ranks
    for name in RankReading.__dataclass_fields__:
        if name not in TOLD_BY_PAGE_ALONE:
            mine, its = getattr(ours, name), getattr(theirs, name)
            assert mine == (pytest.approx(its) if isinstance(its, float) else its), name


def test_an_observation_has_the_engine_and_nothing_else() -> None:
    reading = reading_of(PagedEngine(SPEC).state(), SPEC, "m")
    seen = observation_of(reading, 5.0)
    assert (seen.engine, seen.monotonic_seconds, seen.gpus, seen.model, seen.agent) == (reading, 5.0, (), None, None)
