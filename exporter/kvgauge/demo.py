"""`kvgauge demo`: the real sidecar on an embedded engine and an embedded device. No GPU, no cluster, no download."""

import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from kvgauge import __version__
from kvgauge.complaints import InputError, OneLineParser, fail
from kvgauge.observe.records import GpuReading
from kvgauge.settings import Settings, validated
from kvgauge.sidecar import run
from kvgauge.simulate.model_folder import write_model_folder
from kvgauge.simulate.serving import EmbeddedEngine


class EmbeddedDevices:
    """The embedded engine's GPU, where NVML would be asked on a real machine."""

    name = "nvml"

    def __init__(self, engine: EmbeddedEngine) -> None:
        self._engine = engine

    def read(self) -> tuple[GpuReading, ...]:
        """One GPU that does not exist."""
        total, used, free, reserved = self._engine.gpu_memory()
        return (
            GpuReading(
                gpu=0,
                uuid="GPU-embedded-demo",
                # The card's own name, by which its speed is known; the driver and the uuid say that there is none.
                name=self._engine.device.gpu_name,
                driver=f"kvgauge demo {__version__}",
                mig="",
                total_bytes=total,
                used_bytes=used,
                free_bytes=free,
                reserved_bytes=reserved,
                engine_bytes=used,
            ),
        )


def main(arguments: Sequence[str]) -> None:
    """Runs the demo until SIGTERM, SIGINT, or the end of `--seconds`."""
    try:
        flags = _parser().parse_args(arguments)
        with tempfile.TemporaryDirectory(prefix="kvgauge-demo-") as folder:
            model = write_model_folder(Path(folder) / "model")
            with EmbeddedEngine(seed=flags.seed, model_path=model) as engine:
                settings = validated(
                    {
                        "engine_url": engine.base_url,
                        "port": flags.port,
                        "host": flags.host,
                        "max_num_seqs": engine.device.spec.max_num_seqs,
                        "max_num_batched_tokens": engine.device.spec.max_num_batched_tokens,
                        "log_level": "warning",
                    }
                )
                _run(settings, EmbeddedDevices(engine), flags.seconds, as_json=flags.json)
    except InputError as error:
        fail(str(error))


def _run(settings: Settings, devices: EmbeddedDevices, seconds: float | None, *, as_json: bool) -> None:
    failed: list[str] = []

    def started(address: str, stop: Callable[[], None]) -> None:
        print(f"kvgauge demo: the live page is at {address}/", file=sys.stderr)  # noqa: T201
        if seconds is not None:
            threading.Thread(target=_end, args=(address, stop), daemon=True).start()

    def _end(address: str, stop: Callable[[], None]) -> None:
        threading.Event().wait(seconds)
        try:
            if as_json:
                with urllib.request.urlopen(f"{address}/v1/advice", timeout=5) as answer:  # noqa: S310 - our own address
                    sys.stdout.write(answer.read().decode() + "\n")
        except OSError as error:
            failed.append(f"the advice could not be read: {error}")
        finally:
            stop()

    run(settings, devices, started)
    if failed:
        sys.exit(f"kvgauge demo: {failed[0]}")


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="kvgauge demo",
        description="The real sidecar on an embedded engine (a paged-KV simulation of Llama-3.1-8B under a synthetic "
        "load) and an embedded H100. Open the address it prints.",
        allow_abbrev=False,
    )
    parser.add_argument("--port", default=9838, help="port of the live page; 0 takes a free one (default 9838)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default 127.0.0.1)")
    parser.add_argument("--seconds", type=float, metavar="S", help="end by itself after S seconds")
    parser.add_argument("--seed", type=int, default=1, help="of the synthetic load (default 1)")
    parser.add_argument("--json", action="store_true", help="with --seconds: print the last advice as JSON")
    return parser
