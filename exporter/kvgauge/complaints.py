"""Bad input as one line. Light, since every command needs it and some of them must start at once."""

import argparse
import sys
from typing import NoReturn


class InputError(Exception):
    """Input that cannot be used. The message is one line and names the field or flag, and the value."""


class OneLineParser(argparse.ArgumentParser):
    """argparse, with its complaints as InputError instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def fail(message: str) -> NoReturn:
    """Ends the program over bad input: one line on stderr, exit code 2."""
    print(f"kvgauge: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    raise SystemExit(2)
