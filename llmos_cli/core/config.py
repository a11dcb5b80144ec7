"""The config of a verb: layers of YAML merged, checked against its section classes, each value knowing where it came from.

    default < llmos.yaml `defaults:` < configs/<verb>.yaml < -c FILE < LLMOS_* environment < -s a.b=c, --unset a.b < flags

The story of `resolve` is the story of this file. What is wrong with a value is said with its file, line and column
(core/config_errors.py); what was set and never read is told by `unread`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_origin

from pydantic import ValidationError

from llmos_cli.core import settings, yaml12
from llmos_cli.core.config_errors import explain, unknown_key
from llmos_cli.core.listing import read_text
from llmos_cli.core.section import Section
from llmos_cli.core.yaml12 import Node
from llmos_cli.errors import ConfigError, NotFound, UsageError

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

Methods = Callable[[str], Mapping[str, Callable[[], type[Section] | None]]]
"""Of a section (`prune`): its methods' names and how to load the Options class of each."""


@dataclass(frozen=True)
class Resolved:
    """A verb's config: `config` to read from, `mapping` to record, `origin` of every leaf that was set (`configs/train.yaml:3`)."""

    verb: str
    config: Any
    mapping: dict[str, Any]
    origin: dict[str, str]
    files: tuple[Path, ...]
    shipped: Callable[[], Iterable[Mapping[str, Any]]] = tuple
    """What the templates say, for telling a user's own words from theirs."""


def resolve(
    verb: str,
    *,
    root_model: type[Section],
    workspace: Workspace | None = None,
    files: Sequence[Path] = (),
    sets: Sequence[str] = (),
    unsets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    methods: Methods | None = None,
    sections: Collection[str] = (),
    environ: Mapping[str, str] = os.environ,
    shipped: Callable[[], Iterable[Mapping[str, Any]]] = tuple,
) -> Resolved:
    """Merge the layers of `verb` and check the result.

    `flags` maps dotted keys to values, None for a flag that was not given; `defaults` is a layer below all files. `sections`
    are the names that other verbs' configs know: `llmos.yaml` and the environment speak to all verbs at once.
    """
    read = _files(verb, workspace, files)
    own = set(root_model.model_fields)
    whole = set(_whole(root_model))
    tree = yaml12.from_plain(defaults or {}, "default")
    if workspace is not None:
        tree = merge(tree, _workspace_defaults(workspace.root / "llmos.yaml", own, {*sections, *own}), whole=whole)
    for path in read:
        tree = merge(tree, read_file(path, workspace.root if workspace else None), whole=whole)
    tree = merge(tree, _environment(environ, own, {*sections, *own}), whole=whole)
    tree = amended(tree, sets=sets, unsets=unsets)
    for key, value in (flags or {}).items():
        if value is not None:
            tree = merge(tree, _nested(key, yaml12.from_plain(value, f"--{key.rpartition('.')[2].replace('_', '-')}")))
    config = check(tree, root_model, methods=methods)
    mapping = config.model_dump(mode="json")
    return Resolved(verb, config, mapping, dict(_origins(tree)), tuple(read), shipped)


def amended(tree: Node, *, sets: Sequence[str], unsets: Sequence[str]) -> Node:
    """`tree` as `--unset a.b` and `-s a.b=c` change it."""
    for key in unsets:
        _remove(tree, key)
    for assignment in sets:
        key, value = _assignment(assignment)
        if isinstance(value.value, dict):  # `-s a={b: 1}` says what `a` is, not what is in it besides
            _remove(tree, key)
        tree = merge(tree, _nested(key, value))
    return tree


def check(tree: Node, root_model: type[Section], *, methods: Methods | None = None) -> Section:
    """The sections of `tree`, or ConfigError saying what is wrong first and where."""
    tree = _without_empty_sections(tree, root_model)
    try:
        config = root_model.model_validate_json(json.dumps(tree.plain()), strict=True)
    except ValidationError as error:
        raise explain(error, tree, root_model) from None
    for name, section in config:
        if isinstance(section, Section) and section.has_methods and name in tree.mapping:
            _check_methods(name, tree.mapping[name], type(section), methods)
    return config


