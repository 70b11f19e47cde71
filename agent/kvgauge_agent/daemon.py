"""The agent's thread: once a second it asks every part, and writes this process' file.

One daemon thread a process, whoever starts it and however often. A forked child has none until something in it calls
`start` or `register` again. Whatever goes wrong costs a part of the file, or the file, and one line in the log.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from multiprocessing.util import Finalize
from typing import Protocol

from kvgauge_agent.allocator import AllocatorPart
from kvgauge_agent.log import guarded, reason, say_once
from kvgauge_agent.spool import MAX_BYTES, Spool

SCHEMA = 1
AGENT_VERSION = "0.1.0"
TICK_SECONDS = 1.0
RETRY_SECONDS = 30.0
INSTANCE_VARIABLE = "KVGAUGE_INSTANCE"


class Part(Protocol):
    """One source of facts.

    `name` is unique in the process and the dotted key under which its failure is named in `missing`.

    `collect` is called once a second in the agent's thread. It returns top-level keys of the file with their values:
    numbers, short words, and lists and mappings of them (no NaN, no infinity), newly made each time. The key `missing`
    may hold a mapping of dotted key to reason; those of all parts are put together. It must not block, not create a
    CUDA context, and hold the GIL for well under a millisecond. When it raises, the part is off for the life of the
    process: one line is logged, `missing[name]` tells where, and the other parts go on.
    """

    @property
    def name(self) -> str: ...

    def collect(self) -> Mapping[str, object]: ...


class Agent:
    """What one process writes. `start` makes it; tests make their own and call `tick` themselves."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._facts: dict[str, object] = {}
        self._parts: dict[str, Part] = {}
        self._failed: dict[str, str] = {}
        self._started_wall = time.time()
        self._sequence = 0
        self._tick_seconds = 0.0
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def describe(self, facts: Mapping[str, object]) -> None:
        """Sets top-level keys of the file; None is left out."""
        self._facts = {**self._facts, **{key: value for key, value in facts.items() if value is not None}}

    def register(self, part: Part) -> None:
        """Adds a part; a later one of the same name takes its place, unless that name has failed before."""
        if part.name not in self._failed:
            self._parts = {**self._parts, part.name: part}

    def run(self) -> None:
        """Starts the thread, once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="kvgauge-agent", daemon=True)
            self._thread.start()
            # Also runs where a child of multiprocessing ends without atexit.
            Finalize(None, self.stop, exitpriority=1)

    def stop(self) -> None:
        """Ends the thread and takes the file away. Never raises."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)
        guarded("the removal of the file", self._spool.remove)

    def tick(self) -> None:
        """Asks every part and writes the file. Raises OSError where that can't be written."""
        began = time.thread_time()
        values: dict[str, str] = {}
        missing = dict(self._failed)
        for name, part in list(self._parts.items()):
            try:
                collected = dict(part.collect())
                lacking = collected.pop("missing", {})
                encoded = {key: _json(value) for key, value in collected.items()}
                missing.update({str(key): str(why) for key, why in dict(lacking).items()})  # type: ignore[call-overload]
                values.update(encoded)
            except Exception as error:
                self._parts = {key: value for key, value in self._parts.items() if key != name}
                self._failed[name] = missing[name] = reason(error)
                say_once(f"{name} is off: {reason(error)}")
        self._spool.write(self._document(values, missing))
        self._sequence += 1
        self._tick_seconds = time.thread_time() - began

    def _document(self, values: dict[str, str], missing: dict[str, str]) -> bytes:
        head = {
            "schema": SCHEMA,
            "agent_version": AGENT_VERSION,
            "pid": os.getpid(),
            "instance": _instance(),
            **self._facts,
            "wall_seconds": round(time.time(), 6),
            "monotonic_seconds": round(time.monotonic(), 6),
            "started_wall_seconds": round(self._started_wall, 6),
            "sequence": self._sequence,
            "tick_seconds": round(self._tick_seconds, 7),
        }
        while True:
            whole = {**{key: _json(value) for key, value in head.items()}, **values, "missing": _json(missing)}
            text = ",".join(f"{_json(key)}:{value}" for key, value in whole.items())
            content = f"{{{text}}}\n".encode()
            if len(content) <= MAX_BYTES:
                return content
            if values:
                largest = max(values, key=lambda key: len(values[key]))
                del values[largest]
                missing[largest] = "too large"
            elif missing:
                missing = {}
            else:
                raise ValueError("what describes the process is too large")

    def _loop(self) -> None:
        self._spool.remove_abandoned()
        due = time.monotonic()
        while not self._stopped:
            try:
                self.tick()
                due = max(due + TICK_SECONDS, time.monotonic() + TICK_SECONDS / 2)
            except OSError as error:
                say_once(f"{self._spool.path} can't be written ({error.strerror}); tried again now and then")
                due = time.monotonic() + RETRY_SECONDS
            except Exception as error:
                say_once(f"the agent is off: {reason(error)}")
                return
            self._wake.wait(max(due - time.monotonic(), 0))


_lock = threading.Lock()
_agent: Agent | None = None


def start(role: str = "", engine: str = "", *, parts: Iterable[Part] = (), **facts: object) -> None:
    """Starts the agent of this process, or adds to the one that runs.

    `role` is scheduler, worker, server or program; `engine` vllm, transformers or torch; `facts` more top-level keys of
    the file (docs/spool.md). The part that reads torch's allocator is always there. Never raises.
    """
    named = {"role": role or None, "engine": engine or None, **facts}
    guarded("the agent", lambda: _start(named, parts))


def register(part: Part) -> None:
    """Adds a part to this process' file, starting the agent where it does not run. Never raises."""
    guarded("the agent", lambda: _start({}, [part]))


def describe(**facts: object) -> None:
    """Sets top-level keys of this process' file, now or when the agent starts. Never raises."""
    guarded("the agent", lambda: _describe(facts))


def stop() -> None:
    """Ends this process' agent and takes its file away. Never raises."""
    global _agent
    with _lock:
        agent, _agent = _agent, None
    if agent is not None:
        agent.stop()


def _start(facts: Mapping[str, object], parts: Iterable[Part]) -> None:
    global _agent
    with _lock:
        if _agent is None:
            _agent = Agent(Spool())
            _agent.describe({"role": "program", "engine": "torch", **_facts_before})
            _agent.register(AllocatorPart())
        _agent.describe(facts)
        for part in parts:
            _agent.register(part)
        _agent.run()


_facts_before: dict[str, object] = {}


def _describe(facts: Mapping[str, object]) -> None:
    with _lock:
        if _agent is None:
            _facts_before.update({key: value for key, value in facts.items() if value is not None})
        else:
            _agent.describe(facts)


def _forget() -> None:
    """In a forked child: the thread stayed behind, and so may have whoever held the lock."""
    global _agent, _lock
    _agent = None
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _instance() -> int:
    """Pid of the engine's head, which it leaves in its children's environment; else our own."""
    named = os.environ.get(INSTANCE_VARIABLE, "")
    return int(named) if named.isdecimal() else os.getpid()


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
