"""What the advice is worth: `scripts/bench advice [--only NAME ...] [--write]`.

The autoscaler's algorithm against its own test vectors, published anchors, safe concurrency on one engine, saturation,
the fleet rule against the signals people use, and speed. `--write` puts the tables into docs/advice.md.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.advice import evaluation, hpa_vectors, knee, latency_anchors, safe_concurrency, speed
from bench.advice.loads import EVALUATION, TRACES
from bench.table import Figure, report

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/advice.md"
VECTORS = TRACES.parent / "vectors/hpa_vectors.json"


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the bench: its figures, lines to print below them, and Markdown by the name of its place."""

    figures: Sequence[Figure]
    notes: Sequence[str] = ()
    tables: Sequence[tuple[str, Sequence[str]]] = ()


def hpa() -> Section:
    groups = hpa_vectors.conformance(VECTORS)
    return Section(
        [Figure(f"{name}: of {total} vectors, failed", "", 0, total - passed) for name, passed, total, _ in groups],
        [f"{name}: {', '.join(failed)}" for name, _, _, failed in groups if failed],
    )


def latency() -> Section:
    found = latency_anchors.anchors()
    outside = [anchor for anchor in found if abs(anchor.error_ratio) > latency_anchors.TOLERANCE]
    share = 100 * len(outside) / len(found)
    names = [
        f"{a.model} {a.gpu} tp {a.tp}, batch {a.batch}, prompt {a.prompt_tokens}: {a.error_ratio:+.0%}" for a in outside
    ]
    return Section([Figure(f"of {len(found)} measured inter-token latencies, over 15 % off", "%", 0, share)], names)


def concurrency() -> Section:
    results = [safe_concurrency.result(mix) for mix in safe_concurrency.mixes(1)]
    figures, notes = safe_concurrency.figures(results), safe_concurrency.notes(results)
    rows = ["| mix | requests/s lost | preempted per 1000 |", "|---|---|---|"]
    rows += [
        f"| {lost.name.partition(': ')[0]} | {lost.measured:.1f} % | {preempted.measured:.1f} |"
        for lost, preempted in zip(figures[::2], figures[1::2], strict=True)
    ]
    return Section(figures, notes, [("concurrency", rows)])


def saturation() -> Section:
    knees = [knee.knee(case) for case in knee.CASES]
    return Section(knee.figures(knees), knee.notes(knees))


def fleet() -> Section:
    loads = [evaluation.runs_of(name) for name in EVALUATION]
    tables = [("evaluation", evaluation.table(loads)), ("faults", evaluation.fault_table(loads))]
    return Section(list(evaluation.figures(loads)), evaluation.notes(loads), tables)


def times() -> Section:
    return Section(speed.figures())


SECTIONS: dict[str, Callable[[], Section]] = {
    "hpa": hpa,
    "latency": latency,
    "concurrency": concurrency,
    "saturation": saturation,
    "fleet": fleet,
    "speed": times,
}


def written(document: str, name: str, lines: Sequence[str]) -> str:
    """The document with the lines between its two marks of that name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = document.partition(begin)
    _, _, after = rest.partition(end)
    return before + begin + "\n".join(lines) + "\n" + end + after


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench advice")
    parser.add_argument("--only", action="append", choices=tuple(SECTIONS), help="only this part (several times)")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/advice.md")
    options = parser.parse_args()
    if not TRACES.is_dir():
        print(f"scripts/bench advice: the traces are not here: {TRACES.name} should lie beside the checkout's folder")
        sys.exit(2)
    figures: list[Figure] = []
    notes: list[str] = []
    for name in options.only or SECTIONS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        section = SECTIONS[name]()
        figures += section.figures
        notes += section.notes
        if options.write:
            for place, lines in section.tables:
                DOCUMENT.write_text(written(DOCUMENT.read_text(), place, lines))
    report("advice", figures, notes)


if __name__ == "__main__":
    main()
