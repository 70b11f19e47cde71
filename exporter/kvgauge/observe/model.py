"""The model's own files as a source: where they lie, and what they say. Local files only; nothing is downloaded."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from kvgauge.observe.records import ModelReading, SourceError
from kvmodel import ModelError, count_parameters, load_architecture, load_config, read_weights

RETRY_SECONDS = 30.0
"""A model that could not be read is tried again this much later: its volume may be mounted late."""


class ModelSource:
    """Reads a model's config and weight headers once, and again when it is pointed elsewhere.

    `path` is a folder, a `config.json`, or a model id that lies in the local Hugging Face cache. None until somebody
    tells it; the engine may.
    """

    name = "model"

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._outcome: ModelReading | SourceError | None = None
        self._outcome_of: str | None = None
        self._read_at = 0.0

    def read(self) -> ModelReading:
        """The model's facts. Raises SourceError: not_told, not_found, not_understood."""
        path = self.path
        if path is None:
            raise SourceError("not_told", "no --model was given and the engine names none")
        failed_long_ago = isinstance(self._outcome, SourceError) and time.monotonic() - self._read_at > RETRY_SECONDS
        if self._outcome is None or self._outcome_of != path or failed_long_ago:
            self._outcome, self._outcome_of, self._read_at = _read(path), path, time.monotonic()
        if isinstance(self._outcome, SourceError):
            raise self._outcome
        return self._outcome


def locate(path: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where the model lies on this file system: the path itself, or the id's snapshot in the local hub cache."""
    if Path(path).exists():
        return Path(path)
    home = Path(environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    repository = Path(environ.get("HF_HUB_CACHE", home / "hub")) / ("models--" + path.replace("/", "--"))
    try:
        snapshot = repository / "snapshots" / (repository / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        return None
    return snapshot if snapshot.is_dir() else None


def _read(path: str) -> ModelReading | SourceError:
    try:
        place = locate(path)
        if place is None:
            return SourceError("not_found", "the model is not a local path and not in the local hub cache")
        architecture = load_architecture(place)
    except ModelError as error:
        return SourceError("not_understood", str(error))
    except OSError as error:
        return SourceError("not_found", f"the model's config cannot be read: {error.strerror}")
    try:
        # A config.json stands beside the files of its weights; a GGUF file holds its own.
        beside = place.is_file() and place.suffix == ".json"
        weights, missing = read_weights(place.parent if beside else place), {}
    except (ModelError, OSError) as error:
        weights, missing = None, {"weights": str(error)}
    active = None
    try:
        active = count_parameters(load_config(place)).active
    except (ModelError, OSError) as error:
        missing["active_parameters"] = str(error)
    return ModelReading(path, architecture, weights, missing, active)
