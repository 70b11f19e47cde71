"""`kvgauge aggregator` as a process of its own, whose pods may have loopback addresses; tells its ports when it serves.

Run as a script with the command's own flags.
"""

import asyncio
import json
import sys
from dataclasses import asdict

from kvgauge.cluster.aggregator import Ports, run
from kvgauge.cluster.settings import AggregatorSettings
from kvgauge.configuring import load_role
from kvgauge.logs import set_up


def _started(ports: Ports) -> None:
    print(json.dumps(asdict(ports)), flush=True)


if __name__ == "__main__":
    settings, _ = load_role(AggregatorSettings, "aggregator", "", sys.argv[1:])
    set_up("console", "info")
    raise SystemExit(asyncio.run(run(settings, _started, allow_loopback=True)))
