"""Each complaint names what is really broken, once, and its command can be typed as it stands."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvgauge.doctor.here import Here
from kvgauge.doctor.neighbours import neighbours
from kvgauge.doctor.settings import load
from kvgauge.simulate.model_folder import write_model_folder
from kvgauge.simulate.serving import EmbeddedEngine
from tests.support.process import KVGAUGE, Sidecar, eventually, sidecar
from tests.support.spool import process, scheduler, write
from tests.support.web import Behaviour, page, serving, status
from tests.top.pages import pages

from .running import Told, doctor, run
from .test_local import free_address

CAPTURES = Path(__file__).parents[1] / "captures"
VLLM = (CAPTURES / "vllm/0.32.0/smallcache_under_pressure.prom").read_bytes()
PROGRAM = " ".join(KVGAUGE)
NOBODY = 65534


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEngine]:
    model = write_model_folder(tmp_path_factory.mktemp("model") / "model")
    with EmbeddedEngine(seed=1, model_path=model) as engine:
        yield engine


@pytest.fixture(scope="module")
def beside(engine: EmbeddedEngine) -> Iterator[Sidecar]:
    with sidecar("--engine-url", engine.base_url) as running:
        eventually(lambda: running.up("engine") == 1, what="an engine that is seen")
        yield running


def follow(command: str | None, answer: str = "") -> "subprocess.CompletedProcess[str]":
    """Types it, and `answer` where it asks."""
    assert command is not None
    surroundings = {name: text for name, text in os.environ.items() if not name.startswith(("KVGAUGE_", "KUBE"))}
    typed = subprocess.run(
        ["bash", "-c", command], input=answer, capture_output=True, text=True, check=False, timeout=40, env=surroundings
    )
    assert typed.returncode not in (2, 126, 127), (command, typed.stderr)
    return typed


def statuses(told: Told, *names: str) -> list[str]:
    return [told[name].status for name in names]


@pytest.fixture(scope="module")
def kept() -> Iterator[tuple[str, str]]:
    """Addresses of an engine that keeps connections, as real ones do, and of its sidecar."""
    routes: dict[str, Behaviour] = {
        "/metrics": page(VLLM),
        "/version": page(b'{"version": "0.32.0"}', "application/json"),
    }
    with serving(routes) as url, sidecar("--engine-url", url) as running:
        eventually(lambda: running.up("engine") == 1, what="an engine that is seen")
        yield url, running.url


def test_an_engine_that_only_the_sidecar_was_told_of(kept: tuple[str, str]) -> None:
    engine_url, sidecar_url = kept
    told = doctor("--sidecar-url", sidecar_url, "--local", environ={})
    # The chain is whole: nobody has told the doctor where.
    assert (told.code, told["engine"].status) == (0, "warn")
    assert f"the sidecar sees vllm 0.32.0 at {engine_url}" in told["engine"].found
    assert "down" not in told["engine"].found
    wanted = f"{PROGRAM} doctor --sidecar-url {sidecar_url} --local --engine-url {engine_url}"
    assert told["engine"].next == wanted
    assert f"vllm 0.32.0 at {engine_url}" in follow(told["engine"].next).stdout
    # Where it was told, that is what is broken.
    assert doctor("--local", "--sidecar-url", sidecar_url, "--engine-url", free_address())["engine"].status == "fail"


def test_an_engine_of_another_kind_than_was_told(kept: tuple[str, str]) -> None:
    engine_url, sidecar_url = kept
    told = doctor(
        *("--local", "--engine", "sglang", "--engine-url", engine_url, "--sidecar-url", sidecar_url), environ={}
    )
    assert told["engine"].found.endswith("(no_engine_series); the sidecar sees vllm 0.32.0 there")
    assert (told["engine"].next or "").endswith(" --engine auto")
    assert "ok    engine   vllm" in follow(told["engine"].next).stdout


def test_where_the_sidecar_itself_serves(beside: Sidecar) -> None:
    told = doctor("--local", "--engine-url", beside.url, "--sidecar-url", beside.url)
    assert "this is where the sidecar serves" in told["engine"].found


def test_an_engine_that_is_loading() -> None:
    with serving({"/metrics": status(503)}) as url:
        told = doctor("--local", "--engine-url", url)
        assert told["engine"].found.endswith("answered 503 (http_status); it may still be loading")
        assert told["engine"].next == f"curl -sSi -m 5 {url}/metrics"


def test_an_engine_whose_metrics_are_turned_off() -> None:
    """As vLLM with --disable-log-stats: it serves, and its page has only what every Python program's has."""
    models = b'{"object": "list", "data": [{"id": "tiny", "object": "model", "owned_by": "vllm"}]}'
    routes = {"/v1/models": page(models, "application/json"), "/metrics": page(b"process_open_fds 9\n")}
    with serving(routes) as url:
        told = doctor("--local", "--engine-url", url)
    assert told["engine"].status == "fail"
    assert told["engine"].found.endswith("; are its metrics turned off?")
    assert told["engine"].next == "ps -eo pid,args | grep -i '[v]llm'"


