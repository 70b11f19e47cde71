"""`kvgauge doctor`: walks the chain from the driver to the autoscaler and names the link that is broken."""

from kvgauge.doctor.command import main

__all__ = ["main"]
