"""How long Prometheus takes for each query of the dashboards, on a week of 50 pods.

    scripts/bench dashboards [--step SECONDS] [--after SECONDS]

The page of a real sidecar (of `kvgauge demo`, after a while) is replayed for 50 pods: every sample at the scrape
interval, gauges moved a little, counters rising, so that compression and the number of series are as they would be.
Series that the demo has not (its engine has no agent) are made up, so that no query is quick for want of data.
`promtool tsdb create-blocks-from openmetrics` makes the blocks, a Prometheus of its own serves them.

At the default step it takes about 4 minutes, 0.4 GiB of memory and 1 GB of disk, where TMPDIR says.
"""

import argparse
import json
import random
import re
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
from tests.dashboards.boards import NAMES, choices, filled, metrics, panels, queries
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
# TYPE kvgauge_start_up_seconds gauge
kvgauge_start_up_seconds{kind="Deployment",workload="w"} 90
"""

SELDOM = """# TYPE kvgauge_allocator_bytes gauge
kvgauge_allocator_bytes{gpu="0",uuid="u",state="allocated"} 7.1e10
kvgauge_allocator_bytes{gpu="0",uuid="u",state="reserved"} 7.2e10
kvgauge_allocator_bytes{gpu="0",uuid="u",state="inactive_split"} 2e8
kvgauge_allocator_bytes{gpu="0",uuid="u",state="requested"} 7e10
kvgauge_allocator_bytes{gpu="0",uuid="u",state="largest_free"} 5e8
# TYPE kvgauge_allocator_fragmentation_ratio gauge
kvgauge_allocator_fragmentation_ratio{gpu="0",uuid="u"} 0.4
# TYPE kvgauge_memory_drift_bytes gauge
kvgauge_memory_drift_bytes{gpu="0",uuid="u",kind="leak"} 3e8
kvgauge_memory_drift_bytes{gpu="0",uuid="u",kind="foreign_process"} 3e8
kvgauge_memory_drift_bytes{gpu="0",uuid="u",kind="flags"} 3e8
# TYPE kvgauge_source_errors_total counter
kvgauge_source_errors_total{source="engine",reason="timeout"} 1
"""
"""What a demo does not show, or not at once, or not with a value that is one."""


def main() -> None:
    """Prints the ten slowest queries, and the number and the slowest of each dashboard's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=30, help="scrape interval in seconds (default 30)")
    parser.add_argument("--after", type=float, default=20, help="seconds that the demo runs before its page is taken")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvgauge-bench-") as name:
        folder = Path(name)
        end = int(time.time()) // 7200 * 7200
        _make(folder, _completed(_page(folder, flags.after)), flags.step, end)
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


def _completed(page: str) -> str:
    """With what it has not; calibrated parts are as many as predicted ones. Raises SystemExit where a series that a
    dashboard asks for is still missing."""
    for name in metrics(SELDOM):
        page = re.sub(rf"(?m)^(?:# (?:HELP|TYPE) )?{name}\b.*\n", "", page)
    names = metrics(page)
    predicted = "\n".join(line for line in page.splitlines() if "kvgauge_memory_predicted_bytes" in line)
    calibrated = re.sub("(?m)^# HELP.*\n", "", predicted).replace("_predicted_", "_calibrated_") + "\n"
    whole = page + SELDOM + ("" if "kvgauge_memory_calibrated_bytes" in names else calibrated)
    asked = {metric for name in NAMES for _, expr in queries(name) for metric in metrics(expr)}
    if missing := asked - metrics(whole + AGGREGATOR):
        raise SystemExit(f"bench.dashboards: no series of {', '.join(sorted(missing))}")
    return whole


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
    took: list[tuple[float, str, str]] = []
    empty = 0
    for name in NAMES:
        for title, path, query in _asked(name, end):
            began = time.perf_counter()
            with urllib.request.urlopen(f"{url}{path}?{urllib.parse.urlencode(query)}") as answer:
                found = json.load(answer)["data"]
            took.append((time.perf_counter() - began, name, title))
            if not (found if isinstance(found, list) else found["result"]):
                empty += 1
                print(f"  no data: {name}: {title}")
    for seconds, name, title in sorted(took, reverse=True)[:10]:
        print(f"  {seconds:.3f} s  {name}: {title}")
    figures = [Figure("queries without data", "", 0, empty)]
    for name in NAMES:
        of_one = [seconds for seconds, of, _ in took if of == name]
        figures.append(Figure(f"{name}: queries", "queries", 40, len(list(queries(name)))))
        figures.append(Figure(f"{name}: slowest query", "s", 1, max(of_one)))
    return figures


def _asked(name: str, end: int) -> Iterator[tuple[str, str, dict[str, str]]]:
    """What a dashboard asks when it is opened over the week: the title of a panel or variable, the path, the query."""
    pods = "p7" if name == "pod" else "(" + "|".join(f"p{index}" for index in range(PODS)) + ")"
    values = {
        "namespace": "a",
        "pod": pods,
        "model": ".*",
        "gpu_price": "2.5",
        "tokens": "4000",
        "requests": "100",
        "__rate_interval": f"{max(WEEK_SECONDS // POINTS, 120)}s",
    }
    week = {"start": str(end - WEEK_SECONDS), "end": str(end - 60)}
    for label, selector in choices(name):
        yield f"variable {label}", f"/api/v1/label/{label}/values", {"match[]": filled(selector, values), **week}
    for panel, target in [(each, target) for each in panels(name) for target in each["targets"]]:
        query = {"query": filled(target["expr"], values)}
        if target.get("instant"):
            yield panel["title"], "/api/v1/query", {**query, "time": str(end - 60)}
        else:
            step = str(WEEK_SECONDS // POINTS)
            yield panel["title"], "/api/v1/query_range", {**query, **week, "step": step}


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
