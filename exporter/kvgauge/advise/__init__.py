"""What to do about it: an `Assessment` and the recent past become `Advice`."""

from kvgauge.advise.advising import Advice, LengthSummary, Limit, advise
from kvgauge.advise.history import History

__all__ = ["Advice", "History", "LengthSummary", "Limit", "advise"]
