"""A machine without a GPU that shows GPUs: the stub of libnvidia-ml.so.1, what it answers, and a process that asks."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

STUB = Path(__file__).parent
GIB = 2**30
MIB = 2**20

Facts = dict[str, object]
Reading = dict[str, Any]

TWO_GPUS: Facts = {
    "generation": 1,
    "driver": "580.95.05",
    "count": 2,
    "gpu0.uuid": "GPU-aaaa",
    "gpu0.name": "NVIDIA H100 80GB HBM3",
    "gpu0.total": 80 * GIB,
    "gpu0.free": 20 * GIB,
    "gpu0.reserved": 512 * MIB,
    "gpu1.uuid": "GPU-bbbb",
    "gpu1.name": "NVIDIA H100 80GB HBM3",
    "gpu1.total": 80 * GIB,
    "gpu1.free": 79 * GIB,
    "gpu1.reserved": 512 * MIB,
}


class Machine:
    """A machine as the stub library shows it, and a process on it that reads an `NvmlSource` when asked."""

    def __init__(self, folder: Path, library: Path | None, proc: Path, max_gpus: int) -> None:
        self._file = folder / "machine"
        self._calls = folder / "machine.calls"
        self._facts = dict(TWO_GPUS)
        self._write()
        self._calls.touch()
        environment = {**os.environ, "KVGAUGE_NVML_STUB": str(self._file)}
        if library is not None:
            inherited = os.environ.get("LD_LIBRARY_PATH")
            environment["LD_LIBRARY_PATH"] = f"{library}:{inherited}" if inherited else str(library)
        self._process = subprocess.Popen(
            [sys.executable, str(STUB / "reader.py"), str(proc), str(max_gpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def change(self, *changes: Facts) -> None:
        for change in changes:
            self._facts.update(change)
        self._write()

    def readings(self) -> list[Reading]:
        outcome = self._ask("read")
        assert isinstance(outcome, list), outcome
        return outcome

    def reading(self) -> Reading:
        (only,) = self.readings()
        return only

    def refusal(self) -> tuple[str, str]:
        """Reason and message of the SourceError that a read must end in."""
        outcome = self._ask("read")
        assert isinstance(outcome, dict), outcome
        return outcome["reason"], outcome["message"]

    def close_source(self) -> None:
        assert self._ask("close") == "closed"

    def calls(self) -> Counter[str]:
        """Calls into the library since this was last asked."""
        counted = Counter(self._calls.read_text().split())
        self._calls.write_text("")
        return counted

    def stop(self) -> None:
        with self._process:
            self._process.communicate(timeout=30)
        assert self._process.returncode == 0

    def _ask(self, what: str) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the reader ended: its traceback is above"
        return json.loads(answer)

    def _write(self) -> None:
        # Latin-1, so that a test can make the driver answer with bytes that are not UTF-8.
        lines = [f"{key}={value}\n" for key, value in self._facts.items() if value is not None]
        self._file.write_text("".join(lines), encoding="latin-1")


def compile_stub(folder: Path, *flags: str) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.fail("the stub of libnvidia-ml.so.1 needs a C compiler, and there is no `cc` on the PATH")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-Wall", "-Wextra", "-shared", "-fPIC", *flags, "-o", str(library), str(STUB / "nvml_stub.c")],
        check=True,
    )
    return folder
