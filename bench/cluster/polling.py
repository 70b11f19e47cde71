"""One aggregator and 2,000 sidecars: `python -m bench.cluster.polling`."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bench.cluster.herd import PODS, WORKLOADS
from bench.table import Figure, report

SECONDS = 40
MIB = 1 << 20


@contextmanager
def herd() -> Iterator[tuple[int, int]]:
    """(port of the fakes, bytes of an answer)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with subprocess.Popen([sys.executable, "-m", "bench.cluster.herd"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port, size = server.stdout.readline().split()
            yield int(port), int(size)
        finally:
            server.kill()


def figures() -> list[Figure]:
    with herd() as (port, size):
        command = [sys.executable, "-m", "bench.cluster.polled", str(port), str(SECONDS)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"{PODS} sidecars of {WORKLOADS} workloads, {size} bytes an answer: {told['polls_per_second']:.0f} polls/s, "
        f"{told['failed']} failed, the loop held up for {1e3 * told['block_seconds']:.0f} ms at most"
    )
    assert told["silent"] == 0
    assert told["required"] > 0
    return [
        Figure(f"{PODS} sidecars at 1 Hz", "cores", 1, told["cores"]),
        Figure("its peak of memory", "MiB", 512, told["rss_bytes"] / MIB),
        Figure("polls missed, of those due", "%", 1, 100 * (1 - told["polls_per_second"] / PODS)),
    ]


if __name__ == "__main__":
    report("cluster: polling", figures())
