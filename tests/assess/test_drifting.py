"""Leaks, other processes and changed flags over simulated hours; and all that is none of these."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.assess import EngineFlags
from kvgauge.assess.drifting import FLOOR_SECONDS, LEAK_BYTES, Climb
from kvgauge.observe.records import AgentReading, EngineReading
from tests.assess.living import HOUR, MINUTE, Life, drift, drift_bytes, using
from tests.support.facts import ENGINE, GIB, GPU, RANK
from tests.support.spool import ALLOCATOR, process, reading, scheduler, worker

MIB = 1 << 20
USED = 76 * GIB
RESERVED_BY_DRIVER = 600 * MIB


def told_by_driver(used: int, engine_bytes: int | None, reserved: int | None = RESERVED_BY_DRIVER) -> Any:
    return using(used, engine_bytes=engine_bytes, reserved_bytes=reserved)


def agent_with(reserved: int, allocated: int | None = None, *others: dict[str, Any]) -> AgentReading:
    torch = {**ALLOCATOR, "reserved_bytes": reserved, "allocated_bytes": allocated or reserved - GIB}
    return reading(scheduler(), worker(allocators=[torch], memory={}), *others)


# Leaks


def test_a_leak_is_found_within_two_hours_and_named_with_its_numbers() -> None:
    life = Life()
    per_second = 400 * MIB / HOUR

    def leaking(at: float) -> Any:
        own = 74 * GIB + round(at * per_second)
        return told_by_driver(own + RESERVED_BY_DRIVER, own)

    last = life.lives(2 * HOUR, gpus=leaking)
    found = drift(last, "leak")
    assert found is not None
    assert found.drift_bytes is not None
    assert LEAK_BYTES < found.drift_bytes <= 800 * MIB
    (warning,) = life.warnings[-1:]
    assert warning.startswith("GPU 0: what the engine's processes hold has grown by ")
    assert "GiB" in warning
    assert last.warnings == (warning,)
    # Not known from the first rise on.
    assert all(drift_bytes(each, "leak") in (None, 0) for each in life.seen[: int(HOUR / 5)])
    assert drift_bytes(last, "foreign_process") == 0


def test_a_leak_inside_torchs_reserve_is_found_by_its_tensors() -> None:
    life = Life()
    last = life.lives(
        3 * HOUR,
        gpus=using(USED),
        agent=lambda at: agent_with(70 * GIB, 60 * GIB + round(at * 200 * MIB / HOUR)),
    )
    assert "what the engine's tensors hold" in last.warnings[0]


def test_where_nothing_of_the_engines_own_is_known_the_gpus_memory_leaks() -> None:
    life = Life()
    last = life.lives(2 * HOUR, gpus=lambda at: using(70 * GIB + round(at * 400 * MIB / HOUR)))
    assert "the engine's or another process's" in last.warnings[0]
    assert drift(last, "foreign_process") is None
    assert "neither the driver nor an agent" in last.gpus[0].missing["drift.foreign_process"]


def test_a_leak_stays_until_it_is_given_back() -> None:
    life = Life()
    life.lives(2 * HOUR, gpus=lambda at: using(70 * GIB + round(at * 400 * MIB / HOUR)))
    lost = 70 * GIB + 800 * MIB
    assert drift_bytes(life.lives(HOUR, gpus=using(lost)), "leak") == pytest.approx(800 * MIB, abs=80 * MIB)
    assert drift_bytes(life.lives(HOUR, gpus=using(70 * GIB)), "leak") == 0
    assert life.seen[-1].warnings == ()


def warm_up(at: float) -> int:
    """Graphs and the first long prompts: 3 GiB in 20 minutes, then nothing."""
    return 70 * GIB + min(round(at / (20 * MINUTE) * 12), 12) * 256 * MIB


def by_steps(at: float) -> int:
    """A cache that grows now and then, and less and less."""
    return 70 * GIB + sum(400 * MIB for when in (0.7, 1.5, 2.9, 5.2) if at > when * HOUR)


def with_the_load(at: float) -> int:
    """Up and down with the day's requests."""
    return 70 * GIB + int(at // MINUTE % 60) * 20 * MIB


def noisy(at: float) -> int:
    return 70 * GIB + int(at) * 7919 % (900 * MIB)


@pytest.mark.parametrize("told", [warm_up, by_steps, with_the_load, noisy])
def test_what_caching_allocators_do_is_no_leak(told: Any) -> None:
    life = Life()
    life.lives(6 * HOUR, gpus=lambda at: using(told(at)), agent=lambda at: agent_with(told(at) - GIB), step=15.0)
    assert life.warnings == []
    assert all(drift_bytes(each, "leak") in (None, 0) for each in life.seen)


def test_a_dip_for_one_tick_hides_no_leak_for_long() -> None:
    life = Life()
    last = life.lives(3 * HOUR, gpus=lambda at: using(GIB if at == 1800 else 70 * GIB + round(at * 400 * MIB / HOUR)))
    assert drift_bytes(last, "leak")


@given(st.lists(st.tuples(st.floats(0, 2 * FLOOR_SECONDS), st.integers(0, 1 << 40)), max_size=40))
def test_a_climb_is_never_negative(looks: list[tuple[float, int]]) -> None:
    climb, seconds = Climb(), 0.0
    for step, value in looks:
        seconds += step
        climb.add(seconds, value)
        assert climb.grown_bytes >= 0
        assert not climb.leaking or climb.grown_bytes >= LEAK_BYTES // 2


# Another process


def test_another_process_by_the_drivers_account() -> None:
    life = Life()
    own = 74 * GIB
    life.lives(10 * MINUTE, gpus=told_by_driver(own + RESERVED_BY_DRIVER, own))
    assert drift_bytes(life.seen[-1], "foreign_process") == 0
    last = life.lives(5 * MINUTE, gpus=told_by_driver(own + RESERVED_BY_DRIVER + 2 * GIB, own))
    assert drift_bytes(last, "foreign_process") == 2 * GIB
    (warning,) = last.warnings
    assert warning == (
        "GPU 0: 2.00 GiB of the 76.59 GiB in use are not the engine's, whose processes hold 74.00 GiB: "
        "another process is on the GPU."
    )
    gone = life.lives(5 * MINUTE, gpus=told_by_driver(own + RESERVED_BY_DRIVER, own))
    assert (drift_bytes(gone, "foreign_process"), gone.warnings) == (0, ())


def test_another_process_that_was_there_first_is_found_once_the_engine_has_settled() -> None:
    life = Life()
    last = life.lives(5 * MINUTE, gpus=told_by_driver(60 * GIB, 50 * GIB))
    assert drift_bytes(last, "foreign_process") == 10 * GIB - RESERVED_BY_DRIVER
    # And it is not taken for what the engine needs.
    assert last.gpus[0].total is not None
    assert last.gpus[0].total.calibrated_bytes is None


@pytest.mark.parametrize("known_by", ["agent", "driver without its own share"])
def test_another_process_by_what_the_rest_has_grown(known_by: str) -> None:
    life = Life()

    def lives(seconds: float, used: int, own: int) -> Any:
        if known_by == "agent":
            return life.lives(seconds, gpus=using(used), agent=lambda at: agent_with(own))
        return life.lives(seconds, gpus=told_by_driver(used, own, None))

    assert drift_bytes(lives(10 * MINUTE, 72 * GIB, 70 * GIB), "foreign_process") == 0
    # What the engine itself takes more is its own.
    assert drift_bytes(lives(5 * MINUTE, 74 * GIB, 72 * GIB), "foreign_process") == 0
    last = lives(5 * MINUTE, 77 * GIB, 72 * GIB)
    assert drift_bytes(last, "foreign_process") == 3 * GIB
    assert "has grown by 3.00 GiB more than what the engine holds" in last.warnings[0]


def test_another_program_with_an_agent_is_another_process() -> None:
    other = process(9, instance=9, allocators=[{**ALLOCATOR, "reserved_bytes": 2 * GIB}])
    life = Life()
    life.lives(10 * MINUTE, gpus=using(72 * GIB), agent=lambda at: agent_with(70 * GIB))
    last = life.lives(5 * MINUTE, gpus=using(74 * GIB), agent=lambda at: agent_with(70 * GIB, None, other))
    assert drift_bytes(last, "foreign_process") == 2 * GIB


def test_one_odd_tick_is_no_process() -> None:
    life = Life()
    own = 70 * GIB
    life.lives(HOUR, gpus=lambda at: told_by_driver(own + RESERVED_BY_DRIVER + (9 * GIB if at == 1200 else 0), own))
    assert life.warnings == []


# Changed flags


def flagged(**changes: Any) -> EngineReading:
    rank = {name: changes.pop(name) for name in ("capacity_tokens", "block_tokens") if name in changes}
    return replace(ENGINE, **changes, ranks=(replace(RANK, **rank),))


def test_changed_flags_are_told_once_with_both_values() -> None:
    life = Life()
    life.lives(5 * MINUTE)
    assert drift_bytes(life.seen[-1], "flags") == 0
    life.lives(2 * MINUTE, engine=None)
    other = flagged(max_model_len=16_384, gpu_memory_utilization=0.8, capacity_tokens=12_000, started_seconds=2.0)
    last = life.lives(MINUTE, engine=other)
    (warning,) = last.warnings
    assert warning == (
        "The engine runs with other settings than before: max_model_len 16384 (before: 8192), "
        "gpu_memory_utilization 0.8 (before: 0.95), a pool of 12000 tokens (before: 16000)."
    )
    assert drift_bytes(last, "flags") == -4000 * 131_072
    # Later it is how the engine runs.
    last = life.lives(61 * MINUTE, engine=other)
    assert (drift_bytes(last, "flags"), last.warnings) == (0, ())
    assert len(life.warnings) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_dtype": "fp8"}, "kv_dtype 'fp8' (before: 'bfloat16')"),
        ({"block_tokens": 32}, "block_size 32 (before: 16)"),
        ({"max_num_seqs": 64}, "max_num_seqs 64 (before: 128)"),
        ({"prefix_caching": False}, "prefix_caching False (before: True)"),
    ],
)
def test_each_setting_counts(changes: dict[str, Any], words: str) -> None:
    life = Life(flags=EngineFlags())
    life.lives(MINUTE, engine=flagged(max_num_seqs=128))
    last = life.lives(MINUTE, engine=flagged(**{"max_num_seqs": 128, **changes}))
    assert len(last.warnings) == 1
    assert words in last.warnings[0]
    assert drift_bytes(last, "flags") is not None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"capacity_tokens": 15_800},
        {"kv_dtype": "bfloat16"},
        {"max_model_len": None},
        {"gpu_memory_utilization": None},
    ],
    ids=str,
)
def test_a_restart_with_the_same_flags_is_no_change(changes: dict[str, Any]) -> None:
    life = Life()
    life.lives(10 * MINUTE)
    life.lives(2 * MINUTE, engine=None)
    life.lives(10 * MINUTE, engine=flagged(**changes, started_seconds=2.0))
    assert life.warnings == []


