"""Reads an `NvmlSource` once for every line on standard input and prints each outcome as one line of JSON.

A program of its own, because a process can load libnvidia-ml.so.1 only once.
"""

import dataclasses
import json
import sys
from pathlib import Path

from kvgauge.observe.nvml import NvmlSource
from kvgauge.observe.records import SourceError


def main() -> None:
    source = NvmlSource(proc=Path(sys.argv[1]), max_gpus=int(sys.argv[2]))
    for line in sys.stdin:
        if line.strip() == "close":
            source.close()
            outcome: object = "closed"
        else:
            try:
                outcome = [dataclasses.asdict(reading) for reading in source.read()]
            except SourceError as error:
                outcome = {"reason": error.reason, "message": error.message}
        print(json.dumps(outcome), flush=True)


main()
