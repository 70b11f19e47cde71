"""The doctor's settings: the sidecar's own, so that its flags, variables and file serve here as they are, and where
else to look."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from kvgauge.complaints import OneLineParser
from kvgauge.configuring import load_role, to_toml
from kvgauge.settings import Settings, http_url

__all__ = ["DoctorSettings", "load", "started_with", "to_toml"]

_DESCRIPTION = (
    "Walks the chain driver, engine, model, agent, sidecar and, in a cluster, aggregator, metrics API, HPA. Each line "
    "says what was found and what to type next. With --json a list of objects {check, status, found, next}. It ends "
    "with 1 where anything failed. Every flag of the sidecar is taken; in a sidecar's container those that it was "
    "started with hold by themselves."
)


class DoctorSettings(Settings):
    """Settings of `kvgauge doctor`: the sidecar's, and these."""

    sidecar_url: Annotated[str, AfterValidator(http_url)] | None = Field(
        None, description="where the sidecar serves; without it --port on this host"
    )
    local: bool = Field(False, description="look at this pod only, unless --cluster is given too")
    cluster: bool = Field(False, description="look at the cluster only, unless --local is given too")
    kubeconfig: str | None = Field(
        None, min_length=1, description="how to reach the API server; without it the pod's own account, then KUBECONFIG"
    )
    namespace: str | None = Field(
        None,
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        description="the one namespace to look at; without it all",
    )

    @property
    def address(self) -> str:
        """The sidecar's."""
        return self.sidecar_url or f"http://127.0.0.1:{self.port}"

    @property
    def looks_here(self) -> bool:
        return self.local or not self.cluster

    @property
    def must_look_at_cluster(self) -> bool:
        """It was asked for. Without that it is looked at where the API server can be reached."""
        return self.cluster or self.kubeconfig is not None


def load(
    arguments: Sequence[str], environ: Mapping[str, str] = os.environ, beside: Sequence[str] = ()
) -> tuple[DoctorSettings, bool, bool]:
    """(settings, whether they are only to be printed, whether the answer is to be JSON). `beside` are the flags of the
    sidecar in whose container this runs; those typed win. Raises InputError; `--help` exits 0."""
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--json", action="store_true")
    own, rest = parser.parse_known_args(arguments)
    settings, only_print = load_role(DoctorSettings, "doctor", _DESCRIPTION, [*beside, *rest], environ)
    return settings, only_print, bool(own.json)


def started_with(command_line: Path = Path("/proc/1/cmdline")) -> list[str]:
    """The flags of the sidecar that is the first process of this container; empty where there is none."""
    try:
        with command_line.open("rb") as file:
            parts = file.read(64 * 1024).decode().rstrip("\0").split("\0")
    except (OSError, UnicodeDecodeError):
        return []
    for place, part in enumerate(parts[:-1]):
        if Path(part).name == "kvgauge" and parts[place + 1] == "sidecar":
            return [flag for flag in parts[place + 2 :] if flag != "--print-config"]
    return []
