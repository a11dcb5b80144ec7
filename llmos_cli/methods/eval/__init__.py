"""Measurements of a checkpoint: one file each."""
