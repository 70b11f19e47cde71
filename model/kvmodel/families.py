"""The one table from `model_type` to how that family's config is read.

A row holds what a config does not say: the layout of its layers and its other spellings; what the config class
defaults to lies in `kvmodel.class_defaults` (Hugging Face transformers, `models/<family>/configuration_<family>.py`;
families outside of it from their own repositories). A model whose cache is not fully modelled has no row, and is
refused by its `model_type`.
"""

from collections.abc import Mapping

from kvmodel.attention_families import ATTENTION_FAMILIES
from kvmodel.encoder_families import ENCODER_FAMILIES
from kvmodel.errors import ModelError, show
from kvmodel.family import Family
from kvmodel.recurrent_families import RECURRENT_FAMILIES

__all__ = ["FAMILIES", "NOT_MODELLED", "Family", "family_of"]

FAMILIES: Mapping[str, Family] = {**ATTENTION_FAMILIES, **RECURRENT_FAMILIES, **ENCODER_FAMILIES}

NOT_MODELLED: Mapping[str, str] = {
    "blt": "caches of four models, not one",
    "led": "global attention beside windows",
    "prophetnet": "streams of attention",
    "qwen4_exp_text": "compressed index keys and convolutions of embeddings beside the KV cache",
    "reformer": "hashed attention",
    "zaya": "convolved and compressed attention",
}
"""Known architectures whose cache is not modelled, and what is missing."""


def family_of(model_type: str) -> Family:
    """The row of a `model_type`. Raises ModelError with field `model_type` where there is none."""
    family = FAMILIES.get(model_type)
    if family is None:
        missing = NOT_MODELLED.get(model_type)
        why = "is not a known architecture" if missing is None else f"is not modelled: it has {missing}"
        raise ModelError("model_type", f"{show(model_type)} {why}")
    return family
