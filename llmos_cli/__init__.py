"""llmos: git for the life of a model. This package imports nothing, so that every command starts at git's speed."""

__version__ = "0.1.0"
