"""What `kvgauge simulate` tells of its runs: JSON with units in its keys, or a table for a person."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from kvgauge.complaints import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from kvgauge.simulate.running import Run

_HEADINGS = (
    "signal",
    "both met %",
    "TTFT met %",
    "TPOT met %",
    "TTFT p99 s",
    "mean pods",
    "GPU hours",
    "preempted per 1000",
    "changes per h",
    "flips per h",
)

_ROOMY_COLUMNS = 96


def gpu_hours(run: Run) -> float:
    """Hours of all GPUs of all pods: a pod has as many as its engine is parallel."""
    return run.result.gpu_hours * run.scenario.engine.tp


def to_json(run: Run) -> dict[str, object]:
    """One run, flat."""
    result = asdict(run.result)
    del result["samples"]
    plan = run.plan
    return {
        "scenario": run.scenario.name,
        **result,
        "gpu_hours": gpu_hours(run),
        "gpus_per_replica": run.scenario.engine.tp,
        "fault": run.fault,
        "slo_ttft_seconds": plan.slo_ttft_seconds,
        "slo_tpot_seconds": plan.slo_tpot_seconds,
        "warm_up_seconds": plan.warm_up_seconds,
        "duration_seconds": run.served.duration_seconds,
        "skipped_requests": run.served.skipped,
        "warnings": list(run.served.warnings),
    }


def print_json(runs: Sequence[Run], *, as_list: bool) -> None:
    """The runs on stdout: a list, or the only one as an object."""
    listed = [to_json(run) for run in runs]
    sys.stdout.write(json.dumps(listed if as_list else listed[0], indent=2, allow_nan=False) + "\n")


def summary(run: Run) -> str:
    """What was simulated, in a sentence that holds for all runs of one scenario."""
    plan, served = run.plan, run.served
    fault = "" if run.fault is None else f", fault {run.fault}"
    judged = served.duration_seconds - plan.warm_up_seconds
    return (
        f"{run.scenario.name}: {run.result.requests:,} requests in {duration(judged)} after "
        f"{duration(plan.warm_up_seconds)} of warm-up, "
        f"{plan.min_replicas} to {plan.max_replicas} pods of {gpus(run.scenario.engine.tp)} that start in "
        f"{duration(plan.start_up_seconds)}; TTFT at most {plan.slo_ttft_seconds:g} s and TPOT at most "
        f"{plan.slo_tpot_seconds * 1000:g} ms{fault}; seed {plan.seed}"
    )


def gpus(count: int) -> str:
    """`1 GPU`, `2 GPUs`."""
    return f"{count} GPU" + "s" * (count != 1)


def duration(seconds: float) -> str:
    """`90 s`, `6.5 min`, `24 h`: as a person would say it."""
    for size, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{round(seconds / size, 1):g} {name}"
    return f"{round(seconds, 1):g} s"


def cells(run: Run) -> tuple[str, ...]:
    """A run's figures under `_HEADINGS`."""
    result = run.result
    return (
        result.signal,
        percent(result.attainment_ratio),
        percent(result.ttft_attainment_ratio),
        percent(result.tpot_attainment_ratio),
        f"{result.ttft_p99_seconds:.2f}",
        f"{result.mean_replicas:.2f}",
        f"{gpu_hours(run):,.1f}",
        f"{result.preempted_per_1000:.1f}",
        f"{result.changes_per_hour:.1f}",
        f"{result.flips_per_hour:.1f}",
    )


def percent(ratio: float) -> str:
    """Two decimals, cut and not rounded: 100.00 is only said where every request was in time."""
    return f"{int(ratio * 10_000 + 1e-9) / 100:.2f}"


def headings() -> tuple[str, ...]:
    """Names of the columns of `cells`."""
    return _HEADINGS


def show(runs: Sequence[Run]) -> None:
    """The runs on stdout as a table, what was simulated above it, warnings below. Raises InputError without rich."""
    console = _console()
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console.print(Text(summary(runs[0])))
    console.print()
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        padding=(0, 1 if console.width >= _ROOMY_COLUMNS else 0),
    )
    for index, heading in enumerate(_HEADINGS):
        # A word of a heading and a number are never cut in two: where room is short, the signal's name is folded.
        widest = max(len(word) for word in heading.split())
        if index == 0:
            table.add_column(heading, overflow="fold", min_width=widest)
        else:
            widest = max([widest, *(len(cells(run)[index]) for run in runs)])
            table.add_column(heading, justify="right", overflow="fold", width=widest)
    for run in runs:
        table.add_row(*(Text(cell) for cell in cells(run)))
    console.print(table)
    for warning in runs[0].served.warnings:
        console.print(Text(f"warning: {warning}"))


def _console() -> Console:
    try:
        from rich.console import Console
    except ImportError:
        raise InputError("rich is missing: install it for tables, or use --json") from None
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal cannot show is no reason to show nothing.
        sys.stdout.reconfigure(errors="replace")
    # Markup off: a scenario's name may hold brackets.
    return Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
