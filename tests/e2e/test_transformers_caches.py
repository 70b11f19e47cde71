"""The memory model against the caches that Hugging Face transformers really fills, for every family it knows.

Each model is built on the meta device from its config class, run over a few tokens, and its cache measured. The model
reads the same config twice: in full, as `to_dict` writes it, and as published, with only what differs from the class.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kvmodel import ModelError, read_architecture
from kvmodel.engines.transformers import plan
from kvmodel.families import FAMILIES
from kvmodel.nesting import WRAPPERS

pytestmark = [pytest.mark.engines, pytest.mark.timeout(330)]

TOKENS = 40
LEAST_AGREEING = 190
FORMS = ("config", "published")

PROMPT_TOKENS = {"cpmant": 32}
"""Models with learned prompts before every sequence, which transformers caches with it."""

REFUSED = {"deepseek_v4": "transformers keeps its compressed rows in a layout of its own"}

NOT_RUN = frozenset(
    {
        # Their defaults make no model that runs, or one without a cache.
        "chameleon",
        "cohere_asr",
        "cohere_compass",
        "cohere_compass_text",
        "dbrx",
        "deepseek_v2",
        "dots1",
        "glm46v",
        "glm4v",
        "glm4v_moe",
        "glm4v_moe_text",
        "glm4v_text",
        "glmga",
        "hunyuan_vl",
        "hunyuan_vl_text",
        "idefics3",
        "moonshine",
        "nemotron",
        "openai-gpt",
        "recurrent_gemma",
        "smolvlm",
        "speech_to_text",
        "switch_transformers",
        "whisper",
        "zamba",
        # Shapes that depend on values, which the meta device does not have.
        "bigbird_pegasus",
        "gemma3n",
        "gemma3n_text",
        "glm5_next",
        "glm5_next_text",
        "jetmoe",
        "longcat_flash",
        "nllb-moe",
        "t5gemma",
        # Text models that no automatic class of transformers builds alone.
        "deepseek_ocr2",
        "deepseek_ocr2_text",
        "emu3",
        "emu3_text_model",
        "ernie4_5_vl_moe",
        "ernie4_5_vl_moe_text",
        "mllama",
        "mllama_text_model",
        "paddleocr_vl",
        "paddleocr_vl_text",
        "qwen2_5_omni",
        "qwen2_5_omni_text",
        "qwen2_5_omni_thinker",
        "qwen3_omni_moe",
        "qwen3_omni_moe_text",
        "qwen3_omni_moe_thinker",
        "step3p5",
        "step3p7",
        "t5_gemma_module",
        "voxtral_realtime",
        "voxtral_realtime_text",
    }
)


@pytest.fixture(scope="module")
def examined(vllm_python: Path) -> list[dict[str, Any]]:
    """What transformers says of every model type that the memory model knows."""
    job = {"model_types": sorted({*FAMILIES, *WRAPPERS}), "tokens": TOKENS}
    script = Path(__file__).with_name("transformers_caches.py")
    answer = subprocess.run(
        [str(vllm_python), str(script)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=300,
        env={"HF_HUB_OFFLINE": "1", "PATH": ""},
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [row["model_type"] for row in rows] == job["model_types"]
    return rows


def test_the_model_agrees_with_every_cache(examined: list[dict[str, Any]]) -> None:
    agreeing = 0
    wrong = []
    for row in examined:
        if "cached_bytes" not in row:
            continue
        for form in FORMS:
            found = predicted(row, form)
            if row["model_type"] in REFUSED:
                assert found is None
            elif found != row["cached_bytes"]:
                wrong.append((row["model_type"], form, row["cached_bytes"], found))
            else:
                agreeing += 1
    assert not wrong
    assert agreeing >= len(FORMS) * LEAST_AGREEING


def test_what_was_not_run_is_known(examined: list[dict[str, Any]]) -> None:
    """So that the comparison does not shrink unseen. Families outside of transformers have no config class there."""
    failed = {row["model_type"]: row["failure"] for row in examined if "failure" in row}
    unknown = {name: why for name, why in failed.items() if why != "no config class" and name not in NOT_RUN}
    assert not unknown


def predicted(row: dict[str, Any], form: str) -> int | None:
    """Bytes by the memory model; None where it refuses."""
    tokens = TOKENS + PROMPT_TOKENS.get(row["model_type"], 0)
    try:
        architecture = read_architecture(row[form])
        encoder_tokens = row["encoder_tokens"] or None
        return plan(architecture, length=tokens, dtype="bfloat16", encoder_tokens=encoder_tokens).pool_bytes
    except ModelError as error:
        if row["model_type"] in REFUSED:
            return None
        pytest.fail(f"{row['model_type']} ({form}): {error}")
