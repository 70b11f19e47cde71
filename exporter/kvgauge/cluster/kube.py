"""A client of the API server: with a kubeconfig that is named, else the pod's own account, else as kubectl would."""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_kube_config
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import SERVICE_HOST_ENV_NAME, InClusterConfigLoader

from kvgauge import __version__
from kvgauge.complaints import InputError
from kvgauge.logs import logger

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds the token and the CA of its account."""

_UNUSABLE = (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError)
"""What the client's loaders raise over a broken file."""
_SAFE = re.compile(r"Expected (key [\w-]+|object with name [^\s,]{1,100}|\w+ to be a list)|exec: process returned \d+")
"""The parts of the loaders' messages that hold no content of the file: others may hold a token."""


async def connect(
    kubeconfig: str | None,
    *,
    environ: Mapping[str, str] = os.environ,
    account: Path = ACCOUNT,
    refresh_seconds: float = 60.0,
) -> ApiClient:
    """A client, which the caller closes. Nothing is asked of the API server yet. Tokens that are replaced while it
    runs are taken up: the account's within a minute, those of a kubeconfig's `tokenFile` or exec plugin within
    `refresh_seconds`. Raises InputError."""
    configuration = Configuration()
    if kubeconfig is not None:
        source = f"kubeconfig: {kubeconfig}"
        await _load_file(configuration, kubeconfig, source, refresh_seconds)
    elif environ.get(SERVICE_HOST_ENV_NAME) and (account / "token").exists():
        source = f"service account: {account}"
        _load_account(configuration, account, environ, source)
    else:
        path = environ.get("KUBECONFIG") or "~/.kube/config"
        source = f"KUBECONFIG: {path}" if environ.get("KUBECONFIG") else f"kubeconfig: {path}"
        if not _exists(path):
            raise InputError(f"kubeconfig: not set, this is no pod with a service account, and {path} does not exist")
        await _load_file(configuration, path, source, refresh_seconds)
    try:
        client = ApiClient(configuration)
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: CA or client certificate cannot be used ({type(error).__name__})") from error
    client.user_agent = f"kvgauge/{__version__}"
    return client


def _load_account(configuration: Configuration, account: Path, environ: Mapping[str, str], source: str) -> None:
    """The loader leaves a hook by which the client reads the token anew once a minute."""
    loader: Any = InClusterConfigLoader(  # type: ignore[no-untyped-call]
        str(account / "token"), str(account / "ca.crt"), environ=environ
    )
    try:
        loader.load_and_set(configuration)
    except _UNUSABLE as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error


async def _load_file(configuration: Configuration, path: str, source: str, refresh_seconds: float) -> None:
    if not _exists(path):
        raise InputError(f"{source}: does not exist")
    try:
        loader = await load_kube_config(  # type: ignore[no-untyped-call]
            path, client_configuration=configuration, persist_config=False
        )
    except _UNUSABLE as error:
        raise InputError(f"{source}: {_reason(error)}") from error
    if configuration.api_key:
        configuration.refresh_api_key_hook = _Refreshing(loader, refresh_seconds)  # type: ignore[assignment]


class _Refreshing:
    """Loads what a kubeconfig gives anew, now and then. What fails leaves the token as it was: it may still be good,
    and if it is not, the API server's 401 tells."""

    def __init__(self, loader: Any, refresh_seconds: float) -> None:
        self._loader = loader
        self._refresh_seconds = refresh_seconds
        self._next_seconds = time.monotonic() + refresh_seconds

    async def __call__(self, configuration: Configuration) -> None:
        if time.monotonic() < self._next_seconds:
            return
        self._next_seconds = time.monotonic() + self._refresh_seconds
        try:
            await self._loader.load_and_set(configuration)
        except _UNUSABLE as error:
            logger.warning("kubeconfig: token not read anew (%s)", _reason(error))


def _exists(paths: str) -> bool:
    """Whether there is any of several files, as KUBECONFIG may name them."""
    return any(Path(path).expanduser().is_file() for path in paths.split(os.pathsep) if path)


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"not YAML (line {error.problem_mark.line + 1})"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    found = _SAFE.search(str(error))
    return found.group().replace("Expected", "expected") if found else f"no kubeconfig ({type(error).__name__})"
