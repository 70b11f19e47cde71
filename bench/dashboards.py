"""How long Prometheus takes for each query of the dashboards, on a week of 50 pods.

    python -m bench.dashboards [--step SECONDS] [--after SECONDS]

The page of a real sidecar (of `kvgauge demo`, after a while) is replayed for 50 pods: every sample at the scrape
interval, gauges moved a little, counters rising, so that compression and the number of series are as they would be.
`promtool tsdb create-blocks-from openmetrics` makes the blocks, a Prometheus of its own serves them.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from tests.dashboards.boards import NAMES, filled, panels
from tests.e2e.processes import free_port
from tests.support.programs import running

from bench.table import Figure, report

PODS = 50
WEEK_SECONDS = 7 * 86400
POINTS = 1000
AGGREGATOR = """# TYPE kvgauge_required_replicas gauge
kvgauge_required_replicas{kind="Deployment",workload="w"} 50
# TYPE kvgauge_workload_replicas gauge
kvgauge_workload_replicas{kind="Deployment",workload="w"} 52
# TYPE kvgauge_pods gauge
kvgauge_pods{kind="Deployment",workload="w",state="telling"} 50
kvgauge_pods{kind="Deployment",workload="w",state="silent"} 0
# TYPE kvgauge_signal_age_seconds gauge
kvgauge_signal_age_seconds{kind="Deployment",workload="w"} 0.5
"""


def main() -> None:
    """Prints the ten slowest queries, and the number and the slowest of each dashboard's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=30, help="scrape interval in seconds (default 30)")
    parser.add_argument("--after", type=float, default=20, help="seconds that the demo runs before its page is taken")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvgauge-bench-") as name:
        folder = Path(name)
        end = int(time.time()) // 7200 * 7200
        _make(folder, _page(folder, flags.after), flags.step, end)
        with _prometheus(folder / "data") as url:
            figures = _timed(url, end)
    report("dashboards", figures)


def _page(folder: Path, after_seconds: float) -> str:
    port = free_port()
    demo = [sys.executable, "-m", "kvgauge", "demo", "--port", str(port)]
    with running(demo, folder / "demo.log", ready=f"http://127.0.0.1:{port}/readyz"):
        time.sleep(after_seconds)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
    return text


def _make(folder: Path, page: str, step: int, end: int) -> None:
    """Blocks of a week, one pod after the other: promtool keeps in memory what it is given, a pod is little."""
    series = 0
    targets = [(page, f'namespace="a",pod="p{index}"') for index in range(PODS)]
    for index, (text, labels) in enumerate([*targets, (AGGREGATOR, 'namespace="a"')]):
        path = folder / "page.txt"
        series += _write(path, text, labels, range(end - WEEK_SECONDS, end, step), random.Random(index))
        command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "--max-block-duration=168h", "--quiet"]
        subprocess.run([*command, path, folder / "data"], check=True, stdout=subprocess.DEVNULL)
        path.unlink()
    print(f"{series} series, {series * WEEK_SECONDS // step / 1e6:.0f} million samples")


def _write(path: Path, page: str, labels: str, times: range, chance: random.Random) -> int:
    found = 0
    with path.open("w") as file:
        for family in text_string_to_metric_families(page):
            base = family.name.removesuffix("_total")
            file.write(f"# TYPE {base} {family.type}\n")
            for sample in family.samples:
                found += 1
                own = ",".join(f'{key}="{value}"' for key, value in sample.labels.items())
                head = f"{sample.name}{{{labels}{',' if own else ''}{own}}} "
                moves = sample.value not in (0.0, 1.0) and "total_bytes" not in sample.name
                value = sample.value
                for at in times:
                    if family.type == "counter":
                        value += chance.random() < 0.1
                    elif moves:
                        value = sample.value * (0.9 + 0.2 * chance.random())
                    file.write(f"{head}{value:.6g} {at}\n")
        file.write("# EOF\n")
    return found


def _timed(url: str, end: int) -> list[Figure]:
    values = {
        "namespace": "a",
        "pod": "(" + "|".join(f"p{index}" for index in range(PODS)) + ")",
        "model": ".*",
        "gpu_price": "2.5",
        "tokens": "4000",
        "requests": "100",
        "__rate_interval": f"{max(WEEK_SECONDS // POINTS, 120)}s",
    }
    took: list[tuple[float, str, str]] = []
    for name in NAMES:
        chosen = {**values, "pod": "p7"} if name == "pod" else values
        for panel, target in [(each, target) for each in panels(name) for target in each["targets"]]:
            query = {"query": filled(target["expr"], chosen)}
            if target.get("instant"):
                query["time"] = str(end - 60)
            else:
                query |= {"start": str(end - WEEK_SECONDS), "end": str(end - 60), "step": str(WEEK_SECONDS // POINTS)}
            path = "/api/v1/query" if target.get("instant") else "/api/v1/query_range"
            began = time.perf_counter()
            with urllib.request.urlopen(f"{url}{path}?{urllib.parse.urlencode(query)}") as answer:
                json.load(answer)
            took.append((time.perf_counter() - began, name, panel["title"]))
    for seconds, name, title in sorted(took, reverse=True)[:10]:
        print(f"  {seconds:.3f} s  {name}: {title}")
    figures = []
    for name in NAMES:
        of_one = [seconds for seconds, of, _ in took if of == name]
        figures.append(Figure(f"{name}: queries", "queries", 40, len(of_one)))
        figures.append(Figure(f"{name}: slowest query", "s", 1, max(of_one)))
    return figures


@contextmanager
def _prometheus(data: Path) -> Iterator[str]:
    folder, url = data.parent, f"http://127.0.0.1:{free_port()}"
    (folder / "p.yml").write_text("{}")
    command = ["prometheus", f"--config.file={folder / 'p.yml'}", f"--storage.tsdb.path={data}"]
    command += [f"--web.listen-address={url.removeprefix('http://')}", "--storage.tsdb.retention.time=60d"]
    with running([*command, "--log.level=error"], folder / "prometheus.log", ready=f"{url}/-/ready"):
        yield url


if __name__ == "__main__":
    main()