def read_file(path: Path, root: Path | None = None) -> Node:
    """A YAML file, called by its path below `root` in messages. There it is a plain one; what `-c` names may come through a pipe."""
    inside = root is not None and path.is_relative_to(root)
    name = str(path.relative_to(root)) if root and inside else str(path)
    try:
        text = read_text(path, linked=True) if inside else path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"there is no config file {name}", hint="`-c FILE` takes a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is not UTF-8 text", hint="a config is a YAML file") from None
    tree = yaml12.parse(text, name)
    if not isinstance(tree.value, dict):
        raise ConfigError("a config is a mapping of sections", hint="such as `train:`", place=tree.place)
    return tree


def merge(base: Node, over: Node, *, whole: Collection[str] = (), at: str = "") -> Node:
    """`over` laid on `base`: sections key by key, anything else replaces, mappings at the dotted keys `whole` too; an empty
    section says nothing. `at`: the dotted key of both."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return base if over.value is None and isinstance(base.value, dict) else over
    if at in whole:
        return over
    merged = dict(base.value)
    for key, node in over.value.items():
        merged[key] = merge(merged[key], node, whole=whole, at=f"{at}.{key}".strip(".")) if key in merged else node
    return Node(merged, over.file, over.start, over.end, key=over.key, text=over.text)


def changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> its two values, for the leaves in which two recorded configs differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**before, **after}:
        one, other = before.get(key), after.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found |= changes(one, other, f"{prefix}{key}.")
        elif one != other:
            found[prefix + key] = (one, other)
    return found


def unread(resolved: Resolved) -> list[str]:
    """Keys that the user set and nothing read, with where they stand: each is an option that did nothing."""
    dead = [key for key in resolved.config.unread() if _set_by_user(key, resolved)]
    if not dead:
        return []
    shipped = [template for template in resolved.shipped() if _for_the_same_task(template, resolved.mapping)]
    return [f"{key} ({_origin_of(key, resolved)})" for key in dead if not _as_shipped(key, resolved, shipped)]


def _files(verb: str, workspace: Workspace | None, files: Sequence[Path]) -> list[Path]:
    """`configs/<verb>.yaml` where there is one, then what `-c` named."""
    standard = [workspace.configs / f"{verb}.yaml"] if workspace is not None else []
    return [*(path for path in standard if path.exists()), *files]


def _workspace_defaults(path: Path, own: Collection[str], known: Collection[str]) -> Node:
    """The part of `defaults:` in llmos.yaml that this verb knows; a section that no verb knows is an error."""
    settings.must_be_there(path.parent)
    tree = read_file(path, path.parent) if path.exists() else yaml12.from_plain({}, "llmos.yaml")
    defaults = tree.mapping.get("defaults") or yaml12.from_plain({}, "llmos.yaml")
    for key, node in defaults.mapping.items():
        if key not in known:
            raise unknown_key(f"defaults.{key}", key, known, node.key_place)
    kept = {key: node for key, node in defaults.mapping.items() if key in own}
    return Node(kept, defaults.file, defaults.start, defaults.end, text=defaults.text)


def _environment(environ: Mapping[str, str], own: Collection[str], known: Collection[str]) -> Node:
    """`LLMOS_TRAIN__MAX_STEPS=5` is `train.max_steps: 5`; `LLMOS_SEED=1` is `seed: 1`."""
    tree = yaml12.from_plain({}, "environment")
    for name in sorted(environ):
        key = name.removeprefix("LLMOS_").lower().replace("__", ".")
        if name == key or not ("." in key or name == "LLMOS_SEED"):
            continue
        section = key.partition(".")[0]
        if section not in known:
            raise unknown_key(name, section, known, yaml12.from_plain(None, f"environment {name}").place)
        if section in own:
            tree = merge(tree, _nested(key, yaml12.parse_value(environ[name], f"environment {name}")))
    return tree


def _whole(section: type[Section], prefix: str = "") -> Iterator[str]:
    """The options that are a mapping themselves, such as a search space: half of one and half of another is neither."""
    for name, field in section.model_fields.items():
        if section.is_section(name):
            yield from _whole(cast("type[Section]", field.annotation), f"{prefix}{name}.")
        elif get_origin(field.annotation) is dict:
            yield prefix + name


def _assignment(text: str) -> tuple[str, Node]:
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise UsageError(f"-s takes KEY=VALUE, not {text!r}", hint="for example -s train.max_steps=100")
    return key.strip(), yaml12.parse_value(value, f"-s {text}")


def _nested(key: str, value: Node) -> Node:
    for name in reversed(key.split(".")):
        value = Node({name: value}, value.file, value.start, value.end, text=value.text)
    return value


def _remove(tree: Node, key: str) -> None:
    """Forget `a.b` in every layer read so far: its default comes back."""
    *parents, last = key.split(".")
    for name in parents:
        if name not in tree.mapping:
            return
        tree = tree.mapping[name]
    tree.mapping.pop(last, None)


def _without_empty_sections(tree: Node, root_model: type[Section]) -> Node:
    """`train:` with nothing below it (all commented out) is a section at its defaults."""
    kept = {
        key: node
        for key, node in tree.mapping.items()
        if node.value is not None or key not in root_model.model_fields or not root_model.is_section(key)
    }
    return Node(kept, tree.file, tree.start, tree.end, text=tree.text)


def _check_methods(name: str, tree: Node, section: type[Section], methods: Methods | None) -> None:
    """Keys that are not options must be methods of the verb, and hold options of that method."""
    known = methods(name) if methods else None
    for key, node in tree.mapping.items():
        if key in section.model_fields:
            continue
        if not isinstance(node.value, dict) or (known is not None and key not in known):
            raise unknown_key(f"{name}.{key}", key, [*section.model_fields, *(known or ())], node.key_place)
        if known is not None and (options := known[key]()):
            _check_options(f"{name}.{key}", node, options)


def _check_options(prefix: str, node: Node, options: type[Section]) -> None:
    try:
        options.model_validate_json(json.dumps(node.plain()), strict=True)
    except ValidationError as error:
        raise explain(error, node, options, prefix=prefix) from None


def _origins(tree: Node, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, node in tree.mapping.items():
        if isinstance(node.value, dict) and node.value:
            yield from _origins(node, f"{prefix}{key}.")
        else:
            yield prefix + key, f"{node.file}:{node.start.line + 1}" if node.start.line >= 0 else node.file


def _set_by_user(key: str, resolved: Resolved) -> bool:
    """Told by its origin, and by its value: to write a default down is not to ask for anything."""
    return bool(_origin_of(key, resolved)) and _at(resolved.mapping, key) != _default(type(resolved.config), key)


def _as_shipped(key: str, resolved: Resolved, shipped: Iterable[Mapping[str, Any]]) -> bool:
    """Whether it stands in the workspace's own file as a template wrote it: that is nobody's wish."""
    in_the_file = _origin_of(key, resolved).startswith(f"configs/{resolved.verb}.yaml:")
    return in_the_file and any(_at(template, key) == _at(resolved.mapping, key) for template in shipped)


def _for_the_same_task(template: Mapping[str, Any], mapping: Mapping[str, Any]) -> bool:
    return _at(template, "data.task") in (None, _at(mapping, "data.task"))


def _origin_of(key: str, resolved: Resolved) -> str:
    return next((origin for leaf, origin in resolved.origin.items() if f"{leaf}.".startswith(f"{key}.")), "")


def _at(mapping: Any, key: str) -> Any:
    for part in key.split("."):
        mapping = mapping.get(part) if isinstance(mapping, Mapping) else None
    return mapping


def _default(root_model: type[Section], key: str) -> Any:
    return _at(root_model().model_dump(mode="json"), key)
