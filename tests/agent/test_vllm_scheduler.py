"""The readings of the scheduler part, on fakes whose every block is also counted the plain way."""

import threading
from collections.abc import Mapping
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge_agent.vllm_blocks import CHUNK_BLOCKS, CachedBlocks
from kvgauge_agent.vllm_groups import Groups
from kvgauge_agent.vllm_scheduler import MAX_PAIRS, SchedulerPart

from .fake_vllm import (
    FakeBlock,
    FakeGroup,
    FakePool,
    FakeScheduler,
    FullAttentionSpec,
    UniformTypeKVCacheSpecs,
    full_group,
    state_group,
    window_group,
)


def part_of(scheduler: FakeScheduler, *, counts_preemptions: bool = True) -> SchedulerPart:
    return SchedulerPart(scheduler, counts_preemptions=counts_preemptions)


def collected(part: SchedulerPart) -> dict[str, Any]:
    return dict(cast("Mapping[str, Any]", part.collect()["scheduler"]))


def collected_in_step(part: SchedulerPart, scheduler: FakeScheduler) -> dict[str, Any]:
    """What the agent's thread gets while another one, as the engine's does, goes on stepping."""
    part.stepped(scheduler)
    ended = threading.Event()

    def steps() -> None:
        while not ended.wait(0.001):
            part.stepped(scheduler)

    engine = threading.Thread(target=steps)
    engine.start()
    try:
        return collected(part)
    finally:
        ended.set()
        engine.join()


def groups_of(facts: Mapping[str, Any], *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(group[key] for key in keys) for group in facts["groups"]]


def test_a_new_scheduler_is_read_at_once() -> None:
    scheduler = FakeScheduler(10, [(full_group(), 16)])
    facts = collected(part_of(scheduler))
    assert facts["steps"] == 0
    assert (facts["num_blocks"], facts["null_blocks"], facts["used_blocks"], facts["free_blocks"]) == (10, 1, 0, 9)
    assert (facts["max_num_seqs"], facts["max_num_batched_tokens"], facts["max_model_len"]) == (64, 2048, 4096)
    assert (facts["kv_dtype"], facts["prefix_caching"]) == ("bfloat16", True)
    assert (facts["kv_pool_bytes"], facts["bytes_per_block"]) == (20480, 2048)
    assert facts["reading_age_seconds"] == 0


def test_shared_blocks_count_once_and_only_last_blocks_have_empty_slots() -> None:
    scheduler = FakeScheduler(20, [(full_group(), 16)])
    scheduler.add("a", 40, 50)
    scheduler.hold(0, "a", own=4)
    scheduler.add("b", 40, 36)
    scheduler.hold(0, "b", shared=scheduler.managers[0].req_to_blocks["a"][:2], own=1)
    facts = collected_in_step(part_of(scheduler), scheduler)
    assert facts["used_blocks"] == 5
    assert facts["tail_tokens"] == (64 - 50) + (48 - 36)
    assert facts["live_tokens"] == 32 + 18 + 4
    assert sorted(facts["running_tokens"]) == [(40, 36), (40, 50)]
    assert groups_of(facts, "kind", "used_blocks", "live_tokens", "tail_tokens") == [("full", 5, 54, 26)]


def test_reusable_blocks_of_ended_requests() -> None:
    scheduler = FakeScheduler(20, [(full_group(), 16)])
    part = part_of(scheduler)
    scheduler.add("a", 40, 50)
    scheduler.hold(0, "a", own=4)
    scheduler.finish("a")
    part.stepped(scheduler)
    facts = collected(part)
    assert (facts["steps"], facts["running"], facts["used_blocks"]) == (1, 0, 0)
    assert (facts["cached_blocks"], facts["free_blocks"], facts["cached_blocks_age_seconds"]) == (3, 16, 0)


def test_contents_that_are_forgotten_while_idle_are_free_again() -> None:
    scheduler = FakeScheduler(20, [(full_group(), 16)])
    part = part_of(scheduler)
    scheduler.add("a", 40, 50)
    scheduler.hold(0, "a", own=4)
    scheduler.finish("a")
    part.stepped(scheduler)
    assert collected(part)["cached_blocks"] == 3
    for block in scheduler.pool.blocks:
        block._block_hash = None
    part.cache_reset(scheduler)
    facts = collected(part)
    assert (facts["steps"], facts["cached_blocks"], facts["free_blocks"]) == (1, 0, 19)


def test_without_prefix_caching_no_block_is_looked_at() -> None:
    scheduler = FakeScheduler(20, [(full_group(), 16)], enable_caching=False)
    scheduler.pool.blocks = []
    facts = collected(part_of(scheduler))
    assert (facts["cached_blocks"], facts["free_blocks"], facts["prefix_caching"]) == (0, 19, False)


