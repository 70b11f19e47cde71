"""GGUF files: metadata and the list of tensors, read from the header alone and within bounds.

The format (https://github.com/ggml-org/ggml, docs/gguf.md): magic, version, number of tensors, number of metadata
pairs; the pairs; per tensor its name, dimensions, type and offset; then, aligned, the data. Strings and arrays carry
64-bit lengths, so every count is held against the file's size and a bound before it is believed.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from kvmodel.errors import ModelError, show
from kvmodel.ggml import GGML_TYPES

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC = b"GGUF"
_FIRST_READ_BYTES = 2**20
_LARGEST_HEADER_BYTES = 2**27
_MOST_PAIRS = 2**16
_MOST_TENSORS = 2**17
_MOST_DIMENSIONS = 4
_MOST_NESTING = 4
_LONGEST_NAME_BYTES = 2**16 - 1
_LONGEST_STRING_BYTES = 2**20
_LONGEST_KEPT_ARRAY = 1024
_MOST_KEPT_ITEMS = 2**20
# Vocabularies and their merges stay below a million; each string costs a step here, so the bound is one on time.
_MOST_STRINGS = 2**21
_MOST_SPLITS = 1000
_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")

_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
_TYPE_NAMES = {
    0: "uint8",
    1: "int8",
    2: "uint16",
    3: "int16",
    4: "uint32",
    5: "int32",
    6: "float32",
    _BOOL: "bool",
    _STRING: "string",
    _ARRAY: "array",
    10: "uint64",
    11: "int64",
    12: "float64",
}


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array of the metadata: always counted, its values kept only up to 1024 of them."""

    element_type: str
    count: int
    values: tuple[GgufValue, ...] | None


