"""One leader among the replicas of a role, by a Lease of coordination.k8s.io/v1.

The official client's own election is not used: a renewal that hangs leaves it leading for minutes, it reckons by the
wall clock, it never gives the lease up, and an error of the network ends it.
"""

import asyncio
import math
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from kubernetes.aio.client import ApiClient, CoordinationV1Api, V1Lease, V1LeaseSpec, V1ObjectMeta
from kubernetes.aio.client.exceptions import ApiException

from kvgauge.cluster.writing import TROUBLE, WRITE_SECONDS, Clock, in_a_word, micro_time
from kvgauge.complaints import InputError
from kvgauge.logs import logger

LEASE = "kvgauge-aggregator"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_NOT_FOUND = 404
_CONFLICT = 409
_MAX_NAME_BYTES = 253


class Leading(Protocol):
    """Whoever can say whether this replica may write now. Ask before every write: it changes by itself."""

    @property
    def is_leader(self) -> bool: ...


class Alone:
    """Of a replica that runs without an election."""

    is_leader = True


@dataclass(frozen=True, slots=True)
class Timing:
    """In seconds. The defaults are what Kubernetes' own controllers use."""

    lease_seconds: int = 15
    """Others wait that long after the last renewal that they saw."""
    deadline_seconds: float = 10.0
    """Who has not renewed for so long does not lead any more."""
    retry_seconds: float = 2.0
    request_seconds: float = WRITE_SECONDS
    """Bound on one attempt. Less than the lease outlasts the deadline."""


