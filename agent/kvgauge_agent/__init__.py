"""The hook that runs inside the engine's process: standard library only, and it must never hurt the engine.

This distribution reserves the package; the hooks themselves are not written yet.
"""
