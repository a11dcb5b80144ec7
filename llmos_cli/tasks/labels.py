"""Labels: class names in a fixed order, and the number of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmos_cli.errors import UsageError
from llmos_cli.tasks.text import config_of


def class_names(trained: Iterable[str] | None, processor: Path | None, *, relabel: bool, source: str) -> list[str]:
    """The checkpoint's own classes, else those of the training split: numbers by value, the rest by alphabet."""
    own = config_of(processor).get("id2label") if processor is not None and not relabel else None
    if own:
        return [own[key] for key in sorted(own, key=int)]
    names = sorted(set(trained or ()), key=_order)
    if len(names) < 2:
        found = f"only the label {names[0]}" if names else "no labels"
        raise UsageError(
            f"{source} has {found} to train on", hint="A classifier needs at least two classes; check data.columns."
        )
    return names


def _order(label: str) -> tuple[bool, float, str]:
    return (False, float(label), label) if label.lstrip("-").isdecimal() else (True, 0.0, label)


def numbers(labels: Sequence[str], names: Sequence[str], *, split: str) -> list[int]:
    """The number of each label; one that training never saw is an error that names it."""
    index = {name: number for number, name in enumerate(names)}
    unknown = sorted({label for label in labels if label not in index})
    if unknown:
        shown = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        raise UsageError(
            f"the {split} split has a label that training did not: {shown}",
            hint=f"Known labels: {_some(names)}. Add training rows for it, or drop its rows.",
        )
    return [index[label] for label in labels]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f"... ({len(names)})" if len(names) > 12 else "")


def facts_of(names: Sequence[str]) -> dict[str, Any]:
    return {"num_labels": len(names), "id2label": dict(enumerate(names))}


def names_of(facts: Mapping[str, Any]) -> list[str]:
    """Class names by number, from facts or from a config.json (whose keys are strings, and which leaves out what transformers
    calls two classes unless told)."""
    names = facts.get("id2label") or {number: f"LABEL_{number}" for number in range(facts.get("num_labels") or 2)}
    return [names[key] for key in sorted(names, key=int)]
