"""The safetensors format: one file's header, read and checked; the tensors themselves are never read.

8 bytes, little-endian, length of the header; the header, a JSON object from tensor name to dtype, shape and
[begin, end) offsets; the data (https://github.com/huggingface/safetensors, format).
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

from kvmodel.dtypes import safetensors_bits
from kvmodel.errors import ModelError, show

_LARGEST_HEADER_BYTES = 100_000_000
_MOST_DIMENSIONS = 32

Read = Callable[[int, int], bytes]
"""`read(offset, length)`: that many bytes, fewer at the end of the file."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as the header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin


def parse_header(read: Read, size: int, file: str) -> list[Tensor]:
    """The tensors of a file of `size` bytes. Raises ModelError naming `file` and the field."""
    prefix = read(0, 8)
    if len(prefix) < 8:
        raise ModelError("header length", f"the file has {size} bytes, too few to hold it", file)
    length = int.from_bytes(prefix, "little")
    if length > _LARGEST_HEADER_BYTES:
        raise ModelError("header length", f"{length} is above {_LARGEST_HEADER_BYTES}", file)
    if 8 + length > size:
        raise ModelError("header length", f"{length} is beyond the file's {size} bytes", file)
    tensors = _tensors_of(parse_object(read(8, length), "header", file), file)
    _check_layout(tensors, size - 8 - length, file)
    return tensors


def parse_index(text: bytes, file: str) -> dict[str, str]:
    """Tensor name to shard's file name, of a `model.safetensors.index.json`."""
    listed = parse_object(text, "index", file).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ModelError("weight_map", "is missing or not an object", file)
    for name, file_name in listed.items():
        # A shard is a file beside its index; a path would lead out of the folder.
        if not isinstance(file_name, str) or file_name in ("", ".", "..") or set(file_name) & {"/", "\\", "\0"}:
            raise ModelError(f"weight_map.{name}", f"{show(file_name)} is not a file name", file)
    return listed


def parse_object(text: bytes, what: str, file: str) -> dict[str, object]:
    """A JSON object without names that stand twice. Raises ModelError naming `file` and `what`."""

    def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in pairs:
            if name in found:
                raise ModelError(name, f"stands twice in the {what}", file)
            found[name] = value
        return found

    try:
        parsed = json.loads(text, object_pairs_hook=no_duplicates)
    except RecursionError:
        raise ModelError(what, "is nested too deeply", file) from None
    except ValueError as error:
        raise ModelError(what, f"is not JSON: {error}", file) from None
    if not isinstance(parsed, dict):
        raise ModelError(what, "is not an object", file)
    return parsed


def _tensors_of(header: dict[str, object], file: str) -> list[Tensor]:
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict):
            raise ModelError(name, f"{show(entry)} does not describe a tensor", file)
        dtype = entry.get("dtype")
        bits = safetensors_bits(dtype, file)
        shape = _naturals(entry, name, "shape", file)
        offsets = _naturals(entry, name, "data_offsets", file)
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            raise ModelError(f"{name}.data_offsets", "is not [begin, end]", file)
        elements = math.prod(shape)
        if elements * bits != (offsets[1] - offsets[0]) * 8:
            size = offsets[1] - offsets[0]
            raise ModelError(f"{name}.data_offsets", f"{show(size)} bytes contradict dtype and shape", file)
        tensors.append(Tensor(name, str(dtype), tuple(shape), elements, offsets[0], offsets[1]))
    return tensors


def _naturals(entry: dict[str, object], name: str, key: str, file: str) -> list[int]:
    values = entry.get(key)
    if not isinstance(values, list) or len(values) > _MOST_DIMENSIONS:
        raise ModelError(f"{name}.{key}", f"{show(values)} is not a short list", file)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise ModelError(f"{name}.{key}", f"{show(value)} is not a size", file)
    return values


def _check_layout(tensors: list[Tensor], data_bytes: int, file: str) -> None:
    at = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != at:
            raise ModelError(f"{tensor.name}.data_offsets", f"begins at {tensor.begin}, not at {at}", file)
        at = tensor.end
    if at != data_bytes:
        raise ModelError("data", f"the file holds {data_bytes} bytes of data, its header describes {at}", file)
