"""GGUF headers: what is read, what is refused, and how soon."""

import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmodel.errors import ModelError
from kvmodel.ggml import GGML_TYPES
from kvmodel.gguf import GgufArray, GgufFile, parse_gguf, read_gguf

from .gguf_files import ARRAY, BOOL, STRING, UINT32, header, pair, tensor, text, write

LONGEST_SECONDS = 1.0
LARGEST_MEMORY_BYTES = 300 * 2**20
ARCHITECTURE = pair("general.architecture", STRING, "llama")


def refuse(file: Path) -> ModelError:
    """The error, which must come soon and name the file."""
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ModelError) as caught:
        read_gguf(file)
    seconds = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < LONGEST_SECONDS
    assert peak < LARGEST_MEMORY_BYTES
    assert caught.value.file == str(file)
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [2, 3])
def test_values_and_tensors(tmp_path: Path, version: int, order: str) -> None:
    pairs = [
        pair("general.architecture", STRING, "llama", order),
        pair("u8", 0, 200, order),
        pair("i8", 1, -3, order),
        pair("u16", 2, 60000, order),
        pair("i16", 3, -300, order),
        pair("u32", UINT32, 2**32 - 1, order),
        pair("i32", 5, -70000, order),
        pair("f32", 6, 0.5, order),
        pair("yes", BOOL, 1, order),
        pair("u64", 10, 2**63, order),
        pair("i64", 11, -(2**40), order),
        pair("f64", 12, 1e300, order),
        pair("heads", ARRAY, (UINT32, [8, 4, 8]), order),
        pair("flags", ARRAY, (BOOL, [1, 0]), order),
        pair("nested", ARRAY, (ARRAY, [(STRING, ["a", "é"]), (5, [])]), order),
        pair("tokens", ARRAY, (STRING, [f"token {index}" for index in range(2000)]), order),
    ]
    tensors = [tensor("norm", [64], 0, 0, order), tensor("w", [256, 3], 12, 256, order)]
    gguf = read_gguf(write(tmp_path / "a.gguf", header(pairs, tensors, version, order), 256 + 448))
    assert gguf.version == version
    assert gguf.metadata == {
        "general.architecture": "llama",
        "u8": 200,
        "i8": -3,
        "u16": 60000,
        "i16": -300,
        "u32": 2**32 - 1,
        "i32": -70000,
        "f32": 0.5,
        "yes": True,
        "u64": 2**63,
        "i64": -(2**40),
        "f64": 1e300,
        "heads": GgufArray("uint32", 3, (8, 4, 8)),
        "flags": GgufArray("bool", 2, (True, False)),
        "nested": GgufArray("array", 2, (GgufArray("string", 2, ("a", "é")), GgufArray("int32", 0, ()))),
        "tokens": GgufArray("string", 2000, None),
    }
    assert gguf.metadata["yes"] is True
    norm, w = gguf.tensors
    assert (norm.shape, norm.type_name, norm.size_bytes) == ((64,), "F32", 256)
    # Q4_K: 144 bytes per 256 elements, three of them; padded to the alignment in the buffers.
    assert (w.shape, w.type_name, w.size_bytes, w.elements) == ((256, 3), "Q4_K", 432, 768)
    assert gguf.parameters == 64 + 768
    assert gguf.tensor_bytes == 256 + 448


def test_published_bits_per_weight() -> None:
    bits = {kind.name: kind.bits_per_element for kind in GGML_TYPES.values()}
    assert bits["Q8_0"] == 8.5
    assert bits["Q6_K"] == 6.5625
    assert (bits["Q5_K"], bits["Q5_1"], bits["Q5_0"]) == (5.5, 6, 5.5)
    assert (bits["Q4_K"], bits["Q4_1"], bits["Q4_0"]) == (4.5, 5, 4.5)
    assert (bits["Q3_K"], bits["Q2_K"]) == (3.4375, 2.625)
    assert (bits["IQ4_XS"], bits["IQ4_NL"], bits["IQ3_S"], bits["IQ3_XXS"]) == (4.25, 4.5, 3.4375, 3.0625)
    assert (bits["IQ2_S"], bits["IQ2_XS"], bits["IQ2_XXS"]) == (2.5625, 2.3125, 2.0625)
    assert (bits["IQ1_M"], bits["IQ1_S"], bits["TQ2_0"], bits["TQ1_0"]) == (1.75, 1.5625, 2.0625, 1.6875)
    assert (bits["MXFP4"], bits["NVFP4"], bits["BF16"], bits["F16"]) == (4.25, 4.5, 16, 16)


def test_another_alignment(tmp_path: Path) -> None:
    head = header([pair("general.alignment", UINT32, 64)], [tensor("a", [3], 0, 0), tensor("b", [3], 0, 64)])
    gguf = read_gguf(write(tmp_path / "a.gguf", head, 64 + 12, alignment=64))
    assert gguf.alignment == 64
    assert gguf.tensor_bytes == 128


