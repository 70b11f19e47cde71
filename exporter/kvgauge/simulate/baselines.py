"""Scaling signals that hold one figure, or the larger of two, at a threshold; and no scaling at all.

Sources, as of autumn 2025 to 2026: llm-d's guides/workload-autoscaling (KEDA + EPP, token-aware), production-stack's
helm chart (KEDA), and the default behaviour of autoscaling/v2 where nobody publishes another.
"""

from kvgauge.simulate.autoscaled import (
    LLMD_BEHAVIOR,
    CpuSignal,
    Gauge,
    KedaSignal,
    PodsSignal,
    Scrape,
)
from kvgauge.simulate.fleet import FleetPlan, FleetView
from kvgauge.simulate.hpa_behavior import Behavior, Policy, ScalingRules
from kvgauge.simulate.spec import EngineSpec
from kvgauge.simulate.state import EngineState

TOKEN_AWARE_BEHAVIOR = Behavior(
    scale_up=ScalingRules((Policy("Pods", 1, 180),)),
    scale_down=ScalingRules((Policy("Pods", 1, 300),), stabilization_seconds=300),
)
"""That of llm-d's token-aware guide: one pod in 3 minutes up, one in 5 down."""
PRODUCTION_STACK_COOLDOWN_SECONDS = 360.0


class Static:
    """A fixed number of replicas; without one, those there are at the start."""

    scrape_seconds = 15.0
    emptiest_first = False

    def __init__(self, name: str, replicas: int | None) -> None:
        self.name = name
        self._replicas = replicas

    def observe(self, view: FleetView) -> None:
        """Needs no past."""

    def replicas(self, view: FleetView) -> int:
        return view.spec_replicas if self._replicas is None else self._replicas


def cpu(name: str, plan: FleetPlan, target_percent: int, usage_percent: float, behavior: Behavior | None) -> CpuSignal:
    """CPU usage against the request. An engine's loop spins on one core under any load: the usage is a constant."""
    return CpuSignal(name, plan, target_percent, usage_percent, behavior or Behavior())


def gpu_utilization(name: str, plan: FleetPlan, target_ratio: float, behavior: Behavior | None) -> PodsSignal:
    """Share of time in which some kernel ran, as DCGM_FI_DEV_GPU_UTIL tells it."""

    def busy_ratio(now: EngineState, before: EngineState | None) -> float | None:
        if before is None:
            return None
        # The step under way counts whole, so that a long one could make more than all of the time busy.
        elapsed = now.clock_seconds - before.clock_seconds
        return min(max((now.busy_seconds_total - before.busy_seconds_total) / elapsed, 0.0), 1.0)

    return PodsSignal(name, plan, target_ratio, busy_ratio, behavior or Behavior())


def kv_usage(name: str, plan: FleetPlan, target_ratio: float, behavior: Behavior | None) -> PodsSignal:
    """Mean share of the pool's blocks in use."""
    usable = plan.spec.usable_blocks

    def usage_ratio(now: EngineState, _: EngineState | None) -> float:
        return now.used_blocks / usable

    return PodsSignal(name, plan, target_ratio, usage_ratio, behavior or Behavior())


def queue(name: str, plan: FleetPlan, target: float, behavior: Behavior | None) -> KedaSignal:
    """Waiting requests per replica. production-stack's chart gives KEDA no behaviour, so that the autoscaler goes by
    its older rules."""
    return KedaSignal(name, plan, [Gauge("queue", target, _waiting)], behavior, PRODUCTION_STACK_COOLDOWN_SECONDS)


def running(name: str, plan: FleetPlan, target: float, behavior: Behavior | None) -> KedaSignal:
    """Running requests per replica: one half of llm-d's KEDA + EPP."""
    return KedaSignal(name, plan, [Gauge("running", target, _running)], behavior or LLMD_BEHAVIOR)


def in_flight(name: str, plan: FleetPlan, target: float, behavior: Behavior | None) -> KedaSignal:
    """Requests that have arrived and are not done per replica, wherever they are."""
    return KedaSignal(name, plan, [Gauge("in-flight", target, _in_flight)], behavior or LLMD_BEHAVIOR)


def queue_or_running(
    name: str, plan: FleetPlan, queue_target: float, running_target: float, behavior: Behavior | None
) -> KedaSignal:
    """llm-d's KEDA + EPP: waiting or running requests per replica, whichever asks for more."""
    gauges = [Gauge("queue", queue_target, _waiting), Gauge("running", running_target, _running)]
    return KedaSignal(name, plan, gauges, behavior or LLMD_BEHAVIOR)


def token_aware(
    name: str, plan: FleetPlan, prefill_seconds: float, kv_ratio: float, behavior: Behavior | None
) -> KedaSignal:
    """llm-d's token-aware KEDA: seconds of prefill that wait, or pools' worth of used cache, per replica."""
    velocity = prefill_tokens_per_second(plan.spec)
    usable = plan.spec.usable_blocks

    def backlog_seconds(scrape: Scrape) -> float:
        return sum(state.waiting_tokens for state in scrape.states.values()) / velocity

    def pools(scrape: Scrape) -> float:
        return sum(state.used_blocks for state in scrape.states.values()) / usable

    gauges = [Gauge("prefill", prefill_seconds, backlog_seconds), Gauge("kv", kv_ratio, pools)]
    return KedaSignal(name, plan, gauges, behavior or TOKEN_AWARE_BEHAVIOR)


def prefill_tokens_per_second(spec: EngineSpec) -> float:
    """V_P as llm-d's calibration measures it: a prompt of one full step on an idle engine, by its TTFT."""
    chunk = min(spec.max_num_batched_tokens, spec.max_model_len)
    return chunk / spec.step_seconds(chunk, 0, chunk, chunk * chunk / 2)


def _waiting(scrape: Scrape) -> float:
    return scrape.gateway_requests + sum(state.waiting for state in scrape.states.values())


def _running(scrape: Scrape) -> float:
    return sum(state.running for state in scrape.states.values())


def _in_flight(scrape: Scrape) -> float:
    return scrape.gateway_requests + scrape.in_flight_requests
