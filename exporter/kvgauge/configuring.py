"""Settings of a role: one validated model, filled from flags, `KVGAUGE_*` variables and a TOML file.

A flag wins over a variable, a variable over the file. Anything wrong is one `InputError` that names the field.
"""

import argparse
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr, ValidationError

from kvgauge.complaints import InputError, OneLineParser

ENVIRONMENT_PREFIX = "KVGAUGE_"
MAX_CONFIG_BYTES = 1024 * 1024
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h)?")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_FROM_A_SERVICE = ("tcp://", "udp://", "sctp://")


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError("should be a duration such as 500ms, 1s or 2m")
    return float(match[1]) * _UNIT_SECONDS[match[2]]


Seconds = Annotated[float, BeforeValidator(_seconds)]


class RoleSettings(BaseModel):
    """Base of every role's settings: each field is a flag, a variable and a key of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Chosen = TypeVar("Chosen", bound=RoleSettings)


def load_role(
    kind: type[Chosen], role: str, description: str, arguments: Sequence[str], environ: Mapping[str, str] = os.environ
) -> tuple[Chosen, bool]:
    """(settings of `kvgauge ROLE`, whether they are only to be printed). Raises InputError; `--help` exits 0."""
    flags = vars(_parser(kind, role, description).parse_args(arguments))
    print_config = bool(flags.pop("print_config", False))
    config = flags.pop("config", None) or environ.get(ENVIRONMENT_PREFIX + "CONFIG")
    merged = {**(_from_file(Path(config)) if config else {}), **_from_environment(kind, environ), **flags}
    return validated_role(kind, merged), print_config


def validated_role(kind: type[Chosen], values: Mapping[str, Any]) -> Chosen:
    """Settings from plain values. Raises InputError."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(_first_line(kind, error)) from None


def to_toml(settings: RoleSettings) -> str:
    """The settings as a TOML file that `--config` reads back; of a secret only that it is set."""
    lines = []
    for name, value in settings.model_dump().items():
        if isinstance(value, SecretStr):
            lines.append(f"# {name} is set")
        elif value is not None:
            # JSON's strings, numbers and booleans are TOML's.
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _parser(kind: type[RoleSettings], role: str, description: str) -> OneLineParser:
    parser = OneLineParser(
        prog=f"kvgauge {role}", description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False
    )
    for name, field in kind.model_fields.items():
        text = field.description or ""
        if field.default not in {None, False}:
            text += f" (default {field.default})"
        flag = "--" + name.replace("_", "-")
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text.replace("%", "%%"))
        else:
            parser.add_argument(flag, metavar=name.upper(), help=text.replace("%", "%%"))
    parser.add_argument("--config", metavar="FILE.toml", help="file with the same settings, names with underscores")
    parser.add_argument("--print-config", action="store_true", help="print the settings in force and exit")
    return parser


def _from_environment(kind: type[RoleSettings], environ: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name in kind.model_fields:
        value = environ.get(ENVIRONMENT_PREFIX + name.upper())
        # A Service called kvgauge makes Kubernetes set KVGAUGE_PORT=tcp://10.0.0.1:9838 in every pod beside it.
        if value is not None and not (name.endswith("port") and value.startswith(_FROM_A_SERVICE)):
            found[name] = value
    return found


def bounded_file(name: str, path: Path, most_bytes: int) -> bytes:
    """What is in a file that the setting `name` names. Raises InputError, also for one that is larger."""
    try:
        with path.open("rb") as file:
            body = file.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"{name}: {path}: {error.strerror}") from None
    if len(body) > most_bytes:
        raise InputError(f"{name}: {path}: larger than {most_bytes} bytes")
    return body


def _from_file(path: Path) -> dict[str, Any]:
    body = bounded_file("config", path, MAX_CONFIG_BYTES)
    try:
        return tomllib.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"config: {path}: {str(error).splitlines()[0]}") from None


def _first_line(kind: type[RoleSettings], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"]) or "settings"
    message = first["msg"].removeprefix("Value error, ").splitlines()[0]
    if first["type"] == "extra_forbidden":
        return f"{name}: no such setting"
    field = kind.model_fields.get(name)
    if field is not None and "SecretStr" in str(field.annotation):
        return f"{name}: {message}"
    return f"{name}: {message}, got {str(first['input'])[:100]!r}"
