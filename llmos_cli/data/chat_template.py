"""Whether a tokenizer's directory says how a conversation becomes text; nothing heavy is imported to ask."""

from __future__ import annotations

import json
from pathlib import Path


def there(directory: Path) -> bool:
    """In a file of its own, or within the tokenizer's settings as older tokenizers have it."""
    if (directory / "chat_template.jinja").is_file():
        return True
    settings = directory / "tokenizer_config.json"
    return settings.is_file() and bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
