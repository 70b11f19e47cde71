"""What docs/scale-in.md says, held to the code; its preStop hook, run."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import yaml

from kvgauge.cluster import events, names, scale_in
from kvgauge.cluster.leading import LEASE, Timing
from kvgauge.cluster.pressure import Bounds
from kvgauge.cluster.settings import AggregatorSettings
from kvgauge.configuring import validated_role

PAGE = (Path(__file__).parents[2] / "docs/scale-in.md").read_text()


def manifests() -> list[Any]:
    blocks = [block.split("```")[0] for block in PAGE.split("```yaml\n")[1:]]
    return [document for block in blocks for document in yaml.safe_load_all(block)]


def hook() -> str:
    engine = next(one for one in manifests() if "spec" in one)["spec"]["containers"][0]
    program, flag, code = engine["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, flag) == ("python3", "-c")
    assert isinstance(code, str)
    return code


def test_the_hook_waits_until_it_is_known_that_nothing_runs() -> None:
    answers: list[object] = [
        {"running": 2, "waiting": 1},
        {"running": None, "waiting": None},
        "nonsense",
        {"running": 0},
        None,
        {"running": 0, "waiting": 1},
        {"running": 0, "waiting": 0},
    ]
    given: list[object] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers[len(given)]
            given.append(answer)
            if answer is None:
                self.send_error(503)
                return
            body = json.dumps(answer).encode() if isinstance(answer, dict) else b"{"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        code = hook()
        assert "127.0.0.1:9838" in code
        quick = "import time\ntime.sleep = lambda seconds: None\n"
        code = code.replace("127.0.0.1:9838", f"127.0.0.1:{server.server_port}")
        subprocess.run([sys.executable, "-c", quick + code], check=True, timeout=20)
        server.shutdown()
        thread.join()
    assert given == answers


def test_the_rules_are_what_the_code_asks_for() -> None:
    rules = [
        (tuple(rule["apiGroups"]), tuple(rule["resources"]), tuple(rule["verbs"]), tuple(rule.get("resourceNames", ())))
        for one in manifests()
        if "rules" in one
        for rule in one["rules"]
    ]
    assert rules == [
        (("coordination.k8s.io",), ("leases",), ("create",), ()),
        (("coordination.k8s.io",), ("leases",), ("get", "update"), (LEASE,)),
        (("",), ("pods",), ("patch",), ()),
        (("events.k8s.io",), ("events",), ("create",), ()),
    ]


def test_the_figures_and_names_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    pace, rate, bounds, timing = scale_in.Pace(), events.Rate(), Bounds(), Timing()
    for said in (
        names.DELETION_COST,
        scale_in.MANAGED,
        f"{scale_in.HELPER}=false",
        str(scale_in.MAX_COST),
        f"Every {pace.interval_seconds:.0f} s the aggregator compares",
        f"holds {50 * pace.step_ratio} % of a pool more or less",
        f"differ by {100 * pace.step_ratio:.0f} %",
        f"at most every {pace.pod_seconds:.0f} s, and at most {pace.patches_per_second:.0f} pods a second",
        f"up to {pace.pod_seconds + pace.interval_seconds:.0f} s old",
        f"where 1000 pods are restless at once, up to {1000 / pace.patches_per_second:.0f} s",
        f"keeps its cost for {pace.silent_seconds:.0f} s",
        f"no renewal for {timing.lease_seconds} s",
        f"by itself {timing.lease_seconds - timing.deadline_seconds:.0f} s before",
        f"| `{events.BEGUN}` | Warning | for {bounds.hold_seconds:.0f} s: ",
        f"the pool is {100 * bounds.usage_ratio:.0f} % in use, or the load is beyond what the pool safely holds",
        f"full within {bounds.exhaustion_seconds:.0f} s",
        f"| `{events.ENDED}` | Normal | for {bounds.hold_end_seconds:.0f} s: ",
        f"below {100 * bounds.usage_end_ratio:.0f} %, load below {bounds.load_end_ratio}, ",
        f"not full within {bounds.exhaustion_end_seconds:.0f} s",
        f"at most one pair in {rate.pod_seconds / 60:.0f} minutes",
        f"at most {rate.burst} Events at once and one every {1 / rate.events_per_second:.0f} s",
    ):
        assert said in text, said


def test_the_settings_are_off_by_default() -> None:
    settings = validated_role(AggregatorSettings, {})
    assert not settings.scale_in_helper
    assert not settings.events
    assert settings.leader_election
    for name in ("scale_in_helper", "events"):
        assert f"`--{name.replace('_', '-')}`" in PAGE
