"""What a checkpoint's `tokenizer_config.json` says, read without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmos_cli.errors import UNREADABLE, Corrupt

FILE = "tokenizer_config.json"
LOADING = ("is_local", "local_files_only")
"""Among its settings, what transformers notes of how a tokenizer was loaded."""


def has_chat_template(directory: Path) -> bool:
    """In a file of its own, or within the settings as older tokenizers have it."""
    if (directory / "chat_template.jinja").is_file():
        return True
    settings = directory / FILE
    return settings.is_file() and bool(_settings(settings).get("chat_template"))


def _settings(file: Path) -> dict[str, Any]:
    """Corrupt where it is no table."""
    try:
        return {**json.loads(file.read_bytes())}
    except UNREADABLE as problem:
        raise Corrupt(
            f"{file} is no table of settings", hint="`llmos fsck` tells whether the checkpoint is as it was stored"
        ) from problem
