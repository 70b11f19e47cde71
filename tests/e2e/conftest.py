"""Fixtures of the tests with a real engine: one engine and one sidecar for the whole run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import tiny_model
from .sidecar import Sidecar
from .tiny_model import TinyShape
from .vllm_server import VllmServer


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The python of an environment that has vLLM, made by scripts/install-vllm-cpu."""
    return _executable("KVGAUGE_VLLM_PYTHON")


@pytest.fixture(scope="session")
def llama_program() -> Path:
    """llama.cpp's server, built by scripts/install-llama-cpp."""
    return _executable("KVGAUGE_LLAMA_SERVER")


@pytest.fixture(scope="session")
def tiny_shape() -> TinyShape:
    return TinyShape()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_shape: TinyShape) -> Path:
    """A tiny random model on disk."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tiny_model.write(folder, tiny_shape)
    return folder


@pytest.fixture(scope="session")
def vllm_server(vllm_python: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """The engine; a test that needs it running takes `engine`."""
    server = VllmServer(vllm_python, tiny_folder, tmp_path_factory.mktemp("vllm-logs"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def engine(vllm_server: VllmServer) -> VllmServer:
    """The engine, serving: started again where the test before has killed it."""
    if not vllm_server.alive:
        vllm_server.start()
    return vllm_server


@pytest.fixture(scope="session")
def sidecar(vllm_server: VllmServer, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """The sidecar beside the engine; it stays the same process whatever happens to the engine."""
    process = Sidecar(vllm_server.url, tiny_folder, tmp_path_factory.mktemp("sidecar-log") / "sidecar.log")
    try:
        yield process
    finally:
        process.close()


def _executable(variable: str) -> Path:
    named = os.environ.get(variable)
    if not named:
        pytest.fail(f"{variable} is not set: run these tests by scripts/test --engines", pytrace=False)
    if not os.access(named, os.X_OK):
        pytest.fail(f"{variable}: {named} can't be executed", pytrace=False)
    return Path(named)
