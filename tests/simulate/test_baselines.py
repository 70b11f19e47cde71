"""The baseline signals, each against fleets made by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.simulate.fleet_views import PLAN, SPEC, state, view

from kvgauge.simulate.autoscaled import scrape
from kvgauge.simulate.baseline_rules import AibrixKpa, histogram_quantile, kpa_replicas, slo_replicas, tpot_quantile
from kvgauge.simulate.baseline_wva import Replica, capacity_change, saturation_step
from kvgauge.simulate.baselines import prefill_tokens_per_second
from kvgauge.simulate.clairvoyant import Work, fits, fluid_replicas, fluid_schedule
from kvgauge.simulate.fleet import FleetView, Signal
from kvgauge.simulate.hpa_behavior import Behavior, Policy, ScalingRules
from kvgauge.simulate.signals import make_signal
from kvgauge.simulate.spec import EngineSpec, Request
from kvgauge.simulate.state import EngineState
from kvgauge.simulate.tally import Tally

AT_ONCE = Behavior(ScalingRules((Policy("Pods", 100, 15),)), ScalingRules((Policy("Pods", 100, 15),)))
"""An autoscaler that holds nothing back, so that a test sees what the signal asks for."""


def ask(
    text: str, states: Callable[[float], Sequence[EngineState | None]], gateway: int = 0, in_flight: int = 0
) -> int:
    """The replicas wanted by a signal that has scraped twice and sees the fleet for the first time as it is then."""
    signal = make_signal(text, PLAN, behavior=AT_ONCE)
    for look in (7.5, 15.0, 22.5):
        signal.observe(view(look, states(look), gateway=gateway, in_flight=in_flight))
    return signal.replicas(view(30.0, states(22.5), gateway=gateway, in_flight=in_flight))


def test_requests_are_shared_out_wherever_they_wait() -> None:
    assert ask("queue:5", lambda now: [state(now, waiting=12), state(now, waiting=12)], gateway=6) == 6
    assert ask("running:16", lambda now: [state(now, running=40, waiting=99), state(now, running=41)]) == 6
    assert ask("in-flight:10", lambda now: [state(now), None], in_flight=20, gateway=9) == 5


@pytest.mark.parametrize(("waiting", "running", "replicas"), [(7, 16, 7), (1, 160, 10)])
def test_of_queue_and_running_the_larger_wish_wins(waiting: int, running: int, replicas: int) -> None:
    assert ask("queue-or-running", lambda now: [state(now, waiting=waiting), state(now, running=running)]) == replicas


def test_figures_are_those_of_the_last_scrape_and_lie_between_the_syncs() -> None:
    signal = make_signal("running:10", PLAN, behavior=AT_ONCE)
    wanted = []
    for half in range(1, 9):
        now = half * 7.5
        fleet = view(now, [state(now, running=10 * half), state(now)])
        signal.observe(fleet)
        if half % 2 == 0:
            wanted.append(signal.replicas(fleet))
    assert wanted == [1, 3, 5, 7]


def test_a_page_that_was_not_read_counts_for_nothing_in_a_sum() -> None:
    assert ask("running:10", lambda now: [state(now, running=50), state(now - 5, running=50)]) == 5


def test_a_pod_without_a_figure_damps_the_mean_of_the_others() -> None:
    full = SPEC.usable_blocks
    # Two full pods of 0.8 ask for 3; a third that starts is counted as empty, and is then enough.
    assert ask("kv:0.8", lambda now: [state(now, used_blocks=full), state(now, used_blocks=full)]) == 3
    assert ask("kv:0.8", lambda now: [state(now, used_blocks=full), state(now, used_blocks=full), None]) == 3


def test_gpu_utilisation_is_the_busy_share_between_two_scrapes() -> None:
    assert ask("gpu-utilization:0.5", lambda now: [state(now, busy_seconds=now - 1)] * 2) == 4
    assert ask("gpu-utilization:0.5", lambda now: [state(now, busy_seconds=now / 4)] * 4) == 2


def test_gpu_utilisation_of_one_scrape_decides_nothing() -> None:
    signal = make_signal("gpu-utilization", PLAN, behavior=AT_ONCE)
    signal.observe(view(7.5, [state(7.5), state(7.5)]))
    assert signal.replicas(view(15.0, [state(7.5), state(7.5)])) == 2


@pytest.mark.parametrize(("text", "replicas"), [("cpu", 1), ("cpu:70,65", 4)])
def test_cpu_says_the_same_under_any_load(text: str, replicas: int) -> None:
    signal = make_signal(text, PLAN)
    wanted = 4
    for step in range(1, 60):
        wanted = signal.replicas(view(15.0 * step, [state(0.0, running=step * 10)] * wanted))
    assert wanted == replicas


def test_token_aware_takes_the_tighter_of_prefill_and_cache() -> None:
    velocity = prefill_tokens_per_second(SPEC)
    backlog = int(velocity * 4.0)
    assert ask("token-aware", lambda now: [state(now, waiting_tokens=backlog), state(now, waiting_tokens=backlog)]) == 6
    assert ask("token-aware:100,0.5", lambda now: [state(now, used_blocks=SPEC.usable_blocks)] * 3) == 6


def test_token_aware_adds_one_pod_in_three_minutes() -> None:
    signal = make_signal("token-aware:1.5,0.1", PLAN)
    wanted, sizes = 2, []
    for half in range(1, 60):
        now = half * 7.5
        fleet = view(now, [*[state(now, used_blocks=SPEC.usable_blocks)] * 2, *[None] * (wanted - 2)])
        signal.observe(fleet)
        if half % 2 == 0:
            wanted = signal.replicas(fleet)
            sizes.append(wanted)
    assert sizes == [3] * 12 + [4] * 12 + [5] * 5


def test_prefill_velocity_is_that_of_one_full_step_alone() -> None:
    qwen_32b_on_two_h100 = EngineSpec(
        num_blocks=21_875,
        max_model_len=16_384,
        kv_bytes_per_token=131_072,
        weights_bytes=32_750_000_000,
        parameters=16_400_000_000,
        bandwidth_bytes_per_second=0.72 * 3.35e12,
        flops_per_second=0.52 * 989e12,
        attention_flop_per_pair=2 * 64 * 64 * 128,
    )
    # llm-d measured 15,375 to 15,928 tokens/s on that.
    assert prefill_tokens_per_second(qwen_32b_on_two_h100) == pytest.approx(15_650, rel=0.15)


@pytest.mark.parametrize(
    ("pods", "step"),
    [
        ([(0.9, 0), (0.9, 0)], 1),
        ([(0.2, 5), (0.2, 9)], 1),
        ([(0.75, 0), (0.75, 0)], 1),
        ([(0.1, 3), (0.1, 3)], 1),
        ([(0.1, 2), (0.1, 2)], 0),
        ([(0.6, 0), (0.6, 0)], 0),
        ([(0.3, 0), (0.3, 0)], -1),
        ([(0.3, 0), (0.9, 0)], 0),
        ([(0.0, 0)], 0),
    ],
)
def test_wva_v1_keeps_a_tenth_of_cache_and_three_places_spare(pods: list[tuple[float, int]], step: int) -> None:
    assert saturation_step([Replica(kv, queue, 0.0, 0.0) for kv, queue in pods]) == step


@pytest.mark.parametrize(
    ("demand", "ready", "starting", "change"),
    [(850, 1, 0, 0), (851, 1, 0, 1), (2550, 1, 1, 1), (699, 2, 0, -1), (701, 2, 0, 0), (0, 3, 0, -2), (0, 1, 0, 0)],
)
def test_wva_v2_adds_by_0_85_and_takes_by_0_70(demand: float, ready: int, starting: int, change: int) -> None:
    assert capacity_change(demand, 1000, ready, starting) == change


def rounds(signal: Signal, begin: float, seconds: float, fleet: Callable[[float, int], FleetView], wanted: int) -> int:
    """The replicas after some time, in which the fleet always has as many as were wanted."""
    for half in range(int(begin / 7.5) + 1, int((begin + seconds) / 7.5) + 1):
        now = half * 7.5
        signal.observe(fleet(now, wanted))
        if half % 2 == 0:
            wanted = signal.replicas(fleet(now, wanted))
    return wanted


def test_wva_v1_waits_while_a_pod_starts() -> None:
    signal = make_signal("wva-v1", PLAN, behavior=AT_ONCE)
    full = SPEC.usable_blocks
    starting = rounds(
        signal, 0, 600, lambda now, n: view(now, [state(now, used_blocks=full)] * 2 + [None] * (n - 2)), 2
    )
    assert starting == 3
    ready = rounds(signal, 600, 120, lambda now, n: view(now, [state(now, used_blocks=full)] * n), starting)
    assert ready == 5


def test_wva_v2_learns_where_a_pod_begins_to_queue() -> None:
    signal = make_signal("wva-v2", PLAN, behavior=AT_ONCE)

    def fleet(blocks: int, waiting: int) -> Callable[[float, int], FleetView]:
        return lambda now, n: view(now, [state(now, used_blocks=blocks, waiting=waiting)] * n)

    # It queues at a fifth of its blocks: that is all a pod can do, and two such need three.
    assert rounds(signal, 0, 60, fleet(200, 6), 2) == 3
    # Without a queue, the same fill on each is still all that it can do.
    assert rounds(signal, 60, 60, fleet(200, 0), 3) >= 4
    fresh = make_signal("wva-v2", PLAN, behavior=AT_ONCE)
    assert rounds(fresh, 0, 60, fleet(200, 0), 3) == 2


@pytest.mark.parametrize(
    ("saturation", "provisioned", "ready", "replicas"),
    [(0.55, 4, 4, 4), (0.40, 4, 4, 4), (1.1, 4, 4, 8), (1.1, 4, 2, 4), (0.2, 4, 4, 2), (0.2, 4, 2, 2), (0.0, 4, 4, 0)],
)
def test_slo_law(saturation: float, provisioned: int, ready: int, replicas: int) -> None:
    assert slo_replicas(saturation, provisioned, ready) == replicas


def test_slo_aware_follows_the_worse_latency_after_half_a_minute() -> None:
    signal = make_signal("slo-aware", PLAN)
    sizes, wanted = [], 4
    for half in range(1, 9):
        now = half * 7.5
        done = tuple((now - age, 0.1, 0.08) for age in range(10))
        fleet = view(now, [state(now)] * wanted, latencies=done)
        signal.observe(fleet)
        if half % 2 == 0:
            wanted = signal.replicas(fleet)
            sizes.append(wanted)
    # TPOT stands at its objective: 4 + ceil(4 (1 / 0.55 - 1)), and no more for a minute.
    assert sizes == [4, 4, 8, 8]


def test_quantile_between_two_scrapes_goes_straight_through_the_bucket() -> None:
    tally = Tally((1.0, 2.0, 4.0))
    tally.observe(3.0, 100)
    before = tally.snapshot()
    assert histogram_quantile(0.9, {"a": before}, {"a": before}) == 0.0
    tally.observe(1.5, 10)
    assert histogram_quantile(0.9, {"a": before}, {"a": tally.snapshot()}) == pytest.approx(1.9)
    # A pod that was not there before counts from its start.
    assert histogram_quantile(0.5, {}, {"b": before}) == pytest.approx(3.0)
    tally.observe(100.0, 1000)
    assert histogram_quantile(0.9, {"a": before}, {"a": tally.snapshot()}) == 4.0


def test_tpot_quantile_is_of_the_last_minute() -> None:
    rows = ((1.0, 0.0, 9.0), *((50.0 + n, 0.0, float(n)) for n in range(1, 11)), (70.0, 0.0, None))
    assert tpot_quantile(0.9, view(100.0, [], latencies=rows)) == 9.0
    assert tpot_quantile(0.9, view(500.0, [], latencies=rows)) == 0.0


@pytest.mark.parametrize(
    ("stable", "panic", "current", "replicas"),
    [
        (2.0, 2.0, 4, 4),
        (2.2, 2.2, 4, 4),
        (2.3, 2.3, 4, 5),
        (9.0, 9.0, 4, 8),
        (0.1, 0.1, 8, 4),
        (1.0, 2.1, 2, 4),
        (0.5, 1.1, 4, 4),
        (0.0, 0.0, 4, 2),
    ],
)
def test_kpa(stable: float, panic: float, current: int, replicas: int) -> None:
    assert kpa_replicas(stable, panic, current, 0.5) == replicas


def test_kpa_shrinks_only_after_five_minutes_of_less() -> None:
    signal = AibrixKpa("aibrix-kpa", PLAN, 0.5)
    sizes = []
    for step in range(1, 60):
        now = 15.0 * step
        # 2 pools' worth on 4 pods is the target; from 300 s on nothing.
        fleet = view(now, [state(now, used_blocks=SPEC.usable_blocks // 2 if now <= 300 else 0)] * 4)
        signal.observe(fleet)
        sizes.append((now, signal.replicas(fleet)))
    first = next(now for now, wanted in sizes if wanted < 4)
    assert {wanted for now, wanted in sizes if now < first} == {4}
    # The wish falls below 4 a tenth of the stable window after the load; the highest of 300 s holds it up.
    assert 600 <= first <= 660


def test_a_scrape_leaves_out_pods_that_are_going_or_were_not_read() -> None:
    fleet = view(30.0, [state(30.0), state(15.0), None])
    going = replace(fleet.pods[0], name="going", deleting=True, in_flight=3)
    read = scrape(replace(fleet, pods=(*fleet.pods, going)))
    assert set(read.states) == {"p0"}
    assert read.in_flight_requests == 3


WORKS = st.builds(
    lambda count, prompt, output: Work(
        count,
        count * prompt,
        count * output,
        count * output * (prompt + output / 2),
        count * SPEC.step_cost.prefill_seconds(prompt),
    ),
    st.integers(1, 1000),
    st.integers(1, 4000),
    st.integers(1, 2000),
)


@given(WORKS, st.floats(0.1, 1.0))
def test_fluid_replicas_are_the_fewest_that_fit(work: Work, share: float) -> None:
    count = fluid_replicas(work, PLAN, share)
    assert 1 <= count <= PLAN.max_replicas
    assert count == PLAN.max_replicas or fits(work, count, PLAN, share)
    assert count == 1 or not fits(work, count - 1, PLAN, share)


def test_fluid_replicas_are_those_of_littles_law() -> None:
    # Steps of 3 ms + 6.67 ms, stretched; 500 tokens of 2000 resident for 500 steps of some 11 ms, at 4 a second.
    requests = [Request(n / 4, 1750, 500) for n in range(60)]
    [need] = fluid_schedule(requests, PLAN, 1.0)
    tokens = SPEC.usable_blocks * SPEC.block_tokens
    per_request = 500 * (1750 + 250) * 0.011
    assert need == -(-4 * per_request // tokens) == 3


def test_clairvoyant_starts_pods_before_the_work_and_keeps_them_after() -> None:
    load = [Request(300 + n / 8, 1750, 500) for n in range(240)]
    signal = make_signal("clairvoyant:1", PLAN, load)
    sizes = {now: signal.replicas(view(float(now), [])) for now in range(0, 600, 15)}
    high = [now for now, size in sizes.items() if size > PLAN.min_replicas]
    # Start-up of 60 s and its spread, and a sync; the last work arrives before 330 s and stays a minute.
    assert (high[0], high[-1]) == (225, 375)
    assert len({sizes[now] for now in high}) == 1
