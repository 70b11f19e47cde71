"""Mixture-of-experts facts that memory depends on, and where each family's config keeps them."""

from collections.abc import Callable
from dataclasses import dataclass

from kvmodel.errors import ModelError, show
from kvmodel.fields import Fields
from kvmodel.shape import MOST_LAYERS, Shape


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
        if not _largest(fields, self.count):
            return None
        count = _largest(fields, self.count) or 0
        sparse_layers = self.sparse_layers(shape)
        if sparse_layers == 0:
            return None
        per_token = _largest(fields, self.per_token)
        if per_token is None:
            raise ModelError(fields.key(self.per_token), "is missing")
        if not 1 <= per_token <= count:
            raise ModelError(fields.key(self.per_token), f"{show(per_token)} is outside 1..{count}")
        width = _largest(fields, self.intermediate_size)
        if not width:
            raise ModelError(fields.key(self.intermediate_size), "is missing")
        return Experts(count=count, per_token=per_token, intermediate_size=width, sparse_layers=sparse_layers)


def _largest(fields: Fields, name: str) -> int | None:
    """The number, or the largest where there is one per layer (Hunyuan, Ernie) or per modality."""
    if isinstance(fields.value(name), (list, tuple)):
        return max(fields.counts(name, least=0))
    return fields.optional_count(name, least=0)


def every_layer(shape: Shape) -> int:
    """All layers have experts."""
    return shape.layers


def after_first_dense(shape: Shape) -> int:
    """As `mlp_layer_types` lists them; else from layer `first_k_dense_replace` on, those `moe_layer_freq` divides.

    `moe_layer_freq` may be a list of 0 and 1 per layer.
    """
    kinds = shape.fields.items("mlp_layer_types")
    if kinds is not None:
        return sum(1 for kind in kinds[: shape.layers] if kind not in ("dense", "mlp"))
    if isinstance(shape.fields.value("moe_layer_freq"), (list, tuple)):
        return sum(shape.flags("moe_layer_freq") or [])
    first = shape.fields.optional_count("first_k_dense_replace", least=0) or 0
    step = shape.fields.optional_count("moe_layer_freq") or 1
    return sum(1 for index in range(shape.layers) if index >= first and index % step == 0)


def each_sparse_step(shape: Shape) -> int:
    """Qwen: each `decoder_sparse_step`-th layer that `mlp_only_layers` does not name."""
    step = shape.fields.optional_count("decoder_sparse_step") or 1
    dense = set(_layer_numbers(shape, "mlp_only_layers") or [])
    return sum(1 for index in range(shape.layers) if (index + 1) % step == 0 and index not in dense)


def each_period(shape: Shape) -> int:
    """Jamba: layers whose number leaves `expert_layer_offset` over `expert_layer_period`."""
    period = shape.fields.count("expert_layer_period", MOST_LAYERS)
    offset = shape.fields.count("expert_layer_offset", MOST_LAYERS, least=0)
    return sum(1 for index in range(shape.layers) if index % period == offset)


def ernie_interval(shape: Shape) -> int:
    """Ernie: each `moe_layer_interval`-th layer from `moe_layer_start_index` to `moe_layer_end_index`."""
    bounds = []
    for name, default in (("moe_layer_start_index", 0), ("moe_layer_end_index", shape.layers - 1)):
        value = shape.fields.value(name)
        if isinstance(value, (list, tuple)):
            bounds.append((min if default == 0 else max)(shape.fields.counts(name, MOST_LAYERS, least=0)))
        elif value == -1:
            bounds.append(shape.layers - 1)
        else:
            given = shape.fields.optional_count(name, MOST_LAYERS, least=0)
            bounds.append(default if given is None else given)
    step = shape.fields.optional_count("moe_layer_interval", MOST_LAYERS) or 1
    last = min(bounds[1], shape.layers - 1)
    return sum(1 for index in range(bounds[0], last + 1) if (index + 1) % step == 0)


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
