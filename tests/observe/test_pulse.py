"""An engine that has stopped stepping, told from an idle one."""

from dataclasses import replace

from kvgauge.observe.pulse import Pulse
from kvgauge.observe.records import EngineReading, RankReading
from tests.support.facts import ENGINE, RANK


def reading(*ranks: RankReading, asleep: bool = False) -> EngineReading:
    return replace(ENGINE, ranks=ranks, asleep=asleep)


BUSY = replace(RANK, running=3, waiting=0, progress=(10.0, 5.0))
IDLE = replace(BUSY, running=0)


def standing(*looks: tuple[float, EngineReading]) -> list[float]:
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    found = []
    for at, look in looks:
        now[0] = at
        found.append(pulse.standing_seconds(look))
    return found


def test_a_busy_engine_that_does_not_move_stands() -> None:
    assert standing((0, reading(BUSY)), (1, reading(BUSY)), (4, reading(BUSY))) == [0, 1, 4]


def test_any_figure_that_moves_is_life() -> None:
    moved = replace(BUSY, progress=(10.0, 6.0))
    assert standing((0, reading(BUSY)), (4, reading(moved)), (5, reading(moved))) == [0, 0, 1]


def test_requests_that_only_wait_must_move_too() -> None:
    stuck = replace(BUSY, running=0, waiting=2)
    assert standing((0, reading(stuck)), (7, reading(stuck))) == [0, 7]


def test_an_idle_engine_may_stand_and_work_begins_anew() -> None:
    assert standing((0, reading(IDLE)), (100, reading(IDLE)), (200, reading(BUSY)), (203, reading(BUSY))) == [
        0,
        0,
        0,
        3,
    ]


def test_a_sleeping_engine_and_one_without_counters_are_not_judged() -> None:
    silent = replace(BUSY, progress=None)
    assert standing((0, reading(BUSY, asleep=True)), (9, reading(BUSY, asleep=True))) == [0, 0]
    assert standing((0, reading(silent)), (9, reading(silent))) == [0, 0]


def test_the_rank_that_is_worst_off_counts() -> None:
    other = replace(BUSY, rank="1")
    moved = replace(other, progress=(11.0, 5.0))
    assert standing((0, reading(BUSY, other)), (6, reading(BUSY, moved))) == [0, 6]
