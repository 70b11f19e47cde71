"""kvgauge's fleet rule against the signals that people use, on five loads, at one frozen default each.

`python -m bench.advice.evaluation [--load NAME ...] [--signals A,B]` prints every run.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bench.advice.loads import EVALUATION
from bench.table import Figure
from kvgauge.simulate.faults import NAMES as FAULTS
from kvgauge.simulate.fleet import FleetResult
from kvgauge.simulate.running import ADVISED, run_signals

BASELINES = (
    "gpu-utilization",
    "queue",
    "queue:1",
    "running",
    "in-flight",
    "kv:0.7",
    "kv",
    "queue-or-running",
    "token-aware",
    "wva-v1",
    "wva-v2",
    "slo-aware",
    "aibrix-kpa",
)
"""Single signals at their published defaults."""
PEAK_ATTAINMENT = 0.98
LEAST_ATTAINMENT = 0.95
LEAST_SAVED_RATIO = 0.25
MOST_LOST = 0.03
MOST_PREEMPTED_PER_1000 = 10.0
MOST_FLIPS_PER_HOUR = 4.0


@dataclass(frozen=True, slots=True)
class LoadRuns:
    """All runs of one load."""

    load: str
    peak: FleetResult
    """A static pool of as many pods as the fleet may have."""
    advised: FleetResult
    baselines: tuple[FleetResult, ...]
    faults: tuple[tuple[str, FleetResult], ...]


def runs_of(name: str, signals: Sequence[str] = BASELINES, faults: Sequence[str] = tuple(FAULTS)) -> LoadRuns:
    """Runs one load under kvgauge, without and with each fault, and under each baseline."""
    scenario = EVALUATION[name]
    peak = replace(scenario, initial_replicas=scenario.max_replicas)
    (static,) = run_signals(peak, ["static"])
    first, *others = run_signals(scenario, [ADVISED, *signals])
    broken = [(fault, run_signals(scenario, [ADVISED], fault=fault)[0].result) for fault in faults]
    return LoadRuns(name, static.result, first.result, tuple(run.result for run in others), tuple(broken))


def most_robust(loads: Sequence[LoadRuns]) -> str:
    """The baseline whose worst load is the best of all."""
    worst: dict[str, float] = {}
    for load in loads:
        for result in load.baselines:
            worst[result.signal] = min(worst.get(result.signal, 1.0), result.attainment_ratio)
    return max(worst, key=lambda signal: worst[signal])


def saved_ratio(loads: Sequence[LoadRuns], signal: str) -> float:
    """1 - geometric mean of kvgauge's GPU-hours over those of a baseline."""
    ratios = [
        load.advised.gpu_hours / next(result.gpu_hours for result in load.baselines if result.signal == signal)
        for load in loads
    ]
    return 1 - math.exp(sum(map(math.log, ratios)) / len(ratios))


def figures(loads: Sequence[LoadRuns]) -> Iterator[Figure]:
    """What the rule is held to."""
    for load in loads:
        result = load.advised
        if load.peak.attainment_ratio >= PEAK_ATTAINMENT:
            yield Figure(
                f"{load.load}: requests that miss",
                "%",
                100 * (1 - LEAST_ATTAINMENT),
                100 * (1 - result.attainment_ratio),
            )
        yield Figure(f"{load.load}: preempted", "per 1000", MOST_PREEMPTED_PER_1000, result.preempted_per_1000)
        yield Figure(f"{load.load}: direction flips", "per hour", MOST_FLIPS_PER_HOUR, result.flips_per_hour)
        for fault, broken in load.faults:
            lost = 100 * (result.attainment_ratio - broken.attainment_ratio)
            yield Figure(f"{load.load}: lost under {fault}", "points", 100 * MOST_LOST, lost)
    robust = most_robust(loads)
    left = 100 * (1 - saved_ratio(loads, robust))
    yield Figure(f"GPU-hours of {robust}, the most robust baseline", "%", 100 * (1 - LEAST_SAVED_RATIO), left)
    episode = next((load for load in loads if load.load == "llm-d"), None)
    if episode is not None:
        yield Figure(
            "llm-d: requests that miss, the episode's own bound", "%", 2, 100 * (1 - episode.advised.attainment_ratio)
        )
        yield Figure("llm-d: replicas on average", "", 5.9, round(episode.advised.mean_replicas, 2))
        yield Figure("llm-d: static 8, requests that miss", "%", 1, 100 * (1 - episode.peak.attainment_ratio))
        law = next(result for result in episode.baselines if result.signal == "slo-aware")
        yield Figure("llm-d: its law, off 5.9 replicas by", "", 0.3, abs(round(law.mean_replicas, 2) - 5.9))


def table(loads: Sequence[LoadRuns]) -> list[str]:
    """Attainment and replicas of every signal on every load, as Markdown."""
    lines = ["| signal | " + " | ".join(load.load for load in loads) + " | worst |", "|---" * (len(loads) + 2) + "|"]
    names = [result.signal for result in loads[0].baselines]
    rows = [("**kvgauge**", [load.advised for load in loads])]
    rows += [(name, [load.baselines[place] for load in loads]) for place, name in enumerate(names)]
    rows.append(("static, the most that are allowed", [load.peak for load in loads]))
    for name, results in rows:
        cells = " | ".join(f"{100 * result.attainment_ratio:.1f} @ {result.mean_replicas:.2f}" for result in results)
        lines.append(f"| {name} | {cells} | {100 * min(result.attainment_ratio for result in results):.1f} |")
    return lines


def fault_table(loads: Sequence[LoadRuns]) -> list[str]:
    """kvgauge under each fault, as Markdown."""
    lines = ["| fault | " + " | ".join(load.load for load in loads) + " |", "|---" * (len(loads) + 1) + "|"]
    rows = [("none", [load.advised for load in loads])]
    rows += [(name, [dict(load.faults)[name] for load in loads]) for name, _ in loads[0].faults]
    for name, results in rows:
        cells = " | ".join(f"{100 * result.attainment_ratio:.1f} @ {result.mean_replicas:.2f}" for result in results)
        lines.append(f"| {name} | {cells} |")
    return lines


def notes(loads: Sequence[LoadRuns]) -> list[str]:
    """The tables, and what each baseline would cost."""
    saved = ", ".join(f"{name} {100 * saved_ratio(loads, name):+.0f} %" for name in BASELINES if _ran(loads, name))
    return [
        "",
        "attainment in % @ replicas on average",
        *table(loads),
        "",
        *fault_table(loads),
        "",
        f"GPU-hours saved against each, geometric mean, whatever it attains: {saved}",
    ]


def _ran(loads: Sequence[LoadRuns], name: str) -> bool:
    return any(result.signal == name for result in loads[0].baselines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.advice.evaluation")
    parser.add_argument("--load", action="append", choices=tuple(EVALUATION), help="only this load (several times)")
    parser.add_argument("--signals", default=",".join(BASELINES), help="baselines, by comma")
    options = parser.parse_args()
    signals = [name for name in options.signals.split(",") if name]
    loads = [runs_of(name, signals) for name in options.load or EVALUATION]
    print("\n".join(notes(loads)))


if __name__ == "__main__":
    main()
