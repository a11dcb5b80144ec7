"""Remotes: another place that holds checkpoints, runs and refs, and what goes there and comes back."""
