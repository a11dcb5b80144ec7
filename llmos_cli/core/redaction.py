"""What a command line may hold that nobody else should read: passwords in URLs, tokens, values of settings that are secrets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

HIDDEN = "***"
_NAMES = r"[\w.-]*(?:password|passwd|secret|token|credential|api[_-]?key|access[_-]?key)[\w.-]*(?<!file)"
_IN_URL = re.compile(r"(?<=://)([^/@\s:]*):[^/@\s]*@")
_ASSIGNED = re.compile(rf"({_NAMES}|[?&]sig)=[^&\s]+", re.IGNORECASE)
_FLAG = re.compile(rf"--?{_NAMES}", re.IGNORECASE)
_KNOWN = re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_|xox[abp]-|AKIA)[\w-]{8,}")


def redacted(text: str) -> str:
    hidden = _IN_URL.sub(rf"\1:{HIDDEN}@", text)
    return _KNOWN.sub(HIDDEN, _ASSIGNED.sub(rf"\1={HIDDEN}", hidden))


def command_line(argv: Sequence[str]) -> str:
    """As it was typed, or nearly: the program without its folder, and the value after a flag that is a secret's left out."""
    words = [PurePath(argv[0]).name if argv else "", *map(redacted, argv[1:])]
    for place, word in enumerate(words[:-1]):
        if _FLAG.fullmatch(word) and not words[place + 1].startswith("-"):
            words[place + 1] = HIDDEN
    return " ".join(words)[:2000]
