"""The cluster's half of the doctor, which needs the extra `cluster`: asks, then checks."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kvgauge.cluster.kube import ACCOUNT, connect
from kvgauge.complaints import InputError
from kvgauge.doctor.asking import ALL_SECONDS, Asker
from kvgauge.doctor.checking_cluster import check_cluster
from kvgauge.doctor.findings import Finding, fail, typed, words
from kvgauge.doctor.looking_around import look_around

_CONNECT_SECONDS = 5.0


def is_near(environ: Mapping[str, str] = os.environ, account: Path = ACCOUNT) -> bool:
    """Whether there is a kubeconfig or a service account to ask with."""
    if environ.get("KUBERNETES_SERVICE_HOST") and (account / "token").exists():
        return True
    files = (environ.get("KUBECONFIG") or "~/.kube/config").split(os.pathsep)
    return any(Path(file).expanduser().is_file() for file in files if file)


async def examine(
    kubeconfig: str | None, namespace: str | None, wall_seconds: float, program: str = "kvgauge"
) -> list[Finding]:
    """`program` is how to call this one. Raises InputError for a kubeconfig that was named and cannot be used."""
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            # An exec plugin of a kubeconfig may hang.
            client = await connect(kubeconfig)
    except TimeoutError:
        return [fail("api-server", "the kubeconfig's credentials did not come in time", "kubectl version")]
    except InputError as error:
        if kubeconfig is not None:
            raise
        return [fail("api-server", words(str(error)), "kubectl config view")]
    try:
        server = words(client.configuration.host)
        facts = await look_around(Asker(client, ALL_SECONDS - _CONNECT_SECONDS), server, namespace)
        return [_asking_there(found, kubeconfig, program) for found in check_cluster(facts, wall_seconds)]
    finally:
        await client.close()  # type: ignore[no-untyped-call]


def _asking_there(found: Finding, kubeconfig: str | None, program: str) -> Finding:
    """With commands that ask the cluster that was looked at, and not the one that is kubectl's own choice."""
    tool, _, rest = (found.next or "").partition(" ")
    chosen = f" --kubeconfig {typed(kubeconfig)}" if kubeconfig is not None else ""
    if tool in ("kubectl", "helm"):
        return replace(found, next=f"{tool}{chosen} {rest}")
    return replace(found, next=f"{program} {rest}{chosen}") if tool == "kvgauge" else found
