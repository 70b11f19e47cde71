"""A model's shape, read from its config.json, and the bytes of cache that follow from it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike

from kvmodel.dtypes import KvDtype, kv_dtype, model_dtype
from kvmodel.errors import ModelError, show
from kvmodel.experts import Experts
from kvmodel.families import family_of
from kvmodel.layers import FullAttention, LatentAttention, LayerGroup
from kvmodel.nesting import text_config_of

_LARGEST_CONFIG_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Architecture:
    """The facts of one language model that memory depends on.

    `model_type` is the text model's. Byte figures are for one sequence, without block rounding, on one rank of a
    tensor-parallel group of `tp`; `kv_dtype` is the engine's flag. They raise ModelError with field `tp` or
    `kv_dtype`.
    """

    model_type: str
    architectures: tuple[str, ...]
    dtype: str
    """What engines compute in: the declared dtype, bfloat16 where none or float32 is declared (vLLM's `auto`)."""
    declared_dtype: str | None
    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Width of a dense MLP; a model of experts only keeps its config's figure."""
    vocab_size: int
    num_attention_heads: int
    num_kv_heads: int
    """KV heads of the layers that have a cache (the most, where layers differ); 1 for MLA."""
    head_dim: int
    """Elements of one K row: for MLA the latent's."""
    max_position_embeddings: int | None
    """None where the model has no positional limit of its own."""
    groups: tuple[LayerGroup, ...]
    tied_embeddings: bool
    experts: Experts | None
    quantization: str | None
    """`quant_method` of the checkpoint, None for plain weights."""
    rotary_dim: int | None
    """Rotated elements of a head, None without rotary embeddings."""
    qk_nope_head_dim: int | None
    v_head_dim: int | None
    """MLA's expanded heads; None for other attention."""
    multimodal: bool

    @property
    def is_uniform_full_attention(self) -> bool:
        """One geometry of plain full attention or MLA: blocks x block size is the capacity in tokens."""
        return len(self.groups) == 1 and isinstance(self.groups[0].layer, (FullAttention, LatentAttention))

    def growth_bytes_per_token(self, kv_dtype: str = "auto", tp: int = 1) -> int:
        """Bytes each further token adds however long the sequence is."""
        kv = self._kv(kv_dtype, tp)
        return sum(group.count * group.layer.growth_bytes_per_token(kv, tp) for group in self.groups)

    def window_bytes_per_sequence(self, kv_dtype: str = "auto", tp: int = 1) -> int:
        """Bytes of all windows once they are full."""
        kv = self._kv(kv_dtype, tp)
        return sum(group.count * group.layer.window_bytes(kv, tp) for group in self.groups)

    def state_bytes_per_sequence(self, kv_dtype: str = "auto", tp: int = 1) -> int:
        """Bytes that do not depend on the length."""
        kv = self._kv(kv_dtype, tp)
        return sum(group.count * group.layer.state_bytes(kv, tp) for group in self.groups)

    def bytes_at(self, tokens: int, kv_dtype: str = "auto", tp: int = 1) -> int:
        """Bytes held for a sequence of `tokens` tokens."""
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
            raise ModelError("tokens", f"{show(tokens)} is not a number of tokens")
        kv = self._kv(kv_dtype, tp)
        return sum(group.count * group.layer.bytes_at(tokens, kv, tp) for group in self.groups)

    def check_tp(self, tp: int) -> None:
        """Refuse (ModelError, field `tp`) a tensor-parallel size that does not divide the attention heads."""
        if isinstance(tp, bool) or not isinstance(tp, int) or tp < 1:
            raise ModelError("tp", f"{show(tp)} is not a number of ranks")
        if self.num_attention_heads % tp:
            raise ModelError("tp", f"{show(tp)} does not divide {self.num_attention_heads} attention heads")

    def _kv(self, name: str, tp: int) -> KvDtype:
        self.check_tp(tp)
        return kv_dtype(name, self.dtype)


def read_architecture(config: Mapping[str, object]) -> Architecture:
    """The architecture a config.json object describes.

    The text model may lie in a nested object (`text_config` and the like). Raises ModelError naming the field for an
    unknown `model_type`, a missing or contradictory field and a value of the wrong type or size: nothing is guessed.
    """
    if not isinstance(config, Mapping):
        raise ModelError("config", f"{show(config)} is not an object")
    text, multimodal, model_type = text_config_of(config)
    family = family_of(model_type)
    shape = family.shape(text, nested=text is not config)
    groups = family.layout(shape)
    experts = family.experts(shape) if family.experts else None
    declared = _declared_dtype(text, config)
    return Architecture(
        model_type=model_type,
        architectures=_architectures(config),
        dtype="bfloat16" if declared is None or declared == "float32" else declared,
        declared_dtype=declared,
        num_layers=shape.layers,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        num_attention_heads=shape.heads,
        num_kv_heads=shape.cached_heads(groups),
        head_dim=shape.cached_head_dim(groups),
        max_position_embeddings=shape.fields.optional_count("max_position_embeddings"),
        groups=groups,
        tied_embeddings=_tied(text, config, family.tied_embeddings),
        experts=experts,
        quantization=_quantization(text) or _quantization(config),
        rotary_dim=shape.rotary_dim,
        qk_nope_head_dim=shape.qk_nope_head_dim,
        v_head_dim=shape.v_head_dim,
        multimodal=multimodal,
    )


def load_architecture(path: str | PathLike[str]) -> Architecture:
    """`read_architecture` of a config.json, or of the one in a folder. Files over 16 MiB are refused."""
    # Here, not above: pathlib is a tenth of the package's import time.
    from pathlib import Path

    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    if not file.is_file():
        raise ModelError("config", "there is no such file", str(file))
    try:
        with file.open("rb") as opened:
            text = opened.read(_LARGEST_CONFIG_BYTES + 1)
    except OSError as error:
        raise ModelError("config", f"cannot be read: {error.strerror}", str(file)) from error
    if len(text) > _LARGEST_CONFIG_BYTES:
        raise ModelError("config", f"is larger than {_LARGEST_CONFIG_BYTES} bytes", str(file))
    try:
        config = json.loads(text)
    except RecursionError:
        raise ModelError("config", "is nested too deeply", str(file)) from None
    except ValueError as error:
        raise ModelError("config", f"is not JSON: {error}", str(file)) from None
    try:
        return read_architecture(config)
    except ModelError as error:
        raise ModelError(error.field, error.message, str(file)) from None


def _architectures(config: Mapping[str, object]) -> tuple[str, ...]:
    names = config.get("architectures")
    if names is None:
        return ()
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ModelError("architectures", f"{show(names)} is not a list of names")
    return tuple(names)


def _declared_dtype(*configs: Mapping[str, object]) -> str | None:
    for config in configs:
        for key in ("dtype", "torch_dtype"):
            if config.get(key) is not None:
                return model_dtype(config[key], key)
    return None


def _tied(text: Mapping[str, object], config: Mapping[str, object], default: bool) -> bool:
    for section in (text, config):
        value = section.get("tie_word_embeddings")
        if value is not None:
            if not isinstance(value, bool):
                raise ModelError("tie_word_embeddings", f"{show(value)} is not true or false")
            return value
    return default


def _quantization(config: Mapping[str, object]) -> str | None:
    section = config.get("quantization_config")
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise ModelError("quantization_config", f"{show(section)} is not an object")
    for key in ("quant_method", "quant_algo"):
        name = section.get(key)
        if isinstance(name, str) and name:
            return name.lower()
    # Checkpoints from before `quant_method` existed say only this (transformers reads them as bitsandbytes).
    if section.get("load_in_8bit") is True or section.get("load_in_4bit") is True:
        return "bitsandbytes"
    raise ModelError("quantization_config.quant_method", "is missing")
