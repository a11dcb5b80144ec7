"""The manifest: what a checkpoint holds and how it was made; the hash of that is its id.

    {"hash": ..., "id": ..., "made": {operation, parents, config, data, environment, seed, time}, "tree": {name: {"sha256", "size"}}}

The id is the SHA-256 of the canonical JSON (RFC 8785) of `tree` and `made`. `manifest.json` itself is not in the tree, and one
number has several spellings of the same canonical form: so `hash`, on a line of its own, is over the rest of the text. What was
written before there was one has none.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmos_cli.core import atomic
from llmos_cli.core.listing import read_bytes
from llmos_cli.errors import UNREADABLE, Corrupt, LlmosError

NAME = "manifest.json"
_EXACT = 2**53 - 1
"""The largest integer that JSON numbers (IEEE 754 doubles) hold exactly, with all below it."""


@dataclass(frozen=True)
class FileEntry:
    """`size` in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Made:
    """How a checkpoint came to be. `parents`: full ids; `time`: ISO 8601, UTC; the mappings hold plain JSON values."""

    operation: str
    parents: tuple[str, ...]
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    seed: int
    time: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; LlmosError where one has no exact form."""
        return {
            "operation": self.operation,
            "parents": list(self.parents),
            "config": plain(self.config, "config"),
            "data": plain(self.data, "data"),
            "environment": plain(self.environment, "environment"),
            "seed": plain(self.seed, "seed"),
            "time": self.time,
        }


@dataclass(frozen=True)
class Manifest:
    """`written`: its text as somebody wrote it, where that has a hash of itself: it travels, and is signed, to the byte."""

    id: str
    tree: Mapping[str, FileEntry]
    made: Made
    written: str = field(default="", repr=False, compare=False)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.tree.values())

    def text(self) -> str:
        """All of `manifest.json`, to the byte."""
        return self.written or _dumped(self.id, self.tree, self.made)

    def is_written(self, text: bytes) -> bool:
        """Whether it was written so, to the byte: by its hash or, where it has none, as we spell it."""
        return text == self.text().encode() and self.keeps_its_hash

    @property
    def keeps_its_hash(self) -> bool:
        if not self.written:
            return True
        lines = self.written.split("\n", 2)
        return len(lines) == 3 and self.written == _hashed(f"{lines[0]}\n{lines[2]}")

    def is_of(self, checkpoint: str) -> bool:
        """Whether it is what that id says; not where it holds what no manifest can."""
        try:
            return checkpoint == self.id == identify(self.tree, self.made)
        except LlmosError:
            return False

    def write(self, directory: Path) -> None:
        """Into a staged directory: synced, read-only."""
        path = directory / NAME
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.text())
            file.flush()
            os.fsync(file.fileno())
        atomic.read_only(path)


def manifest(tree: Mapping[str, FileEntry], made: Made) -> Manifest:
    identifier = identify(tree, made)
    return Manifest(identifier, dict(sorted(tree.items())), made, _hashed(_dumped(identifier, tree, made)))


def _dumped(identifier: str, tree: Mapping[str, FileEntry], made: Made) -> str:
    told = {"id": identifier, **_content(tree, made)}
    return json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _hashed(text: str) -> str:
    """With the hash of it on the second line."""
    first, rest = text.split("\n", 1)
    return f'{first}\n "hash": "{hashlib.sha256(text.encode()).hexdigest()}",\n{rest}'


def identify(tree: Mapping[str, FileEntry], made: Made) -> str:
    """64 hexadecimal digits."""
    import rfc8785  # here: only committing and `fsck` need it

    return hashlib.sha256(rfc8785.dumps(_content(tree, made))).hexdigest()


def _content(tree: Mapping[str, FileEntry], made: Made) -> dict[str, Any]:
    files = {name: {"sha256": entry.sha256, "size": entry.size} for name, entry in sorted(tree.items())}
    return {"tree": files, "made": made.to_json()}


def read(directory: Path) -> Manifest:
    """The manifest of a checkpoint directory; Corrupt when it is missing, makes no sense, or is not what was written."""
    found = as_it_stands(directory)
    if not found.keeps_its_hash:
        raise Corrupt(f"{directory / NAME} was altered", hint="`llmos fsck` tells what else is affected")
    return found


def as_it_stands(directory: Path) -> Manifest:
    """Whether or not it is what was written, for `fsck` to judge."""
    path = directory / NAME
    try:
        return parse(read_bytes(path))
    except FileNotFoundError:
        raise Corrupt(f"{path} is missing", hint="`llmos fsck` tells what else is affected") from None
    except UNREADABLE as error:
        raise Corrupt(f"{path} is not a manifest: {error}", hint="`llmos fsck` tells what else is affected") from error


def parse(text: bytes) -> Manifest:
    value = json.loads(text)
    made = value["made"]
    return Manifest(
        str(value["id"]),
        {name: FileEntry(str(entry["sha256"]), int(entry["size"])) for name, entry in value["tree"].items()},
        Made(
            operation=str(made["operation"]),
            parents=tuple(str(parent) for parent in made["parents"]),
            config=made["config"],
            data=made["data"],
            environment=made["environment"],
            seed=int(made["seed"]),
            time=str(made["time"]),
        ),
        text.decode() if "hash" in value else "",
    )


_SMALLER = "give it a text or a finite number, or leave it out"


def plain(value: Any, where: str) -> Any:
    """`value` in JSON's own types; tuples become lists, paths text. LlmosError for what JSON cannot hold exactly."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, int):
        if abs(value) > _EXACT:
            raise LlmosError(f"{where} is {value}, and a manifest holds integers up to 2^53 - 1 only", hint=_SMALLER)
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise LlmosError(f"{where} is {value}, which a manifest cannot hold", hint=_SMALLER)
        return float(value) + 0.0  # without the sign of -0.0, which the canonical form has not
    if isinstance(value, Mapping):
        return {_text(str(key), where): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(items)]
    if isinstance(value, os.PathLike):
        return _text(str(os.fspath(value)), where)
    raise LlmosError(f"{where} is a {type(value).__name__}, which a manifest cannot hold", hint=_SMALLER)


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise LlmosError(f"{where} is {value!r}, which is not Unicode text", hint="write it in UTF-8") from None
    return value
