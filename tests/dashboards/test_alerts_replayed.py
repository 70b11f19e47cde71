"""Alerts over days of simulated engines: quiet on a healthy one, in time on faulty ones."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from kvgauge.simulate.load import DEMO_OUTPUTS, DEMO_PROMPTS, Lengths, Phase, SyntheticLoad
from kvgauge.simulate.spec import EngineSpec
from tests.dashboards.days import HOUR, MINUTE, SPEC, USED_BYTES, Faults, card, diurnal, watched
from tests.dashboards.replaying import complaints
from tests.support.facts import GIB

pytestmark = pytest.mark.prometheus

HEALTHY_PER_SECOND = 2.0


def test_all_alerts_are_quiet_on_a_healthy_day(tmp_path: Path) -> None:
    series = watched(diurnal(HEALTHY_PER_SECOND), 24 * HOUR)
    loads = numbers(series, "kvgauge_load_ratio")
    # A day of nothing would be quiet too; this one has moments of more than is safe.
    assert min(loads) < 0.3
    assert 1.0 < max(loads) < 1.5
    assert complaints(series, {24 * HOUR: set()}, tmp_path) == ""
    # Nor is a forecast too careful where pods take long to start.
    slow = 'kvgauge_start_up_seconds{namespace="a",kind="Deployment",workload="w"}'
    many = len(next(iter(series.values())))
    assert complaints({**series, slow: ["1200"] * many}, {24 * HOUR: set()}, tmp_path) == ""


def numbers(series: dict[str, list[str]], name: str) -> list[float]:
    (values,) = (values for key, values in series.items() if key.startswith(f"{name}{{"))
    return [float(value) for value in values if value not in {"_", "stale"}]


@dataclass(frozen=True, slots=True)
class Bad:
    """A fault that begins after an hour, and what has to have fired so long after it; nothing may have before."""

    fires: set[str]
    within_seconds: float
    faults: Faults = field(default_factory=Faults)
    then_per_second: float = 2.0
    first_per_second: float = 2.0
    spec: EngineSpec = SPEC
    prompts: Lengths = DEMO_PROMPTS
    outputs: Lengths = DEMO_OUTPUTS


BAD = {
    "twice the load that it can serve": Bad(
        {"KvgaugeKvPressure", "KvgaugeKvExhaustionNear", "KvgaugePreemptionStorm"}, 15 * MINUTE, then_per_second=8.0
    ),
    "a batch too small for the load": Bad(
        {"KvgaugeMaxNumSeqsSaturated"}, 15 * MINUTE, then_per_second=8.0, spec=replace(SPEC, max_num_seqs=20)
    ),
    "prompts that come faster than they are computed": Bad(
        {"KvgaugePrefillSaturated"},
        15 * MINUTE,
        then_per_second=4.0,
        first_per_second=0.5,
        spec=replace(SPEC, flops_per_second=SPEC.flops_per_second / 8, max_num_batched_tokens=2048),
        prompts=Lengths(2000, 0.3),
        outputs=Lengths(8, 0.3),
    ),
    "an engine that leaks": Bad(
        {"KvgaugeMemoryLeak"}, 90 * MINUTE, Faults(gpu=lambda now: card(USED_BYTES + leaked(now)))
    ),
    "another process on the GPU": Bad(
        {"KvgaugeForeignProcess"},
        10 * MINUTE,
        Faults(gpu=lambda now: card(USED_BYTES + after(now, 4 * GIB), engine_bytes=USED_BYTES)),
    ),
    "another process that takes what there is": Bad(
        {"KvgaugeForeignProcess", "KvgaugeVramNearlyFull"},
        10 * MINUTE,
        Faults(gpu=lambda now: card(USED_BYTES + after(now, 79 * GIB - USED_BYTES), engine_bytes=USED_BYTES)),
    ),
    "an engine that sleeps on purpose, and wakes": Bad(
        set(),
        90 * MINUTE,
        Faults(
            gpu=lambda now: card(4 * GIB if sleeps(now) else USED_BYTES),
            asleep=lambda now: sleeps(now),
        ),
        then_per_second=0.0,
    ),
    "an engine that is gone": Bad({"KvgaugeSourceDown"}, 7 * MINUTE, Faults(engine_answers=lambda now: now < HOUR)),
}


def after(now: float, size: int) -> int:
    return size if now >= HOUR else 0


def sleeps(now: float) -> bool:
    """Once what runs at the hour is served, for an hour."""
    return HOUR + 5 * MINUTE <= now < 2 * HOUR + 5 * MINUTE


def leaked(now: float) -> int:
    return round(GIB * max(now - HOUR, 0) / HOUR)


@pytest.mark.parametrize("name", BAD)
def test_the_alerts_of_a_fault_fire_in_time_and_no_others(name: str, tmp_path: Path) -> None:
    bad = BAD[name]
    end = HOUR + bad.within_seconds
    # Phases of one length vary by none of it, so that the fault begins at the hour.
    phases = (Phase(HOUR, bad.first_per_second), Phase(end, bad.then_per_second))
    load = SyntheticLoad(1, bad.spec.max_model_len, phases, bad.prompts, bad.outputs, spread_ratio=0)
    series = watched(load, end, spec=bad.spec, faults=bad.faults)
    assert complaints(series, {HOUR: set(), end: bad.fires}, tmp_path) == ""
