"""What the browser is pointed at: the sidecar beside a recorded page, and the bare web application."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from kvgauge.listening import bind
from kvgauge.publish.app import create_app
from kvgauge.publish.board import Board
from tests.support.process import Sidecar, eventually, sidecar
from tests.support.web import page, serving

CAPTURES = Path(__file__).parents[1] / "captures/vllm/0.32.0"


@contextmanager
def sidecar_beside(capture: Path) -> Iterator[Sidecar]:
    """A ready sidecar whose engine is the recorded page and nothing else."""
    with serving({"/metrics": page(capture.read_bytes())}) as engine, sidecar("--engine-url", engine) as running:
        yield running


@contextmanager
def served(board: Board) -> Iterator[str]:
    """The address of the web application over `board`, in a thread of this process."""
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(board), log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        eventually(lambda: server.started, what="the web application's start")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