def test_the_step_that_leaves_nothing_running_is_read_without_being_asked_for() -> None:
    scheduler = FakeScheduler(20, [(full_group(), 16)])
    part = part_of(scheduler)
    scheduler.add("a", 40, 50)
    scheduler.hold(0, "a", own=4)
    part.stepped(scheduler)
    assert collected(part)["used_blocks"] == 0, "no step has ended since it was asked for"
    assert collected(part)["reading_age_seconds"] > 0
    part.stepped(scheduler)
    assert collected(part)["used_blocks"] == 4
    scheduler.finish("a")
    part.stepped(scheduler)
    part.stepped(scheduler)
    facts = collected(part)
    assert (facts["steps"], facts["used_blocks"], facts["reading_age_seconds"]) == (4, 0, 0)


def test_blocks_given_back_behind_a_window() -> None:
    scheduler = FakeScheduler(60, [(full_group(), 16), (window_group(), 16), (window_group(), 16)])
    scheduler.add("a", 100, 150)
    for group, nulls in enumerate((0, 6, 6)):
        scheduler.hold(group, "a", nulls=nulls, own=10 - nulls)
    facts = collected_in_step(part_of(scheduler), scheduler)
    # Ten blocks of 16 for 150 tokens leave ten slots, whatever was given back before.
    assert groups_of(facts, "kind", "used_blocks", "live_tokens", "tail_tokens") == [
        ("full", 10, 150, 10),
        ("sliding_window", 4, 54, 10),
        ("sliding_window", 4, 54, 10),
    ]
    assert groups_of(facts, "layers", "layer_bytes_per_block") == [(2, 1024), (2, 768), (2, 768)]


def test_states_have_blocks_but_no_tokens() -> None:
    scheduler = FakeScheduler(60, [(full_group(), 16), (state_group(), 4096)])
    scheduler.add("a", 100, 150)
    scheduler.hold(0, "a", own=10)
    scheduler.hold(1, "a", nulls=3, own=2)
    scheduler.managers[1].req_to_blocks["a"].insert(4, scheduler.pool.null_block)
    facts = collected_in_step(part_of(scheduler), scheduler)
    assert groups_of(facts, "kind", "used_blocks", "layer_bytes_per_block") == [("full", 10, 1024), ("state", 2, 304)]
    assert "live_tokens" not in facts["groups"][1]
    assert (facts["live_tokens"], facts["tail_tokens"]) == (150, 10)


def test_mla_and_groups_of_several_shapes() -> None:
    old_mla = FakeGroup(["a"], FullAttentionSpec(100, use_mla=True))
    inner: dict[str, object] = {"a": FullAttentionSpec(100), "b": FullAttentionSpec(40)}
    mixed = FakeGroup(["a", "b"], UniformTypeKVCacheSpecs(inner))
    unknown = FakeGroup(["c"], FakePool(1))
    facts, why = Groups(FakeScheduler(10, [(old_mla, 64), (mixed, 16)])).facts({}, 0)
    assert groups_of(facts, "kind", "layer_bytes_per_block") == [("mla", 100), ("full", 140)]
    assert why == ""
    unknown.kv_cache_spec = type("NewSpec", (), {"page_size_bytes": 7})()
    facts, _ = Groups(FakeScheduler(10, [(unknown, 16)])).facts({}, 0)
    assert groups_of(facts, "kind", "layer_bytes_per_block") == [("other", 7)]
    assert facts["live_tokens"] == 0


def test_blocks_that_no_table_holds_are_said() -> None:
    scheduler = FakeScheduler(20, [(full_group(), 16)])
    scheduler.pool.take(2)
    part = part_of(scheduler)
    assert part.collect()["missing"] == {
        "scheduler.groups.used_blocks": "2 blocks are held outside the tables of the requests"
    }


def test_a_version_without_a_method_for_preemptions_says_so() -> None:
    scheduler = FakeScheduler(20, [(full_group(), 16)])
    part = part_of(scheduler, counts_preemptions=False)
    assert "preemptions" not in collected(part)
    assert "scheduler.preemptions" in cast("Mapping[str, str]", part.collect()["missing"])


@pytest.mark.parametrize("gone", ["get_request_counts", "kv_cache_manager", "requests", "vllm_config"])
def test_internals_that_have_moved_cost_only_what_hangs_on_them(gone: str) -> None:
    class Newer(FakeScheduler):
        def __getattribute__(self, name: str) -> Any:
            if name == gone:
                raise AttributeError(name)
            return super().__getattribute__(name)

    scheduler = Newer(20, [(full_group(), 16)])
    part = SchedulerPart(scheduler, counts_preemptions=True)
    facts, missing = collected(part), cast("Mapping[str, str]", part.collect()["missing"])
    lost = {
        "get_request_counts": {"requests": "running"},
        "kv_cache_manager": {"pool": "used_blocks", "groups": "groups"},
        "requests": {"groups": "groups"},
        "vllm_config": {"configuration": "max_num_seqs"},
    }[gone]
    assert {key.removeprefix("scheduler.") for key in missing} == lost.keys()
    assert all("Error at " in why for why in missing.values())
    assert not any(key in facts for key in lost.values())
    assert facts["preemptions"] == 0


