"""`kvgauge top`: what sidecars see, live in a terminal."""

from kvgauge.top.command import main

__all__ = ["main"]
