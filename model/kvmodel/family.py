"""What one row of the table of families says, and how a config is read through it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kvmodel import layouts
from kvmodel.class_defaults import CLASS_DEFAULTS
from kvmodel.errors import ModelError, show
from kvmodel.experts import Experts
from kvmodel.fields import Fields
from kvmodel.layers import Block
from kvmodel.shape import Shape

_REQUIRED = frozenset(
    {
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "kv_lora_rank",
        "qk_rope_head_dim",
        "qk_nope_head_dim",
    }
)
"""Fields every published config writes out: a config without them is refused, not completed."""


@dataclass(frozen=True, slots=True)
class Family:
    """How one `model_type` is read."""

    layout: Callable[[Shape], tuple[Block, ...]] = layouts.full
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The keys a fact may stand under, where they are not its name here."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Defaults of the config class that published configs rely on, where `CLASS_DEFAULTS` has none."""
    nested_defaults: Mapping[str, object] = field(default_factory=dict)
    """Further defaults inside a multimodal config: transformers writes there only what differs from the class."""
    class_name: str | None = None
    """The `model_type` whose class defaults hold, where it is not the row's own."""
    experts: Callable[[Shape], Experts | None] | None = None
    layers: Callable[[Shape], int] | None = None
    heads: Callable[[Shape], int] | None = None
    kv_heads: Callable[[Shape], int] | None = None
    head_dim: Callable[[Shape], int] | None = None
    intermediate: Callable[[Shape], int] | None = None
    attention_free: bool = False
    encoder: bool = False
    """Whether its decoder attends to an encoder's output."""
    kv_dtype: str | None = None
    """The cache's type under `auto`, where engines do not take the model's."""
    tied_embeddings: bool | None = None
    """None: as the config class has it."""
    rotary: bool = True
    rotary_factor: float = 1.0

    def shape(self, model_type: str, text: Mapping[str, object], config: Mapping[str, object]) -> Shape:
        """The config object `text`, which lies in `config` or is it, read through this row's names and defaults."""
        if not self.encoder:
            for name in ("is_encoder_decoder", "add_cross_attention"):
                if text.get(name):
                    raise ModelError(name, f"{show(text[name])}: {model_type} is modelled without cross-attention")
        defaults = {**self._class_defaults(model_type), **self.defaults}
        if text is config:
            defaults = {name: defaults[name] for name in defaults if name in self.defaults or name not in _REQUIRED}
        else:
            defaults.update(self.nested_defaults)
        return Shape(
            Fields(text, aliases=self.aliases, defaults=defaults),
            outer=config,
            default_layers=self.layers,
            default_heads=self.heads,
            default_kv_heads=self.kv_heads,
            default_head_dim=self.head_dim,
            default_intermediate=self.intermediate,
            attention_free=self.attention_free,
            rotary=self.rotary,
            default_rotary_factor=self.rotary_factor,
        )

    def _class_defaults(self, model_type: str) -> dict[str, object]:
        """What the config class defaults to, under the names used here."""
        known = CLASS_DEFAULTS.get(self.class_name or model_type, {})
        named = {name: value for name, value in known.items() if name not in self.aliases}
        for name, keys in self.aliases.items():
            value = next((known[key] for key in keys if key in known), None)
            if value is not None:
                named[name] = value
        return named

    def ties_embeddings(self, model_type: str) -> bool:
        """Whether embeddings and head share their weights where the config does not say."""
        if self.tied_embeddings is not None:
            return self.tied_embeddings
        return CLASS_DEFAULTS.get(self.class_name or model_type, {}).get("tie_word_embeddings") is True
