"""Weight sizes from safetensors headers, and what is no safetensors file."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmodel import ModelError, Weights, read_architecture, read_weights, weights_bytes_per_gpu

from .known import LLAMA_8B, known_config

LONGEST_SECONDS = 1.0
BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1, "BOOL": 1, "I64": 8}


def write_raw(file: Path, header: bytes, data_bytes: int, length: int | None = None) -> None:
    """A file with this header and sparse data."""
    with file.open("wb") as opened:
        opened.write((len(header) if length is None else length).to_bytes(8, "little"))
        opened.write(header)
        opened.truncate(8 + len(header) + data_bytes)


def write_tensors(file: Path, tensors: Mapping[str, tuple[str, list[int]]]) -> int:
    """A well-formed file of these dtypes and shapes; answers the bytes of its data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = BYTES[dtype]
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    write_raw(file, json.dumps(header).encode(), at)
    return at


@contextmanager
def refused(field: str, says: str, file: Path) -> Iterator[None]:
    began = time.process_time()
    with pytest.raises(ModelError) as caught:
        yield
    assert time.process_time() - began < LONGEST_SECONDS
    assert (caught.value.field, caught.value.file) == (field, str(file))
    assert says in caught.value.message
    assert str(caught.value).isprintable()


def test_one_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    total = write_tensors(
        file, {"a": ("BF16", [4096, 100]), "b": ("F32", [7]), "c": ("BF16", []), "d": ("I64", [0, 9])}
    )
    expected = Weights(total, 409_608, {"BF16": 819_202, "F32": 28, "I64": 0}, 4, ("model.safetensors",))
    assert read_weights(file) == expected
    assert read_weights(tmp_path) == expected
    assert read_weights(str(tmp_path)) == expected


def test_headers_alone_are_read(tmp_path: Path) -> None:
    """A terabyte of tensors, none of which is on the disk."""
    write_tensors(tmp_path / "model.safetensors", {"a": ("BF16", [2**19, 2**20])})
    began = time.process_time()
    assert read_weights(tmp_path).total_bytes == 2**40
    assert time.process_time() - began < LONGEST_SECONDS


def test_half_byte_elements(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F4", "shape": [3, 6], "data_offsets": [0, 9]}}
    write_raw(tmp_path / "model.safetensors", json.dumps(header).encode(), 9)
    assert read_weights(tmp_path).total_bytes == 9


def shards(folder: Path) -> dict[str, str]:
    """Two shards and their index, and a file the index does not name."""
    write_tensors(folder / "model-00001-of-00002.safetensors", {"a": ("BF16", [10]), "b": ("BF16", [20])})
    write_tensors(folder / "model-00002-of-00002.safetensors", {"c": ("F32", [5])})
    write_tensors(folder / "consolidated.safetensors", {"a": ("BF16", [10])})
    listed = {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00001-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors",
    }
    write_index(folder, listed)
    return listed


def write_index(folder: Path, listed: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))


def test_the_index_names_the_shards(tmp_path: Path) -> None:
    listed = shards(tmp_path)
    weights = read_weights(tmp_path)
    assert weights.total_bytes == 80
    assert weights.tensors == 3
    assert weights.files == tuple(sorted(set(listed.values())))


def test_without_an_index_all_files_count(tmp_path: Path) -> None:
    write_tensors(tmp_path / "part-1.safetensors", {"a": ("BF16", [10])})
    write_tensors(tmp_path / "part-2.safetensors", {"b": ("BF16", [10])})
    assert read_weights(tmp_path).files == ("part-1.safetensors", "part-2.safetensors")
    assert read_weights(tmp_path).total_bytes == 40


def test_a_name_of_a_megabyte_does_not_fill_the_log(tmp_path: Path) -> None:
    write_raw(tmp_path / "model.safetensors", json.dumps({"a\n" * 2**19: 7}).encode(), 0)
    with pytest.raises(ModelError) as caught:
        read_weights(tmp_path)
    assert len(caught.value.field) == 400
    assert str(caught.value).isprintable()


