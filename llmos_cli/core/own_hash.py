"""A line of JSON that has its own hash: `hash` is the SHA-256 of the same line with `hash` the empty text, so that an edit is found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def line(value: Mapping[str, Any]) -> str:
    """All of it, to the byte, without its end."""
    import hashlib  # here: `log` reads such lines, and as a rule there are none

    digest = hashlib.sha256(json.dumps({**value, "hash": ""}, sort_keys=True).encode()).hexdigest()
    return json.dumps({**value, "hash": digest}, sort_keys=True)
