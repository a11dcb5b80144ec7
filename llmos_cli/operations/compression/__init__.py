"""What prune and quantize share: the parent and its data, one block after another, the proof and the commit, the result."""
