"""docs/examples: each file by the program that will read it, and what docs/without-kubernetes.md claims of them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvgauge.settings import Settings, load
from tests.docs.pictures import DOCS
from tests.support.process import KVGAUGE

EXAMPLES = DOCS / "examples"
ALERTS = DOCS.parent / "dashboards/alerts"
PAGE = (DOCS / "without-kubernetes.md").read_text(encoding="utf-8")
MOST_EXPOSED_TENTHS = 15
VARIABLES = {f"KVGAUGE_{name.upper()}" for name in Settings.model_fields}

COMPOSE = shutil.which("docker-compose") or shutil.which("docker-compose", path=str(Path(sys.executable).parent))
"""By itself: it needs no daemon to read a file."""

with_compose = pytest.mark.skipif(COMPOSE is None, reason="needs docker-compose")
with_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def text(name: str) -> str:
    return (EXAMPLES / name).read_text(encoding="utf-8")


def unit(name: str) -> dict[str, list[str]]:
    """All values of each key of [Service]; an empty one counts."""
    found: dict[str, list[str]] = {}
    section = re.search(r"^\[Service\]\n(.*?)(?=^\[|\Z)", text(name), re.MULTILINE | re.DOTALL)
    assert section is not None
    for line in section[1].splitlines():
        if line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(key, []).append(value)
    return found


def compose() -> dict[str, Any]:
    plain: dict[str, Any] = yaml.safe_load(text("compose.yaml"))
    return plain


def checked(*command: str | Path) -> str:
    """What it prints; AssertionError with that where it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def installed(folder: Path) -> Path:
    """The unit with the program of these tests in place of the one in /opt."""
    program = folder / "kvgauge"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kvgauge "$@"\n')
    program.chmod(0o755)
    path = folder / "kvgauge.service"
    path.write_text(text("kvgauge.service").replace("/opt/kvgauge/bin/kvgauge", str(program)))
    return path


def test_every_file_is_told_and_every_file_told_is_there() -> None:
    assert set(re.findall(r"\(examples/([\w.-]+)\)", PAGE)) == {path.name for path in EXAMPLES.iterdir()}


@with_systemd
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    assert checked("systemd-analyze", "verify", "--man=no", installed(tmp_path)) == ""


@with_systemd
def test_systemd_finds_little_left_open(tmp_path: Path) -> None:
    said = checked(
        "systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED_TENTHS}",
        installed(tmp_path),
    )  # fmt: skip
    assert "Overall exposure level" in said


def test_the_unit_allows_what_the_page_says() -> None:
    service = unit("kvgauge.service")
    for key, value in {
        "DynamicUser": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "ProtectProc": "invisible",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "AmbientCapabilities": "",
        "DevicePolicy": "closed",
        "StateDirectory": "kvgauge",
        "MemoryMax": "256M",
    }.items():
        assert service[key] == [value], key
    assert service["DeviceAllow"] == ["/dev/nvidiactl rw", "char-nvidia* rw"]
    assert not any("+" in line or "!" in line for line in service["ExecStart"])


def test_the_units_command_takes_the_file_with_the_variables_beside_it() -> None:
    (command,) = unit("kvgauge.service")["ExecStart"]
    words = command.replace("/etc/kvgauge/kvgauge.toml", str(EXAMPLES / "kvgauge.toml")).split()
    assert words[:2] == ["/opt/kvgauge/bin/kvgauge", "sidecar"]
    environ = dict(line.split("=", 1) for line in text("kvgauge.env").splitlines() if re.match(r"\w+=", line))
    assert environ.keys() <= VARIABLES
    settings, _ = load(words[2:], environ)
    assert settings.engine_api_key is not None
    assert settings.host == "127.0.0.1"
    assert (settings.slo_ttft, settings.slo_tpot) == (2.0, 0.08)
    (state,) = unit("kvgauge.service")["StateDirectory"]
    assert settings.state_file is not None
    assert Path(settings.state_file).parent == Path("/var/lib") / state


def test_the_program_prints_what_is_in_force() -> None:
    printed = checked(*KVGAUGE, "sidecar", "--config", EXAMPLES / "kvgauge.toml", "--print-config")
    assert 'model = "/srv/models/llama"' in printed
    assert "slo_tpot = 0.08" in printed


