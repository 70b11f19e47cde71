"""The agents' files as a source: a folder that several processes write into, each one small file a second.

Nothing in that folder is trusted: a bounded number of plain files is read, each to a bounded size, and a file that
can't be used costs itself and a count.
"""

import errno
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from kvgauge.observe.pulse import Pulse
from kvgauge.observe.records import AgentReading, EngineReading, ProcessReading, RankReading, SourceError
from kvgauge.observe.spool_file import read_file

DEFAULT_SPOOL = "/run/kvgauge"
STALE_SECONDS = 5.0
"""Age at which a file counts for nothing: its process has ended, or hangs."""
MAX_FILES = 256
MAX_BYTES = 64 * 1024
# Names looked at to find them, among whatever else lies there.
_MAX_NAMES = 4096
_NAME = re.compile(r"([A-Za-z0-9-]{1,32})-[0-9]{1,10}\.json")
# Opening a pipe must not wait for its writer.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_REASONS = {errno.ELOOP: "not_regular", errno.EACCES: "not_permitted", errno.EPERM: "not_permitted"}


@dataclass(frozen=True, slots=True)
class _Skipped:
    """A file that is left out: why, and which version of it."""

    reason: str
    changed_ns: int


class AgentSource:
    """The spool in `folder`, or in the agent's own default folder where that exists."""

    name = "agent"

    def __init__(
        self,
        folder: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._configured = folder is not None
        self._folder = folder or DEFAULT_SPOOL
        self._clock = clock
        self._wall_clock = wall_clock
        self._skipped: dict[str, _Skipped] = {}
        self._pulses: dict[tuple[str, int], Pulse] = {}

    @property
    def is_expected(self) -> bool:
        """Whether an agent is to be looked for: a folder was named, or the default one is there."""
        return self._configured or os.path.isdir(self._folder)  # noqa: PTH112 - no object a second for one question

    def read(self) -> AgentReading:
        """All fresh files. Raises SourceError: not_found, not_permitted, unreadable, and where no file is fresh
        no_files, or the reason why the one that is left out is."""
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise SourceError("not_found", "the spool folder is not there") from None
        except OSError as error:
            raise _unreadable(error) from None
        try:
            return self._read(folder)
        except OSError as error:
            raise _unreadable(error) from None
        finally:
            os.close(folder)

    def _read(self, folder: int) -> AgentReading:
        processes: list[ProcessReading] = []
        skipped: dict[str, _Skipped] = {}
        for number, name in enumerate(_names(folder)):
            if number == MAX_FILES:
                skipped[""] = _Skipped("too_many", 0)
                break
            outcome = self._file(folder, name)
            if isinstance(outcome, _Skipped):
                skipped[name] = outcome
            elif outcome is not None:
                processes.append(outcome)
        before, self._skipped = self._skipped, skipped
        counts = Counter(each.reason for each in skipped.values())
        if not processes:
            reason = counts.most_common(1)[0][0] if counts else "no_files"
            raise SourceError(reason, f"none of the {len(skipped)} files in the spool folder can be used")
        processes.sort(key=lambda process: (process.instance, process.pid))
        return AgentReading(
            processes=self._with_standing(processes),
            skipped=counts,
            newly_skipped=Counter(each.reason for name, each in skipped.items() if before.get(name) != each),
            file_age_seconds=max(self._clock() - process.monotonic_seconds for process in processes),
        )

    def _file(self, folder: int, name: str) -> ProcessReading | _Skipped | None:
        """One file; None where it is gone meanwhile, as its process has just ended."""
        changed_ns = 0
        try:
            file = os.open(name, _FLAGS, dir_fd=folder)
            try:
                state = os.fstat(file)
                changed_ns = state.st_mtime_ns
                if not stat.S_ISREG(state.st_mode):
                    return _Skipped("not_regular", changed_ns)
                if self._wall_clock() - state.st_mtime > STALE_SECONDS:
                    return _Skipped("stale", changed_ns)
                content = os.read(file, MAX_BYTES + 1)
            finally:
                os.close(file)
            if len(content) > MAX_BYTES:
                return _Skipped("too_large", changed_ns)
            process = read_file(content, name.rpartition("-")[0])
        except FileNotFoundError:
            return None
        except OSError as error:
            return _Skipped(_REASONS.get(error.errno or 0, "unreadable"), changed_ns)
        except SourceError as error:
            return _Skipped(error.reason, changed_ns)
        # A clock that is ahead is another machine's: the folder is shared between nodes.
        if abs(self._clock() - process.monotonic_seconds) > STALE_SECONDS:
            return _Skipped("stale", changed_ns)
        return process

    def _with_standing(self, processes: list[ProcessReading]) -> tuple[ProcessReading, ...]:
        """With the time for which each scheduler has not stepped although it has requests."""
        before, self._pulses = self._pulses, {}
        found = []
        for process in processes:
            books, key = process.scheduler, (process.instance, process.pid)
            if books is not None and books.steps is not None:
                pulse = self._pulses[key] = before.get(key) or Pulse(self._clock)
                rank = RankReading("0", "", running=books.running, waiting=books.waiting, progress=(books.steps,))
                standing = pulse.standing_seconds(EngineReading(process.engine, "", (rank,)))
                process = replace(process, standing_seconds=standing)
            found.append(process)
        return tuple(found)


def fresh(reading: AgentReading, now: float) -> AgentReading:
    """The reading without the processes that are too old at `now`, by the machine's clock."""
    alive = tuple(process for process in reading.processes if now - process.monotonic_seconds <= STALE_SECONDS)
    return reading if len(alive) == len(reading.processes) else replace(reading, processes=alive)


def _names(folder: int) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number == _MAX_NAMES:
                return
            if _NAME.fullmatch(entry.name):
                yield entry.name


def _unreadable(error: OSError) -> SourceError:
    reason = _REASONS.get(error.errno or 0, "unreadable")
    return SourceError(reason, f"the spool folder cannot be read: {error.strerror}")
