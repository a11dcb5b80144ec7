"""Samplers for hyperparameter search: one file each."""
