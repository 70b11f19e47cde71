"""`kvgauge injector` as a process: its settings, its certificate, its end; and the cluster's version."""

import asyncio
import http.client
import json
import signal
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from kvgauge.cluster.injector.versions import NativeSidecars, parse_version
from tests.cluster.injector.applying import applied
from tests.cluster.injector.given import manifest, sidecar_of
from tests.cluster.injector.running import injector, patch_of, review, served
from tests.support.process import KVGAUGE, eventually
from tests.support.web import page, serving


def kubeconfig(folder: Path, url: str) -> str:
    path = folder / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "x",
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                "clusters": [{"name": "x", "cluster": {"server": url}}],
                "users": [{"name": "x", "user": {}}],
            }
        )
    )
    return str(path)


@pytest.mark.parametrize(("minor", "native"), [("28", False), ("29+", True)])
def test_the_api_servers_version_decides(tmp_path: Path, minor: str, native: bool) -> None:
    told = {"major": "1", "minor": minor, "gitVersion": "v1", "gitCommit": "", "gitTreeState": "", "buildDate": ""}
    told |= {"goVersion": "", "compiler": "", "platform": ""}
    routes = {"/version/": page(json.dumps(told).encode(), "application/json")}
    with serving(routes) as url, injector(tmp_path, "--kubeconfig", kubeconfig(tmp_path, url)) as running:
        eventually(lambda: running.operations("/readyz") == (200, "ok\n"))
        assert running.operations("/livez") == (200, "ok\n")
        pod = applied(manifest("vllm"), patch_of(running.ask(review(manifest("vllm")))))
        assert ("restartPolicy" in sidecar_of(pod)) == native
        page_text = running.operations("/metrics")[1]
        assert f"kvgauge_injector_native_sidecars {float(native)}" in page_text
        assert "kvgauge_build_info" in page_text
        assert not any("does not tell" in line for line in running.log)
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == 0
        assert time.monotonic() - began < 1


def test_without_an_api_server_it_serves_with_what_every_version_takes(tmp_path: Path) -> None:
    with injector(tmp_path, "--kubeconfig", kubeconfig(tmp_path, "http://127.0.0.1:9")) as running:
        eventually(lambda: running.operations("/readyz")[0] == 200)
        pod = applied(manifest("vllm"), patch_of(running.ask(review(manifest("vllm")))))
        assert "restartPolicy" not in sidecar_of(pod)
        assert any("does not tell its version" in line for line in running.log)


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*KVGAUGE, "injector", *arguments], capture_output=True, text=True, timeout=30)


def test_bad_settings_are_one_line(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere.crt")
    for arguments, name in (
        (["--port", "0", "--metrics-port", "0"], "tls_cert: missing"),
        (["--tls-cert", nowhere], "tls_key: missing"),
        (["--tls-cert", nowhere, "--tls-key", nowhere], "tls_cert: "),
        (["--gpu-mode", "all"], "gpu_mode: "),
        (["--driver-library", "lib"], "driver_library: "),
        (["--native-sidecars", "yes"], "native_sidecars: "),
    ):
        result = run(*arguments)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert name in result.stderr
    assert "gpu_mode = " in run("--print-config").stdout


def test_a_certificate_made_at_the_start_for_demos() -> None:
    with served("--self-signed") as (_, port, _):
        trusting = ssl.create_default_context()
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=trusting)
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
        connection.close()


def test_versions() -> None:
    assert parse_version("1", "29") == (1, 29)
    assert parse_version("1", "33+") == (1, 33)
    for major, minor in (("", ""), ("v1", "29"), ("1", "x"), ("1", "")):
        with pytest.raises(ValueError, match="version"):
            parse_version(major, minor)


def test_what_was_known_stays_while_nobody_answers() -> None:
    seen: list[bool] = []
    sidecars = NativeSidecars("auto", seen.append)

    async def old() -> tuple[int, int]:
        return 1, 28

    async def new() -> tuple[int, int]:
        return 1, 36

    async def broken() -> tuple[int, int]:
        raise OSError

    async def looks() -> list[bool]:
        return [await sidecars.look(ask) for ask in (broken, old, new, broken)]

    assert asyncio.run(looks()) == [False, True, True, False]
    assert sidecars.native
    assert seen == [False, True]
    assert NativeSidecars("always").native
    assert not NativeSidecars("never").native
