"""Mixture-of-experts facts that memory depends on, and where each family's config keeps them."""

from collections.abc import Callable
from dataclasses import dataclass

from kvmodel.errors import ModelError, show
from kvmodel.fields import Fields
from kvmodel.shape import Shape


@dataclass(frozen=True, slots=True)
class Experts:
    """Routed experts of the layers that have them; shared experts are not counted."""

    count: int
    per_token: int
    intermediate_size: int
    sparse_layers: int
    """Layers with experts; the others have a dense MLP."""


@dataclass(frozen=True, slots=True)
class ExpertKeys:
    """The names one family's config uses. `sparse_layers` tells how many layers have experts."""

    count: str
    per_token: str
    intermediate_size: str
    sparse_layers: Callable[[Shape], int]
    section: str | None = None
    """A nested object the three lie in."""

    def __call__(self, shape: Shape) -> Experts | None:
        """The facts, or None where the config says there are no experts (count absent or 0)."""
        fields = shape.fields
        if self.section is not None:
            fields = Fields(fields.section(self.section), aliases={}, defaults={})
        if not fields.optional_count(self.count, least=0):
            return None
        count = fields.count(self.count)
        sparse_layers = self.sparse_layers(shape)
        if sparse_layers == 0:
            return None
        return Experts(
            count=count,
            per_token=fields.count(self.per_token, most=count),
            intermediate_size=fields.count(self.intermediate_size),
            sparse_layers=sparse_layers,
        )


def every_layer(shape: Shape) -> int:
    """All layers have experts."""
    return shape.layers


def after_first_dense(shape: Shape) -> int:
    """DeepSeek: from layer `first_k_dense_replace` on, those whose number `moe_layer_freq` divides."""
    first = shape.fields.count("first_k_dense_replace", least=0)
    step = shape.fields.optional_count("moe_layer_freq") or 1
    return sum(1 for index in range(shape.layers) if index >= first and index % step == 0)


def each_sparse_step(shape: Shape) -> int:
    """Qwen: each `decoder_sparse_step`-th layer that `mlp_only_layers` does not name."""
    step = shape.fields.optional_count("decoder_sparse_step") or 1
    dense = set(_layer_numbers(shape, "mlp_only_layers") or [])
    return sum(1 for index in range(shape.layers) if (index + 1) % step == 0 and index not in dense)


def listed_or_interleaved(shape: Shape) -> int:
    """Llama 4: the layers `moe_layers` names, else each `interleave_moe_layer_step`-th."""
    listed = _layer_numbers(shape, "moe_layers")
    if listed is not None:
        return len(set(listed))
    step = shape.fields.optional_count("interleave_moe_layer_step") or 1
    return shape.layers // step


def _layer_numbers(shape: Shape, name: str) -> list[int] | None:
    numbers = shape.fields.items(name)
    if numbers is None:
        return None
    kept: list[int] = []
    for index, number in enumerate(numbers):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < shape.layers:
            raise ModelError(f"{name}[{index}]", f"{show(number)} is not one of {shape.layers} layers")
        kept.append(number)
    return kept
