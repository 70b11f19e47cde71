"""A small file that outlives the sidecar: lengths of recent hours, and what was learned of the engine's steps.

It is a help, never a need: whatever is wrong with it is one line in the log, and advice begins anew.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kvgauge.advise.history import History
from kvgauge.advise.learning import Counted
from kvgauge.advise.looking import MOST_BUCKETS
from kvgauge.advise.stepping_records import StepRecord
from kvgauge.logs import logger
from kvgauge.observe.records import Histogram, Observation

SAVE_SECONDS = 30.0
MOST_BYTES = 256 * 1024
OLDEST_SECONDS = 24 * 3600.0
_VERSION = 1
_CLOCKS_APART_SECONDS = 60.0
_MOST_FIGURE = 1e15


@dataclass(frozen=True, slots=True)
class Subject:
    """What lengths and speeds belong to. Empty or None: not known."""

    engine: str
    model: str
    max_model_len: int | None
    gpu: str


@dataclass(frozen=True, slots=True)
class Kept:
    """What the file holds."""

    lengths: Counted | None
    steps: StepRecord | None


def subject_of(observation: Observation) -> Subject | None:
    """None without an engine: then it is not known either."""
    engine = observation.engine
    if engine is None:
        return None
    gpus = sorted({f"{gpu.name} {gpu.mig}".strip() for gpu in observation.gpus})
    return Subject(engine.engine, engine.model, engine.max_model_len, ", ".join(gpus))


class StateFile:
    """Reads the file once, when it is known what is served, and writes it every half minute at most. Owned by the loop.
    Times are those of observations."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_read = False
        self._saved_seconds = -math.inf
        self._failed = False

    def follow(self, observation: Observation, history: History) -> None:
        """One tick, which `history` has not been told of yet."""
        served = subject_of(observation)
        if served is None:
            return
        if not self._is_read:
            self._is_read = True
            self._saved_seconds = observation.monotonic_seconds
            kept = self._read(served, observation.wall_seconds)
            if kept is not None and kept.lengths is not None:
                history.restore(kept.lengths)
            if kept is not None and kept.steps is not None:
                history.restore_steps(kept.steps)
        elif observation.monotonic_seconds - self._saved_seconds >= SAVE_SECONDS:
            self._saved_seconds = observation.monotonic_seconds
            self._write(served, Kept(history.kept(), history.steps.record()), observation.wall_seconds)

    def _read(self, served: Subject, wall_seconds: float) -> Kept | None:
        try:
            with self._path.open("rb") as file:
                body = file.read(MOST_BYTES + 1)
            kept = _parsed(body, served, wall_seconds)
        except FileNotFoundError:
            return None
        except (OSError, _UnusableError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            logger.warning("state_file: %s: ignored: %s", self._path, why)
            return None
        logger.info("state_file: %s: taken up", self._path)
        return kept

    def _write(self, served: Subject, kept: Kept, wall_seconds: float) -> None:
        stored = {
            "version": _VERSION,
            "wall_seconds": wall_seconds,
            "served": asdict(served),
            "lengths": None if kept.lengths is None else _plain_counted(kept.lengths),
            "steps": None if kept.steps is None else asdict(kept.steps),
        }
        beside = self._path.with_name(self._path.name + ".new")
        try:
            beside.write_text(json.dumps(stored))
            beside.replace(self._path)
            self._failed = False
        except OSError as error:
            if not self._failed:
                logger.warning("state_file: %s: cannot be written: %s", self._path, error.strerror)
            self._failed = True


class _UnusableError(Exception):
    """Says why a file cannot be used."""


def _parsed(body: bytes, served: Subject, wall_seconds: float) -> Kept:
    if len(body) > MOST_BYTES:
        raise _UnusableError(f"larger than {MOST_BYTES} bytes")
    try:
        stored = json.loads(body)
    except (ValueError, RecursionError):
        raise _UnusableError("not JSON") from None
    if not isinstance(stored, Mapping) or stored.get("version") != _VERSION:
        raise _UnusableError("not a state of this version")
    written = _figure(stored.get("wall_seconds"))
    if written is None or not -_CLOCKS_APART_SECONDS <= wall_seconds - written <= OLDEST_SECONDS:
        raise _UnusableError("too old, or of a clock that has changed")
    if not _is_of(stored.get("served"), served):
        raise _UnusableError("of another engine, model, length or GPU")
    lengths = _read_counted(stored.get("lengths"))
    if lengths is None and stored.get("lengths") is not None:
        raise _UnusableError("its lengths cannot be read")
    return Kept(lengths, StepRecord.read(stored.get("steps")))


def _is_of(stored: object, served: Subject) -> bool:
    """Whether it belongs to what is served; what is not known now does not matter."""
    if not isinstance(stored, Mapping):
        return False
    return all(value in ("", None) or stored.get(name) == value for name, value in asdict(served).items())


def _plain_counted(found: Counted) -> dict[str, object]:
    return {"prompts": _plain_histogram(found.prompts), "outputs": _plain_histogram(found.outputs)}


def _plain_histogram(histogram: Histogram) -> dict[str, object]:
    """JSON has no infinity: the last bound goes without saying."""
    return {"bounds": histogram.bounds[:-1], "cumulative": histogram.cumulative, "total": histogram.total}


def _read_counted(stored: object) -> Counted | None:
    if not isinstance(stored, Mapping):
        return None
    prompts, outputs = _read_histogram(stored.get("prompts")), _read_histogram(stored.get("outputs"))
    return None if prompts is None or outputs is None else Counted(prompts, outputs)


def _read_histogram(stored: object) -> Histogram | None:
    if not isinstance(stored, Mapping):
        return None
    bounds, cumulative = _figures(stored.get("bounds")), _figures(stored.get("cumulative"))
    total = _figure(stored.get("total"))
    if bounds is None or not cumulative or total is None or len(cumulative) != len(bounds) + 1:
        return None
    if bounds != sorted(set(bounds)) or cumulative != sorted(cumulative):
        return None
    return Histogram((*bounds, math.inf), tuple(cumulative), total)


def _figures(stored: object) -> list[float] | None:
    if not isinstance(stored, Sequence) or isinstance(stored, str | bytes) or len(stored) > MOST_BUCKETS + 1:
        return None
    found = [value for value in map(_figure, stored) if value is not None]
    return found if len(found) == len(stored) else None


def _figure(stored: object) -> float | None:
    """A finite number that is not negative; None for anything else."""
    if not isinstance(stored, int | float) or isinstance(stored, bool):
        return None
    return float(stored) if 0 <= stored <= _MOST_FIGURE else None
