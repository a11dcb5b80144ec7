"""The pipeline of llmos.yaml: what its stages are, what decides each one's result, and what is remembered of them."""

FOLDER = "pipeline"
"""Of `.llmos/`, with what is remembered: `gc` looks whether it is there."""
