"""What the injector costs a pod's creation: reviews of real pods over TLS, answered by its own process."""

import http.client
import json
import statistics
import tempfile
import time
from pathlib import Path

from tests.cluster.injector.given import NAMES, manifest
from tests.cluster.injector.running import Injector, injector, review

from bench.table import Figure, report

REVIEWS_PER_SECOND = 50
SECONDS = 20


def _answer_seconds(connection: http.client.HTTPSConnection, body: bytes, due: float) -> float:
    """From when it was due, whatever the one before took."""
    connection.request("POST", "/inject", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert b'"patch"' in answer.read()
    return time.perf_counter() - due


def latencies(running: Injector, per_second: float, seconds: float) -> list[float]:
    """Seconds of each review on a kept connection, as the API server keeps one; pods of all engines in turn, with the
    agent."""
    bodies = [json.dumps(review(manifest(name, {"kvgauge.dev/agent": "true"}))).encode() for name in NAMES]
    connection = running.connection()
    found = []
    # The first of a process pays for the connection and for what is loaded late.
    _answer_seconds(connection, bodies[0], time.perf_counter())
    began = time.perf_counter()
    for number in range(int(per_second * seconds)):
        due = began + number / per_second
        time.sleep(max(due - time.perf_counter(), 0))
        found.append(_answer_seconds(connection, bodies[number % len(bodies)], due))
    connection.close()
    return sorted(found)


def figures() -> list[Figure]:
    """Measured now; takes about as many seconds as SECONDS."""
    with tempfile.TemporaryDirectory() as folder, injector(Path(folder), "--native-sidecars=always") as running:
        found = latencies(running, REVIEWS_PER_SECOND, SECONDS)
    p99 = found[int(0.99 * len(found))]
    print(f"injector: p50 {1e3 * statistics.median(found):.2f} ms, slowest {1e3 * found[-1]:.2f} ms")
    return [Figure(f"injector p99 at {REVIEWS_PER_SECOND} reviews/s over TLS", "ms", 20, 1e3 * p99)]


if __name__ == "__main__":
    report("cluster: injecting", figures())
