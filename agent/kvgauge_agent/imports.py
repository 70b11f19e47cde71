"""Runs a function on a module once that is imported, without importing it: now, if that has happened already."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

from kvgauge_agent.log import guarded

Hook = Callable[[ModuleType], None]

_waiting: dict[str, list[Hook]] = {}


def when_imported(name: str, hook: Hook) -> None:
    """Calls `hook(module)` when module `name` is loaded, in the thread that imports it.

    What the hook raises is logged once and goes no further.
    """
    module = sys.modules.get(name)
    # A module that is being loaded right now has no classes yet, but a spec that says so.
    if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        guarded(f"the hook on {name}", hook, module)
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _waiting.setdefault(name, []).append(hook)


class _Finder:
    """Finds nothing itself: lets the other finders find, and has the hooks run behind the module's own code."""

    def __init__(self) -> None:
        self._asking = threading.local()

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        # The question that is put to the other finders comes by here again.
        if name not in _waiting or getattr(self._asking, "name", None) == name:
            return None
        before = getattr(self._asking, "name", None)
        self._asking.name = name
        try:
            spec = importlib.util.find_spec(name)
        except Exception:
            return None
        finally:
            self._asking.name = before
        # A loader that is a class, of a built-in module, is everybody's.
        if spec is None or spec.loader is None or isinstance(spec.loader, type):
            return None
        load = spec.loader.exec_module

        def load_and_hook(module: ModuleType) -> None:
            load(module)
            # A zip archive has one loader for all its modules.
            if module.__name__ == name:
                # Only now: a mere look for the module, without loading it, must not lose them.
                for hook in _waiting.pop(name, []):
                    guarded(f"the hook on {name}", hook, module)

        spec.loader.exec_module = load_and_hook  # type: ignore[method-assign]
        return spec
