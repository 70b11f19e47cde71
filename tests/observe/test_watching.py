import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from kvgauge.observe.records import SourceError
from kvgauge.observe.watching import Watcher


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Scripted:
    """A source that does what the test says next."""

    name: str = "engine"
    steps: list[Callable[[], int]] = field(default_factory=list)

    def read(self) -> int:
        return self.steps.pop(0)()


def failing(reason: str) -> Callable[[], int]:
    def fail() -> int:
        raise SourceError(reason, f"it is {reason}")

    return fail


def watch(*steps: Callable[[], int], **options: object) -> tuple[Watcher[int], Clock]:
    clock = Clock()
    watcher = Watcher(
        Scripted(steps=list(steps)),
        patience_seconds=2.0,
        stale_after_seconds=5.0,
        clock=clock,
        **options,  # type: ignore[arg-type]
    )
    return watcher, clock


def tick(watcher: Watcher[int]) -> None:
    watcher.request()
    assert watcher.wait(5)


def test_before_the_first_read_nothing_is_known() -> None:
    watcher, _ = watch()
    reading, state = watcher.latest()
    assert (reading, state.up, state.age_seconds, state.reason) == (None, False, None, None)


def test_a_good_reading_ages_and_goes_stale() -> None:
    watcher, clock = watch(lambda: 7)
    tick(watcher)
    assert watcher.latest()[0] == 7
    clock.now += 5.0
    reading, state = watcher.latest()
    assert (reading, state.up, state.age_seconds) == (7, True, 5.0)
    clock.now += 0.1
    assert watcher.latest()[0] is None


def test_a_failure_shows_at_once_and_the_last_reading_stays_within_its_age() -> None:
    watcher, clock = watch(lambda: 7, failing("refused"), failing("refused"), lambda: 8)
    tick(watcher)
    clock.now += 1.0
    tick(watcher)
    reading, state = watcher.latest()
    assert (reading, state.up, state.reason, state.errors_total) == (7, False, "refused", {"refused": 1})
    clock.now += 4.5
    tick(watcher)
    reading, state = watcher.latest()
    assert (reading, state.age_seconds, state.errors_total) == (None, 5.5, {"refused": 2})
    tick(watcher)
    reading, state = watcher.latest()
    assert (reading, state.up, state.reason, state.age_seconds) == (8, True, None, 0.0)


def test_a_read_that_hangs_counts_once_and_blocks_nobody() -> None:
    let_go = threading.Event()

    def hang() -> int:
        let_go.wait(30)
        raise SourceError("timeout", "it took too long")

    watcher, clock = watch(lambda: 7, hang, lambda: 8)
    tick(watcher)
    watcher.request()
    watcher.request()
    assert not watcher.wait(0)
    assert watcher.latest()[1].up
    clock.now += 2.5
    for _ in range(3):
        reading, state = watcher.latest()
        assert (reading, state.up, state.reason, state.errors_total) == (7, False, "timeout", {"timeout": 1})
    let_go.set()
    assert watcher.wait(5)
    assert watcher.latest()[1].errors_total == {"timeout": 1}
    tick(watcher)
    assert watcher.latest()[0] == 8


def test_a_fault_of_our_own_is_a_state_too() -> None:
    def broken() -> int:
        raise ZeroDivisionError

    watcher, _ = watch(broken, lambda: 1)
    tick(watcher)
    state = watcher.latest()[1]
    assert (state.up, state.reason) == (False, "internal")
    tick(watcher)
    assert watcher.latest()[1].up


def test_what_a_good_reading_complains_of_is_counted_and_shown() -> None:
    watcher, _ = watch(lambda: 3, lambda: 0, faults=lambda reading: {"bad_line": reading})
    tick(watcher)
    state = watcher.latest()[1]
    assert (state.up, state.reason, state.errors_total) == (True, "bad_line", {"bad_line": 3})
    tick(watcher)
    state = watcher.latest()[1]
    assert (state.reason, state.errors_total) == (None, {"bad_line": 3})


@pytest.mark.parametrize("number", [1, 50])
def test_reads_happen_only_when_asked_for(number: int) -> None:
    calls: list[int] = []
    watcher, _ = watch(*[lambda: calls.append(1) or len(calls) for _ in range(number)])  # type: ignore[func-returns-value]
    for expected in range(1, number + 1):
        tick(watcher)
        assert watcher.latest()[0] == expected == len(calls)
