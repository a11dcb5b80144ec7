"""Where a file stands that is named by its SHA-256: `aa/bbbb...`, so that no folder gets too many."""

from __future__ import annotations


def place(sha256: str) -> str:
    """Relative to the folder of all of them, with `/`, as paths and remotes have it."""
    return f"{sha256[:2]}/{sha256[2:]}"