def test_a_missing_shard(tmp_path: Path) -> None:
    shards(tmp_path)
    gone = tmp_path / "model-00002-of-00002.safetensors"
    gone.unlink()
    with refused("weights", "the shard is missing", gone):
        read_weights(tmp_path)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    write_tensors(tmp_path / "part-1.safetensors", {"a": ("BF16", [10])})
    write_tensors(tmp_path / "part-2.safetensors", {"a": ("BF16", [10])})
    with refused("a", "is in part-1.safetensors too", tmp_path / "part-2.safetensors"):
        read_weights(tmp_path)


def test_a_tensor_the_index_promises(tmp_path: Path) -> None:
    listed = shards(tmp_path)
    write_index(tmp_path, {**listed, "d": "model-00002-of-00002.safetensors"})
    with refused("d", "is in the index but not in this file", tmp_path / "model-00002-of-00002.safetensors"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["../a.safetensors", "/a.safetensors", "..", "", "b\\a.safetensors", "a\0", 7, None])
def test_an_index_stays_in_its_folder(tmp_path: Path, name: object) -> None:
    write_index(tmp_path, {"a": name})
    with refused("weight_map.a", "is not a file name", tmp_path / "model.safetensors.index.json"):
        read_weights(tmp_path)


@pytest.mark.parametrize("listed", [None, {}, [], "a"])
def test_an_index_maps_tensors(tmp_path: Path, listed: object) -> None:
    write_index(tmp_path, listed)
    with refused("weight_map", "is missing or not an object", tmp_path / "model.safetensors.index.json"):
        read_weights(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with refused("weights", "holds no safetensors file", tmp_path):
        read_weights(tmp_path)
    with refused("weights", "no such file or folder", tmp_path / "nowhere"):
        read_weights(tmp_path / "nowhere")


GOOD = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}


@pytest.mark.parametrize(
    ("header", "data_bytes", "field", "says"),
    [
        ({"a": {**GOOD, "dtype": "BF17"}}, 12, "dtype", "'BF17'"),
        ({"a": {**GOOD, "dtype": None}}, 12, "dtype", "None"),
        ({"a": {**GOOD, "shape": [2, 4]}}, 12, "a.data_offsets", "contradict"),
        ({"a": {**GOOD, "shape": [-2, -3]}}, 12, "a.shape", "-2"),
        ({"a": {**GOOD, "shape": [2, 3.0]}}, 12, "a.shape", "3.0"),
        ({"a": {**GOOD, "shape": [2, True]}}, 12, "a.shape", "True"),
        ({"a": {**GOOD, "shape": "23"}}, 12, "a.shape", "'23'"),
        ({"a": {**GOOD, "shape": [10**30]}}, 12, "a.shape", "not a size"),
        ({"a": {**GOOD, "shape": [1] * 100}}, 12, "a.shape", "short list"),
        ({"a": {**GOOD, "shape": [2**62] * 32}}, 12, "a.data_offsets", "contradict"),
        ({"a": {**GOOD, "data_offsets": [12, 0]}}, 12, "a.data_offsets", "[begin, end]"),
        ({"a": {**GOOD, "data_offsets": [0]}}, 12, "a.data_offsets", "[begin, end]"),
        ({"a": {**GOOD, "data_offsets": [4, 16]}}, 16, "a.data_offsets", "begins at 4"),
        ({"a": GOOD, "b": GOOD}, 12, "b.data_offsets", "begins at 0"),
        ({"a": GOOD}, 11, "data", "11 bytes of data"),
        ({"a": GOOD}, 13, "data", "13 bytes of data"),
        ({"a": 7}, 12, "a", "does not describe a tensor"),
        ({"a": {}}, 12, "dtype", "None"),
        ([GOOD], 12, "header", "is not an object"),
    ],
)
def test_a_header_that_contradicts_itself(
    tmp_path: Path, header: object, data_bytes: int, field: str, says: str
) -> None:
    file = tmp_path / "model.safetensors"
    write_raw(file, json.dumps(header).encode(), data_bytes)
    with refused(field, says, file):
        read_weights(file)


