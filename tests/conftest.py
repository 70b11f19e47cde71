"""Settings for all tests."""

from hypothesis import settings

# How long one example takes depends on what else the machine does; pytest's timeout bounds each test as a whole.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")
