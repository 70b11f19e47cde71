"""Fleets at one moment, made by hand, for the signals' tests."""

from collections.abc import Sequence
from dataclasses import replace

from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.fleet import FleetPlan, FleetView, PodView
from kvgauge.simulate.spec import EngineSpec
from kvgauge.simulate.state import EngineState

SPEC = EngineSpec(
    num_blocks=1001,
    max_model_len=8192,
    kv_bytes_per_token=131_072,
    weights_bytes=16_000_000_000,
    parameters=8_000_000_000,
    bandwidth_bytes_per_second=2.4e12,
    flops_per_second=5e14,
)
PLAN = FleetPlan(SPEC, 2.0, 0.08, start_up_seconds=60.0, min_replicas=1, max_replicas=20, initial_replicas=2)
IDLE = PagedEngine(SPEC).state()


def state(
    now: float,
    *,
    running: int = 0,
    waiting: int = 0,
    used_blocks: int = 0,
    waiting_tokens: int = 0,
    busy_seconds: float = 0.0,
) -> EngineState:
    """An engine read at `now`."""
    return replace(
        IDLE,
        clock_seconds=now,
        running=running,
        waiting=waiting,
        used_blocks=used_blocks,
        waiting_tokens=waiting_tokens,
        busy_seconds_total=busy_seconds,
    )


def view(
    now: float,
    states: Sequence[EngineState | None],
    *,
    plan: FleetPlan = PLAN,
    gateway: int = 0,
    in_flight: int = 0,
    latencies: tuple[tuple[float, float, float | None], ...] = (),
) -> FleetView:
    """A fleet of as many pods as states; one without a state is starting."""
    pods = [
        PodView(f"p{number}", 0.0, ready=one is not None, deleting=False, state=one, in_flight=in_flight)
        for number, one in enumerate(states)
    ]
    return FleetView(now, len(pods), pods, plan, latencies, gateway)
