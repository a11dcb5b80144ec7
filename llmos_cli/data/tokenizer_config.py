"""What a checkpoint's `tokenizer_config.json` says, read without transformers."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "tokenizer_config.json"
LOADING = ("is_local", "local_files_only")
"""Among its settings, what transformers notes of how a tokenizer was loaded."""


def has_chat_template(directory: Path) -> bool:
    """In a file of its own, or within the settings as older tokenizers have it."""
    if (directory / "chat_template.jinja").is_file():
        return True
    settings = directory / FILE
    return settings.is_file() and bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
