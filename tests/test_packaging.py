"""The distribution's own promises: pinned, hash-locked, the image installed as the scripts install."""

import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def pip_installs(text: str) -> list[str]:
    """What each `pip install` of a script or Containerfile asks for, without paths and variables."""
    found = []
    for line in text.splitlines():
        if match := re.search(r"\bpip\b.*?\binstall (.*)", line):
            words = [word for word in shlex.split(match[1]) if word not in {"--editable", "-e"}]
            found.append(" ".join(words).replace("$lock", "requirements/cluster.txt"))
    return found


def test_the_image_is_installed_as_the_scripts_install() -> None:
    script = pip_installs((ROOT / "scripts/install").read_text())
    assert len(script) == 3
    assert pip_installs((ROOT / "Containerfile").read_text()) == script


def test_the_image_runs_as_nobody_and_writes_nothing() -> None:
    text = (ROOT / "Containerfile").read_text()
    assert re.search(r"^USER 65532:65532$", text, re.MULTILINE)
    assert "compileall" in text
    assert "PYTHONDONTWRITEBYTECODE=1" in text


def test_requirements_are_pinned_by_hash_and_name_no_index() -> None:
    files = sorted((ROOT / "requirements").glob("*.txt"))
    assert {"build.txt", "cluster.txt", "dev.txt", "runtime.txt", "vllm-cpu.txt"} <= {file.name for file in files}
    for file in files:
        text = file.read_text()
        assert "://" not in text, file.name
        assert "index-url" not in text, file.name
        for entry in re.split(r"\n(?=[A-Za-z0-9])", text):
            if re.match(r"[A-Za-z0-9]", entry):
                assert re.match(r"[A-Za-z0-9._\[\]-]+==[^ ]+", entry), f"{file.name}: {entry[:60]}"
                assert "--hash=sha256:" in entry, f"{file.name}: {entry[:60]}"


def test_the_lock_holds_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = (ROOT / "requirements/runtime.txt").read_text()
    for requirement in project["dependencies"]:
        name = re.match(r"[A-Za-z0-9-]+", requirement)
        assert name is not None
        assert f"\n{name[0]}==" in "\n" + locked


def test_only_declared_packages_are_imported_by_the_sidecar() -> None:
    probe = (
        "import sys; import kvgauge.sidecar, kvgauge.publish.serving; print(*{m.split('.')[0] for m in sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    unwanted = {"rich", "hypothesis", "pytest", "kubernetes", "grpc", "aiohttp", "cryptography", "torch", "numpy"}
    assert not unwanted & set(result.stdout.split())


@pytest.mark.parametrize(("role", "package"), [("aggregator", "kubernetes"), ("injector", "httptools")])
def test_a_role_whose_extra_is_missing_says_so_in_one_line(role: str, package: str) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; from kvgauge.cli import main; main([{role!r}])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line == f"kvgauge: {role}: the package {package} is missing: pip install 'kvgauge[cluster]'"


def test_the_wheel_holds_the_three_packages_and_their_data(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "kvmodel/py.typed",
        "kvgauge/py.typed",
        "kvgauge/publish/live.html",
        "kvgauge/publish/docs.html",
        "kvgauge_agent/__init__.py",
    } <= names
    assert not any(name.startswith(("tests/", "bench/")) for name in names)
