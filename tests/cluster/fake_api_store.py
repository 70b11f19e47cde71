"""What the fake API server keeps: objects, their versions, a bounded history, and the rules of writing."""

import base64
import bisect
import copy
import itertools
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace ("" where there is none) and name."""

_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_EVENT_TEXTS = {"action": 128, "reason": 128, "reportingController": 253, "reportingInstance": 128}


class RefusedError(Exception):
    """Becomes an answer of kind Status."""

    def __init__(self, code: int, reason: str, message: str = "", retry_after: int | None = None) -> None:
        super().__init__(message or reason)
        self.code, self.reason, self.message, self.retry_after = code, reason, message or reason, retry_after

    @property
    def status(self) -> Object:
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        }  # fmt: skip


@dataclass(frozen=True)
class Kind:
    group: str
    version: str
    resource: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        return f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"


KINDS = (
    Kind("", "v1", "pods", "Pod"),
    Kind("", "v1", "configmaps", "ConfigMap"),
    Kind("apps", "v1", "deployments", "Deployment"),
    Kind("apps", "v1", "statefulsets", "StatefulSet"),
    Kind("leaderworkerset.x-k8s.io", "v1", "leaderworkersets", "LeaderWorkerSet"),
    Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    Kind("coordination.k8s.io", "v1", "leases", "Lease"),
    Kind("events.k8s.io", "v1", "events", "Event"),
    Kind("apiregistration.k8s.io", "v1", "apiservices", "APIService", namespaced=False),
)


@dataclass(frozen=True)
class Selection:
    """Which objects a request is about."""

    namespace: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    name: str | None = None

    def takes(self, thing: Object | None) -> bool:
        if thing is None:
            return False
        metadata = thing["metadata"]
        if self.namespace is not None and metadata.get("namespace") != self.namespace:
            return False
        if self.name is not None and metadata["name"] != self.name:
            return False
        labels = metadata.get("labels") or {}
        return all(labels.get(key) == text for key, text in self.labels)


@dataclass
class _Shelf:
    objects: dict[Key, Object] = field(default_factory=dict)
    versions: list[int] = field(default_factory=list)
    changes: list[tuple[str, Object, Object | None]] = field(default_factory=list)
    """Of each version: what happened, the object now, the object before."""


class Storage:
    """Thread-safe. Every write gets the next of one row of versions, as in etcd."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.lock = threading.RLock()
        self._changed = changed
        self._version = 1000
        self._oldest = 0
        """Changes up to this version are forgotten."""
        self._shelves: dict[Kind, _Shelf] = {kind: _Shelf() for kind in KINDS}
        self._pages: dict[str, tuple[list[Object], int]] = {}
        self._names = itertools.count(1)

    @property
    def version(self) -> int:
        return self._version

    def get(self, kind: Kind, key: Key) -> Object:
        with self.lock:
            found = self._shelves[kind].objects.get(key)
            if found is None:
                raise RefusedError(404, "NotFound", f'{kind.resource} "{key[1]}" not found')
            return copy.deepcopy(found)

    def page(self, kind: Kind, selection: Selection, limit: int, token: str) -> Object:
        """A list or a page of it. All pages are of one moment."""
        with self.lock:
            if token:
                if token not in self._pages:
                    raise RefusedError(410, "Expired", "The provided continue parameter is too old")
                rest, version = self._pages[token]
            else:
                there = sorted(self._shelves[kind].objects.items())
                rest, version = [thing for _, thing in there if selection.takes(thing)], self._version
            items = rest[:limit] if limit else rest
            metadata: Object = {"resourceVersion": str(version)}
            if limit and len(rest) > limit:
                metadata["continue"] = self._token(rest[limit:], version)
                if not selection.labels:
                    metadata["remainingItemCount"] = len(rest) - limit
        # As the real one does: items of a list do not state their kind.
        items = [{name: part for name, part in thing.items() if name not in ("kind", "apiVersion")} for thing in items]
        return {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata, "items": items}

    def since(self, kind: Kind, version: int, selection: Selection) -> tuple[list[tuple[str, Object]], int]:
        """Changes after `version`, as a watch tells them, and the version up to which they go."""
        with self.lock:
            if version < self._oldest:
                raise RefusedError(410, "Expired", f"too old resource version: {version} ({self._oldest})")
            shelf = self._shelves[kind]
            changes = shelf.changes[bisect.bisect_right(shelf.versions, version) :]
            return list(_told(changes, selection)), max(version, self._version)

    def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        with self.lock:
            thing = copy.deepcopy(body)
            metadata = thing.setdefault("metadata", {})
            if "name" not in metadata and metadata.get("generateName"):
                metadata["name"] = f"{metadata['generateName']}{next(self._names):05x}"
            if metadata.get("resourceVersion"):
                raise RefusedError(400, "BadRequest", "resourceVersion should not be set on objects to be created")
            if kind.namespaced:
                metadata.setdefault("namespace", namespace)
            thing.setdefault("kind", kind.kind)
            thing.setdefault("apiVersion", kind.api_version)
            _check(kind, namespace, thing)
            key = (namespace, metadata["name"])
            if key in self._shelves[kind].objects:
                raise RefusedError(409, "AlreadyExists", f'{kind.resource} "{key[1]}" already exists')
            metadata.setdefault("uid", str(uuid.uuid4()))
            metadata.setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
            return self._put(kind, key, "ADDED", thing)

    def update(self, kind: Kind, key: Key, body: Object) -> Object:
        with self.lock:
            known = self.get(kind, key)
            thing = copy.deepcopy(body)
            metadata = thing.setdefault("metadata", {})
            if metadata.get("name") != key[1]:
                raise RefusedError(400, "BadRequest", "the name of the object does not match the name on the URL")
            if kind.resource == "leases" and not metadata.get("resourceVersion"):
                raise RefusedError(422, "Invalid", "metadata.resourceVersion: must be specified for an update")
            _compare(metadata, known["metadata"])
            thing.setdefault("kind", kind.kind)
            thing.setdefault("apiVersion", kind.api_version)
            if kind.namespaced:
                metadata.setdefault("namespace", key[0])
            for kept in ("uid", "creationTimestamp"):
                metadata[kept] = known["metadata"][kept]
            _check(kind, key[0], thing)
            return self._put(kind, key, "MODIFIED", thing)

    def patch(self, kind: Kind, key: Key, patch: Object) -> Object:
        """A JSON merge patch (RFC 7386)."""
        with self.lock:
            known = self.get(kind, key)
            _compare(patch.get("metadata") or {}, known["metadata"])
            thing = _merged(known, patch)
            _check(kind, key[0], thing)
            if thing == known:
                return known
            return self._put(kind, key, "MODIFIED", thing)

    def delete(self, kind: Kind, key: Key, conditions: Object | None = None) -> Object:
        with self.lock:
            known = self.get(kind, key)
            _compare(conditions or {}, known["metadata"])
            shelf = self._shelves[kind]
            before = shelf.objects.pop(key)
            self._note(shelf, "DELETED", self._stamped(known), before)
            return known

    def expire(self) -> None:
        """Forgets all history and every list that is being paged through."""
        with self.lock:
            self._version += 1
            self._oldest = self._version
            self._pages.clear()
            for shelf in self._shelves.values():
                shelf.versions.clear()
                shelf.changes.clear()

    def _token(self, rest: list[Object], version: int) -> str:
        token = base64.urlsafe_b64encode(json.dumps({"rv": version, "start": next(self._names)}).encode()).decode()
        self._pages[token] = (rest, version)
        return token

    def _put(self, kind: Kind, key: Key, what: str, thing: Object) -> Object:
        shelf = self._shelves[kind]
        before = shelf.objects.get(key)
        shelf.objects[key] = self._stamped(thing)
        self._note(shelf, what, shelf.objects[key], before)
        return copy.deepcopy(shelf.objects[key])

    def _stamped(self, thing: Object) -> Object:
        self._version += 1
        thing["metadata"]["resourceVersion"] = str(self._version)
        return thing

    def _note(self, shelf: _Shelf, what: str, now: Object, before: Object | None) -> None:
        shelf.versions.append(self._version)
        shelf.changes.append((what, now, before))
        self._changed()


