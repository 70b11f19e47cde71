"""Typed, bounded look-ups in one config object: every refusal names the field and shows the value."""

from collections.abc import Mapping

from kvmodel.errors import ModelError, show

LARGEST = 2**40
"""No size, width or length in a model's config is larger; what is, is a mistake or an attack."""

LONGEST_LIST = 20_000
"""Lists hold one entry per layer at most."""


class Fields:
    """A config object with its family's other spellings and the defaults of the family's config class.

    A key that is present, null included, wins over a default: `sliding_window: null` means no window although the
    class default is one. `aliases` maps a name to the keys it may stand under.
    """

    def __init__(
        self,
        config: Mapping[str, object],
        *,
        aliases: Mapping[str, tuple[str, ...]],
        defaults: Mapping[str, object],
    ) -> None:
        self._config = config
        self._aliases = aliases
        self._defaults = defaults

    def value(self, name: str) -> object:
        """The value under the name or one of its other keys, else the class default, else None."""
        keys = self._aliases.get(name, (name,))
        present = [key for key in keys if self._config.get(key) is not None]
        if not present:
            return None if any(key in self._config for key in keys) else self._defaults.get(name)
        first = self._config[present[0]]
        for key in present[1:]:
            if self._config[key] != first:
                raise ModelError(key, f"{show(self._config[key])} contradicts {present[0]} {show(first)}")
        return first

    def key(self, name: str) -> str:
        """The key to name in a message: the one that is present, else the first it may stand under."""
        keys = self._aliases.get(name, (name,))
        return next((key for key in keys if self._config.get(key) is not None), keys[0])

    def refuse(self, name: str, why: str) -> ModelError:
        """An error about this field, its value shown."""
        return ModelError(self.key(name), f"{show(self.value(name))} {why}")

    def optional_count(self, name: str, most: int = LARGEST, least: int = 1) -> int | None:
        """A whole number in `least`..`most`, or None where it is absent."""
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(name, "is not a whole number")
        if not least <= value <= most:
            raise self.refuse(name, f"is outside {least}..{most}")
        return value

    def count(self, name: str, most: int = LARGEST, least: int = 1) -> int:
        """A whole number in `least`..`most`; absent is refused."""
        value = self.optional_count(name, most, least)
        if value is None:
            raise ModelError(self.key(name), "is missing")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false; `default` where it is absent."""
        value = self.value(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(name, "is not true or false")
        return value

    def ratio(self, name: str) -> float | None:
        """A number in 0 < x <= 1, or None where it is absent."""
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
            raise self.refuse(name, "is not a number above 0 and up to 1")
        return float(value)

    def items(self, name: str) -> list[object] | None:
        """A list, or None where it is absent."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)):
            raise self.refuse(name, "is not a list")
        if len(value) > LONGEST_LIST:
            raise ModelError(self.key(name), f"has {len(value)} entries, more than {LONGEST_LIST}")
        return list(value)

    def counts(self, name: str, most: int = LARGEST, least: int = 1) -> list[int]:
        """A list of whole numbers in `least`..`most`, at least one."""
        values = self.items(name)
        if not values:
            raise ModelError(self.key(name), "is missing" if values is None else "is empty")
        kept: list[int] = []
        for index, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ModelError(f"{self.key(name)}[{index}]", f"{show(value)} is not a number in {least}..{most}")
            kept.append(value)
        return kept

    def number(self, name: str, most: float = 1000.0) -> float | None:
        """A number above 0 and up to `most`, or None where it is absent."""
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            raise self.refuse(name, f"is not a number above 0 and up to {most:g}")
        return float(value)

    def section(self, name: str) -> Mapping[str, object]:
        """A nested object; an empty one where it is absent."""
        value = self.value(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.refuse(name, "is not an object")
        return value
