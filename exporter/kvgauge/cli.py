"""The one command. Each role is loaded only when it is called, so that the sidecar stays small."""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

_CLUSTER = "kvgauge.cluster."
"""Roles in there need the extra of that name."""

ROLES = {
    "sidecar": ("kvgauge.sidecar", "watch the engine and the GPU of this pod; serve metrics and advice"),
    "aggregator": ("kvgauge.cluster.aggregator", "poll the sidecars of a cluster; serve autoscalers what they need"),
    "injector": ("kvgauge.cluster.injector.command", "webhook that puts the sidecar into pods that ask for it"),
    "plan": ("kvgauge.planner", "what a model needs and what an engine makes of it, offline"),
    "simulate": ("kvgauge.simulate.command", "a load through a simulated fleet: how scaling signals compare, no GPU"),
    "doctor": ("kvgauge.doctor", "from the driver to the autoscaler: which link is broken, what to type next"),
    "top": ("kvgauge.top", "what one or several sidecars see, live in a terminal"),
    "demo": ("kvgauge.demo", "the sidecar on an embedded engine: no GPU, no cluster, no download"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `kvgauge ROLE ...`. Exit code 2 and one line on stderr for bad input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in {"-h", "--help"}:
        print(_usage())  # noqa: T201
        raise SystemExit(0 if given else 2)
    if given[0] == "--version":
        from kvgauge import __version__

        print(f"kvgauge {__version__}")  # noqa: T201
        return
    if given[0] not in ROLES:
        print(f"kvgauge: no such command: {given[0]!r} (there are: {', '.join(ROLES)})", file=sys.stderr)  # noqa: T201
        raise SystemExit(2)
    _module_of(given[0]).main(given[1:])


def _module_of(role: str) -> Any:
    module = ROLES[role][0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not module.startswith(_CLUSTER) or package == "kvgauge":
            raise
        needs = f"{role}: the package {package} is missing: pip install 'kvgauge[cluster]'"
        print(f"kvgauge: {needs}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def _usage() -> str:
    width = max(map(len, ROLES))
    roles = "\n".join(f"  {role:{width}}  {text}" for role, (_, text) in ROLES.items())
    return f"usage: kvgauge COMMAND [options]\n\n{roles}\n\nkvgauge COMMAND --help tells the options of each."
