"""A config as parameter counting reads it, and the tally it counts into."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvmodel.errors import ModelError, show

_LARGEST = 2**40
_MOST_LAYERS = 10_000


@dataclass(slots=True)
class Tally:
    """Parameters found so far, by what they are."""

    embeddings: int = 0
    output: int = 0
    attention: int = 0
    dense: int = 0
    experts: int = 0
    active_experts: int = 0
    router: int = 0
    norms: int = 0


class Config:
    """Bounded look-ups under a field's several spellings."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def find(self, *names: str) -> object:
        return next((self._values[name] for name in names if self._values.get(name) is not None), None)

    def count(self, *names: str, default: int | None = None, least: int = 0) -> int:
        value = self.find(*names)
        if value is None and default is not None:
            return default
        if value is None:
            raise ModelError(names[0], "is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            raise ModelError(names[0], f"{show(value)} is not a whole number in {least}..{_LARGEST}")
        return value

    def optional(self, *names: str) -> int | None:
        return None if self.find(*names) is None else self.count(*names)

    def stated(self, name: str) -> int:
        """A count that a config must state, if only by null for none: families differ in their default."""
        if name not in self._values:
            raise ModelError(name, "is missing")
        return self.count(name, default=0)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.find(name)
        return default if value is None else bool(value)

    def section(self, name: str) -> "Config":
        value = self.find(name)
        if not isinstance(value, Mapping):
            raise ModelError(name, "is missing or not an object")
        return Config(value)

    def keyed(self, name: str, index: int) -> "Config":
        """The object a section holds for a layer by its number; an empty one where there is none."""
        section = self.find(name)
        value = section.get(str(index)) if isinstance(section, Mapping) else None
        return Config(value if isinstance(value, Mapping) else {})

    def items(self, name: str) -> list[object] | None:
        value = self.find(name)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or len(value) > _MOST_LAYERS:
            raise ModelError(name, f"{show(value)} is not a list of at most {_MOST_LAYERS}")
        return list(value)

    @property
    def layers(self) -> int:
        listed = self.items("layers_block_type")
        default = None if listed is None else len(listed)
        layers = self.count("num_hidden_layers", "n_layer", "n_layers", "num_layers", default=default, least=1)
        if layers > _MOST_LAYERS:
            raise ModelError("num_hidden_layers", f"{layers} is above {_MOST_LAYERS}")
        return layers

    @property
    def hidden(self) -> int:
        return self.count("hidden_size", "n_embd", "d_model", least=1)

    @property
    def heads(self) -> int:
        return self.count("num_attention_heads", "n_head", "n_heads", least=1)

    @property
    def kv_heads(self) -> int:
        return self.count("num_key_value_heads", "num_kv_heads", default=self.heads, least=1)

    @property
    def head_dim(self) -> int:
        return self.count("head_dim", "attention_head_dim", default=self.hidden // self.heads, least=1)

    @property
    def width(self) -> int:
        return self.count("intermediate_size", "ffn_dim", "n_inner", default=4 * self.hidden)

    @property
    def vocab(self) -> int:
        return self.count("vocab_size", least=1)
