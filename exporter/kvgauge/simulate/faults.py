"""What may go wrong around a signal while a fleet runs: pages that cannot be read, advice that starts from nothing or
from a wrong idea of the engine's speed."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvgauge.complaints import InputError
from kvmodel.errors import show

Scrape = Callable[[str, float], bool]
"""Whether the page of a pod, by name, can be read at that time."""

NAMES: Mapping[str, str] = {
    "missing-scrapes": "10 % of the reads of engines' pages fail, at random",
    "silent-pod": "the oldest pod's page cannot be read for the middle third of the run, 10 minutes at least",
    "restarted-sidecar": "at half time all sidecars lose what they learned (kvgauge only)",
    "wrong-roofline": "what a step costs by the model is thought 15 % less than it is (kvgauge only)",
}
"""Name to its one line, for help and documentation."""

_MISSING_RATIO = 0.1
_SILENT_SECONDS = 600.0
_ROOFLINE_RATIO = 0.85


def _always(_name: str, _now: float) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong in one run; by default nothing."""

    scrape: Scrape = _always
    """For one run: it may remember what it was asked."""
    roofline_ratio: float = 1.0
    """What advice multiplies the model's seconds of a step with, before it has learned better."""
    restart_at_seconds: float | None = None
    """When all sidecars begin anew."""

    @property
    def touches_advice(self) -> bool:
        """Whether it is more than reads that fail: a matter of kvgauge's own advice."""
        return self.roofline_ratio != 1.0 or self.restart_at_seconds is not None


def make_faults(name: str | None, *, duration_seconds: float, seed: int) -> Faults:
    """The named fault for one run of that length, None for none. Raises InputError for a name that there is not."""
    if name is None:
        return Faults()
    if name == "missing-scrapes":
        source = random.Random(f"scrapes {seed}")  # noqa: S311 - faults that can be repeated, not a secret
        return Faults(scrape=lambda _name, _now: source.random() >= _MISSING_RATIO)
    if name == "silent-pod":
        begin = duration_seconds / 3
        return Faults(scrape=_SilentPod(begin, begin + max(duration_seconds / 3, _SILENT_SECONDS)))
    if name == "restarted-sidecar":
        return Faults(restart_at_seconds=duration_seconds / 2)
    if name == "wrong-roofline":
        return Faults(roofline_ratio=_ROOFLINE_RATIO)
    raise InputError(f"fault: should be one of {', '.join(NAMES)}, not {show(name)}")


class _SilentPod:
    """Keeps one pod's page from being read for a while, and the next oldest's once that pod is gone.

    A fleet asks for all its pods in turn at each look, the oldest first: a name that a whole look did not ask for is
    gone.
    """

    def __init__(self, begin_seconds: float, end_seconds: float) -> None:
        self._begin = begin_seconds
        self._end = end_seconds
        self._look = -math.inf
        self._asked: set[str] = set()
        self._silent: str | None = None

    def __call__(self, name: str, now: float) -> bool:
        if not self._begin <= now < self._end:
            return True
        if now > self._look:
            if self._silent not in self._asked:
                self._silent = name
            self._look, self._asked = now, set()
        self._asked.add(name)
        return name != self._silent
