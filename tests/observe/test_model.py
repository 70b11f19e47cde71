"""A model's own files as a source."""

import json
from pathlib import Path

import pytest

from kvgauge.observe.model import ModelSource
from kvgauge.observe.records import SourceError
from tests.model.known import LLAMA_8B


def written(folder: Path, **changes: object) -> str:
    (folder / "config.json").write_text(json.dumps({**LLAMA_8B, **changes}))
    return str(folder)


def test_parameters_are_counted_from_the_config_though_weights_are_absent(tmp_path: Path) -> None:
    reading = ModelSource(written(tmp_path)).read()
    assert reading.active_parameters == 8_030_261_248
    assert reading.weights is None
    assert set(reading.missing) == {"weights"}


def test_of_experts_those_count_that_a_token_meets(tmp_path: Path) -> None:
    mixture = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    reading = ModelSource(written(tmp_path, **mixture)).read()
    assert reading.active_parameters is not None
    assert 13e9 < reading.active_parameters < 14e9


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(SourceError) as refusal:
        ModelSource("/no/such/model").read()
    assert refusal.value.reason == "not_found"