def test_groups_are_not_counted_against_a_pool_that_cannot_be_read() -> None:
    scheduler = FakeScheduler(20, [(full_group(), 16)])
    del scheduler.pool.num_gpu_blocks
    part = part_of(scheduler)
    assert set(cast("Mapping[str, str]", part.collect()["missing"])) == {"scheduler.pool", "scheduler.groups"}
    assert "groups" not in collected(part)


def test_a_part_that_hears_of_no_more_steps_says_nothing() -> None:
    scheduler = FakeScheduler(20, [(full_group(), 16)])
    part = part_of(scheduler)
    part.end("AttributeError")
    assert part.collect() == {"missing": {"scheduler": "AttributeError"}}


def test_an_engine_that_has_ended_is_let_go() -> None:
    part = part_of(FakeScheduler(20, [(full_group(), 16)]))
    assert part.collect() == {"missing": {"scheduler": "the engine has ended"}}


def test_many_requests_are_told_by_an_even_choice() -> None:
    scheduler = FakeScheduler(2, [(full_group(), 16)])
    for index in range(1300):
        scheduler.add(str(index), 1, index)
    facts = collected_in_step(part_of(scheduler), scheduler)
    held = [held for _, held in facts["running_tokens"]]
    assert held == list(range(0, 1300, 3))
    assert len(held) <= MAX_PAIRS


def test_a_large_pool_is_counted_by_chunks() -> None:
    pool = FakePool(3 * CHUNK_BLOCKS)
    cached = CachedBlocks()
    for block in pool.blocks[1::2]:
        block._block_hash = b"hash"
    truth = len(pool.blocks) // 2
    assert cached.scan(pool, 7)
    assert cached.facts(7, 10**6)["cached_blocks"] == truth // 3
    assert float(cast("float", cached.facts(7, 10**6)["cached_blocks_age_seconds"])) > 0
    assert cached.scan(pool, 7)
    assert cached.scan(pool, 7)
    assert not cached.scan(pool, 7)
    assert cached.facts(7, 10**6) == {
        "cached_blocks": truth,
        "free_blocks": 10**6 - truth,
        "cached_blocks_age_seconds": 0,
    }
    # Some of them are in use by now.
    assert cached.facts(8, 100)["cached_blocks"] == 100


@st.composite
def schedulers(draw: st.DrawFn) -> FakeScheduler:
    """Requests that share prefixes with the one before, with one group without a window and some with."""
    block_tokens, window_tokens = 4, draw(st.integers(1, 20))
    windows = draw(st.integers(0, 2))
    scheduler = FakeScheduler(2000, [(full_group(), block_tokens), *[(window_group(), block_tokens)] * windows])
    lengths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=6))
    for index, tokens in enumerate(lengths):
        name, before = str(index), str(index - 1)
        scheduler.add(name, 1, tokens)
        whole = min(tokens, lengths[index - 1]) // block_tokens
        common = draw(st.integers(0, whole))
        for group, manager in enumerate(scheduler.managers):
            nulls = max(0, tokens - window_tokens) // block_tokens if group else 0
            blocks = -(-tokens // block_tokens)
            others: list[FakeBlock] = manager.req_to_blocks.get(before, [])[nulls:common]
            # A prefix is shared only as far as the one before still holds it.
            shared = others if others and not others[0].is_null else []
            scheduler.hold(group, name, nulls=nulls, shared=shared, own=blocks - nulls - len(shared))
    return scheduler


@settings(max_examples=200, deadline=None)
@given(schedulers())
def test_groups_are_counted_as_if_every_slot_were_looked_at(scheduler: FakeScheduler) -> None:
    used_blocks = scheduler.pool.num_gpu_blocks - 1 - scheduler.pool.get_num_free_blocks()
    facts, why = Groups(scheduler).facts(scheduler.requests, used_blocks)
    if why:
        assert "proportion" in why
        return
    for found, manager in zip(cast("Any", facts["groups"]), scheduler.managers, strict=True):
        slots: dict[tuple[int, int], bool] = {}
        for name, table in manager.req_to_blocks.items():
            for index, block in enumerate(table):
                for offset in range(manager.block_size):
                    if not block.is_null:
                        position = index * manager.block_size + offset
                        live = position < scheduler.requests[name].num_computed_tokens
                        slots[block.block_id, offset] = slots.get((block.block_id, offset), False) or live
        assert found["used_blocks"] * manager.block_size == len(slots)
        assert (found["live_tokens"], found["tail_tokens"]) == (sum(slots.values()), len(slots) - sum(slots.values()))
