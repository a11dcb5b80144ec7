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
_IN_URL = r"(?<=://)([^/@\s:\"'\[]*):((?:[^/\s\"']{0,256}|(?![0-9]{1,5}/|:)[^\s\"']{1,256}))@"
"""One with a sign that a URL has for something else (`p@ss`, `p/w`) too: up to the last `@`, unless a port stands there."""
_SIGN = r"(?<![\w.-])([\w.-]{1,80}+)(\\?[\"'])?([ \t]{0,8}=(?!=)[ \t]*|[ \t]{0,8}:(?!:)[ \t]*)"
_QUOTED = r"\\([\"'])(?P<escaped>(?:(?!\\\1)[^\n])*)\\\1|([\"'])(?P<quoted>(?:\\.|(?!\3)[^\\\n])*)\3"
_WORD = r"[\"']?((?:[^&\s\"',;\\]|\\(?![\"']))+)"
_REST = r"[\"']?([^\r\n]+?)(?=[ \t]+#|[ \t]*(?:[\r\n]|\Z))"
_FIRST = r"[ \t]*(?:(?:#+|//|>|[*-]|export|set)[ \t]+)*"
"""What may stand before a name that is the first word of its line: its value is the rest of that, blanks and all."""
_BLOCK = r"(?m)^([ \t]*)((?:[#-][ \t]+)*[\"']?([\w.-]{1,80}+)[\"']?:[ \t]*[|>][-+0-9]*[ \t]*)\n((?:\1[ \t]+\S.*(?:\n|\Z)|[ \t]*\n)+)"
_STEMS = ("token", "pass", "pwd", "secret", "credential", "key", "sig")
"""One of them is in every name of a secret."""
_SCHEMES = r"bearer|basic|token|digest|negotiate|api-?key"
_BEARER = rf"(?i)(authorization[\"']?[ \t]*[:=][ \t]*[\"']?(?:{_SCHEMES})\s+)[\w.+/=~-]{{8,}}"
_BEARER_ALONE = r"\b([Bb](?:earer|asic)\s+)(?=[\w.+/=~-]*(?:[0-9=]|[a-z][A-Z]))[\w.+/=~-]{8,}"
"""Of letters alone it would be what is basic: `Basic authentication`."""
_KNOWN = tuple(begin for token in TOKENS for begin in token.begins)
_PRIVATE_KEY = r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----[^-\"']*(?:-----END \1PRIVATE KEY-----)?"
_CALLED = (
    *("password", "passwd", "passphrase", "secret", "credential"),
    *(
        f"{of}key"
        for of in ("api", "access", "private", "secret", "account", "shared", "signing", "encryption", "master")
    ),
)
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
    "first",
    "last",
    "next",
    "prev",
    "previous",
    "per",
    "stop",
    "draft",
)
"""Words before `token` that make it a piece of text."""
_OF_SERVICES = frozenset(
    (
        "db",
        "database",
        "sql",
        "mysql",
        "pg",
        "postgres",
        "mongo",
        "redis",
        "smtp",
        "mail",
        "ftp",
        "ssh",
        "ldap",
        "user",
        "admin",
        "root",
        "login",
        "proxy",
        "http",
        "key",
        "vault",
        "registry",
        "docker",
    )
)
"""Words before `pass` that make it a password: others make it a turn over something, as in `forward_pass`."""
_FILES = (
    ".py",
    ".yaml",
    ".yml",
    ".json",
    ".jsonl",
    ".toml",
    ".txt",
    ".csv",
    ".md",
    ".sh",
    ".log",
    ".cfg",
    ".ini",
    ".html",
)
_ALONE = ("SSHPASS",)
"""As a variable; small, it is a program."""
_SIGNED = ("sig", "signature", "xamzsignature", "xgoogsignature")
_PIN = 4
"""Digits of the shortest number that is a password."""
_SHORTEST = 6
"""Characters of a value that is looked for wherever it is: shorter ones are in everything."""


