"""The templates of `init`: folders of `configs/`, each the YAML of one kind of task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from llmos_cli import catalog
from llmos_cli.core import yaml12
from llmos_cli.errors import UsageError


def names() -> list[str]:
    return sorted(folder.name for folder in _root().iterdir() if folder.is_dir() and (folder / "train.yaml").is_file())


def read(template: str) -> dict[str, str]:
    """The files of a template: name -> text."""
    if template not in names():
        raise UsageError(f"there is no template called {template!r}", hint=catalog.did_you_mean(template, names()))
    folder = _root() / template
    return {
        file.name: file.read_text(encoding="utf-8")
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.is_file()
    }


def shipped(verb: str) -> Iterator[Mapping[str, Any]]:
    """What each template says of `verb`."""
    for name in names():
        if (text := read(name).get(f"{verb}.yaml")) is not None:
            yield yaml12.parse(text, f"{name}/{verb}.yaml").plain()


def _root() -> Traversable:
    return files("llmos_cli.configs")
