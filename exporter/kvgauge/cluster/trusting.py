"""How the API server's front proxy is known, followed while it changes: a ConfigMap that every cluster publishes.

Where it is missing, unreadable or broken, the front proxy is not believed, and tokens alone count; that is said once.
"""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from kvgauge.cluster.authentication import CONFIG_MAP, NAMESPACE, Authenticator, request_header_of
from kvgauge.cluster.decoding import JsonObject
from kvgauge.cluster.tls import ServingTls
from kvgauge.cluster.watching import Pace, Reflector, RefusedError
from kvgauge.complaints import InputError
from kvgauge.logs import logger

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient

_PATH = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
_REFUSED_SECONDS = 10.0
"""Between two tries where the API server does not show it: permissions may be given late, and one that has just
started may refuse for a moment."""


async def follow_request_header(
    client: "ApiClient",
    authenticator: Authenticator,
    tls: ServingTls,
    *,
    pace: Pace | None = None,
    refused_seconds: float = _REFUSED_SECONDS,
) -> NoReturn:
    """Keeps `authenticator` and `tls` in step with the ConfigMap until cancelled. While the API server is away, what
    was known last holds."""
    trust = _Trust(authenticator, tls)
    reflector = Reflector(
        client,
        _PATH,
        _data,
        replace=lambda found: trust.use(found[0] if found else None),
        put=trust.use,
        drop=lambda _namespace, _name: trust.use(None),
        field_selector=f"metadata.name={CONFIG_MAP}",
        pace=pace,
    )
    while True:
        try:
            await reflector.run()
        except RefusedError as error:
            trust.switch_off(f"{error}; a RoleBinding to extension-apiserver-authentication-reader shows it")
        except Exception as error:  # whatever it was, what the front proxy may do must not stay as it is for ever
            logger.warning("%s: watched anew (%s)", _PATH, type(error).__name__)
        await asyncio.sleep(refused_seconds)


def _data(thing: JsonObject) -> Mapping[str, str]:
    """Raises TypeError."""
    data = thing.get("data") or {}
    if not isinstance(data, dict) or not all(isinstance(text, str) for text in data.values()):
        raise TypeError("no data")
    return data


class _Trust:
    def __init__(self, authenticator: Authenticator, tls: ServingTls) -> None:
        self._authenticator = authenticator
        self._tls = tls
        self._complaint = ""

    def use(self, data: Mapping[str, str] | None) -> None:
        """None: there is no such ConfigMap."""
        try:
            header = None if data is None else request_header_of(data)
            if header is None:
                self.switch_off("not there" if data is None else "without requestheader-client-ca-file")
                return
            self._tls.use_client_ca(header.client_ca)
        except (InputError, ValueError) as error:
            self.switch_off(str(error))
            return
        if header != self._authenticator.request_header:
            logger.info("the front proxy is known by ConfigMap %s/%s", NAMESPACE, CONFIG_MAP)
        self._authenticator.request_header = header
        self._complaint = ""

    def switch_off(self, why: str) -> None:
        self._authenticator.request_header = None
        if why != self._complaint:
            logger.error("the front proxy is not believed: ConfigMap %s/%s: %s", NAMESPACE, CONFIG_MAP, why)
        self._complaint = why
        self._tls.use_client_ca(None)
