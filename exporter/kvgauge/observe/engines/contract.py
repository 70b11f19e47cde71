"""What a file in this folder has to give."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvgauge.observe.exposition import Page
from kvgauge.observe.records import EngineReading

SidePages = Mapping[str, Mapping[str, object]]
"""JSON pages read seldom, by path; a page that could not be read is absent."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One kind of engine: how it is recognised, which lines of its page are wanted, and what they mean."""

    name: str
    name_prefixes: tuple[bytes, ...]
    """A page with a sample whose name starts with one of these is this engine's."""
    wanted: frozenset[bytes]
    side_paths: tuple[str, ...]
    read: Callable[[Page, SidePages], EngineReading]
    """Never raises on odd values: what cannot be understood is None with a reason."""
