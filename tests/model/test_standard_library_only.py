"""The model must run beside any engine: importing it brings in nothing but the standard library."""

import subprocess
import sys

PROGRAM = """
import sys
before = set(sys.modules)
import kvmodel
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_import_brings_in_the_standard_library_only() -> None:
    answer = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert "kvmodel" in answer.stdout.split()
    assert set(answer.stdout.split()) - sys.stdlib_module_names == {"kvmodel"}
