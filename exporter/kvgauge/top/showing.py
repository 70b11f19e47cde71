"""The terminal while it is ours: a screen to draw on, and keys as they are typed. Afterwards, and while the program is
stopped, it is as it was."""

import os
import select
import signal
import sys
import termios
import tty
from types import FrameType, TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text


class Screen:
    """Draws over what was there before, which comes back at the end, and whenever Ctrl-Z stops the program."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = self._new_live()
        self._descriptor = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._descriptor)
        self._is_to_stop = False

    def __enter__(self) -> Self:
        self._take()
        # The shell must find its terminal as it was when it has the word again.
        signal.signal(signal.SIGTSTP, self._ask_to_stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        self._give_back()

    def draw(self, frame: Text) -> None:
        self._live.update(frame, refresh=True)

    def wait(self, seconds: float) -> bytes:
        """One key, or nothing within `seconds`. The end of the input ends as Ctrl-D does. Ctrl-Z stops here."""
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        if self._is_to_stop:
            self._stop()
            return b""
        if not ready:
            return b""
        return os.read(self._descriptor, 16) or b"\x04"

    def _take(self) -> None:
        tty.setcbreak(self._descriptor)
        self._live.start()

    def _give_back(self) -> None:
        try:
            self._live.stop()
        finally:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def _ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        # Not here: a frame may be half drawn.
        self._is_to_stop = True

    def _stop(self) -> None:
        self._is_to_stop = False
        self._give_back()
        # Not SIGTSTP: a program whose shell has gone would not heed it.
        os.kill(os.getpid(), signal.SIGSTOP)
        # Goes on here, in the foreground again.
        self._live = self._new_live()
        self._take()

    def _new_live(self) -> Live:
        return Live(Text(), console=self._console, screen=True, auto_refresh=False)
