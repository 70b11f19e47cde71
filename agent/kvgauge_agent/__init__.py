"""The hook that runs inside the engine's process: standard library only, and it must never hurt the engine.

`start` begins to write this process' file into the spool once a second; `register` adds a part of that file;
`describe` adds facts known later; `when_imported` puts a hook on a module of the engine without importing it. None of
them raises. docs/spool.md describes the file; `daemon.Part` what a part has to be.
"""

from kvgauge_agent.daemon import AGENT_VERSION, Part, describe, register, start, stop
from kvgauge_agent.imports import when_imported

__all__ = ["AGENT_VERSION", "Part", "describe", "register", "start", "stop", "when_imported"]