GgufValue: TypeAlias = "str | int | float | bool | GgufArray"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor as the header lists it."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    """Dimensions in ggml's order: the contiguous one first."""
    elements: int
    size_bytes: int
    offset_bytes: int
    """From the start of its file's data."""
    file: str


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF model: one file, or all the files of a split one."""

    version: int
    alignment: int
    metadata: Mapping[str, GgufValue]
    """Of the first file."""
    tensors: tuple[GgufTensor, ...]
    files: tuple[str, ...]
    """The files read, in order."""

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, alignment padding included: what llama.cpp gives its buffers."""
        return sum(-(-tensor.size_bytes // self.alignment) * self.alignment for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)


def read_gguf(path: str | PathLike[str]) -> GgufFile:
    """Metadata and tensors of a GGUF file (version 2 or 3, either byte order); of a split model, of all its files.

    Raises ModelError naming the file and the field for whatever the format does not allow: another magic or version,
    counts and lengths beyond the file, unknown types, tensors off their alignment, overlapping or beyond the end.
    """
    # Here, not above: pathlib is a tenth of the package's import time.
    from pathlib import Path

    given = Path(path)
    first = _read_file(given)
    count = first.metadata.get("split.count", 1)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _MOST_SPLITS:
        raise ModelError("split.count", f"{show(count)} is not a number of files", str(given))
    if count <= 1:
        return first
    parts = [_read_file(file) for file in _split_files(given, count)]
    tensors: dict[str, GgufTensor] = {}
    for number, part in enumerate(parts):
        name = part.files[0]
        if part.metadata.get("split.no", 0) != number:
            raise ModelError("split.no", f"{show(part.metadata.get('split.no'))} is not {number}", name)
        if part.alignment != parts[0].alignment:
            raise ModelError("general.alignment", f"{part.alignment} is not the first file's", name)
        for tensor in part.tensors:
            if tensor.name in tensors:
                raise ModelError(tensor.name, f"is in {tensors[tensor.name].file} too", name)
            tensors[tensor.name] = tensor
    expected = parts[0].metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise ModelError("split.tensors.count", f"{show(expected)} is not {len(tensors)}", str(given))
    files = tuple(part.files[0] for part in parts)
    return GgufFile(parts[0].version, parts[0].alignment, parts[0].metadata, tuple(tensors.values()), files)


def parse_gguf(read: Callable[[int, int], bytes], size_bytes: int, name: str) -> GgufFile:
    """The header of one GGUF file of `size_bytes` bytes; `read(offset, length)` answers its bytes.

    `name` stands in errors and in `files`. For files that are not on this disk; splits are not followed.
    """
    if size_bytes < len(_MAGIC):
        raise ModelError("magic", f"the file has {size_bytes} bytes, too few to hold it", name)
    return _Header(read, size_bytes, name).parse()


def _read_file(file: Path) -> GgufFile:
    if not file.is_file():
        raise ModelError("gguf", "there is no such file", str(file))
    try:
        with file.open("rb") as opened:

            def read(offset: int, length: int) -> bytes:
                opened.seek(offset)
                return opened.read(length)

            return parse_gguf(read, opened.seek(0, 2), str(file))
    except OSError as error:
        raise ModelError("gguf", f"cannot be read: {error.strerror}", str(file)) from error


def _split_files(given: Path, count: int) -> list[Path]:
    named = _SPLIT_NAME.fullmatch(given.name)
    if named is None or int(named["count"]) != count:
        raise ModelError("split.count", f"{count} files, but the name does not end in -0000N-of-{count:05}", str(given))
    files = [given.with_name(f"{named['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    for file in files:
        if not file.is_file():
            raise ModelError("split.count", "the file is missing", str(file))
    return files


class _Header:
    """Reads one header front to back, a growing piece of the file in memory."""

    def __init__(self, read: Callable[[int, int], bytes], size_bytes: int, name: str) -> None:
        self._read = read
        self._size = size_bytes
        self._name = name
        self._buffer = b""
        self._at = 0
        self._field = "magic"
        self._order = "<"
        self._strings_left = _MOST_STRINGS
        self._items_left = _MOST_KEPT_ITEMS

    def parse(self) -> GgufFile:
        version = self._begin()
        tensor_count = self._count("tensor count", _MOST_TENSORS)
        pair_count = self._count("metadata count", _MOST_PAIRS)
        metadata: dict[str, GgufValue] = {}
        for index in range(pair_count):
            self._field = f"metadata[{index}]"
            key = self._text(_LONGEST_NAME_BYTES)
            if key in metadata:
                raise self._refuse("stands twice", key)
            self._field = key or "metadata key"
            metadata[key] = self._value(self._unsigned(4), 0)
        alignment = metadata.get("general.alignment", 32)
        if isinstance(alignment, bool) or not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise self._refuse(f"{show(alignment)} is not an alignment", "general.alignment")
        if alignment & (alignment - 1):
            raise self._refuse(f"{alignment} is not a power of two", "general.alignment")
        tensors = [self._tensor(index, alignment) for index in range(tensor_count)]
        data_begins = -(-self._at // alignment) * alignment
        self._check_layout(tensors, self._size - data_begins)
        return GgufFile(version, alignment, MappingProxyType(metadata), tuple(tensors), (self._name,))

    def _begin(self) -> int:
        magic = self._take(4)
        if magic != _MAGIC:
            raise self._refuse(f"{show(magic)} is not {show(_MAGIC)}")
        self._field = "version"
        raw = self._take(4)
        version = int.from_bytes(raw, "little")
        if version & 0xFFFF == 0:
            self._order = ">"
            version = int.from_bytes(raw, "big")
        if version not in (2, 3):
            raise self._refuse(f"{version} is not 2 or 3")
        return version

    def _count(self, field: str, most: int) -> int:
        self._field = field
        count = self._unsigned(8)
        if count > most:
            raise self._refuse(f"{count} is above {most}")
        return count

    def _value(self, kind: int, depth: int) -> GgufValue:
        if kind == _STRING:
            self._spend_string()
            return self._text(_LONGEST_STRING_BYTES, strict=False)
        if kind == _ARRAY:
            return self._array(depth + 1)
        code = _NUMBERS.get(kind)
        if code is None:
            raise self._refuse(f"unknown value type {kind}")
        number: float = struct.unpack(self._order + code, self._take(struct.calcsize(code)))[0]
        return self._truth(number) if kind == _BOOL else number

    def _array(self, depth: int) -> GgufArray:
        if depth > _MOST_NESTING:
            raise self._refuse(f"arrays lie more than {_MOST_NESTING} deep")
        kind = self._unsigned(4)
        count = self._unsigned(8)
        if kind not in _TYPE_NAMES:
            raise self._refuse(f"unknown element type {kind}")
        width = struct.calcsize(_NUMBERS[kind]) if kind in _NUMBERS else 8
        if count * width > self._size - self._at:
            raise self._refuse(f"{count} elements are beyond the end of the file")
        keep = count <= _LONGEST_KEPT_ARRAY
        if keep:
            self._items_left -= count
            if self._items_left < 0:
                raise self._refuse(f"the arrays hold more than {_MOST_KEPT_ITEMS} elements")
        return GgufArray(_TYPE_NAMES[kind], count, self._elements(kind, count, depth, keep))

    def _elements(self, kind: int, count: int, depth: int, keep: bool) -> tuple[GgufValue, ...] | None:
        if kind in _NUMBERS:
            raw = self._take(count * struct.calcsize(_NUMBERS[kind]))
            if not keep:
                return None
            numbers = struct.unpack(f"{self._order}{count}{_NUMBERS[kind]}", raw)
            return tuple(self._truth(number) for number in numbers) if kind == _BOOL else numbers
        if keep:
            return tuple(self._value(kind, depth) for _ in range(count))
        if kind == _ARRAY:
            raise self._refuse(f"{count} arrays in an array, more than {_LONGEST_KEPT_ARRAY}")
        self._skip_strings(count)
        return None

    def _skip_strings(self, count: int) -> None:
        self._spend_string(count)
        length_of = struct.Struct(f"{self._order}Q").unpack_from
        at = self._at
        for _ in range(count):
            if at + 8 > len(self._buffer):
                self._load(at + 8)
            at += 8 + length_of(self._buffer, at)[0]
            if at > self._size:
                raise self._refuse("a string is beyond the end of the file")
        self._load(at)
        self._at = at

    def _spend_string(self, count: int = 1) -> None:
        self._strings_left -= count
        if self._strings_left < 0:
            raise self._refuse(f"the metadata holds more than {_MOST_STRINGS} strings")

    def _truth(self, value: float) -> bool:
        if value not in (0, 1):
            raise self._refuse(f"{show(value)} is not a bool")
        return bool(value)

    def _tensor(self, index: int, alignment: int) -> GgufTensor:
        self._field = f"tensors[{index}].name"
        name = self._text(_LONGEST_NAME_BYTES)
        self._field = f"{name}.shape"
        dimensions = self._unsigned(4)
        if dimensions > _MOST_DIMENSIONS:
            raise self._refuse(f"{dimensions} dimensions, more than {_MOST_DIMENSIONS}")
        shape: tuple[int, ...] = struct.unpack(f"{self._order}{dimensions}Q", self._take(8 * dimensions))
        elements = math.prod(shape)
        if elements >= 2**63:
            raise self._refuse("more than 2**63 elements")
        self._field = f"{name}.type"
        number = self._unsigned(4)
        kind = GGML_TYPES.get(number)
        if kind is None:
            raise self._refuse(f"unknown tensor type {number}")
        if (shape[0] if shape else 1) % kind.block_elements:
            raise self._refuse(f"rows are not whole blocks of {kind.block_elements} elements ({kind.name})")
        self._field = f"{name}.offset"
        offset = self._unsigned(8)
        if offset % alignment:
            raise self._refuse(f"{offset} is not a multiple of {alignment}")
        size = elements // kind.block_elements * kind.block_bytes
        return GgufTensor(name, kind.name, shape, elements, size, offset, self._name)

    def _check_layout(self, tensors: list[GgufTensor], data_bytes: int) -> None:
        if len({tensor.name for tensor in tensors}) != len(tensors):
            seen: set[str] = set()
            for tensor in tensors:
                if tensor.name in seen:
                    raise self._refuse("stands twice", tensor.name)
                seen.add(tensor.name)
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: (tensor.offset_bytes, tensor.size_bytes)):
            if tensor.offset_bytes < end:
                raise self._refuse(f"begins at {tensor.offset_bytes}, inside another tensor", f"{tensor.name}.offset")
            end = tensor.offset_bytes + tensor.size_bytes
            if end > data_bytes:
                raise self._refuse(f"ends at {end}, beyond the {max(0, data_bytes)} bytes of data", tensor.name)

    def _text(self, longest: int, strict: bool = True) -> str:
        length = self._unsigned(8)
        if length > longest:
            raise self._refuse(f"a string of {length} bytes, more than {longest}")
        try:
            return self._take(length).decode("utf-8", "strict" if strict else "replace")
        except UnicodeDecodeError:
            raise self._refuse("is not UTF-8") from None

    def _unsigned(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little" if self._order == "<" else "big")

    def _take(self, length: int) -> bytes:
        end = self._at + length
        self._load(end)
        taken = self._buffer[self._at : end]
        self._at = end
        return taken

    def _load(self, end: int) -> None:
        """Have the file's first `end` bytes in memory; more are read at once, so that few reads do."""
        if end <= len(self._buffer):
            return
        if end > self._size:
            raise self._refuse(f"the file ends at {self._size} bytes, inside this field")
        if end > _LARGEST_HEADER_BYTES:
            raise self._refuse(f"the header is longer than {_LARGEST_HEADER_BYTES} bytes")
        wanted = min(self._size, max(end, 2 * len(self._buffer), _FIRST_READ_BYTES), _LARGEST_HEADER_BYTES)
        more = self._read(len(self._buffer), wanted - len(self._buffer))
        self._buffer += more
        if len(self._buffer) < end:
            raise self._refuse(f"the file ends at {len(self._buffer)} bytes, inside this field")

    def _refuse(self, why: str, field: str | None = None) -> ModelError:
        return ModelError(field or self._field, why, self._name)
