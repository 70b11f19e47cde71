"""Run by a Python that has torch, on a GPU: the agent's figures of the allocator beside torch's own, as JSON.

Each line is one look, taken while nothing else allocates: `found` is what the agent's part says, `stats` and `free`
what torch says of the first device, `seconds` how long the agent took.
"""

import json
import time
from importlib import import_module
from typing import Any

from kvgauge_agent.allocator import AllocatorPart

MIB = 2**20
PIECES = 64
PIECE_BYTES = 8 * MIB
MANY = 30_000


def look(torch: Any, name: str, part: AllocatorPart) -> None:
    began = time.perf_counter()
    found = part.collect()
    seconds = time.perf_counter() - began
    line: dict[str, object] = {"look": name, "found": found, "seconds": seconds, "started": torch.cuda.is_initialized()}
    if torch.cuda.is_initialized():
        blocks = [block for segment in torch.cuda.memory_snapshot() for block in segment["blocks"]]
        line["free"] = [block["size"] for block in blocks if block["state"] == "inactive"]
        line["stats"] = {key: value for key, value in torch.cuda.memory_stats(0).items() if isinstance(value, int)}
        line["uuid"] = str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
    print(json.dumps(line), flush=True)


def main() -> None:
    torch: Any = import_module("torch")
    look(torch, "before CUDA", AllocatorPart())
    pieces = [torch.empty(PIECE_BYTES, dtype=torch.uint8, device="cuda") for _ in range(PIECES)]
    # Every other one goes: half of the memory is free, in pieces no larger than a segment's.
    del pieces[::2]
    part = AllocatorPart()
    look(torch, "fragmented", part)
    more = torch.empty(PIECE_BYTES, dtype=torch.uint8, device="cuda")
    look(torch, "a moment later", part)
    del more, pieces
    torch.cuda.empty_cache()
    look(torch, "emptied", AllocatorPart())
    many = [torch.empty(1000, dtype=torch.uint8, device="cuda") for _ in range(MANY)]
    look(torch, "many blocks", AllocatorPart())
    del many


if __name__ == "__main__":
    main()