def test_ports_that_are_listened_on_are_named() -> None:
    with serving({}) as url:
        port = int(url.rpartition(":")[2])
        found = neighbours(None)
        assert port in found.listening
        assert found.of_the_sidecar == ()
    assert "ports that are listened on here: " in doctor("--local", "--engine-url", free_address())["engine"].found


@pytest.mark.parametrize(("key", "said"), [(None, "none was given"), ("wrong", "that was given is refused")])
def test_an_engine_that_wants_a_key(key: str | None, said: str) -> None:
    routes: dict[str, Behaviour] = {"/metrics": page(VLLM), "/v1/models": status(401), "/version": status(401)}
    environ = {} if key is None else {"KVGAUGE_ENGINE_API_KEY": key}
    with serving(routes) as url:
        told = doctor("--local", "--engine-url", url, environ=environ)
    assert told["engine"].status == "warn"
    assert "/version could not be read (unauthorized)" in told["engine"].found
    assert said in told["engine"].found
    assert told["engine"].next == (
        f"read -rs KVGAUGE_ENGINE_API_KEY; export KVGAUGE_ENGINE_API_KEY; {PROGRAM} doctor --local --engine-url {url}"
    )
    assert "/v1/models could not be read (unauthorized)" in told["model"].found


def test_the_model_behind_a_key_is_found_by_the_agent_or_the_key_is_asked_for(tmp_path: Path) -> None:
    """As vLLM with --api-key: metrics and version are open, what tells the model's path is not."""
    routes: dict[str, Behaviour] = {
        "/metrics": page(VLLM),
        "/version": page(b'{"version": "0.32.0"}', "application/json"),
        "/v1/models": status(401),
    }
    model = write_model_folder(tmp_path / "model")
    spool = tmp_path / "spool"
    spool.mkdir()
    write(spool, scheduler(books={"num_blocks": 200}, model=str(model)))
    with serving(routes) as url:
        told = doctor("--local", "--engine-url", url)
        assert (told["engine"].status, told["model"].status) == ("ok", "warn")
        assert "/v1/models could not be read (unauthorized)" in told["model"].found
        assert (told["model"].next or "").startswith("read -rs KVGAUGE_ENGINE_API_KEY; ")
        told = doctor("--local", "--engine-url", url, "--spool", str(spool))
        assert told["model"].status == "ok", told["model"]
        assert f"from {model}" in told["model"].found
        # What was named by hand is what is wrong.
        told = doctor("--local", "--engine-url", url, "--model", str(tmp_path / "away"))
        assert "unauthorized" not in told["model"].found


