"""How fast the workspace is and how its cost grows; see `__main__.py`."""
