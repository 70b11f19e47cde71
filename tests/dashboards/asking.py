"""A real Prometheus of the tests' own, and what it is asked."""

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.processes import free_port
from tests.support.programs import running


class Prometheus:
    """Asks a Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=5) as answer:
            return json.load(answer)["data"]

    def ask(self, expr: str) -> list[Any]:
        found: list[Any] = self.get("/api/v1/query", query=expr)["result"]
        return found

    def names(self) -> set[str]:
        """Of all series; none where it does not answer."""
        try:
            return set(self.get("/api/v1/label/__name__/values"))
        except OSError:
            return set()


@contextmanager
def prometheus_with(config: Mapping[str, object], folder: Path) -> Iterator[Prometheus]:
    """One of that configuration, whose files are in `folder`, until the block ends."""
    (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", "--log.level=error"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with running(command, folder / "prometheus.log", ready=f"http://{address}/-/ready"):
        yield Prometheus(f"http://{address}")


def scraping(pages: Mapping[str, str], *, rules: list[str], namespace: str, pod: str) -> dict[str, object]:
    """A configuration: once a second `pages`, addresses by the name of the job. The aggregator's series keep their
    namespace and come from two instances, those of others get namespace and pod."""
    jobs = [
        # Twice, as two replicas would be.
        {
            "job_name": job,
            "honor_labels": True,
            "static_configs": [{"targets": [address, address.replace("127.0.0.1", "localhost")]}],
        }
        if job == "aggregator"
        else {
            "job_name": job,
            "static_configs": [{"targets": [address], "labels": {"namespace": namespace, "pod": pod}}],
        }
        for job, address in pages.items()
    ]
    times = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    return {"global": times, "rule_files": rules, "scrape_configs": jobs}
