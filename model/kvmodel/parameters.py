"""Parameters of a model, counted from its config.json, and the bytes they take; for checkpoints that are not at hand.

Counts follow the module structure of Hugging Face transformers (5.x) and agree with it to the parameter for the
families listed here. Exact sizes come from a checkpoint's headers (`read_weights`), never from here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kvmodel import parameter_blocks as blocks
from kvmodel.dtypes import model_dtype
from kvmodel.errors import ModelError, show
from kvmodel.nesting import text_config_of
from kvmodel.parameter_config import Config, Tally
from kvmodel.parameter_families import FAMILIES, SAME_TEXT
from kvmodel.parameter_mlps import truth
from kvmodel.weight_formats import WeightFormat, format_of_config, weight_format

_VOCABULARY_MULTIPLE = 64
"""vLLM pads the vocabulary to this before sharding it (`vocab_parallel_embedding.py`)."""
_QUANTIZED_SPREAD = 0.03
_ENCODER_SPREAD = 0.5
_MOST_RANKS = 2**16


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters of the language model, without vision or audio towers and without multi-token-prediction layers."""

    embeddings: int
    """Token and position embeddings, stored once even where the output shares them."""
    output: int
    """The language-model head, 0 where it is tied to the embeddings."""
    attention: int
    """Attention and state layers' projections, their biases included."""
    dense: int
    """MLPs every token passes, shared experts included."""
    experts: int
    """Routed experts, all of them."""
    active_experts: int
    """Routed experts one token passes."""
    router: int
    norms: int
    exact: bool
    """Whether this family's count is known to be the framework's own."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.active - self.active_experts + self.experts

    @property
    def active(self) -> int:
        """Those one token passes, the embedding table counted whole."""
        fixed = self.embeddings + self.output + self.attention + self.dense + self.router + self.norms
        return fixed + self.active_experts

    @property
    def quantizable(self) -> int:
        """The matrices that weight quantization covers: attention, MLPs and experts."""
        return self.attention + self.dense + self.experts


def count_parameters(config: Mapping[str, object]) -> ParameterCount:
    """Parameters of the language model a config.json object describes.

    Raises ModelError naming the field: `model_type` for a family that is not counted here, else what is missing or
    out of range.
    """
    if not isinstance(config, Mapping):
        raise ModelError("config", f"{show(config)} is not an object")
    text, model_type = _text(config)
    family = FAMILIES.get(SAME_TEXT.get(model_type, model_type))
    if family is None:
        raise ModelError("model_type", f"parameters of {show(model_type)} are not counted")
    reader = Config(text)
    tally = Tally()
    hidden, vocab = reader.hidden, reader.vocab
    tally.embeddings = vocab * reader.count("word_embed_proj_dim", default=hidden)
    if family.positions is not None:
        name, beyond = family.positions
        tally.embeddings += hidden * (reader.count(name, "n_ctx", "max_position_embeddings") + beyond)
    if not _is_tied(config, text, family.tied):
        tally.output = blocks.linear(hidden, vocab, truth(reader, family.output_bias))
    for index in range(reader.layers):
        family.mixer(reader, index, tally)
        family.feed_forward(reader, index, tally)
    norm = hidden * family.norm_size
    tally.norms += norm * (family.norms * reader.layers + family.final_norms + family.embedding_norm)
    return ParameterCount(
        embeddings=tally.embeddings,
        output=tally.output,
        attention=tally.attention,
        dense=tally.dense,
        experts=tally.experts,
        active_experts=tally.active_experts,
        router=tally.router,
        norms=tally.norms,
        exact=text is config,
    )


def _text(config: Mapping[str, object]) -> tuple[Mapping[str, object], str]:
    """The language model's own object and type; nested ones that name their type need no table."""
    nested = config.get("text_config")
    if isinstance(nested, Mapping) and isinstance(nested.get("model_type"), str):
        return nested, str(nested["model_type"])
    text, _, model_type = text_config_of(config)
    return text, model_type


def _is_tied(config: Mapping[str, object], text: Mapping[str, object], default: bool) -> bool:
    for section in (text, config):
        value = section.get("tie_word_embeddings")
        if isinstance(value, bool):
            return value
    return default


@dataclass(frozen=True, slots=True)
class WeightsEstimate:
    """Bytes of weights, estimated without a checkpoint."""

    parameters: int
    """All of the language model's; given, or counted."""
    active_parameters: int
    """Those one token passes; all of them where only a number was given."""
    format: WeightFormat
    total_bytes: int
    """Of the whole model."""
    bytes_per_gpu: int
    """Of one tensor-parallel rank of the last pipeline stage."""
    low_bytes_per_gpu: int
    high_bytes_per_gpu: int
    source: str