class Leadership:
    """One candidate.

    It leads from a renewal that the API server confirmed until `deadline_seconds` after that was sent, so it ceases to
    lead by itself, before the lease runs out, however long a request hangs. How long another's lease is valid is
    reckoned from when this candidate last saw it change, by its own monotonic clock: what time the other believes it
    is does not matter.
    """

    def __init__(
        self,
        client: ApiClient,
        namespace: str,
        identity: str,
        *,
        timing: Timing | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.identity = identity
        self._api = CoordinationV1Api(client)
        self._namespace = namespace
        self._timing = timing or Timing()
        self._clock = clock
        self._leads_until = -math.inf
        self._said = False
        self._failures = 0
        self._mine: V1Lease | None = None
        """The lease as the API server confirmed it to be ours; None when that is not certain."""
        self._may_hold = False
        """A request was sent that may have made the lease ours."""
        self._seen: tuple[str | None, datetime | None, int | None] | None = None
        self._seen_seconds = -math.inf

    @property
    def is_leader(self) -> bool:
        return self._clock() < self._leads_until

    async def lead(self) -> None:
        """Competes until it is cancelled; then gives the lease up, so that another can take it at once."""
        try:
            while True:
                await self.attempt()
                await asyncio.sleep(self._pause_seconds())
        finally:
            await self.release()

    async def attempt(self) -> bool:
        """One try to get or to renew the lease; whether it succeeded. It may be called at any time."""
        held = False
        try:
            async with asyncio.timeout(self._timing.request_seconds):
                held = await self._hold()
        except TROUBLE as error:
            if self._failures == 0:
                logger.warning("lease %s/%s: not reached (%s)", self._namespace, LEASE, in_a_word(error))
            self._failures += 1
        else:
            self._failures = 0
            if not held:
                self._leads_until = -math.inf
        self._say()
        return held

    async def release(self) -> None:
        """Ceases to lead, and says so in the lease if it is ours. An API server that is away delays it by no more than
        the bound on one attempt."""
        self._leads_until = -math.inf
        self._say()
        if not self._may_hold:
            return
        try:
            async with asyncio.timeout(self._timing.request_seconds):
                # Read anew: a renewal that was cut off may have changed it.
                lease = await self._read()
                if lease and lease.spec and lease.spec.holder_identity == self.identity:
                    await self._replace(lease, "", 1)
        except TROUBLE as error:
            logger.warning("lease %s/%s: not given up (%s); it runs out", self._namespace, LEASE, in_a_word(error))
        self._mine, self._may_hold = None, False

    def _pause_seconds(self) -> float:
        """Longer after each failure, but not while there is still a lease to save."""
        retry = self._timing.retry_seconds
        if self.is_leader:
            return retry
        return min(retry * 2.0 ** min(self._failures, 10), max(retry, self._timing.deadline_seconds))

    def _say(self) -> None:
        leads = self.is_leader
        if leads != self._said:
            self._said = leads
            state = "leads" if leads else "no longer leads"
            logger.info("%s %s, by lease %s/%s", self.identity, state, self._namespace, LEASE)

    async def _hold(self) -> bool:
        # Renewing without a read halves the requests; where another has written meanwhile it is a conflict.
        if self._mine is not None and await self._write(self._mine):
            return True
        found = await self._read()
        if found is None:
            return await self._write(None)
        if not self._is_free(found):
            self._may_hold = False
            return False
        return await self._write(found)

    def _is_free(self, lease: V1Lease) -> bool:
        spec = lease.spec
        holder = spec.holder_identity if spec else None
        if spec is None or not holder or holder == self.identity:
            return True
        seen = (holder, spec.renew_time, spec.lease_transitions)
        if seen != self._seen:
            self._seen, self._seen_seconds = seen, self._clock()
            return False
        valid_seconds = spec.lease_duration_seconds or self._timing.lease_seconds
        return self._clock() - self._seen_seconds >= valid_seconds

    async def _read(self) -> V1Lease | None:
        try:
            return await self._api.read_namespaced_lease(LEASE, self._namespace)
        except ApiException as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def _write(self, lease: V1Lease | None) -> bool:
        """Makes the lease ours or renews it, a new one if there is none. False: another was quicker."""
        sent_seconds = self._clock()
        self._mine, self._may_hold = None, True
        try:
            if lease is None:
                spec = V1LeaseSpec()
                _fill(spec, self.identity, self._timing.lease_seconds)
                body = V1Lease(metadata=V1ObjectMeta(name=LEASE, namespace=self._namespace), spec=spec)
                self._mine = await self._api.create_namespaced_lease(self._namespace, body)
            else:
                self._mine = await self._replace(lease, self.identity, self._timing.lease_seconds)
        except ApiException as error:
            if error.status in (_CONFLICT, _NOT_FOUND):
                return False
            raise
        self._leads_until = sent_seconds + self._timing.deadline_seconds
        return True

    async def _replace(self, lease: V1Lease, holder: str, seconds: int) -> V1Lease:
        """The resourceVersion that the lease was read with makes it a conflict where another has written since."""
        if lease.spec is None:
            lease.spec = V1LeaseSpec()
        _fill(lease.spec, holder, seconds)
        return await self._api.replace_namespaced_lease(LEASE, self._namespace, lease)


def lease_namespace(setting: str | None, environ: Mapping[str, str] = os.environ, file: Path = NAMESPACE_FILE) -> str:
    """Namespace of the Lease: what is set, else the pod's own. Raises InputError."""
    if setting:
        return setting
    try:
        with file.open("rb") as stream:
            own = stream.read(_MAX_NAME_BYTES).decode("ascii", "replace").strip()
    except OSError:
        own = ""
    own = own or environ.get("POD_NAMESPACE", "")
    if not own:
        raise InputError("lease_namespace: must be set outside a pod, or leader_election switched off")
    return own


def own_name(environ: Mapping[str, str] = os.environ) -> str:
    """The pod's name, or the host's."""
    return environ.get("POD_NAME") or environ.get("HOSTNAME") or socket.gethostname()


def own_identity(environ: Mapping[str, str] = os.environ) -> str:
    """Identity of a candidate. The suffix tells a container that was restarted from its predecessor."""
    return f"{own_name(environ)}_{secrets.token_hex(4)}"


def _fill(spec: V1LeaseSpec, holder: str, seconds: int) -> None:
    now = micro_time()
    if spec.holder_identity != holder or spec.acquire_time is None:
        spec.acquire_time = now
    if holder and spec.holder_identity != holder:
        spec.lease_transitions = (spec.lease_transitions or 0) + (spec.holder_identity is not None)
    spec.holder_identity = holder
    spec.lease_duration_seconds = seconds
    spec.renew_time = now
