"""What a command line may hold that nobody else should read: passwords in URLs, tokens, values of settings that are secrets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

HIDDEN = "***"
_NAMES = r"[\w.-]*(?:password|passwd|secret|token|credential|api[_-]?key|access[_-]?key)[\w.-]*(?<!file)"
_IN_URL = r"(?<=://)([^/@\s:]*):[^/@\s]*@"
_ASSIGNED = rf"(?i)({_NAMES}|[?&]sig)=[^&\s]+"
_FLAG = rf"(?i)--?{_NAMES}"
_KNOWN = ("hf_", "sk-", "ghp_", "github_pat_", "xoxa-", "xoxb-", "xoxp-", "AKIA")


def redacted(text: str) -> str:
    """Looked at before it is searched: compiling these would take longer than all that `tag` does with them."""
    if "://" in text:
        text = re.sub(_IN_URL, rf"\1:{HIDDEN}@", text)
    if "=" in text:
        text = re.sub(_ASSIGNED, rf"\1={HIDDEN}", text)
    if any(known in text for known in _KNOWN):
        text = re.sub(rf"\b(?:{'|'.join(_KNOWN)})[\w-]{{8,}}", HIDDEN, text)
    return text


def command_line(argv: Sequence[str]) -> str:
    """As it was typed, or nearly: the program without its folder, and the value after a flag that is a secret's left out."""
    words = [PurePath(argv[0]).name if argv else "", *map(redacted, argv[1:])]
    for place, word in enumerate(words[:-1]):
        if len(word) > 6 and word[0] == "-" and re.fullmatch(_FLAG, word) and not words[place + 1].startswith("-"):
            words[place + 1] = HIDDEN
    return " ".join(words)[:2000]