def redacted(text: str) -> str:
    """No secret is in what it returns; a text without any is returned as it is, quotes and all: JSON stays JSON."""
    return _redacted(text, _given())


def _redacted(text: str, given: Sequence[str]) -> str:
    """Looked at before it is searched: compiling these would take longer than all that `tag` does with them."""
    for value in given:
        if value in text and not _is_ordinary(value):
            text = text.replace(value, HIDDEN)
    if "://" in text:
        text = re.sub(_IN_URL, rf"\1:{HIDDEN}@", text)
    if "earer " in text or "asic " in text or "uthorization" in text:
        text = re.sub(_BEARER_ALONE, rf"\1{HIDDEN}", re.sub(_BEARER, rf"\1{HIDDEN}", text))
    if ("=" in text or ":" in text) and any(stem in text.lower() for stem in _STEMS):
        text = _without_assigned(re.sub(_BLOCK, _hide_block, text))
    if "PRIVATE KEY" in text:
        text = re.sub(_PRIVATE_KEY, HIDDEN, text)
    if any(known in text for known in _KNOWN):
        text = re.sub(rf"\b(?:{'|'.join(_KNOWN)})[\w.-]{{8,}}", HIDDEN, text)
    return text


def hidden(value: Any) -> Any:
    """The same plain value with the secrets in its texts hidden, and texts and numbers under the name of a secret altogether."""
    return _hidden(value, _given())


def _hidden(value: Any, given: Sequence[str], name: str = "") -> Any:
    """`name`: of the secret that it is, or is a part of."""
    if isinstance(value, str):
        return HIDDEN if name and value else _redacted(value, given)
    if isinstance(value, Mapping):
        return {key: _hidden(each, given, str(key) if is_secret(str(key)) else name) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(each, given, name) for each in value]
    return HIDDEN if name and type(value) is int and _may_be_number(name, str(value)) else value


@cache
def is_secret(name: str) -> bool:
    """Whether what is called so is one: `HF_TOKEN`, `tune.db_password`; not `pad_token`, `max_tokens`, `api_key_file`."""
    words = name.lower().replace("-", "_").replace(".", "_").strip("_").split("_")
    together = "".join(words)
    if together.endswith(("file", "path", "dir")) or name.lower().endswith(_FILES):
        return False
    if words[-1] == "token":
        return len(words) < 2 or words[-2] not in _OF_TEXT
    if words[-1] in ("pwd", "pass"):
        return len(words) > 1 and (words[-1] == "pwd" or words[-2] in _OF_SERVICES)
    return name in _ALONE or together in _SIGNED or any(called in together for called in _CALLED)


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


def _without_assigned(text: str) -> str:
    pieces, done = list[str](), 0
    for found in re.finditer(_SIGN, text):
        if found.start() < done or not is_secret(found[1]) or _is_told_of(found, text):
            continue
        if span := _assigned(found, text):
            quote = found[2] if found[2] and text[slice(*span)].isdigit() and text[span[0] - 1] not in "\"'" else ""
            pieces += [text[done : span[0]], f"{quote}{HIDDEN}{quote}"]
            done = span[1]
    return "".join([*pieces, text[done:]])


def _is_told_of(found: re.Match[str], text: str) -> bool:
    """`/run/secrets/token: no such file`, `tags/secret: ...`, `no signature: ...`: what follows is said of it, and is not its value."""
    in_path = text[found.start() - 1 : found.start()] in ("/", "\\")
    return ":" in found[3] and (in_path or (found[1].lower() in _SIGNED and not found[2]))


