"""Exact weight sizes from the headers of safetensors and GGUF files, and one GPU's share of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING

from kvmodel.architecture import Architecture
from kvmodel.errors import ModelError, show
from kvmodel.layers import FullAttention, LatentAttention
from kvmodel.safetensors import Tensor, parse_header, parse_index

if TYPE_CHECKING:
    from pathlib import Path

    from kvmodel.gguf import GgufFile

LARGEST_INDEX_BYTES = 100_000_000
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_VOCABULARY_MULTIPLE = 64
"""vLLM pads the vocabulary to this before sharding it (`vocab_parallel_embedding.py`)."""

_LAYER = r"(?:^|\.)(?:layers|h|blocks|block|blk)\.([0-9]{1,5})\."
_ENCODER = r"vision|visual|audio|image|vit_|^v\.|^mm\."
_OUTPUT = r"(?:^|\.)(?:lm_head|embed_out|output)\.[a-z_]+$"
_EMBEDDING = r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|token_embd|embeddings?)\."
# Norms, routers and MLA's down-projections are whole on every rank.
_WHOLE = r"norm|(?:^|\.)ln_|router|mlp\.gate\.|block_sparse_moe\.gate|ffn_gate_inp|kv_a_proj|q_a_proj"


@dataclass(frozen=True, slots=True)
class Weights:
    """What a checkpoint stores."""

    total_bytes: int
    """Bytes of all tensors, headers not counted."""
    parameters: int
    """Stored elements. Formats that pack several weights into one element have more parameters than this."""
    by_dtype: Mapping[str, int]
    """Bytes by safetensors dtype or ggml type."""
    tensors: int
    files: tuple[str, ...]
    """File names, in order."""
    layer_bytes: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """Bytes by the language model's layer; empty where the names do not tell."""
    whole_layer_bytes: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """The part of `layer_bytes` that tensor parallelism does not cut: norms, routers, projections to a latent."""
    embedding_bytes: int = 0
    output_bytes: int = 0
    """The language-model head where it is stored."""


def read_weights(path: str | PathLike[str]) -> Weights:
    """The weights of one safetensors or GGUF file, or of a folder: its index's shards, else `model.safetensors`, else
    all safetensors files.

    Raises ModelError naming the file and the field for anything the format does not allow: a missing shard, a wrong
    header length, a truncated file, sizes that contradict dtype and shape, gaps, a tensor in two files.
    """
    # Here, not above: pathlib is a tenth of the package's import time.
    from pathlib import Path

    given = Path(path)
    listed: dict[str, str] = {}
    if given.is_dir():
        files, listed = _files_of(given)
    elif given.is_file():
        if given.suffix == ".gguf":
            from kvmodel.gguf import read_gguf

            return weights_of_gguf(read_gguf(given))
        files = [given]
    else:
        raise ModelError("weights", "there is no such file or folder", str(given))
    return gather((file.name, str(file), _read_header(file)) for file in files).finish(listed, str(given / INDEX))