def test_the_engines_drop_in_gives_the_spool_where_the_sidecar_looks() -> None:
    service = unit("engine-agent.conf")
    environ = dict(value.split("=", 1) for value in service["Environment"])
    assert environ["KVGAUGE_SPOOL"] == f"/run/{service['RuntimeDirectory'][0]}" == "/run/kvgauge"
    assert int(service["RuntimeDirectoryMode"][0], 8) & 0o055 == 0o055
    assert environ["PYTHONPATH"] in PAGE


@with_compose
def test_compose_takes_the_file() -> None:
    assert COMPOSE is not None
    assert "service_completed_successfully" in checked(COMPOSE, "-f", EXAMPLES / "compose.yaml", "config")


def test_the_sidecar_of_compose_has_no_rights() -> None:
    sidecar = compose()["services"]["kvgauge"]
    assert sidecar["network_mode"] == "service:engine"
    assert sidecar["user"] == "65532:65532"
    assert sidecar["read_only"] is True
    assert sidecar["cap_drop"] == ["ALL"]
    assert sidecar["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "ports", "pid", "ipc", "devices"} & sidecar.keys()
    writable = [volume for volume in sidecar["volumes"] if not volume.endswith(":ro")]
    assert writable == ["./state:/var/lib/kvgauge"]
    assert "/var/run/docker.sock" not in text("compose.yaml")


def test_the_sidecar_of_compose_is_told_what_is_so() -> None:
    services = compose()["services"]
    environ, engine = services["kvgauge"]["environment"], services["engine"]
    assert environ.keys() <= VARIABLES
    settings, _ = load(services["kvgauge"]["command"][1:], environ)
    options = dict(zip(engine["command"][::2], engine["command"][1::2], strict=True))
    assert settings.model == options["--model"]
    assert settings.max_num_seqs == int(options["--max-num-seqs"])
    assert settings.engine_url.endswith(":8000")
    assert f"127.0.0.1:{settings.port}:{settings.port}" in engine["ports"]
    assert str(settings.port) in services["kvgauge"]["healthcheck"]["test"][-1]


def test_engine_and_sidecar_of_compose_share_spool_model_and_gpu() -> None:
    services = compose()["services"]
    engine, sidecar = services["engine"], services["kvgauge"]
    spool = engine["environment"]["KVGAUGE_SPOOL"]
    assert sidecar["environment"]["KVGAUGE_SPOOL"] == spool
    assert f"spool:{spool}" in engine["volumes"]
    assert f"spool:{spool}:ro" in sidecar["volumes"]
    assert "/srv/models:/models:ro" in set(engine["volumes"]) & set(sidecar["volumes"])
    devices = [each["deploy"]["resources"]["reservations"]["devices"] for each in (engine, sidecar)]
    assert devices[0][0]["device_ids"] == devices[1][0]["device_ids"]
    assert "utility" in devices[1][0]["capabilities"]
    assert "compute" not in devices[1][0]["capabilities"]
    assert set(compose()["volumes"]) == {"agent", "spool"}


def test_the_images_are_placeholders() -> None:
    for service in compose()["services"].values():
        assert service["image"].startswith("registry.example/")


def test_the_scrape_attaches_what_the_dashboards_tell_pods_by() -> None:
    (job,) = yaml.safe_load(text("prometheus.yml"))["scrape_configs"]
    labels = [target["labels"] for target in job["static_configs"]]
    assert all({"namespace", "pod"} <= each.keys() for each in labels)
    assert len({each["pod"] for each in labels}) == len(labels)


def test_the_inhibiting_alert_is_one_of_ours() -> None:
    (rule,) = yaml.safe_load(text("alertmanager.yml"))["inhibit_rules"]
    named = re.search(r'"(\w+)"', rule["source_matchers"][0])
    rules = "".join(path.read_text() for path in ALERTS.glob("*.yaml"))
    assert named is not None
    assert f"alert: {named[1]}" in rules


@pytest.mark.prometheus
def test_promtool_takes_the_configuration_with_the_rules(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "prometheus.yml", tmp_path)
    (tmp_path / "rules").mkdir()
    for path in ALERTS.glob("*.yaml"):
        shutil.copy(path, tmp_path / "rules")
    said = checked("promtool", "check", "config", tmp_path / "prometheus.yml")
    assert "2 rule files found" in said


@pytest.mark.prometheus
def test_amtool_takes_the_configuration() -> None:
    assert "SUCCESS" in checked("amtool", "check-config", EXAMPLES / "alertmanager.yml")
