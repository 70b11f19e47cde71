"""`python -m kvgauge_agent -- COMMAND` with real processes; a folder that holds a module named torch stands for it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AGENT = Path(__file__).parents[2] / "agent"
LAUNCH = "from kvgauge_agent.__main__ import main; import sys; sys.exit(main(sys.argv[1:]))"
SHOW_FILES = """
import json, os, pathlib, time
deadline = time.monotonic() + 10
while not (found := list(pathlib.Path(os.environ["KVGAUGE_SPOOL"]).glob("*.json"))) and time.monotonic() < deadline:
    time.sleep(0.01)
print(json.dumps([json.loads(path.read_text()) for path in found]))
"""


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A folder with a module torch that a program may import."""
    folder = tmp_path / "modules"
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text('__version__ = "2.13.0"\n')
    return folder


def launched(
    spool: Path, *command: str, path: Path | None = None, agent: Path = AGENT, text: str = "", **more: str
) -> "subprocess.CompletedProcess[str]":
    """The launcher in a Python that finds the agent by itself, so that the command's Python does not."""
    program = f"import sys; sys.path.insert(0, {str(agent)!r}); {LAUNCH}"
    environment = {"PATH": os.environ["PATH"], "KVGAUGE_SPOOL": str(spool), **more}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", program, *command],
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def python(spool: Path, program: str, *arguments: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    return launched(spool, "--", sys.executable, "-c", program, *arguments, **more)


def test_arguments_streams_and_exit_status_are_the_commands_own(spool: Path) -> None:
    program = "import sys; print(sys.argv[1:], sys.stdin.read()); sys.stderr.write('err'); sys.exit(7)"
    done = python(spool, program, "--", "-x", "a b", text="typed")
    assert (done.stdout, done.stderr, done.returncode) == ("['--', '-x', 'a b'] typed\n", "err", 7)


def test_a_signal_ends_the_command_as_it_would_without(spool: Path) -> None:
    done = python(spool, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert done.returncode == -signal.SIGTERM


def test_a_program_that_imports_torch_has_a_file(spool: Path, modules: Path) -> None:
    done = python(spool, f"import os, torch; {SHOW_FILES}print(os.getpid())", path=modules)
    files, pid = done.stdout.splitlines()
    (file,) = json.loads(files)
    assert done.stderr == ""
    assert file["pid"] == file["instance"] == int(pid)
    assert (file["role"], file["engine"], file["engine_version"]) == ("program", "torch", "2.13.0")
    assert list(spool.iterdir()) == []


def test_looking_for_torch_before_importing_it_changes_nothing(spool: Path, modules: Path) -> None:
    done = python(spool, f"import importlib.util as u; u.find_spec('torch'); import torch; {SHOW_FILES}", path=modules)
    assert len(json.loads(done.stdout)) == 1


def test_children_are_launched_too_and_name_the_same_instance(spool: Path, modules: Path) -> None:
    child = f"import torch; {SHOW_FILES}"
    program = (
        f"import os, subprocess, sys; print(os.getpid(), flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    )
    done = python(spool, program, path=modules)
    pid, files = done.stdout.splitlines()
    (file,) = json.loads(files)
    assert file["instance"] == int(pid) != file["pid"]


def test_a_program_without_torch_loads_nothing_of_the_agent(spool: Path) -> None:
    program = "import sys; print([name for name in sys.modules if 'kvgauge' in name or name == 'multiprocessing'])"
    done = python(spool, program)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert list(spool.iterdir()) == []


def test_the_program_sees_the_path_and_the_sitecustomize_it_would_have_seen(spool: Path, modules: Path) -> None:
    (modules / "sitecustomize.py").write_text("import builtins; builtins.customized = __file__\n")
    program = "import sys, sitecustomize; print(sys.path); print(customized, sitecustomize.__file__)"
    launch = python(spool, program, path=modules)
    plain = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(modules)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (launch.stdout, launch.stderr) == (plain.stdout, "")
    assert str(modules / "sitecustomize.py") in plain.stdout


def test_an_error_of_the_programs_own_sitecustomize_is_told_as_ever(spool: Path, modules: Path) -> None:
    (modules / "sitecustomize.py").write_text("1 / 0\n")
    done = python(spool, "print('went on')", path=modules)
    assert done.stdout == "went on\n"
    assert "Error in sitecustomize" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_an_agent_that_is_broken_costs_one_line(spool: Path, modules: Path, tmp_path: Path) -> None:
    shutil.copytree(AGENT, tmp_path / "agent")
    (tmp_path / "agent" / "kvgauge_agent" / "transformers.py").write_text("raise ValueError('secret')\n")
    done = python(spool, "import torch; print(torch.__version__)", path=modules, agent=tmp_path / "agent")
    assert (done.stdout, done.returncode) == ("2.13.0\n", 0)
    assert done.stderr == "kvgauge agent: not started: ValueError\n"


def test_a_spool_that_cannot_be_written_does_not_stop_the_program(tmp_path: Path, modules: Path) -> None:
    program = "import torch, time; time.sleep(0.3); print('went on')"
    done = python(tmp_path / "no" / "such" / "folder", program, path=modules)
    assert (done.stdout, done.returncode) == ("went on\n", 0)
    assert done.stderr.count("\n") <= 1


def test_a_command_that_cannot_be_run(spool: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    missing, forbidden = launched(spool, "--", "no-such-command"), launched(spool, "--", str(plain))
    assert (missing.returncode, forbidden.returncode) == (127, 126)
    assert missing.stderr == "kvgauge_agent: no-such-command: No such file or directory\n"


@pytest.mark.parametrize("arguments", [(), ("--",), ("--help",)])
def test_without_a_command_it_says_how(spool: Path, arguments: tuple[str, ...]) -> None:
    done = launched(spool, *arguments)
    assert done.returncode == 2
    assert done.stderr == "usage: python -m kvgauge_agent -- COMMAND [ARGUMENT ...]\n"


def test_the_package_is_a_program(spool: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvgauge_agent", "--", sys.executable, "-c", "print(1)"],
        env={"PYTHONPATH": str(AGENT), "KVGAUGE_SPOOL": str(spool)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "1\n"
