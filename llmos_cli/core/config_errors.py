"""What is wrong with a config, in words: pydantic's first error as a sentence with its place and a way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import ValidationError

from llmos_cli.core.section import Section
from llmos_cli.core.yaml12 import Node
from llmos_cli.errors import ConfigError, Place

_TAKES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping (KEY: VALUE lines)",
    "model_type": "a mapping (KEY: VALUE lines)",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def explain(error: ValidationError, tree: Node, model: type[Section], *, prefix: str = "") -> ConfigError:
    """The error that goes deepest into the tree: of the branches of a union, the one that was meant."""
    found = [(_locate(each["loc"], tree), each) for each in error.errors()]
    first = found[0][1]["loc"][:2]
    (path, node), told = max((item for item in found if item[1]["loc"][:2] == first), key=lambda item: len(item[0][0]))
    name = ".".join(filter(None, (prefix, *path)))
    if told["type"] == "extra_forbidden":
        return unknown_key(name, path[-1], _names(model, path[:-1]), node.key_place)
    return _wrong_value(name, told, node, _about(model, path) or LOOK)


def unknown_key(name: str, key: str, known: Iterable[str], place: Place) -> ConfigError:
    known = sorted(known)
    close = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
    return ConfigError(f"there is no option {name!r}", hint=hint, place=place)


def _locate(location: tuple[int | str, ...], tree: Node) -> tuple[list[str], Node]:
    """Follow pydantic's location through the tree, passing over the union branches it also names."""
    path: list[str] = []
    for part in location:
        if isinstance(tree.value, dict) and part in tree.value:
            tree = tree.value[str(part)]
        elif isinstance(tree.value, list) and isinstance(part, int) and part < len(tree.value):
            tree = tree.value[part]
        else:
            continue
        path.append(str(part))
    return path, tree


def _wrong_value(name: str, told: Mapping[str, Any], node: Node, about: str) -> ConfigError:
    kind, context, given = told["type"], told.get("ctx") or {}, _shown(node)
    if kind in _TAKES:
        return ConfigError(
            f"{name} takes {_TAKES[kind]}, not {given}", hint=_quoted_hint(node) or about, place=node.place
        )
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return ConfigError(f"{name} must be {words} {context[bound]:g}, not {given}", hint=about, place=node.place)
    if kind == "literal_error":
        choices = [choice.strip(" '") for choice in context["expected"].replace(" or ", ", ").split(",")]
        close = difflib.get_close_matches(str(node.value), choices, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else about
        return ConfigError(f"{name} is one of {', '.join(choices)}, not {given}", hint=hint, place=node.place)
    if kind == "string_pattern_mismatch":
        hint = about or f"it matches {context['pattern']}"
        return ConfigError(f"{name} cannot be {given}", hint=hint, place=node.place)
    message = str(told["msg"]).removeprefix("Value error, ")
    said = f"{name}: {message[:1].lower()}{message[1:]}" if name else message
    return ConfigError(said, hint=about, place=node.place)


LOOK = "`llmos config schema VERB` explains every option"


def _about(model: type[Section], path: list[str]) -> str:
    """What the option at `path` means, its limits and its default, as its class declares them."""
    for section in path[:-1]:
        if section in model.model_fields:
            model = section_of(model.model_fields[section].annotation) or model
    words = [part for part in path if part in model.model_fields]
    if not words:
        return ""
    field = model.model_fields[words[-1]]
    meaning = " ".join((field.description or "").split()).partition(". ")[0].rstrip(".")
    limits = [
        f"{text} {getattr(limit, bound):g}"
        for limit in field.metadata
        for text, bound in _BOUNDS.values()
        if isinstance(getattr(limit, bound, None), int | float)
    ]
    default = [f"{field.default} when left out"] if isinstance(field.default, int | float | str) else []
    return "; ".join(filter(None, [meaning[:1].lower() + meaning[1:], " and ".join(limits), *default]))


def _shown(node: Node) -> str:
    value = node.plain()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else repr(value).replace("True", "true").replace("False", "false")


def _quoted_hint(node: Node) -> str:
    quoted = isinstance(node.value, str) and node.raw.replace(".", "", 1).isdigit()
    return "a number in quotes is text: take the quotes away" if quoted else ""


def _names(model: type[Section], path: list[str]) -> list[str]:
    """The option names of the section at `path` below `model`."""
    for part in path:
        if part in model.model_fields:
            model = section_of(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def section_of(annotation: Any) -> type[Section] | None:
    """The Section class in an annotation: `Columns`, `list[str | Source] | None`..."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)