def test_an_odd_tick_changes_no_flag() -> None:
    life = Life()
    life.lives(MINUTE, step=1.0, engine=lambda at: flagged(max_model_len=9 if at == 30 else 8192))
    assert life.warnings == []


# None of these


def test_a_restart_begins_anew() -> None:
    life = Life()
    life.lives(2 * HOUR, gpus=lambda at: using(70 * GIB + round(at * 400 * MIB / HOUR)))
    assert life.seen[-1].warnings
    restarted = replace(ENGINE, started_seconds=2.0)
    assert life.lives(1, engine=restarted, gpus=using(3 * GIB)).warnings == ()
    # While its memory fills there is nothing to compare it with.
    last = life.lives(100, engine=restarted, gpus=lambda at: using(3 * GIB + int(at) * GIB // 2))
    assert drift(last, "leak") is None
    assert "not settled" in last.gpus[0].missing["drift.leak"]


@pytest.mark.parametrize(
    "restarted",
    [
        flagged(started_seconds=2.0),
        replace(ENGINE, ranks=(replace(RANK, generation_tokens_total=0.0),)),
        flagged(started_seconds=None),
    ],
    ids=["start time", "counters", "gap"],
)
def test_a_restart_is_noticed(restarted: EngineReading) -> None:
    life = Life()
    life.lives(10 * MINUTE)
    assert drift_bytes(life.seen[-1], "leak") == 0
    if restarted.started_seconds is None:
        life.lives(20, engine=None)
    assert drift(life.lives(1, engine=restarted), "leak") is None


def test_a_sleeping_engine_gives_its_memory_back_and_takes_it_again() -> None:
    life = Life()
    own = 70 * GIB
    awake, asleep = told_by_driver(own + RESERVED_BY_DRIVER, own), told_by_driver(3 * GIB, 2 * GIB)
    for _ in range(3):
        life.lives(10 * MINUTE, gpus=awake)
        last = life.lives(10 * MINUTE, engine=replace(ENGINE, asleep=True), gpus=asleep)
        assert last.gpus[0].drifts == ()
    life.lives(10 * MINUTE, gpus=awake)
    assert life.warnings == []


def test_without_a_driver_nothing_is_looked_for_but_flags() -> None:
    life = Life()
    life.lives(10 * MINUTE, gpus=())
    last = life.lives(MINUTE, gpus=(), engine=flagged(max_model_len=16_384))
    assert last.gpus == ()
    life.lives(10 * MINUTE)
    gap = life.lives(10 * MINUTE, gpus=())
    assert gap.warnings == ()
    assert drift_bytes(life.lives(10 * MINUTE), "leak") == 0


def test_unified_memory_has_no_figure_of_its_own() -> None:
    unified = (replace(GPU, total_bytes=None, used_bytes=None, free_bytes=None),)
    life = Life()
    assert drift(life.lives(10 * MINUTE, gpus=unified), "leak") is None
    # With an agent, what torch holds is known.
    last = life.lives(10 * MINUTE, gpus=unified, agent=lambda at: agent_with(70 * GIB))
    assert drift_bytes(last, "leak") == 0
    assert drift(last, "foreign_process") is None


def test_mig_instances_are_apart() -> None:
    first = replace(GPU, uuid="MIG-1", mig="3g.40gb", total_bytes=40 * GIB, used_bytes=38 * GIB, engine_bytes=37 * GIB)
    second = replace(first, uuid="MIG-2", engine_bytes=None)
    life = Life(flags=EngineFlags(tp=1))
    last = life.lives(10 * MINUTE, gpus=(replace(first, reserved_bytes=0), second))
    assert drift_bytes(last, "foreign_process") == GIB
    assert drift(last, "foreign_process", gpu=1) is None


def test_two_gpus_of_a_group_are_told_apart() -> None:
    other = replace(GPU, gpu=1, uuid="GPU-2")
    life = Life(flags=EngineFlags(tp=2))
    life.lives(2 * HOUR, gpus=lambda at: (GPU, replace(other, used_bytes=70 * GIB + round(at * 400 * MIB / HOUR))))
    assert drift_bytes(life.seen[-1], "leak", gpu=0) == 0
    assert drift_bytes(life.seen[-1], "leak", gpu=1)
    assert life.seen[-1].warnings[0].startswith("GPU 1: ")
