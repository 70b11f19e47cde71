"""GGUF files written by hand, as the format's document has them."""

import struct
from pathlib import Path
from typing import Any

UINT32, STRING, ARRAY, BOOL = 4, 8, 9, 7
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def text(value: str | bytes, order: str = "<") -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack(f"{order}Q", len(raw)) + raw


def encoded(kind: int, value: Any, order: str = "<") -> bytes:
    """A value without its type; an array is (element type, values)."""
    if kind == STRING:
        return text(value, order)
    if kind == ARRAY:
        element, values = value
        head = struct.pack(f"{order}IQ", element, len(values))
        return head + b"".join(encoded(element, item, order) for item in values)
    return struct.pack(order + _CODES[kind], value)


def pair(key: str | bytes, kind: int, value: Any, order: str = "<") -> bytes:
    return text(key, order) + struct.pack(f"{order}I", kind) + encoded(kind, value, order)


def tensor(name: str, shape: list[int], kind: int, offset: int, order: str = "<") -> bytes:
    return text(name, order) + struct.pack(f"{order}I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(
    pairs: list[bytes],
    tensors: list[bytes],
    version: int = 3,
    order: str = "<",
    counts: tuple[int, int] | None = None,
) -> bytes:
    """Everything before the data; `counts` (tensors, pairs) may lie."""
    tensor_count, pair_count = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack(f"{order}IQQ", version, tensor_count, pair_count)
    return head + b"".join(pairs) + b"".join(tensors)


def write(file: Path, head: bytes, data_bytes: int, alignment: int = 32) -> Path:
    """The header and sparse data behind it."""
    begins = -(-len(head) // alignment) * alignment
    with file.open("wb") as opened:
        opened.write(head)
        opened.truncate(begins + data_bytes if data_bytes else len(head))
    return file
