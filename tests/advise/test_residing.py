import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.advise.lengths import Lengths, whole_lengths
from kvgauge.advise.residing import (
    Footprint,
    Window,
    footprint_from_bytes,
    footprint_from_groups,
    moments_from_histograms,
    resident,
)
from kvmodel.engines.contract import PlanGroup
from tests.advise.test_lengths import page


def known(values: list[int]) -> Lengths:
    lengths = whole_lengths(values)
    assert lengths is not None
    return lengths


def central(values: list[float]) -> tuple[float, float, float]:
    mean = statistics.fmean(values)
    return mean, statistics.pvariance(values), statistics.fmean((value - mean) ** 3 for value in values)


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=6),
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
)
def test_moments_are_those_of_every_step_of_every_request(prompts: list[int], outputs: list[int]) -> None:
    steps = [float(prompt + done) for prompt in prompts for output in outputs for done in range(output)]
    mean, variance, third = central(steps)
    found = resident(known(prompts), known(outputs), Footprint())
    assert found.mean_slots == pytest.approx(mean)
    assert found.variance_slots2 == pytest.approx(variance, abs=1e-6 * mean**2)
    assert found.third_slots3 == pytest.approx(third, abs=1e-6 * mean**3)


def test_long_outputs_are_met_more_often_than_they_come() -> None:
    found = resident(known([100]), known([10] * 9 + [910]), Footprint())
    # On average 100 tokens are generated; at a random moment it is the long one that runs nine times of ten.
    assert found.mean_slots == pytest.approx(100 + 0.09 * 4.5 + 0.91 * 454.5)
    assert found.growth_slots == 99


def test_blocks_are_half_empty_at_the_end() -> None:
    plain, blocks = (resident(known([500, 600]), known([100]), Footprint(size)) for size in (1, 16))
    assert blocks.mean_slots - plain.mean_slots == 7.5


def test_alike_requests_are_largest_together() -> None:
    found = resident(known([200]), known([400]), Footprint(32))
    assert found.together_slots == found.largest_slots == math.ceil(599 / 32) * 32


def test_mixed_requests_that_begin_together_are_about_as_large_as_ever() -> None:
    outputs = [max(round(-300 * math.log(1 - (place + 0.5) / 200)), 1) for place in range(200)]
    found = resident(known([500]), known(outputs), Footprint())
    # An exponential output has no memory: those that are replaced make up for those that grow.
    assert found.together_slots == pytest.approx(found.mean_slots)


def test_the_peak_of_a_batch_that_began_together_is_that_of_a_simulated_one() -> None:
    draw = random.Random(2)
    outputs = [draw.randint(700, 1300) for _ in range(400)]
    ages, left = [0] * 4000, [draw.choice(outputs) for _ in range(4000)]
    peak = 0.0
    for _ in range(1500):
        for place in range(4000):
            ages[place] += 1
            if ages[place] == left[place]:
                ages[place], left[place] = 0, draw.choice(outputs)
        peak = max(peak, statistics.fmean(ages))
    found = resident(known([1]), known(outputs), Footprint())
    assert found.together_slots == pytest.approx(1 + peak, rel=0.03)


@pytest.mark.parametrize("tokens", [1, 31, 32, 100, 127, 128, 129, 300, 1000])
def test_a_window_drops_the_blocks_it_has_left(tokens: int) -> None:
    footprint = Footprint(32, slots_per_token=0, windows=(Window(128),))
    kept = {place // 32 for place in range(max(tokens - 128, 0), tokens)}
    assert footprint.slots_at(tokens) == 32 * len(kept)


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 600))
def test_the_most_is_the_most_of_all_lengths_on_the_way(tokens: int, block: int, window: int) -> None:
    footprint = Footprint(block, windows=(Window(window, 0.5),), state_slots=3)
    on_the_way = max(footprint.slots_at(length) for length in range(1, tokens + 1))
    assert on_the_way <= footprint.most_slots(tokens)
    # A window that begins with a block needs one block less than reckoned, and only until the next token.
    assert footprint.most_slots(tokens) <= on_the_way + 0.5 * block


