"""`kvgauge sidecar`: the loop that looks once a second, and the server that shows what it saw."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kvgauge import __version__
from kvgauge.advise import History, StateFile, advise
from kvgauge.assess import Assessment, EngineFlags, Memo, Past, assess, compared
from kvgauge.assess.settling import GAP_SECONDS
from kvgauge.complaints import InputError, fail
from kvgauge.listening import bind_for, local_url
from kvgauge.logs import logger, set_up
from kvgauge.observe.agent import AgentSource
from kvgauge.observe.engine import EngineSource
from kvgauge.observe.engines.contract import Hints
from kvgauge.observe.fetching import Endpoint
from kvgauge.observe.merging import PAGELESS
from kvgauge.observe.model import ModelSource
from kvgauge.observe.nvml import NvmlSource
from kvgauge.observe.observer import Observer
from kvgauge.observe.owning import Ownership
from kvgauge.observe.records import GpuReading, SourceState
from kvgauge.observe.watching import Source
from kvgauge.publish.board import Board
from kvgauge.publish.families import Snapshot
from kvgauge.settings import Settings, load, to_toml

# The tick must not hold the interpreter for longer than a scrape can wait: the default of 5 ms would show in its p99.
_SWITCH_SECONDS = 0.0005


class DriftLog:
    """Logs each drift once when it is noticed, though its numbers go on changing, and once when it is over."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], str] = {}

    def follow(self, assessment: Assessment) -> None:
        """One tick. While the engine is not seen, nothing is known to be over."""
        if assessment.observation.engine is None:
            return
        found = {
            (drift.kind, gpu.uuid): drift.warning
            for gpu in assessment.gpus
            for drift in gpu.drifts
            if drift.warning is not None
        }
        for warning in dict.fromkeys(warning for place, warning in found.items() if place not in self._known):
            logger.warning("%s", warning)
        for kind in dict.fromkeys(kind for kind, uuid in self._known if (kind, uuid) not in found):
            logger.info("drift %s: over", kind)
        self._known = found


class Loop:
    """Observes, assesses, advises and publishes, once an interval, in a thread of its own."""

    def __init__(self, settings: Settings, devices: Source[tuple[GpuReading, ...]], board: Board) -> None:
        self._settings = settings
        self._board = board
        self._flags = EngineFlags(
            tp=settings.tp,
            pp=settings.pp,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            enforce_eager=settings.enforce_eager,
        )
        self._observer = Observer(
            devices,
            None if settings.engine in PAGELESS else _engine(settings),
            ModelSource(settings.model),
            AgentSource(settings.spool),
            engine_timeout_seconds=settings.engine_timeout,
            stale_after_seconds=settings.stale_after,
            stalled_after_seconds=settings.stalled_after,
            ownership=Ownership(settings.gpu_count, frozenset((settings.gpu_uuids or "").split(",")) - {""}),
        )
        self._memo = Memo()
        self._past = Past(gap_seconds=max(GAP_SECONDS, 3 * settings.interval))
        self._history = History()
        self._state_file = StateFile(Path(settings.state_file)) if settings.state_file is not None else None
        self._states: dict[str, str] = {}
        self._drift_log = DriftLog()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvgauge-loop", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the loop; a source that hangs is left behind, as its thread cannot be interrupted."""
        self._stopping.set()
        self._thread.join(timeout=0.5)
        self._observer.close()

    def tick(self) -> None:
        """One look."""
        observation = self._observer.observe(budget_seconds=min(0.5, self._settings.interval / 2))
        for state in observation.sources:
            self._log_change(state)
        if self._state_file is not None:
            self._state_file.follow(observation, self._history)
        self._history.remember(observation)
        assessment = assess(observation, self._flags, self._memo)
        self._past.remember(assessment)
        assessment = compared(assessment, self._past)
        self._drift_log.follow(assessment)
        advice = advise(
            assessment,
            self._history,
            max_num_seqs=assessment.max_num_seqs,
            slo_ttft_seconds=self._settings.slo_ttft,
            slo_tpot_seconds=self._settings.slo_tpot,
        )
        self._board.publish(Snapshot(assessment, advice))

    def _run(self) -> None:
        failed = False
        due = time.monotonic()
        while not self._stopping.is_set():
            try:
                self.tick()
                failed = False
            except Exception:
                # The board goes stale by itself, which is what everybody should see; once in the log is enough.
                if not failed:
                    logger.exception("a tick failed; the page is withdrawn until one succeeds")
                failed = True
            # After a pause (a suspended node, a slow source) the missed ticks are not made up for.
            due = max(due + self._settings.interval, time.monotonic())
            self._stopping.wait(due - time.monotonic())

    def _log_change(self, state: SourceState) -> None:
        now = "up" if state.up else state.reason or "down"
        if self._states.get(state.source) != now:
            self._states[state.source] = now
            level = logging.INFO if state.up else logging.WARNING
            logger.log(level, "source %s: %s%s", state.source, now, "" if state.up else f" ({state.message})")


def _engine(settings: Settings) -> EngineSource:
    key = settings.engine_api_key
    endpoint = Endpoint(
        settings.engine_url,
        timeout_seconds=settings.engine_timeout,
        api_key=key.get_secret_value() if key is not None else None,
    )
    return EngineSource(endpoint, settings.engine, _hints(settings), settings.stalled_after)


def _hints(settings: Settings) -> Hints:
    return Hints(
        capacity_tokens=settings.engine_capacity_tokens,
        kv_dtype=settings.engine_kv_dtype,
        max_model_len=settings.engine_max_model_len,
        parallel=settings.engine_parallel,
        kv_unified=settings.llamacpp_kv_unified,
        read_iteration_stats=settings.trtllm_read_iteration_stats,
    )


def main(arguments: Sequence[str]) -> None:
    """Runs the sidecar until SIGTERM or SIGINT."""
    try:
        settings, print_config = load(arguments)
    except InputError as error:
        fail(str(error))
    if print_config:
        sys.stdout.write(to_toml(settings))
        return
    run(settings, NvmlSource())


def run(
    settings: Settings,
    devices: Source[tuple[GpuReading, ...]],
    on_started: Callable[[str, Callable[[], None]], None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT. `on_started` is given the address, once it answers, and a function that ends
    the serving."""
    set_up(settings.log_format, settings.log_level)
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        listener = bind_for("port", settings.host, settings.port)
    except InputError as error:
        fail(str(error))
    port = listener.getsockname()[1]

    def started(stop: Callable[[], None]) -> None:
        logger.info("kvgauge %s serves on port %d and reads %s", __version__, port, settings.engine_url)
        if on_started is not None:
            on_started(local_url(listener), stop)

    board = Board(stale_after_seconds=max(5.0, 3 * settings.interval))
    loop = Loop(settings, devices, board)
    # The first look runs while the web framework loads, which is most of the start.
    loop.start()
    try:
        from kvgauge.publish.serving import serve

        serve(board, listener, started)
    finally:
        loop.stop()
