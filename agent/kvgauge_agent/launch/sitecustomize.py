"""Run by every Python that finds this folder in PYTHONPATH, before its program: waits for torch to be imported.

Nothing else of the agent is loaded until then, so a process that never imports torch pays next to nothing. The folder
is taken out of `sys.path` again, and the sitecustomize that would have run without it runs last, with its own errors.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))


class TorchWatch:
    """A finder that finds nothing itself, and loads the agent when somebody asks for torch.

    Many only ask whether it is there, and import it later or never: so it asks again each time.
    """

    def __init__(self) -> None:
        self._asking = False

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        if name != "torch" or self._asking:
            return None
        self._asking = True
        try:
            load_agent().install()
            # The agent's own finder is first in line now, and this search is past its place.
            return importlib.util.find_spec(name)
        except Exception as error:
            sys.meta_path.remove(self)
            say(error)
            return None
        finally:
            self._asking = False


def load_agent() -> Any:
    """The agent's part for Transformers, from beside this folder: what else lies there must not become importable."""
    if "kvgauge_agent" not in sys.modules:
        package = os.path.dirname(HERE)
        spec = importlib.util.spec_from_file_location(
            "kvgauge_agent", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
        )
        if spec is None or spec.loader is None:
            raise ImportError("kvgauge_agent")
        module = importlib.util.module_from_spec(spec)
        sys.modules["kvgauge_agent"] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules["kvgauge_agent"]
            raise
    return importlib.import_module("kvgauge_agent.transformers")


def say(error: BaseException) -> None:
    sys.stderr.write(f"kvgauge agent: not started: {type(error).__name__}\n")


def run_hidden() -> None:
    """Runs the sitecustomize that this one hides, as if this one were not there."""
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.curdir) != HERE]
    sys.path_importer_cache.pop(HERE, None)
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


try:
    sys.meta_path.insert(0, TorchWatch())
except Exception as error:
    say(error)
run_hidden()
