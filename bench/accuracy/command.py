"""How accurate the memory model is: `scripts/bench accuracy [--vectors DIR] [--peers] [--check]`.

Compares it with published layer facts, engines' own planners, measured start-ups, public start-up logs and printed
figures. With `--peers` another estimator is run on the same models and docs/accuracy.md is written, wholly from what
was measured; `--check` compares that page instead, the peers' section only where `--peers` asks for it too.

Exit: 0 all figures met (and the page as it is); 1 a figure missed or the page is old; 2 there are no vectors.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.accuracy.articles import read_figures
from bench.accuracy.articles import section as articles_section
from bench.accuracy.configs import Library, read_library
from bench.accuracy.log_section import section as logs_section
from bench.accuracy.logs import read_further, read_records
from bench.accuracy.models import Comparison, KnownModel, compare_all, read_models
from bench.accuracy.models import section as models_section
from bench.accuracy.page import Section, paragraphs, table
from bench.accuracy.peers import TITLE as PEERS_TITLE
from bench.accuracy.peers import peer_configs, peers_text, run_hf_mem
from bench.accuracy.planner import other_engines_section, planner_section, read_engines
from bench.accuracy.startups import section as startups_section
from bench.table import report

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "accuracy.md"
VECTORS = ROOT.parent / "shared" / "vectors"
_FILES = ("kv_vectors.json", "engine_vectors.json", "engine_logs.jsonl", "engine_log_configs.json", "seed_vectors.json")


@dataclass(frozen=True, slots=True)
class Measured:
    """All that the page is made of, but for the peers."""

    models: list[KnownModel]
    comparisons: list[Comparison]
    library: Library
    sections: tuple[Section, ...]


def measure(vectors: Path) -> Measured:
    """Every comparison."""
    library = read_library(vectors)
    models = read_models(vectors)
    comparisons = compare_all(models, library)
    engines = read_engines(vectors)
    sections = (
        models_section(models, comparisons),
        planner_section(engines, models, library),
        startups_section(engines, library),
        other_engines_section(engines, library),
        logs_section([*read_records(vectors), *read_further(engines)], library.architecture),
        articles_section(read_figures(vectors)),
    )
    return Measured(models, comparisons, library, sections)


def page(sections: tuple[Section, ...], peers: str | None) -> str:
    """The page's Markdown; without the peers' section where there is no text for it."""
    figures = [figure for section in sections for figure in section.figures]
    rows = [
        [
            figure.name,
            f"{figure.bound:g} {figure.unit}",
            f"{figure.measured:.3g} {figure.unit}",
            "met" if figure.met else "missed",
        ]
        for figure in figures
    ]
    parts = ["# Accuracy", _HEAD, table(["figure", ">at most", ">measured", "result"], rows)]
    for section in sections:
        parts += [f"## {section.title}", section.text]
    if peers is not None:
        parts += [f"## {PEERS_TITLE}", peers]
    return paragraphs(*parts) + "\n"


def without_peers(text: str) -> str:
    """A page less its section on peers, which is the last."""
    return text.partition(f"\n## {PEERS_TITLE}\n")[0].rstrip("\n") + "\n"


def missing(vectors: Path) -> str | None:
    """One line if the vectors are not there."""
    for name in _FILES:
        if not (vectors / name).is_file():
            return f"scripts/bench accuracy: no vectors to compare with: {vectors / name} is missing (--vectors DIR)"
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench accuracy")
    parser.add_argument("--vectors", type=Path, default=VECTORS, help="where the truth lies")
    parser.add_argument("--peers", action="store_true", help="install and run hf-mem too, and write docs/accuracy.md")
    parser.add_argument("--check", action="store_true", help="write nothing: exit 1 if docs/accuracy.md is not this")
    asked = parser.parse_args(arguments)
    problem = missing(asked.vectors)
    if problem is not None:
        print(problem, file=sys.stderr)
        sys.exit(2)
    measured = measure(asked.vectors)
    peers = None
    if asked.peers:
        configs = peer_configs(measured.models, measured.library)
        peers = peers_text(measured.models, measured.comparisons, configs, run_hf_mem(configs))
    text = page(measured.sections, peers)
    note = "docs/accuracy.md is written with --peers"
    old = False
    if asked.check:
        there = PAGE.read_text() if PAGE.is_file() else ""
        old = (there if asked.peers else without_peers(there)) != text
        note = "docs/accuracy.md is old: scripts/bench accuracy --peers" if old else "docs/accuracy.md is as measured"
    elif peers is not None:
        PAGE.write_text(text)
        note = "docs/accuracy.md is written"
    try:
        report("accuracy", [figure for section in measured.sections for figure in section.figures], [note])
    except SystemExit as end:
        sys.exit(1 if old else end.code)


_HEAD = """
How far the memory model is from what is known: published configurations, engines' own planners, measured start-ups,
public start-up logs and printed figures. This page is written by `scripts/bench accuracy --peers`, every number on it,
and is compared with a new run by `scripts/bench accuracy --check`. The truth that it is compared with is not part of
the project: `--vectors DIR` says where it lies. The command exits with 1 where one of these figures is missed.
"""
