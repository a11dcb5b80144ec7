"""`foreach` of a stage: lists of values of variables, and one stage for each combination of them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmos_cli.catalog import did_you_mean
from llmos_cli.core import config as configs
from llmos_cli.core import yaml12
from llmos_cli.core.yaml12 import Node
from llmos_cli.errors import ConfigError
from llmos_cli.options.pipeline import StageOptions

Axes = Mapping[str, Sequence[Any]]
"""Variable -> its values."""
MOST = 10_000
"""Stages of a pipeline: a slip multiplies them until nothing answers any more."""
NAME = re.compile(r"\w+")
VARIABLE = re.compile(rf"\$\{{({NAME.pattern})\}}")


def read(pipeline: Node) -> dict[str, Axes]:
    """Of each stage, as it is written; ConfigError where one would be none, or all would be too many."""
    found = {name: _axes(name, node) for name, node in pipeline.mapping.items()}
    counts = {name: math.prod(map(len, axes.values())) for name, axes in found.items()}
    if sum(counts.values()) > MOST:
        largest = max(counts, key=counts.__getitem__)
        raise ConfigError(
            f"{largest} would be {counts[largest]:,} stages, and a pipeline has {MOST:,} at most",
            hint="list fewer values: a stage is made for each combination of them",
            place=pipeline.mapping[largest].mapping["foreach"].key_place,
        )
    return found


def _axes(name: str, node: Node) -> Axes:
    if "foreach" not in node.mapping:
        return {}
    written = node.mapping["foreach"]
    axes: Axes = configs.check(replace(node, value={"foreach": written}), StageOptions).foreach  # type: ignore[attr-defined]
    for variable, child in written.mapping.items():
        if not NAME.fullmatch(variable):
            hint = "letters, digits and `_`: a command has it in its environment"
            raise ConfigError(f"{variable!r} is no name for a variable", hint=hint, place=child.key_place)
    if empty := [variable for variable, values in axes.items() if not values]:
        raise ConfigError(
            f"foreach gives {empty[0]} no value, so that {name} would be no stage",
            hint=f"list values of {empty[0]}, or leave the stage out",
            place=written.mapping[empty[0]].place,
        )
    return axes


def combinations(name: str, axes: Axes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each with the name of its stage: that of the family alone where nothing is multiplied."""
    for values in itertools.product(*axes.values()):
        full = "/".join([name, "-".join(map(_word, values))]) if axes else name
        yield full, dict(zip(axes, values, strict=True))


def _word(value: Any) -> str:
    """A value as part of a name."""
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", text(value)).strip("-.") or "-"


def text(value: Any) -> str:
    return value if isinstance(value, str) else yaml12.dump(value)


def substituted(node: Node, variables: Mapping[str, Any]) -> Node:
    """With the values of `foreach` in the place of `${VARIABLE}`; not within a command, which has them in its environment."""
    if isinstance(node.value, dict):
        kept = {k: n if k == "sh" else substituted(n, variables) for k, n in node.value.items() if k != "foreach"}
        return replace(node, value=kept)
    if isinstance(node.value, list):
        return replace(node, value=[substituted(child, variables) for child in node.value])
    if not isinstance(node.value, str):
        return node
    found = VARIABLE.findall(node.value)
    for name in found:
        if name not in variables:
            hint = did_you_mean(name, variables) if variables else "`foreach:` gives variables their values"
            raise ConfigError(f"there is no variable {name!r} here", hint=hint, place=node.place)
    if len(found) == 1 and node.value == f"${{{found[0]}}}":
        return replace(node, value=variables[found[0]])
    return replace(node, value=VARIABLE.sub(lambda match: text(variables[match[1]]), node.value))
