"""A scenario under signals: one run of the fleet for each, over the same requests."""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kvgauge.complaints import InputError
from kvgauge.simulate.faults import Faults, make_faults
from kvgauge.simulate.fleet import Fleet, FleetPlan, FleetResult, Signal, UnservedError
from kvgauge.simulate.scenario import Scenario
from kvgauge.simulate.signals import NAMES, make_signal
from kvgauge.simulate.spec import EngineSpec, Request
from kvgauge.simulate.traces import Trace

ADVISED = "kvgauge"
"""The signal of this project's own advice."""


@dataclass(frozen=True, slots=True)
class Served:
    """A load, as far as the engine can take it."""

    requests: tuple[Request, ...]
    """In order of arrival, none longer than the engine's `max_model_len`."""
    duration_seconds: float
    skipped: int
    """Requests that are longer, and left out."""
    warnings: tuple[str, ...]
    """What was odd about the load, a sentence each."""


@dataclass(frozen=True, slots=True)
class Run:
    """How one signal did, and under what."""

    scenario: Scenario
    plan: FleetPlan
    served: Served
    fault: str | None
    result: FleetResult


def advised_signals() -> None:
    """Loads what registers the signal `kvgauge`. It is heavier than the rest, so this is done when signals are made."""
    importlib.import_module("kvgauge.simulate.advised")


def fleet_plan(scenario: Scenario) -> FleetPlan:
    """The fleet of a scenario. Raises InputError naming a field of the engine."""
    return FleetPlan(
        spec=scenario.spec(),
        slo_ttft_seconds=scenario.slo_ttft_seconds,
        slo_tpot_seconds=scenario.slo_tpot_seconds,
        start_up_seconds=scenario.start_up_seconds,
        min_replicas=scenario.min_replicas,
        max_replicas=scenario.max_replicas,
        initial_replicas=scenario.initial_replicas,
        warm_up_seconds=scenario.warm_up_seconds,
        seed=scenario.seed,
    )


def served_load(scenario: Scenario, spec: EngineSpec) -> Served:
    """The scenario's requests. Raises InputError for a load that cannot be read, or has none that the engine takes."""
    load = scenario.load()
    longest = spec.max_model_len
    requests: list[Request] = []
    skipped = 0
    for request in load.requests():
        if request.total_tokens <= longest:
            requests.append(request)
        else:
            skipped += 1
    if not requests:
        raise InputError(f"max_model_len: {longest} tokens are less than each of the {skipped} requests has")
    warnings = load.warnings if isinstance(load, Trace) else ()
    if skipped:
        warnings += (f"{skipped} requests have more than the engine's max_model_len of {longest} tokens; left out",)
    # A trace ends with its last arrival, which is to be served.
    duration = max(load.duration_seconds, math.nextafter(requests[-1].arrival_seconds, math.inf))
    if scenario.warm_up_seconds >= duration:
        warnings += (f"the load ends before the warm-up of {scenario.warm_up_seconds:g} seconds; nothing is left out",)
    return Served(tuple(requests), duration, skipped, warnings)


def run_signals(
    scenario: Scenario,
    signals: Sequence[str],
    *,
    fault: str | None = None,
    keep_samples: bool = False,
    on_progress: Callable[[float], None] = lambda _: None,
) -> list[Run]:
    """One run for each signal, in their order. `on_progress` is told the share that is done, 0 to 1.

    Deterministic: the same scenario, signal and fault give the same result. Raises InputError for what the scenario,
    a signal or the fault cannot be, before any of them runs, and for a load that a signal's fleet never gets done.
    """
    plan = fleet_plan(scenario)
    served = served_load(scenario, plan.spec)
    if plan.warm_up_seconds >= served.duration_seconds:
        plan = replace(plan, warm_up_seconds=0.0)
    check = make_faults(fault, duration_seconds=served.duration_seconds, seed=scenario.seed)
    for text in signals:
        signal_under(text, scenario, plan, served, check)
    runs = []
    for index, text in enumerate(signals):
        # Anew for each: signals and faults remember.
        faults = make_faults(fault, duration_seconds=served.duration_seconds, seed=scenario.seed)
        signal = signal_under(text, scenario, plan, served, faults)
        fleet = Fleet(plan, signal, scrape=faults.scrape, keep_samples=keep_samples)
        begun = index / len(signals)
        scale = 1 / (len(signals) * max(served.duration_seconds, 1e-9))
        try:
            result = fleet.run(
                served.requests,
                served.duration_seconds,
                lambda now, begun=begun, scale=scale: on_progress(begun + scale * now),  # type: ignore[misc]
            )
        except UnservedError as error:
            raise InputError(f"signal {signal.name}: {error}: raise --max or --min, or lower --scale") from None
        runs.append(Run(scenario, plan, served, fault, result))
    return runs


def signal_under(text: str, scenario: Scenario, plan: FleetPlan, served: Served, faults: Faults) -> Signal:
    """A new signal for one run under these faults. Raises InputError for one that there is not."""
    name = text.strip().partition(":")[0]
    if name not in NAMES:
        advised_signals()
    if name == ADVISED and faults.touches_advice:
        from kvgauge.simulate.advised import Advised

        return Advised(
            plan,
            text.strip(),
            roofline_ratio=faults.roofline_ratio,
            restart_at_seconds=faults.restart_at_seconds,
            behavior=scenario.behavior,
        )
    return make_signal(text, plan, served.requests, behavior=scenario.behavior)
