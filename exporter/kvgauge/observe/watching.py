"""Watches sources: times them, counts their failures, remembers their last good reading and how old it is.

Each source is read in a thread of its own, so that one that hangs (an engine that accepts and never answers, a driver
stuck in the kernel) costs its own series and nothing else.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from kvgauge.observe.records import SourceError, SourceState

Reading = TypeVar("Reading", covariant=True)
Kept = TypeVar("Kept")


class Source(Protocol[Reading]):
    """Something that can be read. `name` is its label on the metrics page."""

    @property
    def name(self) -> str: ...

    def read(self) -> Reading:
        """One reading, or SourceError."""
        ...


class Watcher(Generic[Kept]):
    """Reads one source when asked to, never twice at a time.

    `patience_seconds`: a read in flight for longer counts as failed with reason ``timeout`` until it ends.
    `stale_after_seconds`: a good reading is handed out until it is this old; then it is gone.
    `standing_seconds`: how old a reading's contents already were when it was read; part of the age that is stated.
    `faults`: what a good reading still has to complain of, as reason -> number; counted like failures.
    """

    def __init__(
        self,
        source: Source[Kept],
        *,
        patience_seconds: float,
        stale_after_seconds: float,
        faults: Callable[[Kept], Mapping[str, int]] = lambda _: {},
        standing_seconds: Callable[[Kept], float] = lambda _: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = source.name
        self._source = source
        self._patience_seconds = patience_seconds
        self._stale_after_seconds = stale_after_seconds
        self._faults = faults
        self._standing_seconds = standing_seconds
        self._clock = clock
        self._wanted = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._lock = threading.Lock()
        self._started_at: float | None = None
        self._slow_counted = False
        self._reading: Kept | None = None
        self._read_at: float | None = None
        self._standing = 0.0
        self._read_seconds: float | None = None
        self._error: SourceError | None = None
        self._complaint: str | None = None
        self._errors: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name=f"kvgauge-{source.name}", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Starts a read unless one is in flight."""
        if self._idle.is_set():
            self._idle.clear()
            with self._lock:
                self._started_at, self._slow_counted = self._clock(), False
            self._wanted.set()

    def wait(self, seconds: float) -> bool:
        """Waits for the read in flight; True when none is left."""
        return self._idle.wait(max(seconds, 0.0))

    def latest(self) -> tuple[Kept | None, SourceState]:
        """The last good reading unless it is stale, and how the source is doing."""
        with self._lock:
            now = self._clock()
            age = None if self._read_at is None else now - self._read_at
            overdue = self._started_at is not None and now - self._started_at > self._patience_seconds
            if overdue and not self._slow_counted:
                self._errors["timeout"] += 1
                self._slow_counted = True
            error = SourceError("timeout", "the read takes too long") if overdue else self._error
            fresh = age is not None and age <= self._stale_after_seconds
            return self._reading if fresh else None, SourceState(
                source=self.name,
                up=error is None and age is not None,
                age_seconds=None
                if age is None or self._reading is None
                else age + self._standing_seconds(self._reading),
                read_seconds=self._read_seconds,
                reason=error.reason if error else self._complaint,
                message=error.message if error else None,
                errors_total=dict(self._errors),
            )

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            began = self._clock()
            reading, error = None, None
            try:
                reading = self._source.read()
            except SourceError as failure:
                error = failure
            except Exception as failure:
                # A source must not raise anything else; if one does, it is a fault of ours and must show as one.
                error = SourceError("internal", f"{type(failure).__name__} while reading {self.name}")
            self._settle(reading, error, self._clock() - began)
            self._idle.set()

    def _settle(self, reading: Kept | None, error: SourceError | None, read_seconds: float) -> None:
        with self._lock:
            self._read_seconds = read_seconds
            self._started_at = None
            self._error = error
            if reading is None:
                if error is not None and not (self._slow_counted and error.reason == "timeout"):
                    self._errors[error.reason] += 1
                return
            self._reading, self._read_at = reading, self._clock()
            self._standing = self._standing_seconds(reading)
            faults = {reason: number for reason, number in self._faults(reading).items() if number}
            self._errors.update(faults)
            self._complaint = next(iter(faults), None)