def test_headers_alone_are_read(tmp_path: Path) -> None:
    """Four terabytes of tensors, none of which is on the disk."""
    file = write(tmp_path / "a.gguf", header([], [tensor("w", [2**20, 2**20], 0, 0)]), 2**42)
    began = time.process_time()
    assert read_gguf(file).tensor_bytes == 2**42
    assert time.process_time() - began < LONGEST_SECONDS


def test_bytes_that_are_not_on_the_disk() -> None:
    head = header([ARCHITECTURE], [tensor("a", [8], 0, 0)])
    asked = []

    def read(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return (head + bytes(2**22))[offset : offset + length]

    gguf = parse_gguf(read, 2**30, "remote.gguf")
    assert gguf.files == ("remote.gguf",)
    assert gguf.tensors[0].size_bytes == 32
    assert asked == [(0, 2**20)]


def split(folder: Path, number: int, count: int, tensors: list[bytes], total: int | None = None) -> Path:
    pairs = [ARCHITECTURE, pair("split.no", 2, number), pair("split.count", 2, count)]
    if total is not None:
        pairs.append(pair("split.tensors.count", 5, total))
    return write(folder / f"m-{number + 1:05}-of-{count:05}.gguf", header(pairs, tensors), 4096)


def test_a_split_model(tmp_path: Path) -> None:
    first = split(tmp_path, 0, 3, [], total=2)
    split(tmp_path, 1, 3, [tensor("a", [1024], 0, 0)])
    last = split(tmp_path, 2, 3, [tensor("b", [32], 2, 0)])
    for given_file in (first, last):
        gguf = read_gguf(given_file)
        assert [item.name for item in gguf.tensors] == ["a", "b"]
        assert gguf.tensor_bytes == 4096 + 32
        assert len(gguf.files) == 3


def test_split_models_that_do_not_fit_together(tmp_path: Path) -> None:
    first = split(tmp_path, 0, 2, [tensor("a", [8], 0, 0)])
    with pytest.raises(ModelError, match=r"m-00002-of-00002\.gguf: split\.count: the file is missing"):
        read_gguf(first)
    split(tmp_path, 1, 2, [tensor("a", [8], 0, 0)])
    with pytest.raises(ModelError, match=r"m-00002-of-00002\.gguf: a: is in .*m-00001-of-00002\.gguf too"):
        read_gguf(first)
    split(tmp_path, 1, 2, [tensor("b", [8], 0, 0)])
    split(tmp_path, 0, 2, [tensor("a", [8], 0, 0)], total=3)
    assert refuse(first).field == "split.tensors.count"
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(first.read_bytes())
    with pytest.raises(ModelError, match=r"split\.no: 0 is not 1"):
        read_gguf(first)
    assert refuse(first.rename(tmp_path / "other.gguf")).field == "split.count"


def huge(length: int) -> bytes:
    return length.to_bytes(8, "little")


STRING_TYPE = STRING.to_bytes(4, "little")
ARRAY_TYPE = ARRAY.to_bytes(4, "little")
UINT32_TYPE = UINT32.to_bytes(4, "little")
BAD_HEADERS: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "magic", "too few"),
    "another magic": (b"GGML" + bytes(60), "magic", "is not"),
    "version 1": (header([], [], version=1), "version", "1 is not 2 or 3"),
    "version 99": (header([], [], version=99), "version", "99"),
    "only the magic": (b"GGUF", "version", "ends"),
    "many tensors": (header([], [], counts=(2**60, 0)), "tensor count", "above"),
    "many pairs": (header([], [], counts=(0, 2**64 - 1)), "metadata count", "above"),
    "one pair too few": (header([ARCHITECTURE], [], counts=(0, 2)), "metadata[1]", "ends"),
    "one tensor too few": (header([ARCHITECTURE], [], counts=(1, 1)), "tensors[0].name", "ends"),
    "long key": (header([huge(2**40)], [], counts=(0, 1)), "metadata[0]", "more than"),
    "long string": (header([text("k") + STRING_TYPE + huge(2**63)], [], counts=(0, 1)), "k", "more than"),
    "long array": (header([text("k") + ARRAY_TYPE + UINT32_TYPE + huge(2**61)], [], counts=(0, 1)), "k", "beyond"),
    "no key in UTF-8": (header([pair(b"\xff", UINT32, 1)], []), "metadata[0]", "UTF-8"),
    "key twice": (header([ARCHITECTURE, ARCHITECTURE], []), "general.architecture", "twice"),
    "value type": (header([text("k") + (77).to_bytes(4, "little")], [], counts=(0, 1)), "k", "type 77"),
    "bool of two": (header([pair("k", BOOL, 2)], []), "k", "2 is not a bool"),
    "bool of two in an array": (header([pair("k", ARRAY, (BOOL, [0, 2]))], []), "k", "2 is not a bool"),
    "alignment of zero": (header([pair("general.alignment", UINT32, 0)], []), "general.alignment", "0"),
    "alignment of 48": (header([pair("general.alignment", UINT32, 48)], []), "general.alignment", "power"),
    "alignment as text": (header([pair("general.alignment", STRING, "32")], []), "general.alignment", "'32'"),
    "five dimensions": (header([], [tensor("w", [1] * 5, 0, 0)]), "w.shape", "5 dimensions"),
    "elements beyond 2**63": (header([], [tensor("w", [2**40, 2**40], 0, 0)]), "w.shape", "2**63"),
    "tensor type": (header([], [tensor("w", [32], 4, 0)]), "w.type", "type 4"),
    "rows off the blocks": (header([], [tensor("w", [48, 2], 2, 0)]), "w.type", "blocks of 32"),
    "offset off the alignment": (header([], [tensor("w", [4], 0, 8)]), "w.offset", "multiple of 32"),
    "two tensors in one place": (header([], [tensor("v", [9], 0, 0), tensor("w", [4], 0, 32)]), "w.offset", "inside"),
    "two tensors of one name": (header([], [tensor("w", [4], 0, 0), tensor("w", [4], 0, 32)]), "w", "twice"),
    "data missing": (header([], [tensor("w", [2**20], 0, 0)]), "w", "beyond"),
    "split count": (header([pair("split.count", UINT32, 10**6)], []), "split.count", "1000000"),
}
BAD_HEADERS["element type"] = (
    header([text("k") + ARRAY_TYPE + (13).to_bytes(4, "little") + huge(0)], [], counts=(0, 1)),
    "k",
    "type 13",
)


