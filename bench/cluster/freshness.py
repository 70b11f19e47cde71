"""How long a change in an engine takes to the value that is served: `python -m bench.cluster.freshness`.

A page of a recorded vLLM changes at random moments; a real sidecar reads it, and an aggregator's poller the sidecar.
"""

import asyncio
import contextlib
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from aiohttp import web
from tests.cluster.stocking import pod
from tests.e2e.processes import free_port

from bench.table import Figure, report
from kvgauge.cluster.answers import Failure
from kvgauge.cluster.metrics import Figures
from kvgauge.cluster.polling import Poller
from kvgauge.cluster.records import PodKey
from kvgauge.cluster.store import Store

CHANGES = 60
PAGE = Path(__file__).parents[2] / "tests/captures/vllm/0.32.0/smallcache_under_pressure.prom"
RUNNING, TOKENS = "vllm:num_requests_running", "vllm:generation_tokens_total"


class Engine:
    """The page, with a number of running requests that can be set; each look finds more tokens generated."""

    def __init__(self) -> None:
        self.running = 1
        self._tokens = 1_000_000
        self._lines = PAGE.read_text().splitlines()

    async def page(self, _request: web.Request) -> web.Response:
        self._tokens += 100
        values = {RUNNING: self.running, TOKENS: self._tokens}
        lines = [
            f"{line.rpartition(' ')[0]} {values[name]}" if (name := line.partition("{")[0]) in values else line
            for line in self._lines
        ]
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")


async def measured() -> list[float]:
    engine = Engine()
    app = web.Application()
    app.router.add_get("/metrics", engine.page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = free_port()
    command = [sys.executable, "-m", "kvgauge", "sidecar", "--port", str(port), "--host", "127.0.0.1"]
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    sidecar = await asyncio.create_subprocess_exec(
        *command, "--engine", "vllm", "--engine-url", url, stderr=subprocess.DEVNULL
    )
    store = Store()
    store.put_pod(pod("a", address=f"http://127.0.0.1:{port}"))
    figures = Figures(store, lambda _: None, stale_after_seconds=10, clock=time.monotonic)
    polling = asyncio.create_task(Poller(store, allow_loopback=True).run())
    draw, found = random.Random(1), []
    try:
        await _served(figures, 1, 60)
        for number in range(2, CHANGES + 2):
            await asyncio.sleep(draw.uniform(0.2, 1.5))
            engine.running = number
            began = time.monotonic()
            await _served(figures, number, 20)
            found.append(time.monotonic() - began)
    finally:
        polling.cancel()
        sidecar.terminate()
        await sidecar.wait()
        await runner.cleanup()
    return found


async def _served(figures: Figures, running: int, seconds: float) -> None:
    """Waits until the API would answer that number."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(Failure):
            if figures.pod(PodKey("llm", "a"), "kvgauge_running_requests").thousandths == 1000 * running:
                return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{running} running requests were not served within {seconds:g} s")


def figures() -> list[Figure]:
    found = asyncio.run(measured())
    print(
        f"engine to served value, {len(found)} changes: p50 {statistics.median(found):.2f} s, most {max(found):.2f} s"
    )
    return [Figure("a change in an engine is served after, p99", "s", 3, statistics.quantiles(found, n=100)[98])]


if __name__ == "__main__":
    report("cluster: freshness", figures())
