"""Which files are the engine's, and what of them is put into its reading."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvgauge.assess import EngineFlags, assess
from kvgauge.observe.agent import AgentSource
from kvgauge.observe.engine import EngineSource
from kvgauge.observe.fetching import Endpoint
from kvgauge.observe.merging import Comparison, assign, refined, standing_in
from kvgauge.observe.model import ModelSource
from kvgauge.observe.observer import Observer
from kvgauge.observe.records import GpuReading, Observation, SourceError, SourceState
from tests.support.facts import ENGINE, RANK, model, observation
from tests.support.process import eventually, sidecar
from tests.support.spool import BOOKS, process, reading, scheduler, worker, write
from tests.support.web import page, serving, status

CAPTURE = (Path(__file__).parent.parent / "captures/vllm/0.32.0/smallcache_under_pressure.prom").read_bytes()
FULL = BOOKS["groups"][0]


def own(instance: int, *files: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**file, "instance": instance, "pid": instance * 10 + number} for number, file in enumerate(files)]


# Which instance


def test_the_engines_files_are_found_among_others() -> None:
    other = own(7, scheduler(books={"num_blocks": 2000}, model="/models/other"))
    agent = assign(reading(*own(1, scheduler(), worker()), *other, instance=None), ENGINE)
    assert agent.instance == "pod-1"
    assert [each.role for each in agent.engine_processes] == ["scheduler", "worker"]


@pytest.mark.parametrize(
    ("file", "fits"),
    [
        (scheduler(), True),
        (scheduler(model="llama"), True),
        (scheduler(model="/models/llama/"), True),
        # Started by another name, but of the same pool.
        (scheduler(model="org/llama"), True),
        (scheduler(books={"num_blocks": 999}), False),
        (scheduler(model="/models/other", books={"num_blocks": None}), False),
        (scheduler(engine="transformers"), False),
        (process(), True),
    ],
)
def test_what_fits_an_engine(file: dict[str, Any], fits: bool) -> None:
    agent = assign(reading(file, instance=None), ENGINE)
    assert (agent.instance is not None) is fits
    assert ("instance" in agent.missing) is not fits


def test_a_wrappers_engine_is_vllm_inside() -> None:
    assert assign(reading(scheduler(), instance=None), replace(ENGINE, engine="dynamo")).instance == "pod-1"
    assert assign(reading(scheduler(), instance=None), replace(ENGINE, engine="sglang")).instance is None


def test_two_that_fit_alike_are_neither() -> None:
    agent = assign(reading(*own(1, scheduler()), *own(2, scheduler()), instance=None), ENGINE)
    assert agent.instance is None
    assert "told apart" in agent.missing["instance"]
    assert refined(ENGINE, agent) == ENGINE


def test_an_engine_goes_before_some_other_program() -> None:
    assert assign(reading(*own(1, process()), *own(2, scheduler()), instance=None), ENGINE).instance == "pod-2"


# What is better


def test_the_books_refine_the_pool() -> None:
    (rank,) = refined(ENGINE, reading(scheduler(books={"used_blocks": 450}))).ranks
    assert (rank.capacity_tokens, rank.num_blocks, rank.used_blocks) == (16_000, 1000, 450)
    assert (rank.active_tokens, rank.reclaimable_tokens, rank.free_tokens) == (7200, 3200, 5600)
    assert (rank.running, rank.usage_ratio, rank.preemptions_total) == (10, 500 / 999, 0.0)


def test_what_is_now_known_is_no_longer_missing() -> None:
    engine = replace(ENGINE, missing={"tp": "not told"}, ranks=(replace(RANK, missing={"reclaimable_tokens": "-"}),))
    found = refined(engine, reading(scheduler()))
    assert (found.tp, found.pp, found.max_num_seqs, found.max_num_batched_tokens) == (1, 1, 128, 4096)
    assert (found.missing, found.ranks[0].missing) == ({}, {})
    assert (found.kv_dtype, found.max_model_len) == ("auto", 8192)


def test_live_tokens_are_measured() -> None:
    (rank,) = refined(ENGINE, reading(scheduler())).ranks
    assert (rank.active_tokens, rank.live_tokens) == (8000, 7900)


def test_in_several_groups_live_is_the_share_of_the_bytes_held() -> None:
    # 300 full blocks with 30 empty slots of 16, 100 of a window with none, 100 of states; all of 1600 bytes.
    groups = [
        {**FULL, "layer_bytes_per_block": 1600, "used_blocks": 300, "tail_tokens": 480},
        {**FULL, "kind": "sliding_window", "layer_bytes_per_block": 1600, "used_blocks": 100, "tail_tokens": 0},
        {"kind": "state", "layers": 4, "layer_bytes_per_block": 1600, "used_blocks": 100},
    ]
    engine = replace(ENGINE, ranks=(replace(RANK, capacity_tokens=9000),))
    (rank,) = refined(engine, reading(scheduler(books={"groups": groups}))).ranks
    # A block stands for 9 of the stated slots; 48,000 of the 800,000 bytes held are empty.
    assert (rank.active_tokens, rank.reclaimable_tokens, rank.free_tokens) == (4500, 1800, 2700)
    assert rank.live_tokens == 4500 * (800_000 - 48_000) / 800_000


def test_books_of_a_step_long_ago_are_closed() -> None:
    old = reading(scheduler(books={"reading_age_seconds": 5.5}))
    assert refined(ENGINE, old).ranks == ENGINE.ranks
    assert refined(replace(ENGINE, asleep=True), reading(scheduler())).ranks == ENGINE.ranks


def test_each_rank_has_its_own_books() -> None:
    engine = replace(ENGINE, ranks=(RANK, replace(RANK, rank="1")))
    files = [scheduler(1), scheduler(2, books={"used_blocks": 10}, dp_rank=1)]
    assert [rank.used_blocks for rank in refined(engine, reading(*files)).ranks] == [500, 10]
    # One engine behind an external balancer calls itself 0 on its page.
    assert refined(ENGINE, reading(files[1])).ranks[0].used_blocks == 10


def test_page_and_books_that_stay_apart_are_noted() -> None:
    comparison = Comparison()

    def notes(page_blocks: int, told: int) -> tuple[str, ...]:
        engine = replace(ENGINE, ranks=(replace(RANK, used_blocks=page_blocks),))
        return comparison.notes(engine, reading(scheduler(books={"used_blocks": told})))

    # A pool that fills quickly: the page is one tick ahead.
    assert [notes(100 * tick + 100, 100 * tick) for tick in range(6)] == [()] * 6
    assert [notes(600, 300) for _ in range(3)][-1] == (
        "rank 0: the engine's page counts 600 blocks in use, its scheduler 300",
    )


# Without a page


def transformers(**changes: Any) -> dict[str, Any]:
    return process(**{"engine": "transformers", "engine_version": "5.23.0", "model": "org/tiny", **changes})


def test_a_paged_pool_without_a_page() -> None:
    paged = {"kind": "paged", "capacity_tokens": 16_000, "block_tokens": 16, "live_tokens": 7900}
    books = {**BOOKS, "null_blocks": 0, "preemptions": None, "max_model_len": None}
    agent = assign(reading(transformers(scheduler=books, caches=[paged]), instance=None), None)
    engine = standing_in(agent)
    assert engine is not None
    assert (engine.engine, engine.version, engine.model, engine.model_path) == (
        "transformers", "5.23.0", "org/tiny", "org/tiny",
    )  # fmt: skip
    assert (engine.max_num_seqs, engine.kv_dtype) == (128, "bfloat16")
    (rank,) = engine.ranks
    assert (rank.capacity_tokens, rank.active_tokens, rank.reclaimable_tokens, rank.free_tokens) == (
        16_000, 8000, 3200, 4800,
    )  # fmt: skip
    assert (rank.live_tokens, rank.running, rank.usage_ratio, rank.progress) == (7900, 10, 0.5, (77,))
    assert "preemptions_total" in rank.missing


def test_caches_of_full_size_and_caches_that_grow() -> None:
    static = {"kind": "static", "allocated_bytes": 4096, "live_bytes": 1024, "capacity_tokens": 400, "live_tokens": 100}
    window = {**static, "kind": "sliding", "capacity_tokens": 40, "live_tokens": 40}
    engine = standing_in(reading(transformers(caches=[static, window])))
    assert engine is not None
    (rank,) = engine.ranks
    # The window's tokens are the same ones.
    assert (rank.capacity_tokens, rank.active_tokens, rank.live_tokens, rank.free_tokens) == (400, 400, 100, 0)
    assert rank.reserved_tokens == 400
    grown = {"kind": "dynamic", "allocated_bytes": 1024, "live_bytes": 1024, "live_tokens": 100}
    engine = standing_in(reading(transformers(caches=[grown, grown])))
    assert engine is not None
    (rank,) = engine.ranks
    assert (rank.capacity_tokens, rank.active_tokens, rank.live_tokens) == (None, 200, 200)
    assert {"capacity_tokens", "running", "waiting"} <= set(rank.missing)


def test_a_length_on_the_device_is_missing_with_the_agents_reason() -> None:
    static = {"kind": "static", "allocated_bytes": 4096, "capacity_tokens": 400}
    engine = standing_in(reading(transformers(caches=[static], missing={"caches.static.live_tokens": "on the device"})))
    assert engine is not None
    assert (engine.ranks[0].live_tokens, engine.ranks[0].missing["live_tokens"]) == (None, "on the device")


def test_what_has_a_page_or_no_caches_does_not_stand_in() -> None:
    assert standing_in(assign(reading(scheduler(), instance=None), None)) is None
    assert standing_in(assign(reading(process(), instance=None), None)) is None
    two = reading(
        *own(1, transformers(caches=[{"kind": "dynamic"}])), *own(2, transformers(caches=[{"kind": "dynamic"}]))
    )
    agent = assign(replace(two, instance=None), None)
    assert standing_in(agent) is None
    assert "told apart" in agent.missing["instance"]


COUNT = st.none() | st.integers(0, 2000)
GROUP = st.fixed_dictionaries(
    {"kind": st.sampled_from(["full", "mla", "sliding_window", "state", "cross", "other"])},
    optional=dict.fromkeys(
        ("block_tokens", "layer_bytes_per_block", "used_blocks", "live_tokens", "tail_tokens"), COUNT
    ),
)
CACHE = st.fixed_dictionaries(
    {"kind": st.sampled_from(["static", "dynamic", "sliding", "quantized", "state", "paged"])},
    optional=dict.fromkeys(("allocated_bytes", "live_bytes", "capacity_tokens", "live_tokens"), COUNT),
)
CHANGES = st.dictionaries(st.sampled_from([name for name in BOOKS if name not in {"groups", "running_tokens"}]), COUNT)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    CHANGES,
    st.lists(GROUP, max_size=4),
    st.lists(CACHE, max_size=4),
    st.sampled_from(["vllm", "transformers", "torch"]),
    st.sampled_from([1, 2, 16]),
)
def test_no_books_can_break_the_assessment(
    books: dict[str, object], groups: list[object], caches: list[object], kind: str, tp: int
) -> None:
    content = scheduler(books={**books, "groups": groups}, caches=caches, engine=kind, tp=tp)
    agent = reading(json.loads(json.dumps(content)), instance=None)
    for engine in (ENGINE, None):
        assigned = assign(agent, engine)
        merged = standing_in(assigned) if engine is None else refined(engine, assigned)
        seen = replace(observation(engine=merged, with_model=model()), agent=assigned)
        for pool in assess(seen, EngineFlags()).pools:
            if pool.capacity_tokens is not None and pool.active_tokens is not None:
                states = (pool.active_tokens, pool.reclaimable_tokens or 0, pool.free_tokens or 0)
                assert min(states) >= 0
                assert sum(states) == pool.capacity_tokens
            assert pool.live_tokens is None or pool.live_tokens >= 0
            assert all(waste.waste_bytes >= 0 for waste in pool.waste)


# The observer and the sidecar


class NoDevices:
    name = "nvml"

    def read(self) -> tuple[GpuReading, ...]:
        raise SourceError("library_not_found", "-")


@contextmanager
def observer(url: str | None, folder: Path, stale_after_seconds: float = 5) -> Iterator[Observer]:
    engine = EngineSource(Endpoint(url, timeout_seconds=0.5)) if url is not None else None
    watching = Observer(
        NoDevices(),
        engine,
        ModelSource(),
        AgentSource(str(folder)),
        engine_timeout_seconds=0.5,
        stale_after_seconds=stale_after_seconds,
        stalled_after_seconds=0.2,
    )
    with closing(watching):
        yield watching


def states(seen: Observation) -> Mapping[str, SourceState]:
    return {state.source: state for state in seen.sources}


def test_a_page_and_its_agent_make_one_reading(tmp_path: Path) -> None:
    write(tmp_path, scheduler(books={"num_blocks": 200, "used_blocks": 160, "cached_blocks": 5}, model=None, tp=2))
    with serving({"/metrics": page(CAPTURE)}) as url, observer(url, tmp_path) as watching:
        seen = watching.observe(2)
    assert seen.engine is not None
    assert seen.agent is not None
    assert (seen.engine.ranks[0].used_blocks, seen.engine.tp, seen.agent.instance) == (160, 2, "pod-1")
    assert states(seen)["agent"].up


def test_a_stalled_scheduler_takes_the_engine_down_whatever_its_page_says(tmp_path: Path) -> None:
    with serving({"/metrics": page(CAPTURE)}) as url, observer(url, tmp_path) as watching:

        def stalled() -> bool:
            write(tmp_path, scheduler(books={"num_blocks": 200, "steps": 5}, model=None))
            return states(watching.observe(1))["engine"].reason == "stalled"

        assert not stalled()
        eventually(stalled, 5)
        assert watching.observe(1).engine is None


def test_no_page_and_no_agent(tmp_path: Path) -> None:
    with observer(None, tmp_path) as watching:
        seen = watching.observe(1)
    assert seen.engine is None
    assert (states(seen)["engine"].reason, states(seen)["agent"].reason) == ("no_agent", "no_files")


def test_a_program_stands_in_where_nothing_answers_and_not_for_an_engine_that_fails(tmp_path: Path) -> None:
    write(tmp_path, transformers(caches=[{"kind": "dynamic", "live_tokens": 7}]))
    with observer("http://127.0.0.1:9", tmp_path) as watching:
        seen = watching.observe(2)
    assert seen.engine is not None
    assert (seen.engine.engine, states(seen)["engine"].up) == ("transformers", True)
    answers = [page(CAPTURE)]
    routes = {"/metrics": lambda exchange: answers[0](exchange)}
    with serving(routes) as url, observer(url, tmp_path, stale_after_seconds=0.2) as watching:
        first = watching.observe(2)
        answers[0] = status(500)
        eventually(lambda: watching.observe(1).engine is None, 5)
        agent = watching.observe(1).agent
    assert first.engine is not None
    assert first.engine.engine == "vllm"
    assert agent is not None
    assert (agent.instance, agent.missing["instance"]) == (None, "the engine's page is down")


def test_a_killed_programs_file_leaves_the_page_within_its_age(tmp_path: Path) -> None:
    paged = {"kind": "paged", "capacity_tokens": 16_000, "block_tokens": 16}
    arguments = ("--engine", "transformers", "--spool", str(tmp_path), "--interval", "200ms")
    with sidecar(*arguments) as running:
        eventually(lambda: running.up("agent") == 0, 10)
        assert "kvgauge_kv_capacity_tokens" not in running.samples()
        write(tmp_path, transformers(scheduler=BOOKS, caches=[paged], role="scheduler"))
        written = time.monotonic()
        eventually(lambda: "kvgauge_kv_capacity_tokens" in running.samples(), 5)
        samples = running.samples()
        live = {row.labels["method"]: row.value for row in samples["kvgauge_kv_live_tokens"]}
        assert live == {"measured": 7900}
        assert running.up("engine") == running.up("agent") == 1
        assert samples["kvgauge_advice_valid"][0].value == 1
        assert running.json("/v1/observation")["agent"]["processes"][0]["engine"] == "transformers"
        eventually(lambda: "kvgauge_kv_capacity_tokens" not in running.samples(), 10)
        assert 4 < time.monotonic() - written < 6.5
        assert running.up("engine") == running.up("agent") == 0
        assert not math.isnan(running.up("model"))
