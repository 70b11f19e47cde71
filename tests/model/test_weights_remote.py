"""Checkpoints behind an HTTP server: headers alone are fetched, and what is wrong is named."""

import contextlib
import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kvmodel import ModelError, read_weights
from kvmodel.remote_weights import read_weights_from_hub, read_weights_from_url

from .test_weights import shards, write_index, write_raw, write_tensors


@dataclass(slots=True)
class Folder:
    """A folder on a local server, and what was asked of it."""

    url: str
    ranges: bool = True
    failing: int = 0
    sent_bytes: int = 0
    authorizations: list[str | None] = field(default_factory=list)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Folder]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served_folder.authorizations.append(self.headers.get("Authorization"))
            file = tmp_path / Path(self.path).name
            if served_folder.failing or not file.is_file():
                self.send_error(served_folder.failing or 404)
                return
            with file.open("rb") as opened:
                size = opened.seek(0, 2)
                begin, end = 0, size - 1
                if served_folder.ranges:
                    first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                    begin, end = int(first), min(int(last), size - 1)
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {begin}-{end}/{size}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(end - begin + 1))
                self.end_headers()
                opened.seek(begin)
                served_folder.sent_bytes += end - begin + 1
                # Who does not honour ranges is hung up on before the end.
                with contextlib.suppress(OSError):
                    self.wfile.write(opened.read(end - begin + 1))

        def log_message(self, *args: object) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    served_folder = Folder(f"http://127.0.0.1:{server.server_port}/model/resolve/main")
    yield served_folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_shards_are_read_by_their_headers(tmp_path: Path, served: Folder) -> None:
    shards(tmp_path)
    assert read_weights_from_url(served.url) == read_weights(tmp_path)


def test_a_terabyte_costs_a_few_kilobytes(tmp_path: Path, served: Folder) -> None:
    write_tensors(tmp_path / "model.safetensors", {"a": ("BF16", [2**19, 2**20])})
    assert read_weights_from_url(served.url).total_bytes == 2**40
    assert served.sent_bytes <= 2**18


def test_a_header_longer_than_the_first_request(tmp_path: Path, served: Folder) -> None:
    tensors = {f"model.layers.{index}.weight": ("BF16", [1000]) for index in range(5000)}
    write_tensors(tmp_path / "model.safetensors", tensors)
    assert read_weights_from_url(served.url) == read_weights(tmp_path)


def test_credentials_are_sent(tmp_path: Path, served: Folder) -> None:
    write_tensors(tmp_path / "model.safetensors", {"a": ("BF16", [4])})
    read_weights_from_url(served.url, headers={"Authorization": "Bearer x"})
    assert set(served.authorizations) == {"Bearer x"}


def test_a_small_file_needs_no_ranges(tmp_path: Path, served: Folder) -> None:
    served.ranges = False
    write_tensors(tmp_path / "model.safetensors", {"a": ("BF16", [4])})
    assert read_weights_from_url(served.url).total_bytes == 8


def test_a_server_that_does_not_answer_ranges(tmp_path: Path, served: Folder) -> None:
    served.ranges = False
    write_raw(tmp_path / "model.safetensors", b" " * 10**6 + b"{}", 0)
    assert refused(served).field == "range"


def refused(served: Folder) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read_weights_from_url(served.url)
    assert str(caught.value.file).startswith(served.url)
    assert str(caught.value).isprintable()
    return caught.value


def test_nothing_there(served: Folder) -> None:
    assert "missing" in refused(served).message


def test_a_shard_that_is_missing(tmp_path: Path, served: Folder) -> None:
    write_index(tmp_path, {"a": "gone.safetensors"})
    assert str(refused(served).file).endswith("/gone.safetensors")


def test_a_header_that_lies(tmp_path: Path, served: Folder) -> None:
    write_raw(tmp_path / "model.safetensors", b"{}", 0, length=2**63)
    assert refused(served).field == "header length"


def test_a_server_in_trouble(served: Folder) -> None:
    served.failing = 503
    assert "503" in refused(served).message


def test_no_server() -> None:
    with pytest.raises(ModelError, match="cannot be fetched"):
        read_weights_from_url("http://127.0.0.1:1/model")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/model", "model", "", None])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_weights_from_url(url)
    assert caught.value.field == "url"


def test_the_hub_at_another_endpoint(tmp_path: Path, served: Folder) -> None:
    """With the Hub's client the repository is read; without it, the missing package is named."""
    write_tensors(tmp_path / "model.safetensors", {"a": ("BF16", [4])})
    endpoint = served.url.removesuffix("/model/resolve/main")
    if importlib.util.find_spec("huggingface_hub") is None:
        with pytest.raises(ModelError) as caught:
            read_weights_from_hub("org/model", endpoint=endpoint)
        assert caught.value.field == "huggingface_hub"
    else:
        assert read_weights_from_hub("org/model", endpoint=endpoint).total_bytes == 8
        with pytest.raises(ModelError) as caught:
            read_weights_from_hub("no/such/name", endpoint=endpoint)
        assert caught.value.field == "repo"
