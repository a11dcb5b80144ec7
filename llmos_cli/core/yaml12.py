"""YAML with the place of every value kept, YAML 1.2 scalars, and nothing that can hurt.

Built from the parser's events with a stack rather than from its recursive composer: a file nested ten thousand deep is
refused instead of overflowing, aliases (`*x`, the way to write a gigabyte in ten lines) and tags are refused too.

    1e-3 is a number, off and yes are strings, 010 is ten, a date is a string, ~ and nothing are null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from llmos_cli.errors import ConfigError, Place

MAX_DEPTH = 32
MAX_BYTES = 1_000_000

Scalar = str | int | float | bool | None

_INT = re.compile(r"[-+]?[0-9]+\Z")
_OCTAL = re.compile(r"0o[0-7]+\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9_./][-A-Za-z0-9_./+@~ ]*(:[-A-Za-z0-9_./+@~]+)*\Z(?<! )")
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
}


@dataclass(frozen=True)
class Mark:
    """A position in a file: `line` and `column` from 0, `index` in characters."""

    line: int
    column: int
    index: int


@dataclass
class Node:
    """A value and where it stands: a scalar, a mapping (name -> Node) or a list; `key` is where its name stands."""

    value: Scalar | dict[str, Node] | list[Node]
    file: str
    start: Mark
    end: Mark
    key: Mark | None = None
    flow: bool = False
    raw: str = ""
    text: str = field(default="", repr=False)
    """The whole file, for code frames."""

    @property
    def mapping(self) -> dict[str, Node]:
        return self.value if isinstance(self.value, dict) else {}

    @property
    def place(self) -> Place:
        return place(self.file, self.text, self.start)

    @property
    def key_place(self) -> Place:
        return place(self.file, self.text, self.key or self.start)

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def parse(text: str, file: str) -> Node:
    """The one document of `text`; an empty file is an empty mapping. ConfigError with its place when it is not plain YAML."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{file} is larger than a config can be", hint=f"at most {MAX_BYTES:,} characters")
    try:
        return _build(_events(text), file, text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = place(file, text, _mark(mark)) if mark else Place(file, 0, 0)
        raise ConfigError(f"not valid YAML: {error.problem}", hint=_syntax_hint(text), place=where) from None
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise ConfigError(
            f"{file} is not text that YAML allows: {told}",
            hint="save it as plain UTF-8 text, without control characters",
            place=Place(file, 0, 0),
        ) from None


def parse_value(text: str, file: str) -> Node:
    """One value as given on a command line or in the environment: `3`, `off`, `[a, b]`, `{low: 1}`."""
    return from_plain(parse(text, file).plain() if text.strip() else None, file)


def scalar(text: str) -> Scalar:
    """What a plain scalar means in YAML 1.2."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text):
        return int(text) if len(text) <= 40 else text
    if _OCTAL.match(text) or _HEX.match(text):
        return int(text, 0)
    return float(text) if _FLOAT.match(text) else text


def from_plain(value: Any, file: str) -> Node:
    """A node of a value that does not come from a file: a flag, a default."""
    start = Mark(-1, -1, 0)
    if isinstance(value, Mapping):
        return Node({str(key): from_plain(item, file) for key, item in value.items()}, file, start, start)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Node([from_plain(item, file) for item in value], file, start, start)
    return Node(value, file, start, start)


def place(file: str, text: str, mark: Mark) -> Place:
    """`mark` counted from 1, with its lines as a frame."""
    if mark.line < 0:
        return Place(file, 0, 0)
    return Place(file, mark.line + 1, mark.column + 1, frame(text, mark))


def frame(text: str, mark: Mark) -> str:
    """The line at `mark` with one before it, numbered, a caret under the column."""
    lines = text.splitlines()
    shown = range(max(0, mark.line - 1), min(mark.line + 1, len(lines)))
    gutter = len(str(mark.line + 1))
    framed = [f"{at + 1:>{gutter}} | {lines[at]}".rstrip() for at in shown]
    return "\n".join([*framed, " " * gutter + " | " + " " * mark.column + "^"])


def _events(text: str) -> Iterator[Any]:
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    yield from yaml.parse(text, Loader=loader)  # type: ignore[no-untyped-call]


def _build(events: Iterator[Any], file: str, text: str) -> Node:
    """Events into nodes, with a stack of the containers that are open."""
    root: Node | None = None
    stack: list[_Open] = []
    for event in events:
        _refuse(event, file, text, second=root is not None, depth=len(stack))
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop().node.end = _mark(event.end_mark)
        if isinstance(event, yaml.NodeEvent):
            node = _node(event, file, text)
            if stack:
                stack[-1].add(node)
            root = root or node
            if isinstance(event, yaml.CollectionStartEvent):
                stack.append(_Open(node))
    start = Mark(0, 0, 0)
    return root or Node({}, file, start, start, text=text)


class _Open:
    """A mapping or list whose end has not come yet; in a mapping, `key` waits for its value."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.key: Node | None = None

    def add(self, child: Node) -> None:
        container = self.node.value
        if isinstance(container, list):
            container.append(child)
        elif isinstance(container, dict) and self.key is None:
            self.key = _checked_key(child, container)
        elif isinstance(container, dict) and self.key is not None:
            child.key = self.key.start
            container[self.key.raw], self.key = child, None


def _checked_key(key: Node, container: dict[str, Node]) -> Node:
    if isinstance(key.value, dict | list):
        raise ConfigError("a key must be a word", hint="write `key: value`", place=key.place)
    if key.raw in container:
        first = container[key.raw].key_place.line
        raise ConfigError(f"{key.raw!r} is given twice", hint=f"it is also on line {first}: keep one", place=key.place)
    if key.raw == "<<":
        raise ConfigError("merge keys (<<) are not part of YAML 1.2", hint="write the keys out", place=key.place)
    return key


def _refuse(event: Any, file: str, text: str, *, second: bool, depth: int) -> None:
    """Everything a config has no use for and an attacker might."""
    message = hint = ""
    if isinstance(event, yaml.AliasEvent):
        message, hint = f"aliases (*{event.anchor}) are not supported", "write the value out where it is used"
    elif getattr(event, "tag", None) is not None:
        message, hint = f"tags ({event.tag}) are not supported", "a config holds plain values"
    elif isinstance(event, yaml.DocumentStartEvent) and second:
        message, hint = "a second document begins here", "a config is one document"
    elif isinstance(event, yaml.CollectionStartEvent) and depth >= MAX_DEPTH:
        message = f"nested deeper than {MAX_DEPTH} levels"
    if message:
        raise ConfigError(message, hint=hint, place=place(file, text, _mark(event.start_mark)))


def _node(event: Any, file: str, text: str) -> Node:
    """The node that an event begins."""
    start, end = _mark(event.start_mark), _mark(event.end_mark)
    if isinstance(event, yaml.ScalarEvent):
        plain = event.implicit[0] and event.style in (None, "")
        return Node(scalar(event.value) if plain else event.value, file, start, end, raw=event.value, text=text)
    empty: dict[str, Node] | list[Node] = {} if isinstance(event, yaml.MappingStartEvent) else []
    return Node(empty, file, start, end, flow=bool(event.flow_style), text=text)


def _mark(mark: Any) -> Mark:
    return Mark(mark.line, mark.column, mark.index)


def _syntax_hint(text: str) -> str:
    return "YAML indents with spaces, not tabs" if "\t" in text else "check the indentation and the colons around here"


def dump(value: Any) -> str:
    """A value on one line, which reads back as the same value: `3`, `0.001`, `off`, `'5'`, `[a, b]`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{dump(str(key))}: {dump(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return value if _plain_text(value) else '"' + "".join(map(_escaped, value)) + '"'
    if isinstance(value, Sequence):
        return "[" + ", ".join(dump(item) for item in value) + "]"
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}[str(value)]
    return json.dumps(value)


def _plain_text(text: str) -> bool:
    """Whether text may stand without quotes, also within [ ] and { }."""
    return bool(_PLAIN_TEXT.match(text)) and scalar(text) == text


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08x}"
