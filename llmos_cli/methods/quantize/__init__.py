"""Quantizing methods: one file each, a pure function from a weight to codes and scales."""