def estimate_weights(
    config: Mapping[str, object],
    *,
    weights_dtype: str | None = None,
    parameters: int | None = None,
    tp: int = 1,
    pp: int = 1,
) -> WeightsEstimate:
    """Bytes of weights from the config, in its own format or in `weights_dtype`.

    `parameters` replaces the count where a family is not counted here; the matrices' share is then a guess. Norms and
    routers stay whole on every rank, K and V where ranks outnumber KV heads, the vocabulary is padded to 64. Raises
    ModelError naming the field.
    """
    for name, value in (("tp", tp), ("pp", pp)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_RANKS:
            raise ModelError(name, f"{show(value)} is not a number of ranks")
    dtype = _declared_dtype(config)
    kind = format_of_config(config, dtype) if weights_dtype is None else weight_format(weights_dtype)
    if parameters is not None:
        return _from_number(parameters, kind, tp * pp)
    count = count_parameters(config)
    text, _ = _text(config)
    reader = Config(text)
    covered = {"all": count.total, "linear": count.quantizable, "experts": count.experts}[kind.covers]
    # Encoders stay in 16 bits.
    encoder = 2 * _encoder_parameters(config)
    total = _bytes(covered, kind.bits) + _bytes(count.total - covered, kind.other_bits) + encoder
    linear_bits = kind.other_bits if kind.covers == "experts" else kind.bits
    edge_bits = kind.bits if kind.covers == "all" else kind.other_bits
    padding = -reader.vocab % _VOCABULARY_MULTIPLE * reader.hidden
    edges = _edges(count, padding, pp)
    layers = (
        _bytes(count.attention + count.dense, linear_bits) / tp
        + _bytes(count.experts, kind.bits) / tp
        + _bytes(count.router + count.norms, kind.other_bits)
        + _replicated_bytes(reader, tp, linear_bits)
    ) / pp
    per_gpu = math.ceil(layers + (_bytes(edges, edge_bits) + encoder) / tp)
    spread = 0.001 if kind.covers == "all" else _QUANTIZED_SPREAD
    unsure = per_gpu * spread + encoder * _ENCODER_SPREAD / tp
    return WeightsEstimate(
        parameters=count.total,
        active_parameters=count.active,
        format=kind,
        total_bytes=total,
        bytes_per_gpu=per_gpu,
        low_bytes_per_gpu=max(0, int(per_gpu - unsure)),
        high_bytes_per_gpu=math.ceil(per_gpu + unsure),
        source=f"parameters counted from the config, {kind.name}{', encoder estimated' if encoder else ''}",
    )


def _edges(count: ParameterCount, padding: int, pp: int) -> int:
    """Embeddings and output of the last stage: both of one stage; of several the output alone, tied or not."""
    if pp == 1:
        return count.embeddings + padding + (count.output + padding if count.output else 0)
    return (count.output or count.embeddings) + padding


def _encoder_parameters(config: Mapping[str, object]) -> int:
    """A vision tower's transformer: 4 h^2 + 2 h w per layer; its patches and its merger are left out."""
    section = config.get("vision_config")
    if not isinstance(section, Mapping):
        return 0
    reader = Config(section)
    layers = reader.optional("num_hidden_layers", "depth", "num_layers")
    hidden = reader.optional("hidden_size", "embed_dim", "width")
    if layers is None or hidden is None or layers > 10_000:
        return 0
    width = reader.count("intermediate_size", default=4 * hidden)
    return layers * (blocks.attention(hidden, 1, 1, hidden) + blocks.mlp(hidden, width, gated=False))


def _replicated_bytes(reader: Config, tp: int, bits: float) -> float:
    """What K and V projections take beyond an even share, where ranks outnumber the KV heads; MLA's down-projection."""
    latent = reader.optional("kv_lora_rank")
    if latent is not None:
        elements = reader.hidden * (latent + reader.count("qk_rope_head_dim") + (reader.optional("q_lora_rank") or 0))
        return reader.layers * elements * (1 - 1 / tp) * bits / 8
    if reader.optional("num_attention_heads", "n_head", "n_heads") is None or tp <= reader.kv_heads:
        return 0.0
    head = 2 * reader.hidden * reader.head_dim
    return reader.layers * head * (1 - reader.kv_heads / tp) * bits / 8


def _from_number(parameters: int, kind: WeightFormat, ranks: int) -> WeightsEstimate:
    if isinstance(parameters, bool) or not isinstance(parameters, int) or not 1 <= parameters < 2**60:
        raise ModelError("params", f"{show(parameters)} is not a number of parameters")
    total = _bytes(parameters, kind.bits)
    per_gpu = -(-total // ranks)
    spread = 0.02 if kind.covers == "all" else 0.15
    return WeightsEstimate(
        parameters=parameters,
        active_parameters=parameters,
        format=kind,
        total_bytes=total,
        bytes_per_gpu=per_gpu,
        low_bytes_per_gpu=int(per_gpu * (1 - spread)),
        high_bytes_per_gpu=math.ceil(per_gpu * (1 + spread)),
        source=f"the given number of parameters, {kind.name}",
    )


def _bytes(elements: int, bits: float) -> int:
    return math.ceil(elements * bits / 8)


def _declared_dtype(config: Mapping[str, object]) -> str:
    text = config.get("text_config")
    for section in (text, config):
        if isinstance(section, Mapping):
            for key in ("dtype", "torch_dtype"):
                if section.get(key) is not None:
                    return model_dtype(section[key], key)
    return "bfloat16"
