"""The parts of the training loop of `operations/fit.py`, one subject a file."""
