"""kvgauge: what GPU memory is beside an LLM engine, what it should be, and how many requests it can safely hold."""

from importlib.metadata import version

__version__ = version("kvgauge")