def test_windows_and_state_do_not_grow() -> None:
    prompts, outputs = [1000, 3000], [200, 800]
    footprint = Footprint(16, windows=(Window(128),), state_slots=40)
    hybrid, plain = (resident(known(prompts), known(outputs), each) for each in (footprint, Footprint(16)))
    assert hybrid.mean_slots == pytest.approx(plain.mean_slots + 128 + 15 + 40)
    assert hybrid.variance_slots2 == pytest.approx(plain.variance_slots2)
    assert hybrid.third_slots3 == pytest.approx(plain.third_slots3)
    assert hybrid.growth_slots == plain.growth_slots


def test_bytes_become_slots() -> None:
    footprint = footprint_from_bytes(4096, growth_bytes_per_token=1024, state_bytes_per_request=40_960, block_tokens=16)
    assert footprint.slots_at(1600) == 400 + 10


def group(kind: str, block: int | None, window: int | None = None, held: int | None = None) -> PlanGroup:
    return PlanGroup(kind, 1, block, 1, 1, window_tokens=window, blocks_per_request=held)


def test_groups_that_share_a_pool_become_one_footprint() -> None:
    full, window = group("full", 16), group("window", 16, 128)
    assert footprint_from_groups([full, window], 16) == Footprint(16, windows=(Window(128),))
    # Where a block is worth less of the capacity than its tokens, since every group takes one.
    assert footprint_from_groups([full, window, window, group("state", None, held=3)], 4) == Footprint(
        16, 0.25, (Window(128, 0.5),), 12
    )


GROUPS = st.lists(
    st.one_of(
        st.builds(group, st.sampled_from(["full", "index"]), st.sampled_from([16, 32, 48])),
        st.builds(group, st.just("window"), st.sampled_from([16, 32, 48]), st.integers(1, 400)),
        st.builds(group, st.just("state"), st.none(), st.none(), st.integers(1, 4)),
    ),
    min_size=1,
    max_size=5,
).filter(lambda groups: any(each.block_tokens for each in groups))


@given(GROUPS, st.integers(1, 600), st.floats(1, 64))
def test_groups_hold_no_more_than_their_footprint(groups: list[PlanGroup], tokens: int, slots: float) -> None:
    footprint = footprint_from_groups(groups, slots)
    assert footprint is not None
    # A group's block counts one byte here.
    held = slots * max(sum(each.held_bytes(length) for each in groups) for length in range(1, tokens + 1))
    assert held <= footprint.most_slots(tokens) * (1 + 1e-9)
    # At most a block too many for each group that rounds differently from the others, and for each window.
    assert footprint.most_slots(tokens) <= held + 3 * slots * len(groups)


def test_groups_that_do_not_share_a_pool_or_count_no_tokens_have_no_footprint() -> None:
    assert footprint_from_groups([PlanGroup("full", 1, 16, 1, 1, num_blocks=10)], 16) is None
    assert footprint_from_groups([group("state", None, held=1)], 16) is None
    assert footprint_from_groups([], 16) is None


def test_an_observed_mean_is_taken_over() -> None:
    prompts, outputs = page([300, 900, 4000] * 30), page([20, 100, 900] * 30)
    alone = moments_from_histograms(prompts, outputs, Footprint(16))
    assert alone is not None
    found = moments_from_histograms(prompts, outputs, Footprint(16), observed_mean_slots=alone.mean_slots / 2)
    assert found is not None
    assert found.mean_slots == pytest.approx(alone.mean_slots / 2)
    assert found.variance_slots2 == pytest.approx(alone.variance_slots2 / 2)
    assert found.together_slots == pytest.approx(alone.together_slots / 2)


@pytest.mark.parametrize(("ratio", "together"), [(0.95, 600), (0.4, 240)])
def test_alike_requests_hold_what_they_hold_unless_they_share_much(ratio: float, together: float) -> None:
    lengths = known([200]), known([401])
    mean = resident(*lengths, Footprint()).mean_slots
    found = resident(*lengths, Footprint(), observed_mean_slots=mean * ratio)
    assert found.together_slots == pytest.approx(together)


def test_nothing_finished() -> None:
    assert moments_from_histograms(page([]), page([]), Footprint()) is None
