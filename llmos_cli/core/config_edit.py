"""Change scalars of a user's YAML in place: comments, order, spacing and everything else stay as they are.

edited("train:\\n  learning_rate: 2e-3  # tuned by hand\\n", {"train.learning_rate": 0.003})
== "train:\\n  learning_rate: 0.003  # tuned by hand\\n"
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmos_cli.core import yaml12
from llmos_cli.core.atomic import write_text
from llmos_cli.core.yaml12 import Node
from llmos_cli.errors import ConfigError

_INDENT = "  "


def edit(path: Path, changes: Mapping[str, Any]) -> None:
    """Rewrite `path` with the dotted keys of `changes` set; a file that is not there begins empty."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_text(path, edited(text, changes, file=path.name))


def edited(text: str, changes: Mapping[str, Any], *, file: str = "config") -> str:
    """`text` with each dotted key set; a key that is not there is added below its section."""
    wanted = yaml12.parse(text, file)
    for key, value in changes.items():
        text = _set(text, key.split("."), value, file)
        _put(wanted, key.split("."), yaml12.from_plain(value, file))
    if yaml12.parse(text, file).plain() != wanted.plain():
        raise ConfigError(
            f"{file} is written in a way that cannot be edited in place", hint=f"set {', '.join(changes)} by hand"
        )
    return text


def without(text: str, key: str, *, file: str = "config") -> str:
    """`text` with a dotted key and all below it gone; a section that it leaves empty goes too."""
    wanted, path = yaml12.parse(text, file), key.split(".")
    while len(path) > 1 and len(_at(wanted, path[:-1]).mapping) == 1:
        path.pop()
    node = _at(yaml12.parse(text, file), path)
    del _at(wanted, path[:-1]).mapping[path[-1]]
    text = _cut(text, node)
    if yaml12.parse(text, file).plain() != wanted.plain():
        raise ConfigError(f"{file} is written in a way that cannot be edited in place", hint=f"remove {key} by hand")
    return text


def _at(tree: Node, path: list[str]) -> Node:
    for name in path:
        tree = tree.mapping[name]
    return tree


def _cut(text: str, node: Node) -> str:
    """The lines from its name to its end."""
    begin = text.rfind("\n", 0, node.key.index if node.key else node.start.index) + 1
    end = text.find("\n", _last(node))
    return text[:begin] + ("" if end < 0 else text[end + 1 :])


def _set(text: str, path: list[str], value: Any, file: str) -> str:
    tree = yaml12.parse(text, file)
    node = tree
    for depth, name in enumerate(path):
        if name not in node.mapping:
            return _add(text, tree, node, path[depth:], value, depth)
        node = node.mapping[name]
    return _replace(text, node, value)


def _replace(text: str, node: Node, value: Any) -> str:
    """The value alone; a null written as nothing needs a blank before it."""
    start, end = node.start.index, _last(node)
    blank = " " if start > 0 and text[start - 1] == ":" else ""
    return text[:start] + blank + yaml12.dump(value) + text[end:]


def _last(node: Node) -> int:
    """Where the text of a node ends. The parser ends a block after the blank lines and comments that follow it: its last scalar is the end."""
    children = list(node.value.values()) if isinstance(node.value, dict) else node.value
    return _last(children[-1]) if isinstance(children, list) and children and not node.flow else node.end.index


def _add(text: str, tree: Node, parent: Node, path: list[str], value: Any, depth: int) -> str:
    """A key that is not there yet: in `{...}` at the end, in a block on a line of its own after its last sibling."""
    if parent.flow:
        inside = ", " if parent.mapping else ""
        return _insert(text, parent.end.index - 1, f"{inside}{_flow(path, value)}")
    if parent.mapping:
        last = list(parent.mapping.values())[-1]
        first = next(iter(parent.mapping.values()))
        indent = " " * (first.key.column if first.key else 0)
        return _insert_line(text, _last(last), _block(path, value, indent))
    if parent is tree:
        start = text if not text or text.endswith("\n") else text + "\n"
        return start + _block(path, value, "") + "\n"
    return _insert_line(text, parent.end.index, _block(path, value, _INDENT * depth))


def _block(path: list[str], value: Any, indent: str) -> str:
    lines = [f"{indent}{_INDENT * depth}{name}:" for depth, name in enumerate(path)]
    return "\n".join(lines) + f" {yaml12.dump(value)}"


def _flow(path: list[str], value: Any) -> str:
    for name in reversed(path[1:]):
        value = {name: value}
    return f"{path[0]}: {yaml12.dump(value)}"


def _insert(text: str, at: int, new: str) -> str:
    return text[:at] + new + text[at:]


def _insert_line(text: str, at: int, line: str) -> str:
    """After the line that holds position `at`, its comment included."""
    end = text.find("\n", at)
    return f"{text}\n{line}\n" if end < 0 else _insert(text, end + 1, line + "\n")


def _put(tree: Node, path: list[str], value: Node) -> None:
    for name in path[:-1]:
        below = tree.mapping.get(name)
        if below is None or not isinstance(below.value, dict):
            tree.mapping[name] = below = yaml12.from_plain({}, "")
        tree = below
    tree.mapping[path[-1]] = value
