"""Cache plans of the inference engines, by name. A module is imported when its engine is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import cast

from kvmodel.engines.contract import EnginePlan
from kvmodel.errors import ModelError, show

Plan = Callable[..., EnginePlan]

_MODULES = {
    "llama.cpp": "llama_cpp",
    "lmdeploy": "lmdeploy",
    "sglang": "sglang",
    "tensorrt-llm": "tensorrt_llm",
    "tgi": "tgi",
    "transformers": "transformers",
    "vllm": "vllm",
}


class _Engines(Mapping[str, Plan]):
    """Engine name to its `plan` function."""

    def __getitem__(self, name: str) -> Plan:
        module = _MODULES[name]
        return cast("Plan", import_module(f"kvmodel.engines.{module}").plan)

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


ENGINES: Mapping[str, Plan] = _Engines()


def plan_of(engine: str) -> Plan:
    """The `plan` function of an engine. Raises ModelError with field `engine` for a name that is not known."""
    if not isinstance(engine, str) or engine not in ENGINES:
        raise ModelError("engine", f"{show(engine)} is not one of {', '.join(ENGINES)}")
    return ENGINES[engine]
