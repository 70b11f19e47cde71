"""What goes wrong on purpose: as often as said, for as long as said, and again the same."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.complaints import InputError
from kvgauge.simulate.faults import NAMES, Faults, make_faults

HOUR = 3600.0


def test_nothing_goes_wrong_by_itself() -> None:
    faults = make_faults(None, duration_seconds=HOUR, seed=1)
    assert not faults.touches_advice
    assert all(faults.scrape("pod-1", 5.0 * look) for look in range(720))
    assert (faults.roofline_ratio, faults.restart_at_seconds) == (1.0, None)


def test_a_tenth_of_the_reads_fail_the_same_ones_for_a_seed() -> None:
    def reads(seed: int) -> list[bool]:
        faults = make_faults("missing-scrapes", duration_seconds=HOUR, seed=seed)
        return [faults.scrape(f"pod-{pod}", 5.0 * look) for look in range(720) for pod in range(8)]

    assert reads(1) == reads(1)
    assert reads(1) != reads(2)
    # 5760 reads: five standard deviations about the mean.
    assert 0.08 < reads(1).count(False) / 5760 < 0.12


def test_the_oldest_pod_is_silent_for_the_middle_third() -> None:
    scrape = make_faults("silent-pod", duration_seconds=HOUR, seed=1).scrape
    silent = {
        look
        for look in range(720)
        for pod in ("pod-1", "pod-2", "pod-3")
        if not scrape(pod, 5.0 * look) and pod == "pod-1"
    }
    assert silent == set(range(240, 480))


def test_a_short_run_has_a_silent_pod_for_ten_minutes_or_to_its_end() -> None:
    scrape = make_faults("silent-pod", duration_seconds=900.0, seed=1).scrape
    silent = [second for second in range(0, 900, 5) if not scrape("pod-1", float(second))]
    assert (silent[0], silent[-1]) == (300, 895)


def test_the_next_oldest_is_silent_once_that_pod_is_gone() -> None:
    scrape = make_faults("silent-pod", duration_seconds=HOUR, seed=1).scrape
    assert [scrape(name, 1200.0) for name in ("pod-1", "pod-2")] == [False, True]
    # pod-1 is gone; the look that finds out lets all be read.
    assert [scrape(name, 1205.0) for name in ("pod-2", "pod-3")] == [True, True]
    assert [scrape(name, 1210.0) for name in ("pod-2", "pod-3")] == [False, True]
    # One that starts as the oldest but is ready late takes nothing over.
    assert [scrape(name, 1215.0) for name in ("pod-0", "pod-2", "pod-3")] == [True, False, True]


@given(
    lives=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100)), min_size=1, max_size=8),
)
def test_at_most_one_pod_is_silent_and_stays_so_while_it_lives(lives: list[tuple[int, int]]) -> None:
    """Pods are (first look, looks): the fleet asks for those that live, in order of age."""
    pods = sorted((begin, begin + count, f"pod-{number}") for number, (begin, count) in enumerate(lives))
    scrape = make_faults("silent-pod", duration_seconds=3000.0, seed=1).scrape
    silent_by_look = []
    for look in range(200):
        alive = [name for begin, end, name in pods if begin <= look < end]
        silent = [name for name in alive if not scrape(name, 1000.0 + 5 * look)]
        assert len(silent) <= 1
        silent_by_look.append((silent, alive))
    for (before, _), (after, alive) in pairwise(silent_by_look):
        if before and before[0] in alive:
            assert after == before


def test_faults_of_advice_leave_reads_alone() -> None:
    restarted = make_faults("restarted-sidecar", duration_seconds=HOUR, seed=1)
    assert restarted == Faults(restart_at_seconds=1800.0)
    hasty = make_faults("wrong-roofline", duration_seconds=HOUR, seed=1)
    assert hasty == Faults(roofline_ratio=0.85)
    assert restarted.touches_advice
    assert hasty.touches_advice


def test_every_name_that_is_listed_can_be_had_and_no_other() -> None:
    for name in NAMES:
        assert make_faults(name, duration_seconds=HOUR, seed=1) != Faults()
    with pytest.raises(InputError, match=r"fault: should be one of missing-scrapes, .*, not 'fire'"):
        make_faults("fire", duration_seconds=HOUR, seed=1)
