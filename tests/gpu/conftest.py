"""The Python that runs what needs torch: that of KVGAUGE_TORCH_PYTHON, or the tests' own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOOK = "import torch; assert torch.cuda.is_available(), 'torch finds no CUDA device'"


@pytest.fixture(scope="session")
def torch_python() -> Path:
    """A Python whose torch finds a GPU. The tests fail where there is none: they were asked for."""
    python = Path(os.environ.get("KVGAUGE_TORCH_PYTHON") or sys.executable)
    look = subprocess.run([str(python), "-c", LOOK], capture_output=True, text=True, timeout=120, check=False)
    if look.returncode:
        why = (look.stderr.splitlines() or ["it can't be run"])[-1]
        pytest.fail(f"KVGAUGE_TORCH_PYTHON has to name a Python with torch and a GPU; {python}: {why}", pytrace=False)
    return python
