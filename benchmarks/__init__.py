"""Each headline figure as a command: `python benchmarks/NAME.py`, and against the peers `python -m benchmarks.compress`."""