@pytest.mark.parametrize(("head", "field", "says"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_bad_headers_are_named(tmp_path: Path, head: bytes, field: str, says: str) -> None:
    error = refuse(write(tmp_path / "a.gguf", head, 128 if b"w" in head else 0))
    assert error.field == field
    assert says in error.message


def test_a_missing_file(tmp_path: Path) -> None:
    assert refuse(tmp_path / "none.gguf").field == "gguf"
    assert refuse(tmp_path).field == "gguf"


def test_arrays_in_arrays_end(tmp_path: Path) -> None:
    nested = (ARRAY_TYPE + huge(1)) * 10_000
    head = header([text("k") + ARRAY_TYPE + nested], [], counts=(0, 1))
    assert "deep" in refuse(write(tmp_path / "a.gguf", head, 0)).message
    wide = pair("k", ARRAY, (ARRAY, [(UINT32, [])] * 2000))
    assert "2000 arrays" in refuse(write(tmp_path / "b.gguf", header([wide], []), 0)).message
    # Breadth to the power of depth: the elements' budget ends it.
    broad: tuple[int, list[object]] = (0, [1] * 1024)
    for _ in range(2):
        broad = (ARRAY, [broad] * 40)
    head = header([pair("k", ARRAY, broad)], [])
    assert "more than 1048576 elements" in refuse(write(tmp_path / "c.gguf", head, 0)).message


def test_false_lengths_in_a_large_file(tmp_path: Path) -> None:
    """A gigabyte of zeros lets large counts pass the check against the file's size."""
    for name, array, says in (
        ("numbers", UINT32_TYPE + huge(2**27), "header is longer"),
        ("strings", STRING_TYPE + huge(2**26), "strings"),
        ("string", STRING_TYPE + huge(2_000_000), "header is longer"),
    ):
        tail = huge(2**29) if name == "string" else b""
        head = header([text("k") + ARRAY_TYPE + array + tail], [], counts=(0, 1))
        error = refuse(write(tmp_path / f"{name}.gguf", head, 2**30))
        assert error.field == "k"
        assert says in error.message


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.data())
def test_a_damaged_header_is_read_or_refused(data: st.DataObject) -> None:
    """Any byte changed, any end cut off: an answer or a ModelError, never anything else."""
    pairs = [ARCHITECTURE, pair("heads", ARRAY, (UINT32, [8, 4])), pair("names", ARRAY, (STRING, ["a", "b"]))]
    whole = bytearray(header(pairs, [tensor("w", [32, 2], 8, 0), tensor("v", [4], 0, 96)]))
    whole += bytes(-len(whole) % 32 + 112)
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    gguf: GgufFile | ModelError
    try:
        gguf = parse_gguf(lambda offset, length: damaged[offset : offset + length], len(damaged), "x.gguf")
    except ModelError as error:
        gguf = error
    if isinstance(gguf, ModelError):
        assert gguf.file == "x.gguf"
        assert gguf.field
    else:
        assert all(item.offset_bytes + item.size_bytes <= len(damaged) for item in gguf.tensors)