@pytest.mark.parametrize(
    ("header", "length", "field", "says"),
    [
        (b"{}", 2**64 - 1, "header length", "is above 100000000"),
        (b"{}", 100_000_001, "header length", "is above"),
        (b"{}", 3, "header length", "beyond the file's 10 bytes"),
        (b"{}", 0, "header", "is not JSON"),
        (b'{"a": ', None, "header", "is not JSON"),
        (b"\xff\xff", None, "header", "is not JSON"),
        (b"[" * 1_000_000, None, "header", "nested too deeply"),
        (b'{"a":' * 1_000_000, None, "header", "nested too deeply"),
        (b'{"a": 1, "a": 2}', None, "a", "stands twice"),
    ],
)
def test_a_header_that_is_none(tmp_path: Path, header: bytes, length: int | None, field: str, says: str) -> None:
    file = tmp_path / "model.safetensors"
    write_raw(file, header, 0, length)
    with refused(field, says, file):
        read_weights(file)


@pytest.mark.parametrize("content", [b"", b"\x01", b"\0" * 7])
def test_a_file_too_short_for_a_length(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with refused("header length", "too few", file):
        read_weights(file)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8),
        st.tuples(st.sampled_from(sorted(BYTES)), st.lists(st.integers(0, 30), max_size=3)),
        max_size=8,
    )
)
def test_any_well_formed_file_adds_up(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, tuple[str, list[int]]]
) -> None:
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    total = write_tensors(file, tensors)
    weights = read_weights(file)
    assert weights.total_bytes == total == sum(weights.by_dtype.values())
    assert weights.tensors == len(tensors)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_weights_or_a_named_field(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    file.write_bytes(len(content).to_bytes(8, "little") + content)
    outcome: Weights | ModelError
    try:
        outcome = read_weights(file)
    except ModelError as error:
        outcome = error
    if isinstance(outcome, ModelError):
        assert outcome.field
        assert outcome.file == str(file)
    else:
        assert outcome.total_bytes == 0


WHOLE = Weights(16_060_522_496, 8_030_261_248, {"BF16": 16_060_522_496}, 291, ("model.safetensors",))
"""meta-llama/Llama-3.1-8B."""


def test_one_gpu_holds_it_all() -> None:
    assert weights_bytes_per_gpu(WHOLE, read_architecture(LLAMA_8B), 1) == WHOLE.total_bytes


def test_ranks_up_to_the_kv_heads_share_evenly() -> None:
    architecture = read_architecture(LLAMA_8B)
    assert weights_bytes_per_gpu(WHOLE, architecture, 8) == -(-WHOLE.total_bytes // 8)


def test_ranks_beyond_the_kv_heads_each_keep_one_head() -> None:
    architecture = read_architecture(LLAMA_8B)
    even = -(-WHOLE.total_bytes // 16)
    half_a_head = 32 * 4096 * 256 * 2 // 2
    assert weights_bytes_per_gpu(WHOLE, architecture, 16) == even + half_a_head


def test_every_rank_keeps_the_projection_to_the_latent() -> None:
    architecture = read_architecture(known_config("deepseek-ai/DeepSeek-V2-Lite"))
    even = -(-WHOLE.total_bytes // 2)
    assert weights_bytes_per_gpu(WHOLE, architecture, 2) == even + 27 * 2048 * 576 * 2 // 2


def test_ranks_that_do_not_divide_the_heads_are_refused() -> None:
    with pytest.raises(ModelError) as caught:
        weights_bytes_per_gpu(WHOLE, read_architecture(LLAMA_8B), 3)
    assert caught.value.field == "tp"
