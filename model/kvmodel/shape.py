"""The facts every decoder shares, read from its config through its family's names and defaults."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kvmodel.errors import ModelError, show
from kvmodel.fields import Fields
from kvmodel.layers import (
    Block,
    CompressedLatentAttention,
    CrossAttention,
    FullAttention,
    HeadsLayer,
    LatentAttention,
    SlidingWindowAttention,
    WindowLatent,
)

MOST_LAYERS = 10_000

_KINDS = {
    "attention": "full_attention",
    "mamba": "linear_attention",
    "mamba2": "linear_attention",
    "recurrent": "linear_attention",
    "short_conv": "conv",
}
"""Names of layer types that configs wrote before transformers 5 settled on one set."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One config read through its family's names. Every property raises ModelError naming the field at fault."""

    fields: Fields
    outer: Mapping[str, object] = field(default_factory=dict)
    """The whole config, where the text model's lies inside it."""
    default_layers: Callable[["Shape"], int] | None = None
    default_heads: Callable[["Shape"], int] | None = None
    default_kv_heads: Callable[["Shape"], int] | None = None
    default_head_dim: Callable[["Shape"], int] | None = None
    default_intermediate: Callable[["Shape"], int] | None = None
    attention_free: bool = False
    rotary: bool = True
    default_rotary_factor: float = 1.0

    @property
    def layers(self) -> int:
        if self.default_layers is not None:
            return self.default_layers(self)
        return self.fields.count("num_hidden_layers", MOST_LAYERS)

    @property
    def hidden_size(self) -> int:
        return self.fields.count("hidden_size")

    @property
    def heads(self) -> int:
        """Attention heads; 0 without attention."""
        if self.attention_free:
            return 0
        if self.default_heads is not None:
            return self.default_heads(self)
        return self.fields.count("num_attention_heads")

    @property
    def vocab_size(self) -> int:
        return self.fields.count("vocab_size")

    @property
    def intermediate_size(self) -> int:
        value = self.fields.value("intermediate_size")
        if isinstance(value, (list, tuple)):
            return max(self.fields.counts("intermediate_size"))
        given = self.fields.optional_count("intermediate_size", least=0)
        if given is None and self.default_intermediate is not None:
            return self.default_intermediate(self)
        return self.fields.count("intermediate_size") if given is None else given

    @property
    def kv_heads(self) -> int:
        """KV heads: given, else the family's rule, else one per attention head. They must divide those."""
        if self.default_kv_heads is not None:
            return self.default_kv_heads(self)
        given = self.fields.optional_count("num_key_value_heads")
        if given is None:
            return self.heads
        if self.heads % given:
            raise self.fields.refuse("num_key_value_heads", f"does not divide {self.heads} attention heads")
        return given

    @property
    def head_dim(self) -> int:
        if self.attention_free:
            return 0
        given = self.fields.optional_count("head_dim")
        if given is not None:
            return given
        if self.default_head_dim is not None:
            return self.default_head_dim(self)
        if self.hidden_size % self.heads:
            raise self.fields.refuse("hidden_size", f"is not divided by {self.heads} heads and head_dim is missing")
        return self.hidden_size // self.heads

    @property
    def is_latent(self) -> bool:
        return self.fields.value("kv_lora_rank") is not None and self.fields.flag("use_mla", True)

    @property
    def qk_nope_head_dim(self) -> int | None:
        return self.fields.count("qk_nope_head_dim") if self.is_latent else None

    @property
    def v_head_dim(self) -> int | None:
        if not self.is_latent:
            return None
        given = self.fields.optional_count("v_head_dim")
        return self.hidden_size // self.heads if given is None else given

    @property
    def rotary_dim(self) -> int | None:
        """Rotated elements of a head: given as such, or as a share of the head."""
        if not self.rotary or self.attention_free:
            return None
        if self.is_latent:
            return self.fields.count("qk_rope_head_dim", least=0)
        given = self.fields.optional_count("rotary_dim")
        if given is not None:
            return given
        factor = self.fields.ratio("partial_rotary_factor")
        if factor is None:
            factor = Fields(self.fields.section("rope_parameters"), aliases={}, defaults={}).ratio(
                "partial_rotary_factor"
            )
        return int(self.head_dim * (factor or self.default_rotary_factor))

    def full(self) -> FullAttention:
        """A layer of full attention."""
        return FullAttention(self.kv_heads, self.head_dim, self.head_dim)

    def sliding(self) -> SlidingWindowAttention:
        """A layer of the window `sliding_window`."""
        return SlidingWindowAttention(self.kv_heads, self.head_dim, self.head_dim, self.window())

    def window(self) -> int:
        """Tokens of a sliding window, which must be there."""
        return self.fields.count("sliding_window")

    def layer_types(self, known: set[str]) -> list[str] | None:
        """One of `known` per layer, in the names of transformers 5; None where the config has no such list."""
        kinds = self.fields.items("layer_types")
        if kinds is None:
            return None
        key = self.fields.key("layer_types")
        if len(kinds) != self.layers:
            raise ModelError(key, f"has {len(kinds)} entries for {self.layers} layers")
        named = []
        for index, kind in enumerate(kinds):
            name = _KINDS.get(kind, kind) if isinstance(kind, str) else None
            if name is None or name not in known:
                raise ModelError(f"{key}[{index}]", f"{show(kind)} is not one of {', '.join(sorted(known))}")
            named.append(name)
        return named

    def flags(self, name: str) -> list[bool] | None:
        """One 0 or 1 per layer, or None where the config has no such list."""
        given = self.fields.items(name)
        if given is None:
            return None
        if len(given) != self.layers:
            raise ModelError(name, f"has {len(given)} entries for {self.layers} layers")
        for index, value in enumerate(given):
            if value not in (0, 1) or isinstance(value, float):
                raise ModelError(f"{name}[{index}]", f"{show(value)} is not 0 or 1")
        return [bool(value) for value in given]

    def per_layer(self) -> dict[int, Fields]:
        """Fields that single layers override (transformers' `per_layer_config`), by layer."""
        found: dict[int, Fields] = {}
        sections = self.fields.section("per_layer_config")
        if len(sections) > self.layers:
            raise ModelError("per_layer_config", f"has {len(sections)} entries for {self.layers} layers")
        for key, section in sections.items():
            if not isinstance(key, str) or not key.isdecimal() or len(key) > 9 or int(key) >= self.layers:
                raise ModelError("per_layer_config", f"{show(key)} is not one of {self.layers} layers")
            if not isinstance(section, Mapping):
                raise ModelError(f"per_layer_config.{key}", f"{show(section)} is not an object")
            found[int(key)] = Fields(section, aliases={}, defaults={})
        return found


def cached_heads(blocks: tuple[Block, ...]) -> int:
    """KV heads of the layers with a cache, the most where they differ; a latent counts as one."""
    most = 0
    for block in blocks:
        for layer in block.caches:
            if isinstance(layer, HeadsLayer) and not isinstance(layer, CrossAttention):
                most = max(most, layer.kv_heads)
            elif isinstance(layer, (LatentAttention, WindowLatent, CompressedLatentAttention)):
                most = max(most, 1)
    return most


def cached_head_dim(blocks: tuple[Block, ...]) -> int:
    """Elements of one K row, of the first layer that has any; the whole latent for MLA, 0 without attention."""
    for block in blocks:
        for layer in block.caches:
            if isinstance(layer, LatentAttention):
                return layer.kv_lora_rank + layer.qk_rope_head_dim
            if isinstance(layer, HeadsLayer):
                return layer.head_dim_k
            if isinstance(layer, WindowLatent):
                return layer.head_dim
    return 0
