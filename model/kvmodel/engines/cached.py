"""How an engine sees a model's layers: by what is kept of each token."""

from __future__ import annotations

from dataclasses import dataclass

from kvmodel.architecture import Architecture
from kvmodel.dtypes import KvDtype
from kvmodel.errors import ModelError
from kvmodel.layers import (
    ChunkedLocalAttention,
    CrossAttention,
    FullAttention,
    HeadsLayer,
    IndexKeys,
    LatentAttention,
    Layer,
    SlidingLatentAttention,
    SlidingWindowAttention,
)
from kvmodel.states import StateLayer

FULL = "full"
WINDOW = "window"
CHUNK = "chunk"
INDEX = "index"
STATE = "state"
CROSS = "cross"


@dataclass(frozen=True, slots=True)
class CachedLayers:
    """Equal layers of one model."""

    kind: str
    layer: Layer
    count: int

    @property
    def kept_tokens(self) -> int | None:
        """The most tokens an ideal cache keeps; None where it keeps all."""
        kept: int | None = getattr(self.layer, "kept_tokens", None)
        return kept

    @property
    def heads(self) -> HeadsLayer:
        """The layer, where K and V have heads."""
        if not isinstance(self.layer, HeadsLayer):
            raise TypeError(f"{type(self.layer).__name__} has no heads")
        return self.layer

    @property
    def is_latent(self) -> bool:
        """Whether the cache is MLA's latent."""
        return isinstance(self.layer, LatentAttention)

    @property
    def state(self) -> StateLayer:
        """The layer, where it keeps a recurrent state."""
        if not isinstance(self.layer, StateLayer):
            raise TypeError(f"{type(self.layer).__name__} keeps no state")
        return self.layer

    def token_bytes(self, kv: KvDtype, tp: int) -> int:
        """Bytes of one token in one of the layers while it is kept."""
        return int(self.layer.token_bytes(kv, tp))


def cached_layers(
    architecture: Architecture, engine: str, kinds: frozenset[str] = frozenset({FULL, WINDOW})
) -> list[CachedLayers]:
    """The model's layers. Raises ModelError (field `architecture`) for a kind that is not among `kinds`."""
    found = []
    for group in architecture.groups:
        kind = _kind_of(group.layer)
        if kind is None or kind not in kinds:
            raise not_planned(architecture, engine, f"{type(group.layer).__name__} is not planned")
        found.append(CachedLayers(kind, group.layer, group.count))
    return found


def not_planned(architecture: Architecture, engine: str, why: str) -> ModelError:
    """An error about a model that this engine's plan doesn't cover."""
    return ModelError("architecture", f"{architecture.model_type}: {engine}: {why}")


def _kind_of(layer: Layer) -> str | None:
    if isinstance(layer, (SlidingWindowAttention, SlidingLatentAttention)):
        return WINDOW
    if isinstance(layer, ChunkedLocalAttention):
        return CHUNK
    if isinstance(layer, (FullAttention, LatentAttention)):
        return FULL
    if isinstance(layer, IndexKeys) and layer.tokens_per_entry == 1:
        return INDEX
    if isinstance(layer, CrossAttention):
        return CROSS
    return STATE if isinstance(layer, StateLayer) else None
