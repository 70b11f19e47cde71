"""An autoscaler's list over 500 pods: `python -m bench.cluster.listing`."""

import http.client
import json
import ssl
import statistics
import subprocess
import sys
import time

from bench.table import Figure, report

LISTS = 500
PATH = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/llm/pods/%2A/kvgauge_load_ratio?labelSelector=quarter%3D1"


def figures() -> list[Figure]:
    with subprocess.Popen([sys.executable, "-m", "bench.cluster.listed"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            trusting = ssl.create_default_context()
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=trusting)
            seconds = []
            for _ in range(LISTS):
                began = time.perf_counter()
                connection.request("GET", PATH)
                answer = connection.getresponse().read()
                seconds.append(time.perf_counter() - began)
            assert len(json.loads(answer)["items"]) == 500
        finally:
            server.kill()
    print(f"a list of 500 of 2,000 pods: p50 {1e3 * statistics.median(seconds):.1f} ms, {len(answer)} bytes, over TLS")
    return [Figure("list over 500 pods, p99", "ms", 50, 1e3 * statistics.quantiles(seconds, n=100)[98])]


if __name__ == "__main__":
    report("cluster: listing", figures())
