"""A model's shape, read from its config.json, and the bytes of cache that follow from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

from kvmodel.checkpoint_types import declared_dtype, declared_kv_dtype, quantization_of, state_dtype_of
from kvmodel.dtypes import KvDtype, kv_dtype
from kvmodel.errors import ModelError, show
from kvmodel.layers import (
    Block,
    CrossAttention,
    FullAttention,
    LatentAttention,
    Layer,
    LayerGroup,
    SlidingLatentAttention,
    group_layers,
)

if TYPE_CHECKING:
    from pathlib import Path

    from kvmodel.experts import Experts
    from kvmodel.shape import Shape

LARGEST_CONFIG_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Architecture:
    """The facts of one language model that memory depends on.

    `model_type` is the text model's. Byte figures are for one sequence, without block rounding, on one rank of a
    tensor-parallel group of `tp`; `kv_dtype` is the engine's flag. They raise ModelError with field `tp` or
    `kv_dtype`, and are whole numbers but for compressed caches, where a token's share of an entry may be a fraction.
    Recurrent state counts its convolution tail in 16 bits and the rest in 32; engines differ (`kvmodel.states`).
    """

    model_type: str
    architectures: tuple[str, ...]
    dtype: str
    """What engines compute in: the declared dtype, bfloat16 where none or float32 is declared (vLLM's `auto`)."""
    declared_dtype: str | None
    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Width of a dense MLP; a model of experts only keeps its config's figure, one without MLPs 0."""
    vocab_size: int
    num_attention_heads: int
    """0 for a model without attention."""
    num_kv_heads: int
    """KV heads of the layers that have a cache (the most, where layers differ); 1 for MLA, 0 without attention."""
    head_dim: int
    """Elements of one K row: for MLA the latent's."""
    max_position_embeddings: int | None
    """None where the model has no positional limit of its own."""
    groups: tuple[LayerGroup, ...]
    """The caches gathered by kind and geometry."""
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
    blocks: tuple[Block, ...] = ()
    """The decoder layers in model order: what each keeps, or whose cache it reads."""
    kv_cache_dtype: str | None = None
    """The cache's type under `auto` where it is not the model's: the checkpoint's own or the architecture's."""
    state_dtype: str | None = None
    """The recurrent state's type where the config names one."""
    draft_layers: int = 0
    """Layers the checkpoint brings for multi-token prediction: used only for speculation, not in `blocks`."""
    encoder_tokens: int | None = None
    """The most tokens of one encoder input; None without cross-attention or where the config sets no limit."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All caches in model order, those of one block after another."""
        return tuple(layer for block in self.blocks for layer in block.caches)

    @property
    def is_uniform_full_attention(self) -> bool:
        """One geometry of plain full attention or MLA: blocks x block size is the capacity in tokens."""
        if len(self.groups) != 1:
            return False
        layer = self.groups[0].layer
        return isinstance(layer, (FullAttention, LatentAttention)) and not isinstance(layer, SlidingLatentAttention)

    @property
    def has_cross_attention(self) -> bool:
        """Whether layers attend to an encoder's output."""
        return any(isinstance(group.layer, CrossAttention) for group in self.groups)

    def growth_bytes_per_token(self, kv_dtype: str = "auto", tp: int = 1) -> int | float:
        """Bytes each further token adds however long the sequence is."""
        kv = self.cache_dtype(kv_dtype, tp)
        return _whole(sum(group.count * group.layer.growth_bytes_per_token(kv, tp) for group in self.groups))

    def window_bytes_per_sequence(self, kv_dtype: str = "auto", tp: int = 1) -> int:
        """Bytes of all windows once they are full."""
        kv = self.cache_dtype(kv_dtype, tp)
        return sum(group.count * group.layer.window_bytes(kv, tp) for group in self.groups)

    def state_bytes_per_sequence(self, kv_dtype: str = "auto", tp: int = 1) -> int:
        """Bytes that do not depend on the length."""
        kv = self.cache_dtype(kv_dtype, tp)
        return sum(group.count * group.layer.state_bytes(kv, tp) for group in self.groups)

    def state_bytes_as(self, *, conv_bytes: int, recurrent_bytes: int, tp: int = 1, more_columns: int = 0) -> int:
        """Bytes of all recurrent state with elements of these sizes, as one engine or another keeps it.

        `more_columns` further inputs are kept per convolution: transformers keeps one more, vLLM one per draft token.
        """
        from kvmodel.states import StateLayer

        self.check_tp(tp)
        return sum(
            group.count
            * group.layer.state_bytes_as(
                conv_bytes=conv_bytes, recurrent_bytes=recurrent_bytes, tp=tp, more_columns=more_columns
            )
            for group in self.groups
            if isinstance(group.layer, StateLayer)
        )

    def cross_bytes_per_encoder_token(self, kv_dtype: str = "auto", tp: int = 1) -> int:
        """Bytes each token of an encoder's output takes in the cross-attention layers, once per input."""
        kv = self.cache_dtype(kv_dtype, tp)
        return sum(
            group.count * group.layer.token_bytes(kv, tp)
            for group in self.groups
            if isinstance(group.layer, CrossAttention)
        )

    def bytes_at(self, tokens: int, kv_dtype: str = "auto", tp: int = 1, *, encoder_tokens: int = 0) -> int | float:
        """Bytes held for a sequence of `tokens` tokens and an encoder's output of `encoder_tokens`."""
        for name, value in (("tokens", tokens), ("encoder_tokens", encoder_tokens)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ModelError(name, f"{show(value)} is not a number of tokens")
        kv = self.cache_dtype(kv_dtype, tp)
        held = _whole(sum(group.count * group.layer.bytes_at(tokens, kv, tp) for group in self.groups))
        return held + encoder_tokens * self.cross_bytes_per_encoder_token(kv_dtype, tp)

    def check_tp(self, tp: int) -> None:
        """Refuse (ModelError, field `tp`) a tensor-parallel size that does not divide the attention heads."""
        if isinstance(tp, bool) or not isinstance(tp, int) or tp < 1:
            raise ModelError("tp", f"{show(tp)} is not a number of ranks")
        if self.num_attention_heads % tp:
            raise ModelError("tp", f"{show(tp)} does not divide {self.num_attention_heads} attention heads")

    def cache_dtype(self, name: str = "auto", tp: int = 1) -> KvDtype:
        """The cache's type an engine's flag means for this model, `tp` checked."""
        self.check_tp(tp)
        if name == "auto" and self.kv_cache_dtype is not None:
            name = self.kv_cache_dtype
        return kv_dtype(name, self.dtype)


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def read_architecture(config: Mapping[str, object]) -> Architecture:
    """The architecture a config.json object describes.

    The text model may lie in a nested object (`text_config` and the like). Raises ModelError naming the field for an
    unknown `model_type`, a missing or contradictory field and a value of the wrong type or size: nothing is guessed.
    """
    # Here, not above: the table of families is half of the package's import time, and only configs need it.
    from kvmodel.families import family_of
    from kvmodel.nesting import text_config_of
    from kvmodel.shape import cached_head_dim, cached_heads

    if not isinstance(config, Mapping):
        raise ModelError("config", f"{show(config)} is not an object")
    text, multimodal, model_type = text_config_of(config)
    family = family_of(model_type)
    shape = family.shape(model_type, text, config)
    blocks = family.layout(shape)
    declared = declared_dtype(text, config)
    groups = group_layers(layer for block in blocks for layer in block.caches)
    if not groups:
        raise ModelError("config", f"no layer of this {model_type} model keeps a cache")
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
        num_kv_heads=cached_heads(blocks),
        head_dim=cached_head_dim(blocks),
        max_position_embeddings=shape.fields.optional_count("max_position_embeddings"),
        groups=groups,
        tied_embeddings=_tied(text, config, family.ties_embeddings(model_type)),
        experts=family.experts(shape) if family.experts else None,
        quantization=quantization_of(text) or quantization_of(config),
        rotary_dim=shape.rotary_dim,
        qk_nope_head_dim=shape.qk_nope_head_dim,
        v_head_dim=shape.v_head_dim,
        multimodal=multimodal,
        blocks=blocks,
        kv_cache_dtype=declared_kv_dtype(text) or declared_kv_dtype(config) or family.kv_dtype,
        state_dtype=state_dtype_of(text),
        draft_layers=_draft_layers(shape),
        encoder_tokens=_encoder_tokens(groups),
    )


def load_architecture(path: str | PathLike[str]) -> Architecture:
    """`read_architecture` of a config.json, or of the one in a folder, or the architecture of a .gguf file.

    A config of more than 4 MiB is refused.
    """
    # Here, not above: pathlib is a tenth of the package's import time.
    from pathlib import Path

    if Path(path).suffix == ".gguf":
        return _load_gguf(Path(path))
    config, file = _read_config(Path(path))
    try:
        return read_architecture(config)
    except ModelError as error:
        raise ModelError(error.field, error.message, file) from None


def load_config(path: str | PathLike[str]) -> Mapping[str, object]:
    """The object in a config.json, or in the one of a folder, as `load_architecture` reads it."""
    from pathlib import Path

    return _read_config(Path(path))[0]


def parse_config(text: bytes, file: str) -> Mapping[str, object]:
    """The object in a config.json's text. Raises ModelError (field `config`) with the file's name."""
    if len(text) > LARGEST_CONFIG_BYTES:
        raise ModelError("config", f"is larger than {LARGEST_CONFIG_BYTES} bytes", file)
    try:
        config = json.loads(text)
    except RecursionError:
        raise ModelError("config", "is nested too deeply", file) from None
    except ValueError as error:
        raise ModelError("config", f"is not JSON: {error}", file) from None
    if not isinstance(config, dict):
        raise ModelError("config", f"{show(config)} is not an object", file)
    return config


def _read_config(file: Path) -> tuple[Mapping[str, object], str]:
    """The object the file holds, and the file's name."""
    if file.is_dir():
        file = file / "config.json"
    if not file.is_file():
        raise ModelError("config", "there is no such file", str(file))
    try:
        with file.open("rb") as opened:
            text = opened.read(LARGEST_CONFIG_BYTES + 1)
    except OSError as error:
        raise ModelError("config", f"cannot be read: {error.strerror}", str(file)) from error
    return parse_config(text, str(file)), str(file)


def _load_gguf(file: Path) -> Architecture:
    from kvmodel.gguf import read_gguf
    from kvmodel.gguf_architecture import gguf_architecture

    found = read_gguf(file)
    try:
        return gguf_architecture(found)
    except ModelError as error:
        raise ModelError(error.field, error.message, str(file)) from None


def _architectures(config: Mapping[str, object]) -> tuple[str, ...]:
    names = config.get("architectures")
    if names is None:
        return ()
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ModelError("architectures", f"{show(names)} is not a list of names")
    return tuple(names)


def _tied(text: Mapping[str, object], config: Mapping[str, object], default: bool) -> bool:
    for section in (text, config):
        value = section.get("tie_word_embeddings")
        if value is not None:
            if not isinstance(value, bool):
                raise ModelError("tie_word_embeddings", f"{show(value)} is not true or false")
            return value
    return default


_DRAFT_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")


def _draft_layers(shape: Shape) -> int:
    for name in _DRAFT_KEYS:
        given = shape.fields.optional_count(name, 10_000, least=0)
        if given is not None:
            return given
    return 0


def _encoder_tokens(groups: tuple[LayerGroup, ...]) -> int | None:
    for group in groups:
        if isinstance(group.layer, CrossAttention):
            return group.layer.encoder_tokens
    return None
