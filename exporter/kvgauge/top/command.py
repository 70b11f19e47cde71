"""`kvgauge top` from its flags to the end: one frame, or a live screen until q, Ctrl-C or SIGTERM."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvgauge.complaints import InputError, OneLineParser, fail
from kvgauge.settings import http_url
from kvgauge.top.asking import Asked, Seen, ask_once

if TYPE_CHECKING:
    from rich.console import Console

_ONCE_SECONDS = 5.0
_MOST_URLS = 64
_FRAME_SECONDS = 0.5
_LEAST_SECONDS, _MOST_SECONDS = 0.1, 60.0
_DEFAULT_URL = "http://127.0.0.1:9838"
_UP, _DOWN = (b"k", b"\x1b[A", b"\x1bOA"), (b"j", b"\x1b[B", b"\x1bOB")


def main(arguments: Sequence[str]) -> None:
    """Bad input ends with 2 and one line on stderr; one frame of which no sidecar answers, with 1."""
    try:
        flags = _parser().parse_args(arguments)
        urls, interval_seconds = _urls(flags.url), _interval(flags.interval)
    except InputError as error:
        fail(str(error))
    try:
        if flags.once or not _is_live_terminal():
            _print_once(urls)
        else:
            _live(urls, interval_seconds)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # The reader has left (`| head`): no more output, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _print_once(urls: list[str]) -> None:
    from kvgauge.top.drawing import fitted, frame

    screen = _console()
    seen = ask_once(urls, _ONCE_SECONDS)
    screen.print(fitted(frame(seen, 0, screen.width), screen.encoding), soft_wrap=True)
    sys.stdout.flush()
    if all(each.view is None for each in seen):
        raise SystemExit(1)


def _live(urls: list[str], interval_seconds: float) -> None:
    from kvgauge.top.drawing import fitted, frame
    from kvgauge.top.showing import Screen

    screen = _console()
    asked = [Asked(url, interval_seconds) for url in urls]
    for each in asked:
        each.start()
    # Ended from outside it must give the terminal back as it was, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chosen = 0
    with Screen(screen) as shown:
        try:
            while True:
                seen: list[Seen] = [each.seen() for each in asked]
                # The size is asked anew for each frame: the window may have been drawn larger or smaller.
                shown.draw(fitted(frame(seen, chosen, screen.width, screen.height), screen.encoding))
                key = shown.wait(min(_FRAME_SECONDS, interval_seconds))
                if key in (b"q", b"Q", b"\x03", b"\x04"):
                    return
                chosen = min(max(chosen + (key in _DOWN) - (key in _UP), 0), len(asked) - 1)
        finally:
            for each in asked:
                each.stop()


def _is_live_terminal() -> bool:
    """Whether frames can be drawn over one another, and keys be read."""
    return sys.stdout.isatty() and sys.stdin.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _console() -> "Console":
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name may have letters that this terminal's encoding lacks.
        sys.stdout.reconfigure(errors="replace")
    # Markup off: a model's path may hold brackets.
    return Console(file=sys.stdout, markup=False, highlight=False, emoji=False)


def _urls(given: list[str] | None) -> list[str]:
    found = given or [_DEFAULT_URL]
    if len(found) > _MOST_URLS:
        raise InputError(f"--url: {len(found)} of them, {_MOST_URLS} at most")
    checked = []
    for url in found:
        try:
            checked.append(http_url(url))
        except ValueError as error:
            raise InputError(f"--url: {error}, got {url[:100]!r}") from None
    return list(dict.fromkeys(checked))


def _interval(given: str) -> float:
    try:
        found = float(given.removesuffix("s"))
    except ValueError:
        found = 0.0
    if not _LEAST_SECONDS <= found <= _MOST_SECONDS:
        raise InputError(f"--interval: should be {_LEAST_SECONDS} to {_MOST_SECONDS} seconds, got {given[:40]!r}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="kvgauge top",
        description="What one or several sidecars see, live. Without a terminal, or in a dumb one, one frame is "
        "printed, as with --once.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help=f"a sidecar's address; may be given several times (default {_DEFAULT_URL})",
    )
    parser.add_argument("--interval", default="1", metavar="S", help="seconds between two looks (default 1)")
    parser.add_argument("--once", action="store_true", help="print one frame and end; 1 when no sidecar answers")
    return parser
