"""Compression against its peers: `python -m benchmarks.compress --help`. Imports nothing: the peers' environments read it too."""
