"""The table of engines."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kvmodel import ModelError, read_architecture
from kvmodel.engines import ENGINES, plan_of
from kvmodel.engines.contract import EnginePlan

from ..known import known_config, known_models
from ..known_caches import known_caches

GIB = 2**30
BUDGETS: Mapping[str, Mapping[str, Any]] = {
    "llama.cpp": {"n_ctx": 4096},
    "lmdeploy": {"free_bytes": 200 * GIB, "session_len": 4096},
    "sglang": {"kv_bytes": 200 * GIB, "context_tokens": 4096},
    "tensorrt-llm": {"kv_bytes": 1000 * GIB, "max_seq_len": 4096},
    "tgi": {"kv_bytes": 200 * GIB, "max_total_tokens": 4096},
    "transformers": {"length": 4096, "encoder_tokens": 100},
}
CONFIGS = {row.id: row.config for row in known_models()} | {row.id: row.config for row in known_caches()}


@pytest.mark.parametrize("engine", sorted(BUDGETS))
@pytest.mark.parametrize("model_id", sorted(CONFIGS))
def test_every_model_is_planned_or_refused_by_name(engine: str, model_id: str) -> None:
    try:
        found = plan_of(engine)(read_architecture(CONFIGS[model_id]), **BUDGETS[engine])
    except ModelError as error:
        assert error.field == "architecture"  # noqa: PT017
        return
    check(found, engine)


def check(found: EnginePlan, engine: str) -> None:
    assert found.engine == engine
    assert found.sources
    assert found.groups
    assert found.pool_bytes > 0
    assert found.safe_requests >= 0
    assert found.held_bytes(4096) >= found.held_bytes(1) > 0
    kept = sum(group.block_bytes * (group.num_blocks or 0) for group in found.groups)
    assert found.pool_bytes >= kept


def test_plain_models_agree_between_engines() -> None:
    """One token of Llama-like models takes the same bytes wherever it is kept unpadded in 16 bits."""
    architecture = read_architecture(known_config("Qwen/Qwen3-8B"))
    plans: list[Callable[..., EnginePlan]] = [plan_of(engine) for engine in sorted(BUDGETS)]
    sizes = {
        plan(architecture, **BUDGETS[name]).kv_bytes_per_token_per_gpu
        for plan, name in zip(plans, sorted(BUDGETS), strict=True)
    }
    assert sizes == {architecture.growth_bytes_per_token()}


def test_an_unknown_engine_is_named() -> None:
    for name in ("ollama", None, 3):
        with pytest.raises(ModelError) as caught:
            plan_of(name)  # type: ignore[arg-type]
        assert caught.value.field == "engine"


def test_engines_are_imported_when_asked_for() -> None:
    program = "import sys, kvmodel, kvmodel.engines as e; print(len(e.ENGINES), *sorted(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = answer.stdout.split()
    assert int(loaded[0]) == len(ENGINES)
    assert not [name for name in loaded if name.startswith("kvmodel.engines.") and name != "kvmodel.engines.contract"]
