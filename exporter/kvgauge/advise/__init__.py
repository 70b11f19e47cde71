"""What to do about it: an `Assessment` and the recent past become `Advice`."""

from kvgauge.advise.advising import Advice, LengthSummary, Limit, advise
from kvgauge.advise.demand import Demand, read_demand
from kvgauge.advise.history import History
from kvgauge.advise.state_file import StateFile

__all__ = ["Advice", "Demand", "History", "LengthSummary", "Limit", "StateFile", "advise", "read_demand"]
