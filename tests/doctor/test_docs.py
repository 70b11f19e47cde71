"""docs/doctor.md names the checks that there are."""

import json
import re
from pathlib import Path

from kvgauge.doctor import checking, checking_cluster
from kvgauge.doctor.here import Here

from .cluster import Cluster, an_hpa, kubeconfig, pods_metric
from .running import run
from .test_checking import facts

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/doctor.md").read_text()
NAMED = [match[1] for match in re.finditer(r"^\| `([^`]+)` \|", TEXT.partition("### In the pod")[2], re.MULTILINE)]


def test_the_checks_of_a_pod_are_those_of_the_page() -> None:
    found = checking.check(facts(), Here("", ""))
    assert NAMED[: len(found)] == [finding.check for finding in found]


def test_the_checks_of_a_cluster_are_those_of_the_page() -> None:
    assert [name.split()[0] for name in NAMED[10:16]] == ["api-server", *checking_cluster.LINKS[:5]]
    assert [name.rpartition(" ")[2] for name in NAMED[16:]] == ["metric", "target", "pods", "conditions"]


def masked(text: str) -> list[str]:
    """Lines without addresses, values and ages, which are of the moment."""
    lines = re.sub(r"https?://\S+", "URL", text).strip().splitlines()
    return [re.sub(r"\b\d[\d.]*m?\b( (s|min|h|d)\b)?", "N", line).rstrip() for line in lines]


def test_the_example_is_what_it_prints(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```\n(ok    api-server.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    with Cluster() as api:
        api.fill()
        api.delete("horizontalpodautoscalers", "llm", "llama")
        hpa = an_hpa(pods_metric("kvgauge_laod_ratio"), ScalingActive="False FailedGetPodsMetric")
        api.create("horizontalpodautoscalers", hpa)
        answer = run("--cluster", environ={"KUBECONFIG": kubeconfig(tmp_path, api.url)})
    assert answer.returncode == 1
    assert masked(answer.stdout) == masked(example)


def test_the_json_is_as_it_is_described() -> None:
    keys = re.findall(r"^\| `(\w+)` \| (string|string or null) \|", TEXT, re.MULTILINE)
    for line in json.loads(run("--json", "--local").stdout):
        assert [(name, "string or null" if name == "next" else "string") for name in line] == keys
        assert line["status"] in ("ok", "warn", "fail", "skip")
        assert isinstance(line["check"], str)
        assert isinstance(line["found"], str)
        assert isinstance(line["next"], str) is (line["status"] in ("warn", "fail"))


def test_the_walks_of_the_installation_name_lines_that_there_are(tmp_path: Path) -> None:
    install = (ROOT / "docs/install.md").read_text()
    with Cluster() as api:
        api.fill()
        whole = lines_of(tmp_path, api)
        api.delete("horizontalpodautoscalers", "llm", "llama")
        without_hpa = lines_of(tmp_path, api)
    walk = install.partition("## The HPA says unknown")[2]
    named = {
        name for step in re.findall(r"^\d\. \*\*(.*?):", walk, re.MULTILINE) for name in re.findall(r"`(.*?)`", step)
    }
    assert len(named) == 6
    assert named <= whole.keys()
    # "Only `hpa` warns, until there is one", of a namespace that is asked for by the command that stands there.
    assert "kvgauge doctor --cluster --namespace llm\n" in install
    assert {name: status for name, status in without_hpa.items() if status != "ok"} == {"hpa": "warn"}


def lines_of(folder: Path, api: Cluster) -> dict[str, str]:
    answer = run("--cluster", "--namespace", "llm", "--json", environ={"KUBECONFIG": kubeconfig(folder, api.url)})
    assert answer.returncode == 0, answer.stdout
    return {line["check"]: line["status"] for line in json.loads(answer.stdout)}
