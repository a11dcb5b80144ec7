"""The parts of the search of `operations/tune.py`, one subject a file."""
