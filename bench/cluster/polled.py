"""An aggregator's polls and reckoning alone, in a process of its own: `python -m bench.cluster.polled PORT SECONDS`.

The official client is loaded too, for it takes its part of the memory.
"""

import asyncio
import gc
import json
import resource
import sys
import time

import kubernetes.aio.client

from bench.cluster.herd import PODS, stocked
from kvgauge.cluster.aggregator import GC_THRESHOLDS
from kvgauge.cluster.polling import Poller
from kvgauge.cluster.requiring import Requirer


async def main(port: int, seconds: float) -> None:
    assert kubernetes.aio.client.ApiClient is not None
    sys.setswitchinterval(0.0005)
    gc.set_threshold(*GC_THRESHOLDS)
    store = stocked(port)
    poller = Poller(store, allow_loopback=True)
    tasks = [asyncio.create_task(poller.run()), asyncio.create_task(Requirer(store).run())]
    # The first seconds connect and compile.
    await asyncio.sleep(10)
    began, used, before = time.monotonic(), time.process_time(), poller.outcomes.copy()
    longest = 0.0
    while (now := time.monotonic()) - began < seconds:
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - now - 0.01)
    whole = time.monotonic() - began
    polls = poller.outcomes - before
    age = sorted(time.monotonic() - state.reading.read_seconds for state in store.pods() if state.reading is not None)
    print(
        json.dumps(
            {
                "cores": (time.process_time() - used) / whole,
                "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "polls_per_second": polls["ok"] / whole,
                "failed": polls.total() - polls["ok"],
                "silent": PODS - len(age),
                "block_seconds": longest,
                "required": sum(required.replicas or 0 for required in store.all_required()),
            }
        ),
        flush=True,
    )
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
