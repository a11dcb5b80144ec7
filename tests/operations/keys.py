"""Every key that a config may have, found in its section classes, its methods and the shipped files, each with a value to set.

What a number, a switch or a choice may be follows from its type, its default and its bounds. Text names something, a file, a
metric or a method, and so does a key whose values cost or contradict: those stand in `MEANT`. A key of text that is not
listed there fails the test that meets it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from llmos_cli import catalog
from llmos_cli.core import yaml12
from llmos_cli.core.config_errors import section_of
from llmos_cli.core.section import Section
from llmos_cli.operations import templates
from llmos_cli.options.verbs import ROOTS

MEANT: dict[str, Any] = {
    "compress.bits": [3, 5],
    "compress.cuts": [0.3],
    "compress.group_size": -1,
    "compress.ignore": ["nothing.*"],
    "compress.target_size": "1GB",
    "data.columns.image": "picture",
    "data.columns.label": "kind",
    "data.columns.tags": "marks",
    "data.columns.text": "body",
    "data.columns.tokens": "words",
    "data.evaluate": "rows.jsonl",
    "data.format": "json",
    "data.source": ["rows.jsonl", {"source": "rows.jsonl", "repeat": 3}],
    "data.splits": {"test": "held.jsonl"},
    "data.tokenizer.path": "tokenizer",
    "deploy.api_key_file": "keys.txt",
    "deploy.require_signature": "public.pem",
    "deploy.host": "localhost",
    "deploy.name": "every",
    "deploy.warm": "off",
    "eval.require": ["loss < 1000"],
    "heal.learning_rate": 1.1e-3,
    "model.classifier_pooling": "late",
    "model.module": "my_model.py:Net",
    "compress.calibration": "rows.jsonl",
    "prune.calibration": "rows.jsonl",
    "prune.ignore": ["nothing.*"],
    "prune.movement.steps": 2,
    "prune.pattern": "1:4",
    "prune.sparsity": 0.75,
    "quantize.calibration": "rows.jsonl",
    "quantize.bits": 8,
    "quantize.group_size": -1,
    "quantize.ignore": ["nothing.*"],
    "quantize.layers": {"*": 5},
    "train.compile": "off",
    "train.learning_rate": 1.1e-3,
    "train.precision": "float32",
    "train.teacher": "base",
    "tune.jobs": 2,
    "tune.objectives": {"loss": "minimize"},
    "tune.pruner": "hyperband",
    "tune.space": {"train.batch_size": [2, 4]},
    "tune.storage": "sqlite:///other.sqlite",
    "tune.study": "every",
    "tune.trials": 2,
}
NUMBERS = (3, 9, 301, 0.3, 0.1, -0.3, -3)


def every(verb: str, template: str, method: str = "") -> dict[str, Any]:
    """Dotted key -> value that is not the default."""
    shipped = yaml12.parse(templates.read(template)[f"{verb}.yaml"], "").plain()
    found = dict(leaves(ROOTS[verb]))
    for section, field in ROOTS[verb].model_fields.items():
        if (methodical := section_of(field.annotation)) and methodical.has_methods:
            found |= dict(_of_methods(section))
    for key, value in _shipped(shipped):
        if key not in found and not any(key.startswith(f"{known}.") for known in MEANT):
            found[key] = _other(key, value)
    told = {"data.task": template, "model.arch": shipped.get("model", {}).get("arch", "")}
    for key in ("train.optimizer", f"{verb}.method", "tune.sampler"):
        told[key] = method
    return {key: told.get(key, value) for key, value in found.items()}


def tree(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The nested mapping that a file would hold; the keys of `tune.space` have dots of their own."""
    nested: dict[str, Any] = {}
    for key, value in keys.items():
        *parents, last = key.split(".")
        place = nested
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value
    return nested


def leaves(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a section, and a value to set it to."""
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None and section.is_section(name):
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, another(prefix + name, field)


def _of_methods(section: str) -> Iterator[tuple[str, Any]]:
    for name, method in catalog.methods(section).items():
        options = getattr(method.load(), "Options", None)
        if options is not None:
            yield from leaves(options, f"{section}.{name}.")


def another(key: str, field: Any) -> Any:
    """A value that the key takes, and that is not its default."""
    if key in MEANT:
        return MEANT[key]
    kinds = {field.annotation, *get_args(field.annotation)}
    if bool in kinds:
        return not field.default
    if kinds & {int, float}:
        kind = int if int in kinds else float
        return next(value for value in map(kind, NUMBERS) if _fits(value, field) and value != field.default)
    choices = [choice for part in (field.annotation, *kinds) for choice in get_args(part) if isinstance(choice, str)]
    if choices:
        return next(choice for choice in reversed(choices) if choice != field.default)
    assert key.endswith((".arch", ".method", ".optimizer", ".sampler")), f"{key}: say in MEANT what it can be set to"
    return ""


def _fits(value: float, field: Any) -> bool:
    bounds = field.metadata
    low = all(value >= getattr(b, "ge", value) and value > getattr(b, "gt", value - 1) for b in bounds)
    return low and all(value <= getattr(b, "le", value) and value < getattr(b, "lt", value + 1) for b in bounds)


def _shipped(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in MEANT:
            yield from _shipped(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _other(key: str, value: Any) -> Any:
    """Of a key that only a shipped file names, a width of its model: half of it, or the other way round."""
    if key in MEANT:
        return MEANT[key]
    assert not isinstance(value, str), f"{key}: say in MEANT what it can be set to"
    return not value if isinstance(value, bool) else value // 2
