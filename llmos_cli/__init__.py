"""llmos: git for the life of a model. This package imports nothing, so that every command starts at git's speed."""
