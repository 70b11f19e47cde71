"""What the live pages cost to look at: `scripts/bench page [--seconds S]`.

A real Chromium opens the page of a running demo, of a hand-made pod with 8 GPUs and 8 ranks, both with a quarter of an
hour behind them, and of an aggregator's fleet of 2,000 pods. Bytes are those on the wire as the browser counts them,
headers included; the first paint is the browser's own first-contentful-paint, the worst of several visits.
"""

import argparse
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.browser import scenes
from tests.browser.browsing import BrowserMissingError, launched, visiting
from tests.browser.fleets import large, staged, told
from tests.browser.serving import served
from tests.cluster.stocking import put
from tests.support.process import demo

from bench.table import Figure, report
from kvgauge.publish.board import HISTORY_SECONDS, Board
from kvgauge.publish.families import Snapshot

if TYPE_CHECKING:
    from playwright.sync_api import Browser

MOST_BYTES = 60_000
MOST_PAINT_MILLISECONDS = 300
MOST_BYTES_A_SECOND = 5_000
VISITS = 5
_PAINT = """() => new Promise((done) => new PerformanceObserver((list) => {
  const found = list.getEntriesByName("first-contentful-paint");
  if (found.length) done(found[0].startTime);
}).observe({type: "paint", buffered: true}))"""


class Wire:
    """Bytes that a visit took so far."""

    def __init__(self) -> None:
        self.bytes = 0.0

    def add(self, told: dict[str, float]) -> None:
        self.bytes += told["encodedDataLength"]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench page", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="time that updates are counted for (default 30)")
    seconds = parser.parse_args().seconds
    figures = []
    try:
        with ExitStack() as stack:
            browser = stack.enter_context(launched())
            for name, page in PAGES.items():
                with page() as url:
                    figures += measured(name, browser, url, seconds)
    except BrowserMissingError as missing:
        print(f"scripts/bench page: {missing}", file=sys.stderr)
        sys.exit(2)
    report("page", figures)


def measured(name: str, browser: "Browser", url: str, seconds: float) -> list[Figure]:
    """The three figures of the page at `url`."""
    paints = []
    for _ in range(VISITS):
        with visiting(browser, url) as visit:
            paints.append(float(visit.page.evaluate(_PAINT)))
    with visiting(browser, "about:blank") as visit:
        wire, session = Wire(), visit.page.context.new_cdp_session(visit.page)
        session.send("Network.enable")
        session.on("Network.loadingFinished", wire.add)
        visit.page.goto(url)
        visit.until_live()
        opened = wire.bytes
        visit.page.wait_for_timeout(1000 * seconds)
        updates = (wire.bytes - opened) / seconds
    return [
        Figure(f"{name}: the page and its first figures", "B", MOST_BYTES, opened),
        Figure(f"{name}: first paint, worst of {VISITS}", "ms", MOST_PAINT_MILLISECONDS, max(paints)),
        Figure(f"{name}: updates", "B/s", MOST_BYTES_A_SECOND, updates),
    ]


@contextmanager
def demo_page() -> Iterator[str]:
    """A real sidecar beside the embedded engine."""
    with demo() as running:
        yield running.url


@contextmanager
def large_page() -> Iterator[str]:
    """A pod of 8 GPUs and 8 ranks, no two alike, whose sidecar has looked for a quarter of an hour and goes on."""
    chance, board = random.Random(1), Board(stale_after_seconds=float("inf"))
    start = time.time() - HISTORY_SECONDS
    for second in range(int(HISTORY_SECONDS)):
        board.publish(_varied(chance, start + second))
    with served(board) as url, _every_second(lambda: board.publish(_varied(chance, time.time()))):
        yield url


@contextmanager
def fleet_page() -> Iterator[str]:
    """An aggregator's page over a made-up fleet of 2,000 pods, each of which tells another load every second."""
    chance, store = random.Random(1), large(2000)
    pods = [state.pod for state in store.pods() if state.reading is not None]

    def tell() -> None:
        for pod in pods:
            put(store, pod, told(chance.uniform(0.2, 1.3)))

    with staged(store) as stage, _every_second(lambda: stage.change(tell)):
        yield stage.url


@contextmanager
def _every_second(act: Callable[[], object]) -> Iterator[None]:
    stopping = threading.Event()

    def go_on() -> None:
        while not stopping.wait(1):
            act()

    acting = threading.Thread(target=go_on)
    acting.start()
    try:
        yield
    finally:
        stopping.set()
        acting.join()


def _varied(chance: random.Random, wall_seconds: float) -> Snapshot:
    scene = scenes.several_gpus_and_ranks(8, 8, wall_seconds, load_ratio=chance.uniform(0.5, 1.5))
    seen = scene.assessment.observation
    gpus = tuple(replace(gpu, used_bytes=(gpu.used_bytes or 0) + chance.randrange(2**30)) for gpu in seen.gpus)
    pools = tuple(
        replace(pool, active_tokens=active, live_tokens=active - chance.randrange(999), free_tokens=120_000 - active)
        for pool in scene.assessment.pools
        for active in [chance.randrange(1000, 120_000)]
    )
    return replace(scene, assessment=replace(scene.assessment, observation=replace(seen, gpus=gpus), pools=pools))


PAGES = {"demo": demo_page, "8 GPUs, 8 ranks": large_page, "2,000 pods": fleet_page}


if __name__ == "__main__":
    main()