def test_a_key_is_in_no_command() -> None:
    flags = ["--local", "--engine-api-key", "s3cret", "--json", "--engine-url", "http://127.0.0.1:1"]
    here = Here.of(load(flags, {})[0], {}, flags)
    assert here.again() == "kvgauge doctor --local --engine-url http://127.0.0.1:1"
    flags = ["--engine-api-key=s3cret", "--spool", "/a b"]
    assert Here.of(load(flags, {})[0], {}, flags).sidecar() == "kvgauge sidecar --spool '/a b'"


def test_in_a_pod_commands_are_typed_outside() -> None:
    here = Here("http://127.0.0.1:8000", "http://127.0.0.1:9838", pod="llama-1", namespace="llm", flags=("--json",))
    inside = "kubectl -n llm exec llama-1 -c kvgauge -- /opt/kvgauge/bin/kvgauge"
    assert here.top() == f"{inside} top --once --url http://127.0.0.1:9838"
    proxy = "/api/v1/namespaces/llm/pods/http:llama-1:8000/proxy/metrics"
    assert here.page(here.engine_url, "/metrics") == f"kubectl get --raw {proxy}"
    assert here.within("ls /run/kvgauge") == "kubectl -n llm exec llama-1 -c kvgauge -- ls /run/kvgauge"


@pytest.mark.parametrize("capture", sorted(CAPTURES.rglob("*.prom")), ids=lambda path: str(path.relative_to(CAPTURES)))
def test_what_recorded_pages_lack_is_said_once_and_helped_where_it_can_be(capture: Path) -> None:
    """The flag that tells a capacity is named for just those engines that follow it."""
    metrics = page(capture.read_bytes())
    with serving({"/metrics": metrics, "/prometheus/metrics": metrics}) as url:
        told = doctor("--local", "--engine-url", url)
        helped = doctor("--local", "--engine-url", url, "--engine-capacity-tokens", "1000000")
    assert told["engine"].status == ("fail" if "llamacpp" in capture.parts else "ok"), told
    if told["metrics"].status != "fail":
        return
    reasons = [part.partition("(")[2] for part in told["metrics"].found.split("); ")]
    assert len(reasons) == len(set(reasons))
    named = "--engine-capacity-tokens" in told["metrics"].found
    assert named == (helped["metrics"].status != "fail"), (told["metrics"], helped["metrics"])


def test_a_capacity_is_asked_for() -> None:
    metrics = page((CAPTURES / "tgi/3.3.6/loaded.prom").read_bytes())
    with serving({"/metrics": metrics}) as url:
        command = doctor("--local", "--engine-url", url, environ={})["metrics"].next
        said = follow(command, "100000\n").stdout
    assert "capacity_tokens, active_tokens, running" in said
    here = Here("http://127.0.0.1:8000", "http://127.0.0.1:9838", pod="llama-1", namespace="llm")
    grep = "kubectl -n llm logs llama-1 --all-containers --tail=-1 | grep -iE 'a|b'"
    assert here.logs_with("a|b", "") == grep


def test_llama_cpp_is_asked_for_the_flag_that_helps() -> None:
    folder = CAPTURES / "llamacpp/b11434"
    routes: dict[str, Behaviour] = {"/metrics": page((folder / "metrics_idle.prom").read_bytes())}
    for path, name in (("/props", "props"), ("/slots", "slots_idle"), ("/v1/models", "v1_models")):
        routes[path] = page((folder / f"{name}.json").read_bytes(), "application/json")
    with serving(routes) as url:
        told = doctor("--local", "--engine-url", url, environ={})
        assert told["metrics"].status == "fail"
        assert (told["metrics"].next or "").endswith("--llamacpp-kv-unified true")
        assert "capacity_tokens" in told["metrics"].found
        assert "missing for any advice" not in follow(told["metrics"].next).stdout


def test_several_engines_on_one_page() -> None:
    both = VLLM + (CAPTURES / "sglang/0.5.9/loaded.prom").read_bytes()
    with serving({"/metrics": page(both)}) as url:
        told = doctor("--local", "--engine-url", url, environ={})
        assert "(several_engines)" in told["engine"].found
        assert "(several_engines)" not in follow(told["engine"].next).stdout


