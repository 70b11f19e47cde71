"""`kvgauge plan`: what a model needs and what an engine makes of it, before anything runs. Offline, no GPU."""

from kvgauge.planner.command import main

__all__ = ["main"]
