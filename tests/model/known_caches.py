"""Models with windows, states, index keys, compressed or shared caches, known to the byte.

`known_caches.json` is of the kind of `known_models.json`; its figures are arithmetic on published layer facts, states
with their convolution tail in 16 bits and the rest in 32 or in 16. What transformers' config class defaults to is left
out of the configs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class KnownCache:
    """One row of `known_caches.json`."""

    id: str
    config: dict[str, Any]
    growth_bytes_per_token: float
    window_bytes_per_sequence: int
    state_bytes_per_sequence: int
    state_bytes_in_16_bits: int
    cross_bytes_per_encoder_token: int
    bytes_at: dict[str, float]


def known_caches() -> list[KnownCache]:
    """All rows."""
    return [KnownCache(**row) for row in json.loads(Path(__file__).with_name("known_caches.json").read_text())]


def known_cache_config(model_id: str) -> dict[str, Any]:
    """A fresh copy of one model's config."""
    return next(model.config for model in known_caches() if model.id == model_id)