def test_a_model_is_named_with_what_is_wrong_with_it(engine: EmbeddedEngine, tmp_path: Path) -> None:
    flags = ["--local", "--engine-url", engine.base_url]
    away = tmp_path / "away"
    told = doctor(*flags, "--model", str(away))
    assert told["model"].found.startswith(f"{away}: ")
    assert told["model"].next == f"ls -ld {away} {tmp_path}"
    told = doctor(*flags, "--model", "nobody/knows")
    assert told["model"].found.startswith("nobody/knows: ")
    assert (told["model"].next or "").startswith("ls /")
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text('{"model_type": "nobody-knows"}')
    told = doctor(*flags, "--model", str(odd), environ={})
    assert told["model"].next == f"{PROGRAM} plan --model {odd}"
    answer = subprocess.run((told["model"].next or "").split(), capture_output=True, text=True, check=False, timeout=40)
    assert "nobody-knows" in answer.stderr


def test_an_agent_that_writes_elsewhere_is_not_denied(engine: EmbeddedEngine, tmp_path: Path) -> None:
    write(tmp_path, process())
    with sidecar("--engine-url", engine.base_url, "--spool", str(tmp_path)) as running:
        told = doctor("--local", "--engine-url", engine.base_url, "--sidecar-url", running.url)
    assert "estimated" not in told["agent"].found
    assert "another folder" in told["agent"].found


def test_what_the_agent_tells_is_not_called_untold(tmp_path: Path) -> None:
    books = {"num_blocks": 200, "used_blocks": 20, "cached_blocks": 5, "free_blocks": 174}
    write(tmp_path, scheduler(books=books, model="tiny", engine_version="0.32.0"))
    with serving({"/metrics": page(VLLM)}) as url:
        alone = doctor("--local", "--engine-url", url)
        told = doctor("--local", "--engine-url", url, "--spool", str(tmp_path))
    assert "reclaimable_tokens" in alone["metrics"].found
    assert told["agent"].status == "ok", told["agent"]
    assert "reclaimable_tokens" not in told["metrics"].found
    # Nor is the version that its process knows.
    assert "vllm of a version not known" in alone["engine"].found
    assert "vllm 0.32.0" in told["engine"].found


def test_an_engine_without_a_page_needs_its_agent(tmp_path: Path) -> None:
    flags = ["--local", "--engine", "transformers"]
    told = doctor(*flags)
    assert told["agent"].status == "fail"
    assert "nothing else tells of transformers" in told["agent"].found
    write(tmp_path, process(engine="vllm"))
    assert doctor(*flags, "--spool", str(tmp_path))["agent"].status == "fail"


def test_ages_and_owners_of_spools(tmp_path: Path) -> None:
    told = doctor("--local", "--spool", str(tmp_path))
    assert told["agent"].found == f"{tmp_path}: no agent has written here (no_files)"
    follow(told["agent"].next)
    write(tmp_path, process(now=time.monotonic() - 60), age_seconds=60)
    told = doctor("--local", "--spool", str(tmp_path))
    assert "the newest file is 60 s old" in told["agent"].found