def _told(changes: list[tuple[str, Object, Object | None]], selection: Selection) -> Iterator[tuple[str, Object]]:
    """What leaves a selection is told as deleted, what enters it as added."""
    for what, now, before in changes:
        is_in, was_in = what != "DELETED" and selection.takes(now), selection.takes(before)
        if is_in:
            yield ("MODIFIED" if was_in else "ADDED"), now
        elif was_in and before is not None:
            metadata = {**before["metadata"], "resourceVersion": now["metadata"]["resourceVersion"]}
            yield "DELETED", {**before, "metadata": metadata}


def _compare(asked: Object, known: Object) -> None:
    for name in ("uid", "resourceVersion"):
        if asked.get(name) and asked[name] != known[name]:
            raise RefusedError(409, "Conflict", f"metadata.{name}: {asked[name]} is not {known[name]}")


def _merged(known: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(known) if isinstance(known, dict) else {}
    for name, part in patch.items():
        if part is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), part)
    return merged


def _check(kind: Kind, namespace: str, thing: Object) -> None:
    if (thing["kind"], thing["apiVersion"]) != (kind.kind, kind.api_version):
        raise RefusedError(400, "BadRequest", f"{thing['apiVersion']} {thing['kind']} does not belong here")
    metadata = thing["metadata"]
    name = metadata.get("name")
    if not isinstance(name, str) or len(name) > 253 or not _NAME.fullmatch(name):
        raise RefusedError(422, "Invalid", f"metadata.name: {name}")
    if kind.namespaced and metadata.get("namespace") != namespace:
        raise RefusedError(400, "BadRequest", "the namespace of the object does not match the namespace on the request")
    for texts in ("labels", "annotations"):
        if any(not isinstance(text, str) for text in (metadata.get(texts) or {}).values()):
            raise RefusedError(400, "BadRequest", f"metadata.{texts}: not a string")
    for text in (metadata.get("labels") or {}).values():
        if len(text) > 63 or not _LABEL.fullmatch(text):
            raise RefusedError(422, "Invalid", f"metadata.labels: {text}")
    if kind.resource == "leases":
        _check_lease(thing.get("spec") or {})
    if kind.resource == "events":
        _check_event(thing, namespace)


def _check_lease(spec: Object) -> None:
    for name in ("acquireTime", "renewTime"):
        if spec.get(name) is not None and not _MICRO_TIME.fullmatch(spec[name]):
            raise RefusedError(400, "BadRequest", f"spec.{name}: {spec[name]}")
    if spec.get("leaseDurationSeconds", 1) <= 0 or spec.get("leaseTransitions", 0) < 0:
        raise RefusedError(422, "Invalid", "spec: must be greater than 0")


def _check_event(event: Object, namespace: str) -> None:
    if not _MICRO_TIME.fullmatch(event.get("eventTime") or ""):
        raise RefusedError(400, "BadRequest", "eventTime")
    good = (event.get("regarding") or {}).get("namespace", namespace) == namespace and len(
        event.get("note", "")
    ) <= 1024
    good = good and event.get("type") in {"Normal", "Warning"} and not any("deprecated" in name for name in event)
    if not good or any(not 1 <= len(event.get(name, "")) <= most for name, most in _EVENT_TEXTS.items()):
        raise RefusedError(422, "Invalid", "event")
