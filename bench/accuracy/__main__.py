"""`scripts/bench accuracy`: how far the memory model is from what is known."""

from bench.accuracy.command import main

main()
