"""Secrets: passwords in URLs, tokens, keys, values of settings and variables that are called so. Nobody else should read them, so
nothing that llmos writes down or says has them: `***` stands in their place.

What is hidden is told by its form (`sftp://me:***@host`, `hf_...`), by what it is assigned to (`password=***`, `--token ***`), and
by its value, where the environment or the command line gave it under such a name: however it comes back, in a library's error say.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import PurePath
from typing import Any

from llmos_cli.core.tokens import TOKENS

HIDDEN = "***"
_IN_URL = r"(?<=://)([^/@\s:\"']*):[^/@\s\"']*@"
_ASSIGNED = r"([\w.-]+)(=|[\"']?:[ \t]+[\"']?)([^&\s\"',;]+)"
_BEARER = r"(?i)\b((?:bearer|basic)\s+)[\w.+/=~-]{8,}"
_KNOWN = tuple(begin for token in TOKENS for begin in token.begins)
_PRIVATE_KEY = r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----[^-\"']*(?:-----END \1PRIVATE KEY-----)?"
_CALLED = ("password", "passwd", "passphrase", "secret", "credential", "apikey", "accesskey", "privatekey", "secretkey")
_OF_TEXT = (
    "pad",
    "bos",
    "eos",
    "unk",
    "cls",
    "sep",
    "mask",
    "image",
    "video",
    "audio",
    "special",
    "start",
    "end",
    "max",
    "new",
)
"""Words before `token` that make it a piece of text."""
_SIGNED = ("sig", "signature", "xamzsignature", "xgoogsignature")
_SHORTEST = 6
"""Characters of a value that is looked for wherever it is: shorter ones are in everything."""


def redacted(text: str) -> str:
    """No secret is in what it returns; a text without any is returned as it is, quotes and all: JSON stays JSON."""
    return _redacted(text, _given())


def _redacted(text: str, given: set[str]) -> str:
    """Looked at before it is searched: compiling these would take longer than all that `tag` does with them."""
    for value in given:
        if value in text and not _is_ordinary(value):
            text = text.replace(value, HIDDEN)
    if "://" in text:
        text = re.sub(_IN_URL, rf"\1:{HIDDEN}@", text)
    if any(sign in text for sign in ("=", ": ", ":\t")):
        text = re.sub(_ASSIGNED, _hide_assigned, text)
    if "earer " in text or "asic " in text:
        text = re.sub(_BEARER, rf"\1{HIDDEN}", text)
    if "PRIVATE KEY" in text:
        text = re.sub(_PRIVATE_KEY, HIDDEN, text)
    if any(known in text for known in _KNOWN):
        text = re.sub(rf"\b(?:{'|'.join(_KNOWN)})[\w.-]{{8,}}", HIDDEN, text)
    return text


def hidden(value: Any) -> Any:
    """The same plain value with the secrets in its texts hidden, and texts under the name of a secret altogether."""
    return _hidden(value, _given())


def _hidden(value: Any, given: set[str]) -> Any:
    if isinstance(value, str):
        return _redacted(value, given)
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(each, str) and each and is_secret(str(key)) else _hidden(each, given)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_hidden(each, given) for each in value]
    return value


@cache
def is_secret(name: str) -> bool:
    """Whether what is called so is one: `HF_TOKEN`, `tune.db_password`; not `pad_token`, `max_tokens`, `api_key_file`."""
    words = name.lower().replace("-", "_").replace(".", "_").strip("_").split("_")
    together = "".join(words)
    if together.endswith(("file", "path", "dir")):
        return False
    if words[-1] == "token":
        return len(words) < 2 or words[-2] not in _OF_TEXT
    return together in _SIGNED or any(called in together for called in _CALLED)


def command_line(argv: Sequence[str]) -> str:
    """As it was typed, or nearly: the program without its folder, and without secrets."""
    return " ".join(words([PurePath(argv[0]).name, *argv[1:]] if argv else []))[:2000]


def words(argv: Sequence[str]) -> list[str]:
    """Those of a command line, the value after a flag that is a secret's hidden too."""
    told = list(map(redacted, argv))
    for place in _flagged(argv):
        told[place] = HIDDEN
    return told


def _flagged(argv: Sequence[str]) -> Iterator[int]:
    for place, word in enumerate(argv[:-1], 1):
        if word.startswith("-") and "=" not in word and _names_value(word) and not argv[place].startswith("-"):
            yield place


def _names_value(flag: str) -> bool:
    """Whether a secret follows it: `--signature` has a file of one, which in a URL would be it itself."""
    return is_secret(flag) and flag.strip("-") not in _SIGNED


def _hide_assigned(found: re.Match[str]) -> str:
    name, sign, value = found.groups()
    plain = value.startswith(("$", "<", "[", "{", HIDDEN)) or value.replace(".", "", 1).isdigit() or value in _WORDS
    if is_secret(name):
        return found[0] if plain else f"{name}{sign}{HIDDEN}"
    return f"{name}{sign}{re.sub(_ASSIGNED, _hide_assigned, value)}"


_WORDS = ("null", "true", "false", "none", "None", "True", "False", "~", "|", ">")


def _given() -> set[str]:
    """What the environment and the command line of this process gave as secrets, by their names."""
    argv = getattr(sys, "argv", [])
    found = {value for name in os.environ if _names_one(name) for value in os.environ[name].split(",")}
    found |= {argv[place] for place in _flagged(argv)}
    for word in argv[1:]:
        if "://" in word and "@" in word:
            found |= {password for _, password in re.findall(r"://([^/@\s:]*):([^/@\s]*)@", word)}
        name, sign, value = word.rpartition("=")
        if sign and is_secret(name):
            found.add(value)
    return {value for value in found if len(value) >= _SHORTEST and not value.startswith(("$", "/", HIDDEN))}


def _is_ordinary(value: str) -> bool:
    """Asked of what is in a text alone: to know it takes longer than to look."""
    from llmos_cli.core import ordinary

    return value.replace("-", "_").isidentifier() and value in ordinary.words()


@cache
def _names_one(variable: str) -> bool:
    """Of the environment also what is only called a key: `LLMOS_KEY`, `LLMOS_API_KEYS`."""
    return variable.endswith(("_KEY", "_KEYS", "_TOKEN", "_SECRET")) or is_secret(variable)
