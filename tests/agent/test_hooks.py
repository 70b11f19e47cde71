"""Hooks on modules that are imported later, and on methods of their classes."""

import importlib
import importlib.util
import logging
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kvgauge_agent import log
from kvgauge_agent.imports import when_imported
from kvgauge_agent.wrapping import call_after

SOURCE = "class Engine:\n    def step(self, size=1):\n        return size * 2\n"


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_said", set())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, with the modules loaded from it forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before, finders = set(sys.modules), list(sys.meta_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.meta_path[:] = finders


def test_a_hook_runs_behind_the_import_and_once(package: Path) -> None:
    (package / "engine_a").mkdir()
    (package / "engine_a" / "__init__.py").touch()
    (package / "engine_a" / "core.py").write_text(SOURCE)
    seen: list[ModuleType] = []
    when_imported("engine_a.core", seen.append)
    importlib.import_module("engine_a")
    assert not seen
    module = importlib.import_module("engine_a.core")
    assert seen == [module]
    assert hasattr(module, "Engine")
    importlib.import_module("engine_a.core")
    assert seen == [module]
    when_imported("engine_a.core", seen.append)
    assert seen == [module, module]


def test_looking_for_a_module_does_not_lose_its_hooks(package: Path) -> None:
    (package / "engine_looked_for.py").write_text(SOURCE)
    seen: list[ModuleType] = []
    when_imported("engine_looked_for", seen.append)
    assert importlib.util.find_spec("engine_looked_for") is not None
    assert not seen
    assert seen == [importlib.import_module("engine_looked_for")]


def test_a_hook_that_raises_spoils_neither_the_import_nor_the_next_hook(
    package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (package / "engine_b.py").write_text(SOURCE)
    seen: list[ModuleType] = []

    def fails(_: ModuleType) -> None:
        raise RuntimeError("the text of a request")

    when_imported("engine_b", fails)
    when_imported("engine_b", seen.append)
    with caplog.at_level(logging.WARNING):
        assert seen == [importlib.import_module("engine_b")]
    assert [record.getMessage().split(":")[1].strip() for record in caplog.records] == ["the hook on engine_b is off"]
    assert "RuntimeError at test_hooks.py" in caplog.text
    assert "request" not in caplog.text


def test_a_module_that_is_not_there_or_breaks_does_so_as_ever(package: Path) -> None:
    when_imported("engine_absent", lambda _: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("engine_absent")
    (package / "engine_broken.py").write_text("raise OSError('as ever')")
    when_imported("engine_broken", lambda _: None)
    with pytest.raises(OSError, match="as ever"):
        importlib.import_module("engine_broken")


def test_modules_of_one_archive_share_a_loader_but_no_hooks(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(package / "engines.zip", "w") as archive:
        archive.writestr("engine_c.py", SOURCE)
        archive.writestr("engine_d.py", SOURCE)
    monkeypatch.syspath_prepend(package / "engines.zip")
    seen: list[str] = []
    when_imported("engine_c", lambda module: seen.append(module.__name__))
    importlib.import_module("engine_c")
    importlib.import_module("engine_d")
    assert seen == ["engine_c"]


class Engine:
    """Made anew by each test that changes it, as a subclass."""

    def step(self, size: int = 1) -> int:
        """Doubles."""
        if size < 0:
            raise ValueError("size")
        return size * 2


def test_a_method_is_followed_once_however_often_that_is_asked_for() -> None:
    class Mine(Engine):
        pass

    seen: list[Any] = []
    for _ in range(2):
        call_after(Mine, "step", lambda engine, result: seen.append((engine, result)), "the test")
    engine = Mine()
    assert engine.step(size=3) == 6
    assert seen == [(engine, 6)]
    assert Mine.step.__doc__ == "Doubles."
    with pytest.raises(ValueError, match="size"):
        engine.step(-1)
    assert len(seen) == 1
    assert Engine().step(3) == 6
    assert len(seen) == 1


def test_what_follows_may_fail_once(caplog: pytest.LogCaptureFixture) -> None:
    class Mine(Engine):
        pass

    calls = []

    def fails(_: object, result: object) -> None:
        calls.append(result)
        raise RuntimeError("the text of a request")

    call_after(Mine, "step", fails, "the test")
    with caplog.at_level(logging.WARNING):
        assert [Mine().step(size) for size in (1, 2, 3)] == [2, 4, 6]
    assert calls == [2]
    assert len(caplog.records) == 1
    assert "the test is off" in caplog.text
    assert "request" not in caplog.text


def test_a_method_that_is_gone_is_the_callers_to_handle() -> None:
    with pytest.raises(AttributeError):
        call_after(Engine, "schedule", lambda *_: None, "the test")