def weights_of_gguf(gguf: GgufFile) -> Weights:
    """The weights of a GGUF model, each tensor with its padding to the file's alignment."""
    gathered = _Gathered()
    for tensor in gguf.tensors:
        padded = -(-tensor.size_bytes // gguf.alignment) * gguf.alignment
        gathered.add(tensor.name, tensor.type_name, tensor.elements, padded)
    gathered.files.extend(gguf.files)
    return gathered.finish({}, "")


def weights_bytes_per_gpu(
    weights: Weights, architecture: Architecture, tp: int = 1, *, pp: int = 1, stage: int | None = None
) -> int:
    """Bytes of weights one rank loads: of a tensor-parallel group, in one stage of a pipeline (the last by default).

    Layers beyond the architecture's (multi-token prediction) are stored but not loaded, and so is an output that is
    tied to the embeddings. Embeddings and output are cut after the vocabulary is padded to 64. Every rank keeps whole:
    norms, routers, MLA's projections to a latent, and one head of K and V where ranks outnumber the KV heads. Where
    tensor names do not tell layers apart, all is cut evenly. Quantization zeros and scales are cut like their matrix.
    Raises ModelError with field `tp`, `pp` or `stage`.
    """
    architecture.check_tp(tp)
    layers = architecture.num_layers
    if isinstance(pp, bool) or not isinstance(pp, int) or not 1 <= pp <= layers:
        raise ModelError("pp", f"{show(pp)} is not a number of stages for {layers} layers")
    stage = pp - 1 if stage is None else stage
    if isinstance(stage, bool) or not isinstance(stage, int) or not 0 <= stage < pp:
        raise ModelError("stage", f"{show(stage)} is not a stage of {pp}")
    bytes_per_element = weights.total_bytes / weights.parameters if weights.parameters else 0.0
    replicated = _replicated_elements(architecture, tp, bool(weights.whole_layer_bytes)) * bytes_per_element / pp
    if not weights.layer_bytes:
        return math.ceil(weights.total_bytes / (tp * pp) + replicated)
    mine = _stage_layers(layers, pp, stage)
    stored = sum(weights.layer_bytes.get(index, 0) for index in mine)
    whole = sum(weights.whole_layer_bytes.get(index, 0) for index in mine)
    edges = _edge_bytes(weights, architecture, pp, stage, tp)
    beside = weights.total_bytes - sum(weights.layer_bytes.values()) - weights.embedding_bytes - weights.output_bytes
    return math.ceil((stored - whole + edges) / tp + whole + replicated + beside / tp)


def _edge_bytes(weights: Weights, architecture: Architecture, pp: int, stage: int, tp: int) -> int:
    """Embeddings on the first stage, output on the last; tied ones are held once, but by both of these stages."""
    output = 0 if architecture.tied_embeddings else weights.output_bytes
    held = 0
    if stage == 0:
        held += weights.embedding_bytes
    if stage == pp - 1:
        held += output if output or pp == 1 else weights.embedding_bytes
    if tp == 1:
        return held
    rows = architecture.vocab_size
    return held * (-(-rows // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE) // rows


def _stage_layers(layers: int, pp: int, stage: int) -> range:
    """vLLM's `get_pp_indices`: an even cut; what remains goes to the stages before the last, from the back."""
    counts = [layers // pp] * pp
    for back in range(layers % pp):
        counts[pp - 2 - back] += 1
    begin = sum(counts[:stage])
    return range(begin, begin + counts[stage])


def _replicated_elements(architecture: Architecture, tp: int, latents_known: bool) -> float:
    """Elements beyond an even share that names alone do not give."""
    replicated = 0.0
    for group in architecture.groups:
        layer = group.layer
        if isinstance(layer, LatentAttention):
            elements = architecture.hidden_size * (layer.kv_lora_rank + layer.qk_rope_head_dim)
            replicated += 0 if latents_known else group.count * elements * (1 - 1 / tp)
        elif isinstance(layer, FullAttention) and tp > layer.kv_heads:
            elements = architecture.hidden_size * (layer.head_dim_k + layer.head_dim_v)
            replicated += group.count * elements * (1 - layer.kv_heads / tp)
    return replicated


class _Gathered:
    """Tensors added one by one."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.owner: dict[str, str] = {}
        self._total = self._parameters = self._embedding = self._output = 0
        self._by_dtype: dict[str, int] = {}
        self._layers: dict[int, int] = {}
        self._whole: dict[int, int] = {}

    def add(self, name: str, dtype: str, elements: int, size_bytes: int, file: str = "") -> None:
        self.owner[name] = file
        self._total += size_bytes
        self._parameters += elements
        self._by_dtype[dtype] = self._by_dtype.get(dtype, 0) + size_bytes
        if re.search(_ENCODER, name):
            return
        layer = re.search(_LAYER, name)
        if layer is not None:
            index = int(layer[1])
            self._layers[index] = self._layers.get(index, 0) + size_bytes
            if re.search(_WHOLE, name):
                self._whole[index] = self._whole.get(index, 0) + size_bytes
        elif re.search(_OUTPUT, name) and "norm" not in name:
            self._output += size_bytes
        elif re.search(_EMBEDDING, name) and "norm" not in name:
            self._embedding += size_bytes

    def finish(self, listed: Mapping[str, str], index_file: str) -> Weights:
        """All of it; `listed` is what the index promised."""
        for name, file_name in listed.items():
            if self.owner.get(name) != file_name:
                raise ModelError(
                    name, "is in the index but not in this file", index_file.removesuffix(INDEX) + file_name
                )
        return Weights(
            self._total,
            self._parameters,
            MappingProxyType(self._by_dtype),
            len(self.owner),
            tuple(self.files),
            MappingProxyType(self._layers),
            MappingProxyType(self._whole),
            self._embedding,
            self._output,
        )


def gather(files: Iterable[tuple[str, str, list[Tensor]]]) -> _Gathered:
    """The tensors of several files: (name, path for messages, tensors). A tensor in two of them is refused."""
    gathered = _Gathered()
    for name, path, tensors in files:
        gathered.files.append(name)
        for tensor in tensors:
            if tensor.name in gathered.owner:
                raise ModelError(tensor.name, f"is in {gathered.owner[tensor.name]} too", path)
            gathered.add(tensor.name, tensor.dtype, tensor.elements, tensor.size_bytes, name)
    return gathered


def _files_of(folder: Path) -> tuple[list[Path], dict[str, str]]:
    index = folder / INDEX
    if index.is_file():
        listed = _read_index(index)
        return [folder / name for name in sorted(set(listed.values()))], listed
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError("weights", "the folder holds no safetensors file", str(folder))
    return files, {}


def _read_index(index: Path) -> dict[str, str]:
    try:
        with index.open("rb") as opened:
            text = opened.read(LARGEST_INDEX_BYTES + 1)
    except OSError as error:
        raise ModelError("index", f"cannot be read: {error.strerror}", str(index)) from error
    if len(text) > LARGEST_INDEX_BYTES:
        raise ModelError("index", f"is larger than {LARGEST_INDEX_BYTES} bytes", str(index))
    return parse_index(text, str(index))


def _read_header(file: Path) -> list[Tensor]:
    if not file.is_file():
        raise ModelError("weights", "the shard is missing", str(file))
    try:
        with file.open("rb") as opened:

            def read(offset: int, length: int) -> bytes:
                opened.seek(offset)
                return opened.read(length)

            return parse_header(read, opened.seek(0, 2), str(file))
    except OSError as error:
        raise ModelError("weights", f"cannot be read: {error.strerror}", str(file)) from error
