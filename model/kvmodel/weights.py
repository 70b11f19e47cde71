"""Exact weight sizes from safetensors headers; the tensors themselves are never read.

The format: 8 bytes, little-endian, length of the header; the header, a JSON object from tensor name to dtype, shape
and [begin, end) offsets; the data (https://github.com/huggingface/safetensors, format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING

from kvmodel.architecture import Architecture
from kvmodel.dtypes import safetensors_bits
from kvmodel.errors import ModelError, show
from kvmodel.layers import FullAttention, LatentAttention

if TYPE_CHECKING:
    from pathlib import Path

_LARGEST_HEADER_BYTES = 100_000_000
_LARGEST_INDEX_BYTES = 100_000_000
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MOST_DIMENSIONS = 32


@dataclass(frozen=True, slots=True)
class Weights:
    """What a checkpoint stores."""

    total_bytes: int
    """Bytes of all tensors, headers not counted."""
    parameters: int
    """Stored elements. Formats that pack several weights into one element have more parameters than this."""
    by_dtype: Mapping[str, int]
    """Bytes by safetensors dtype."""
    tensors: int
    files: tuple[str, ...]
    """File names, in order."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    elements: int
    begin: int
    end: int


def read_weights(path: str | PathLike[str]) -> Weights:
    """The weights of one safetensors file, or of a folder: its index's shards, else `model.safetensors`, else all.

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
        files = [given]
    else:
        raise ModelError("weights", "there is no such file or folder", str(given))
    total_bytes = parameters = 0
    by_dtype: dict[str, int] = {}
    owner: dict[str, Path] = {}
    for file in files:
        for tensor in _read_header(file):
            if tensor.name in owner:
                raise ModelError(tensor.name, f"is in {owner[tensor.name].name} too", str(file))
            owner[tensor.name] = file
            size = tensor.end - tensor.begin
            total_bytes += size
            parameters += tensor.elements
            by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + size
    for name, file_name in listed.items():
        if name not in owner or owner[name].name != file_name:
            raise ModelError(name, "is in the index but not in this file", str(given / file_name))
    return Weights(total_bytes, parameters, MappingProxyType(by_dtype), len(owner), tuple(file.name for file in files))


def weights_bytes_per_gpu(weights: Weights, architecture: Architecture, tp: int = 1) -> int:
    """Bytes of weights one rank of a tensor-parallel group holds. Exact at `tp` 1, an estimate above.

    The estimate shards everything evenly and adds what every rank keeps whole: K and V projections where ranks
    outnumber KV heads (one head each), and MLA's down-projection to the latent. Norms and routers, replicated too,
    are left out: below 0.1 % of the models looked at. Raises ModelError with field `tp`.
    """
    architecture.check_tp(tp)
    if tp == 1:
        return weights.total_bytes
    bytes_per_element = weights.total_bytes / weights.parameters if weights.parameters else 0.0
    replicated = 0.0
    for group in architecture.groups:
        layer = group.layer
        if isinstance(layer, LatentAttention):
            elements = architecture.hidden_size * (layer.kv_lora_rank + layer.qk_rope_head_dim)
            replicated += group.count * elements * (1 - 1 / tp)
        elif isinstance(layer, FullAttention) and tp > layer.kv_heads:
            elements = architecture.hidden_size * (layer.head_dim_k + layer.head_dim_v)
            replicated += group.count * elements * (1 - layer.kv_heads / tp)
    return math.ceil(weights.total_bytes / tp + replicated * bytes_per_element)


def _files_of(folder: Path) -> tuple[list[Path], dict[str, str]]:
    index = folder / _INDEX
    if index.is_file():
        listed = _read_index(index)
        return [folder / name for name in sorted(set(listed.values()))], listed
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE], {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError("weights", "the folder holds no safetensors file", str(folder))
    return files, {}


def _read_index(index: Path) -> dict[str, str]:
    try:
        with index.open("rb") as opened:
            text = opened.read(_LARGEST_INDEX_BYTES + 1)
    except OSError as error:
        raise ModelError("index", f"cannot be read: {error.strerror}", str(index)) from error
    if len(text) > _LARGEST_INDEX_BYTES:
        raise ModelError("index", f"is larger than {_LARGEST_INDEX_BYTES} bytes", str(index))
    parsed = _parse_object(text, "index", index)
    listed = parsed.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ModelError("weight_map", "is missing or not an object", str(index))
    for name, file_name in listed.items():
        # A shard is a file beside its index; a path would lead out of the folder.
        if not isinstance(file_name, str) or file_name in ("", ".", "..") or set(file_name) & {"/", "\\", "\0"}:
            raise ModelError(f"weight_map.{name}", f"{show(file_name)} is not a file name", str(index))
    return listed


def _read_header(file: Path) -> list[_Tensor]:
    if not file.is_file():
        raise ModelError("weights", "the shard is missing", str(file))
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            opened.seek(0)
            prefix = opened.read(8)
            if len(prefix) < 8:
                raise ModelError("header length", f"the file has {size} bytes, too few to hold it", str(file))
            length = int.from_bytes(prefix, "little")
            if length > _LARGEST_HEADER_BYTES:
                raise ModelError("header length", f"{length} is above {_LARGEST_HEADER_BYTES}", str(file))
            if 8 + length > size:
                raise ModelError("header length", f"{length} is beyond the file's {size} bytes", str(file))
            text = opened.read(length)
    except OSError as error:
        raise ModelError("weights", f"cannot be read: {error.strerror}", str(file)) from error
    tensors = _tensors_of(_parse_object(text, "header", file), file)
    _check_layout(tensors, size - 8 - length, file)
    return tensors


def _parse_object(text: bytes, what: str, file: Path) -> dict[str, object]:
    def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in pairs:
            if name in found:
                raise ModelError(name, f"stands twice in the {what}", str(file))
            found[name] = value
        return found

    try:
        parsed = json.loads(text, object_pairs_hook=no_duplicates)
    except RecursionError:
        raise ModelError(what, "is nested too deeply", str(file)) from None
    except ValueError as error:
        raise ModelError(what, f"is not JSON: {error}", str(file)) from None
    if not isinstance(parsed, dict):
        raise ModelError(what, "is not an object", str(file))
    return parsed


def _tensors_of(header: dict[str, object], file: Path) -> list[_Tensor]:
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict):
            raise ModelError(name, f"{show(entry)} does not describe a tensor", str(file))
        dtype = entry.get("dtype")
        bits = safetensors_bits(dtype, str(file))
        shape = _naturals(entry, name, "shape", file)
        offsets = _naturals(entry, name, "data_offsets", file)
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            raise ModelError(f"{name}.data_offsets", "is not [begin, end]", str(file))
        elements = math.prod(shape)
        if elements * bits != (offsets[1] - offsets[0]) * 8:
            size = offsets[1] - offsets[0]
            raise ModelError(f"{name}.data_offsets", f"{show(size)} bytes contradict dtype and shape", str(file))
        tensors.append(_Tensor(name, str(dtype), elements, offsets[0], offsets[1]))
    return tensors


def _naturals(entry: dict[str, object], name: str, key: str, file: Path) -> list[int]:
    values = entry.get(key)
    if not isinstance(values, list) or len(values) > _MOST_DIMENSIONS:
        raise ModelError(f"{name}.{key}", f"{show(values)} is not a short list", str(file))
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise ModelError(f"{name}.{key}", f"{show(value)} is not a size", str(file))
    return values


def _check_layout(tensors: list[_Tensor], data_bytes: int, file: Path) -> None:
    at = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != at:
            raise ModelError(f"{tensor.name}.data_offsets", f"begins at {tensor.begin}, not at {at}", str(file))
        at = tensor.end
    if at != data_bytes:
        raise ModelError("data", f"the file holds {data_bytes} bytes of data, its header describes {at}", str(file))
