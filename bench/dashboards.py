"""How long Prometheus takes for each query of the dashboards, on a week of 50 pods.

    python -m bench.dashboards [--step SECONDS] [--after SECONDS]

The page of a real sidecar (of `kvgauge demo`, after a while) is replayed for 50 pods: every sample at the scrape
interval, gauges moved a little, counters rising, so that compression and the number of series are as they would be.
`promtool tsdb create-blocks-from openmetrics` makes the blocks, a Prometheus of its own serves them.
"""

import argparse
import json
import random
import shutil
import socket
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
    """Prints the ten slowest queries and the slowest of each dashboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=30, help="scrape interval in seconds (default 30)")
    parser.add_argument("--after", type=float, default=20, help="seconds that the demo runs before its page is taken")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvgauge-bench-") as name:
        folder = Path(name)
        end = int(time.time()) // 7200 * 7200
        _make(folder, _page(flags.after), flags.step, end)
        with _prometheus(folder / "data") as url:
            _report(url, end)


def _page(after_seconds: float) -> str:
    port = _free()
    with _running([sys.executable, "-m", "kvgauge", "demo", "--port", str(port)]):
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


def _report(url: str, end: int) -> None:
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
        of_one = {**values, "pod": "p7"} if name == "pod" else values
        for panel, target in [(each, target) for each in panels(name) for target in each["targets"]]:
            query = {"query": filled(target["expr"], of_one)}
            if target.get("instant"):
                query["time"] = str(end - 60)
            else:
                query |= {"start": str(end - WEEK_SECONDS), "end": str(end - 60), "step": str(WEEK_SECONDS // POINTS)}
            path = "/api/v1/query" if target.get("instant") else "/api/v1/query_range"
            began = time.perf_counter()
            with urllib.request.urlopen(f"{url}{path}?{urllib.parse.urlencode(query)}") as answer:
                json.load(answer)
            took.append((time.perf_counter() - began, name, panel["title"]))
    for name in NAMES:
        print(f"{name}: {sum(1 for item in took if item[1] == name)} queries, slowest {_worst(took, name):.3f} s")
    for seconds, name, title in sorted(took, reverse=True)[:10]:
        print(f"  {seconds:.3f} s  {name}: {title}")


def _worst(took: list[tuple[float, str, str]], name: str) -> float:
    return max(seconds for seconds, of, _ in took if of == name)


@contextmanager
def _prometheus(data: Path) -> Iterator[str]:
    port = _free()
    (data.parent / "p.yml").write_text("{}")
    program = shutil.which("prometheus") or "prometheus"
    command = [program, f"--config.file={data.parent / 'p.yml'}", f"--storage.tsdb.path={data}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=60d", "--log.level=error"]
    with _running(command):
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/-/ready", timeout=2).close()
                break
            except OSError:
                time.sleep(0.2)
        yield url


@contextmanager
def _running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
