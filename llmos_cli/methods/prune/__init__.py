"""Pruning methods: one file each, a pure function from a weight to a pruned weight."""
