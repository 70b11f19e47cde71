"""The file in the spool: whole or absent, readable by all, and nothing of others touched."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvgauge_agent.spool import ABANDONED_AFTER_SECONDS, Spool

NAME = re.compile(r"[A-Za-z0-9-]{1,32}-[0-9]+\.json")


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_the_file_is_named_by_host_and_pid_and_replaced_as_a_whole(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    spool.write(b"one")
    with Path(spool.path).open("rb") as opened:
        spool.write(b"another")
        assert opened.read() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == [Path(spool.path).name]
    assert NAME.fullmatch(Path(spool.path).name)
    assert Path(spool.path).stem.endswith(f"-{os.getpid()}")
    assert Path(spool.path).read_bytes() == b"another"


@pytest.mark.usefixtures("strict_umask")
def test_a_sidecar_of_another_user_can_read_it(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "made"))
    spool.write(b"{}")
    assert Path(spool.path).stat().st_mode & 0o777 == 0o644


def test_the_directory_is_that_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVGAUGE_SPOOL", str(tmp_path))
    assert Path(Spool().path).parent == tmp_path
    monkeypatch.delenv("KVGAUGE_SPOOL")
    assert Path(Spool().path).parent == Path("/run/kvgauge")


def test_a_directory_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Spool(str(tmp_path / "not" / "there")).write(b"{}")
    with pytest.raises(NotADirectoryError):
        Spool("/dev/null").write(b"{}")


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    spool, target = Spool(str(tmp_path / "spool")), tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / f".{Path(spool.path).name}.tmp").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        spool.write(b"{}")
    assert target.read_bytes() == b"precious"


def test_a_full_disk_keeps_the_last_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    program = """
import resource, signal, sys
from kvgauge_agent.spool import Spool
spool = Spool(sys.argv[1])
spool.write(b"whole")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    spool.write(b"longer than ten bytes")
except OSError as error:
    print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "OSError\n"
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == b"whole"


def test_only_what_agents_left_long_ago_is_removed(tmp_path: Path) -> None:
    old = ("host-1.json", ".host-2.json.tmp")
    kept_old = ("notes.json", "host-3.txt", "host-x.json", "host_4.json")
    fresh = ("host-5.json",)
    for name in (*old, *kept_old, *fresh):
        (tmp_path / name).write_bytes(b"{}")
    long_ago = time.time() - ABANDONED_AFTER_SECONDS - 5
    for name in (*old, *kept_old):
        os.utime(tmp_path / name, (long_ago, long_ago))
    Spool(str(tmp_path)).remove_abandoned()
    assert {path.name for path in tmp_path.iterdir()} == {*kept_old, *fresh}
    Spool(str(tmp_path / "absent")).remove_abandoned()


def test_removing_twice_is_no_error(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    spool.write(b"{}")
    spool.remove()
    spool.remove()
    assert not list(tmp_path.iterdir())
