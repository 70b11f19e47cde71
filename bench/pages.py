"""What it costs to read an engine's page and make it like any other's: `scripts/bench pages [--captures DIR]`.

Every metrics page under tests/captures, and under DIR, is read by the engine whose marks it carries, with the JSON
pages that lie beside it; the figure is the median of many reads, without the network.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from tests.support.pages import Body, GivenPages

from bench.table import Figure, report
from kvgauge.observe.engines import ENGINES
from kvgauge.observe.engines.contract import Engine, Hints
from kvgauge.observe.exposition import sample_names
from kvgauge.observe.records import SourceError

CAPTURES = Path(__file__).parent.parent / "tests" / "captures"
MOST_MILLISECONDS = 5.0
ROUNDS = 50
_PAGE_PATHS = ("/metrics", "/prometheus/metrics", "/v1/metrics")
# What a JSON file is called, up to its first underline or dash, and the paths it is served at.
_JSON_PATHS = {
    "loads": ("/v1/loads",),
    "server": ("/server_info",),
    "slots": ("/slots",),
    "props": ("/props",),
    "ps": ("/api/ps",),
    "info": ("/info",),
    "models": ("/v1/models",),
}


def engine_of(names: frozenset[bytes], body: bytes) -> Engine | None:
    """The engine whose marks a page carries; a wrapper goes before what it passes through."""
    found = [engine for engine in ENGINES if engine.marks.page(names, body)]
    return next((engine for engine in found if engine.marks.wraps), found[0] if found else None)


def pages_of(page: Path) -> dict[str, Body]:
    """The page and the JSON pages of its folder, by path."""
    bodies: dict[str, Body] = dict.fromkeys(_PAGE_PATHS, page.read_bytes())
    for file in sorted(page.parent.glob("*.json")):
        kind = file.stem.replace("-", "_").split("_")[0]
        bodies.update(dict.fromkeys(_JSON_PATHS.get(kind, ()), file.read_bytes()))
    return bodies


def read_milliseconds(engine: Engine, bodies: dict[str, Body]) -> float:
    """Median of one read with everything on it. Raises SourceError for an excerpt that is no engine's whole page."""
    times = []
    for _ in range(ROUNDS):
        pages = GivenPages(bodies, Hints())
        began = time.perf_counter()
        engine.read(pages)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench pages", description="What reading an engine's page costs.")
    parser.add_argument("--captures", type=Path, help="a further folder of pages (*.prom, metrics*.txt)")
    folders = [CAPTURES, *filter(None, [parser.parse_args().captures])]
    figures = []
    for folder in folders:
        for page in sorted([*folder.rglob("*.prom"), *folder.rglob("metrics*.txt")]):
            body = page.read_bytes()
            engine = engine_of(frozenset(sample_names(body)), body)
            name = str(page.relative_to(folder))
            if engine is None:
                sys.stdout.write(f"{name}: an excerpt without the marks of an engine\n")
                continue
            try:
                milliseconds = read_milliseconds(engine, pages_of(page))
            except SourceError as error:
                sys.stdout.write(f"{name}: {error.message}\n")
                continue
            figures.append(Figure(f"{engine.name}: {name}", "ms", MOST_MILLISECONDS, milliseconds))
    report("pages", figures)


if __name__ == "__main__":
    main()
