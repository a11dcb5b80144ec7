"""The git half: files, hashes, refs, runs. Never imports torch."""
