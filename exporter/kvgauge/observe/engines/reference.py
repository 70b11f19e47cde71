"""Writes docs/engines.md from the engine files: `python -m kvgauge.observe.engines.reference > docs/engines.md`."""

import sys

from kvgauge.observe.engines import ENGINES, PAGELESS
from kvgauge.observe.engines.contract import FACTS

_INTRODUCTION = """# Engines

What each engine tells of its KV cache, and how each fact is had: *exact* where the engine states it, *derived* where it
follows from what it states, *unavailable* where nothing tells it. A fact that is unavailable has no series, and
`missing` in `/v1/observation` says why. `--engine auto`, the default, tells the engine by what it answers, never by its
port; `--engine NAME` names it.

Facts mean the same whatever the engine calls them. *Active* slots are held by live sequences; *reclaimable* ones hold
only prefixes that may be used again, and are free for the asking; *live tokens* are slots that hold a token of a live
sequence; *reserved* are slots set aside for tokens to come. *Freshness* is what moves while requests run: an engine
that has requests and has not moved for `--stalled-after` counts as down, with reason `stalled`. *Steps*, *computed
prompts* and the time between tokens are what tells how fast an engine is.

| engine | `--engine` | versions |
|---|---|---|
"""


def reference() -> str:
    """The page, as Markdown."""
    engines = (*ENGINES, *PAGELESS)
    overview = (f"| {engine.title} | `{engine.name}` | {engine.versions} |\n" for engine in engines)
    tables = (
        f"\n## {engine.title}\n\n| fact | how it is had |\n|---|---|\n"
        + "".join(f"| {fact} | {engine.facts[fact]} |\n" for fact in FACTS)
        for engine in engines
    )
    return "".join((_INTRODUCTION, *overview, *tables))


if __name__ == "__main__":
    sys.stdout.write(reference())