def _assigned(found: re.Match[str], text: str) -> tuple[int, int] | None:
    """Where the value is that the name in `found` is given; None where it is none that anybody keeps."""
    if quoted := re.compile(_QUOTED).match(text, found.end()):
        kind = "escaped" if quoted["quoted"] is None else "quoted"
        return None if not quoted[kind] or _is_plain(found[1], quoted[kind]) else quoted.span(kind)
    whole = _is_line(found, text)
    value = re.compile(_REST if whole else _WORD).match(text, found.end())
    if value is None or _is_plain(found[1], value[1]) or _is_code(found, value[1]):
        return None
    start, end = value.span(1)
    return start, end if whole else max(start + 1, start + len(value[1].rstrip("}])")))


def _is_line(found: re.Match[str], text: str) -> bool:
    """Whether the rest of the line is the value: with a blank after the sign, where the name begins the line."""
    if found[2] or found[3] in ("=", ":"):
        return False
    before = text[max(0, found.start() - 80) : found.start()].rpartition("\n")[2]
    return re.fullmatch(_FIRST, before) is not None


def _is_plain(name: str, value: str) -> bool:
    """A variable, a mark of something, nothing, a number of tokens: what stands where a secret would."""
    head = re.split(r"[,;}\])]", value)[0].strip()
    number = head.replace(".", "", 1).isdigit() and not _may_be_number(name, head)
    return number or head in _WORDS or value.startswith(("$", "<", "[", "{", HIDDEN))


def _is_code(found: re.Match[str], value: str) -> bool:
    """A line of a traceback: `password: str`, `token = read(file)`."""
    called = "=" in found[3] and re.match(r"[\w.]+[(\[]", value) is not None
    return called or re.split(r"[\s=|\[,)]", value)[0] in _TYPES


def _may_be_number(name: str, number: str) -> bool:
    """A password may be a whole number of some length; of a token, of passwords, of `password_length` it is which one, how many, how
    long, and of a few digits how many were found."""
    called = re.sub(r"[_.-]", "", name.lower()).endswith((*_CALLED, "pwd", "pass"))
    return called and len(number) >= _PIN and number.isdigit()


def _hide_block(found: re.Match[str]) -> str:
    """`password: |`, and below it the text of it."""
    if not is_secret(found[3]):
        return found[0]
    return f"{found[1]}{found[2]}\n" + re.sub(r"(?m)^([ \t]+)\S.*$", rf"\1{HIDDEN}", found[4])


_WORDS = ("null", "true", "false", "none", "None", "True", "False", "~", "|", ">")
_TYPES = ("str", "bytes", "int", "float", "bool", "object", "Any", "Optional", "string", "integer", "SecretStr")


def _given() -> list[str]:
    """What the environment and the command line of this process gave as secrets, by their names; the longest first, which may hold others."""
    argv = getattr(sys, "argv", [])
    found = {value for name in os.environ if _names_one(name) for value in _all_and_each(os.environ[name])}
    found |= {argv[place] for place in _flagged(argv)}
    for word in argv[1:]:
        if "://" in word and "@" in word:
            found |= {password for _, password in re.findall(_IN_URL, word)}
        name, sign, value = word.rpartition("=")
        if sign and is_secret(name):
            found.add(value)
    kept = {value for value in found if len(value) >= _SHORTEST and not value.startswith(("$", "/", HIDDEN))}
    return sorted(kept, key=lambda value: (-len(value), value))


def _all_and_each(value: str) -> list[str]:
    """A list of keys, or a password with a comma."""
    return [value, *value.split(",")]


def _is_ordinary(value: str) -> bool:
    """Asked of what is in a text alone: to know it takes longer than to look."""
    from llmos_cli.core import ordinary

    return value.replace("-", "_").isidentifier() and value in ordinary.words()


@cache
def _names_one(variable: str) -> bool:
    """Of the environment also what is only called a key, or a pass: `LLMOS_KEY`, `LLMOS_API_KEYS`, `DB_PASS`; `PWD` is a folder."""
    return variable.endswith(("_KEY", "_KEYS", "_TOKEN", "_SECRET", "_PWD", "_PASS")) or is_secret(variable)