def test_a_spool_that_is_another_users(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    # Root may read everything, and gives that up once the program is loaded.
    program = (
        "import os, sys\n"
        "import kvgauge.doctor.around, kvgauge.doctor.command\n"
        f"os.geteuid() or os.seteuid({NOBODY})\n"
        "kvgauge.doctor.command.main(['--local', '--json', '--spool', sys.argv[1]])\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=40)
    tmp_path.chmod(0o700)
    told = next(line for line in json.loads(answer.stdout) if line["check"] == "agent")
    assert told["status"] == "fail"
    assert "(not_permitted)" in told["found"]
    assert told["next"] == f"ls -ld {tmp_path}"


def test_what_only_the_doctor_was_told_is_not_asked_for_again(engine: EmbeddedEngine) -> None:
    """The sidecar lacks what the doctor has: its flags are to be looked at, and no more those of the doctor."""
    metrics = page((CAPTURES / "tgi/3.3.6/loaded.prom").read_bytes())
    with serving({"/metrics": metrics}) as url, sidecar("--engine-url", url) as running:
        eventually(lambda: running.up("engine") == 1, what="an engine that is seen")
        flags = ("--local", "--engine-url", url, "--sidecar-url", running.url, "--engine-capacity-tokens", "100000")
        told = doctor(*flags)
        assert told["metrics"].status != "fail"
        assert told["advice"].status == "fail"
        assert told["advice"].found.endswith("start the sidecar with the doctor's flags")
        assert url in follow(told["advice"].next).stdout
    with sidecar("--engine-url", free_address()) as running:
        told = doctor("--local", "--engine-url", engine.base_url, "--sidecar-url", running.url)
        assert (told["engine"].status, told["sources"].status) == ("ok", "fail")
        assert "the doctor can read engine" in told["sources"].found
        assert (told["sources"].next or "").startswith("ps ")


def test_a_sidecar_that_is_stopped(engine: EmbeddedEngine) -> None:
    with sidecar("--engine-url", engine.base_url) as running:
        running.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            told = doctor("--local", "--engine-url", engine.base_url, "--sidecar-url", running.url)
            assert time.monotonic() - began < 8
            assert statuses(told, "sidecar", "page", "sources", "advice") == ["fail", "skip", "skip", "skip"]
            assert "(timeout)" in told["sidecar"].found
            shown = follow(told["sidecar"].next).stdout
        finally:
            running.process.send_signal(signal.SIGCONT)
    # The process that is stopped is shown as such: T.
    own = next(line.split() for line in shown.splitlines() if line.split()[0] == str(running.process.pid))
    assert own[1].startswith("T")


def test_a_sidecar_whose_loop_hangs_and_one_of_another_version() -> None:
    hanging: dict[str, Behaviour] = dict.fromkeys(("/v1/advice", "/v1/observation", "/metrics"), status(503))
    with serving(hanging) as url:
        told = doctor("--local", "--sidecar-url", url)
        assert "its loop hangs" in told["sidecar"].found
        assert told["sidecar"].next == f"curl -sS -m 5 {url}/readyz"
    other: dict[str, Behaviour] = {**pages(), "/metrics": page(b'kvgauge_build_info{version="0.0.1",revision=""} 1\n')}
    with serving(other) as url:
        told = doctor("--local", "--sidecar-url", url)
    assert (told["sidecar"].status, told["page"].status) == ("ok", "warn")
    assert "kvgauge 0.0.1" in told["page"].found


def test_ages_are_said(engine: EmbeddedEngine, beside: Sidecar) -> None:
    told = doctor("--local", "--engine-url", engine.base_url, "--sidecar-url", beside.url)
    assert told["page"].found.split(", of a tick ")[1].endswith(" s ago")
    assert told["sources"].found.startswith("nvml " if told["driver"].status == "ok" else "engine ")
    assert " s old" in told["sources"].found
    assert told["advice"].found.endswith(" s old")
    if told["driver"].status != "ok":
        # It has been told above, with its command.
        assert told["sources"].status == "ok"
        assert told["sources"].found.endswith("nvml as the driver above")
    with serving({**pages(), "/metrics": page(b'kvgauge_build_info{version="0.0.1"} 1\n')}) as url:
        told = doctor("--local", "--sidecar-url", url)
    assert "agent (stale, last 9.0 s ago)" in told["sources"].found
    assert "engine 0.5 s old" in told["sources"].found


def test_letters_that_the_terminal_lacks() -> None:
    answer = run("--local", "--spool", "/run/häßlich", environ={"PYTHONIOENCODING": "ascii"})
    assert answer.returncode == 1
    assert answer.stderr == ""
    assert "/run/h??lich" in answer.stdout
