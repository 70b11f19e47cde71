"""The embedded device and the model folder beside it: do the measured parts, the pool and the model agree?"""

import json
import math
import struct
from pathlib import Path

import pytest

from kvgauge.simulate import H100_LLAMA_31_8B, write_model_folder

GIB = 1 << 30


def test_the_pool_is_what_utilization_left_of_the_card() -> None:
    """vLLM 0.19: pool = utilization x total - weights - activation peak - memory outside torch, in whole blocks."""
    device = H100_LLAMA_31_8B
    left = (
        device.gpu_memory_utilization * device.total_bytes
        - device.weights_bytes
        - device.activation_bytes
        - device.non_torch_bytes
    )
    # Each of the four measured figures was printed to 0.01 GiB.
    assert device.kv_pool_bytes == pytest.approx(left, abs=0.02 * GIB)
    assert round(device.kv_pool_bytes / GIB, 2) == 58.11
    assert device.spec.bytes_per_block == 2 << 20


def test_what_is_used_fits_the_card() -> None:
    device = H100_LLAMA_31_8B
    assert device.used_bytes / GIB == pytest.approx(76.66, abs=0.01)
    assert device.used_bytes < device.total_bytes


def test_the_spec_is_that_of_the_model_written(tmp_path: Path) -> None:
    config = json.loads((write_model_folder(tmp_path) / "config.json").read_text())
    heads, layers = config["num_key_value_heads"], config["num_hidden_layers"]
    head = config["hidden_size"] // config["num_attention_heads"]
    assert 2 * heads * head * layers * 2 == H100_LLAMA_31_8B.spec.kv_bytes_per_token
    assert (config["model_type"], config["torch_dtype"], config["tie_word_embeddings"]) == ("llama", "bfloat16", False)
    assert config["max_position_embeddings"] >= H100_LLAMA_31_8B.spec.max_model_len


def test_the_weights_have_a_real_header_over_a_hole(tmp_path: Path) -> None:
    path = write_model_folder(tmp_path / "new" / "model") / "model.safetensors"
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    assert header.pop("__metadata__") == {"format": "pt"}
    assert length % 8 == 0
    end = 0
    for name, tensor in header.items():
        begin, end_of_this = tensor["data_offsets"]
        assert (tensor["dtype"], begin) == ("BF16", end), name
        assert end_of_this - begin == 2 * math.prod(tensor["shape"]), name
        end = end_of_this
    assert len(header) == 32 * 9 + 3
    assert end == 2 * 8_030_261_248 == H100_LLAMA_31_8B.spec.weights_bytes
    stat = path.stat()
    assert stat.st_size == 8 + length + end
    assert stat.st_blocks * 512 < 1 << 20


def test_writing_again_replaces_the_folder_s_files(tmp_path: Path) -> None:
    write_model_folder(tmp_path)
    first = (tmp_path / "model.safetensors").stat().st_size
    write_model_folder(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
