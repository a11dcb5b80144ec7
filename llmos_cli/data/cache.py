"""Computed once: whatever is derived from data lives in the workspace's cache under the hash of what it was made from.

An entry is a directory, written beside its place and renamed into it, so that two processes that make the same entry at
once both end with one whole copy. Deleting the cache costs time and nothing else.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmos_cli.core.access import own_folder
from llmos_cli.core.atomic import refusals
from llmos_cli.core.processes import scratch_name
from llmos_cli.data.fingerprint import of_json


def entry(cache: Path, kind: str, key: Any, build: Callable[[Path], None]) -> Path:
    """The directory `kind/<hash of key>`; `build` fills an empty directory when it is not there yet."""
    made = place(cache, kind, key)
    if not made.is_dir():
        with refusals(made):
            _make(made, build)
    return made


def place(cache: Path, kind: str, key: Any) -> Path:
    """Where the entry is, or would be."""
    return cache / kind / of_json(key)[:32]


def workspace_of(cache: Path) -> Path:
    """The folder that relative paths start from: the workspace whose cache it is, which is at or above where we are when the cache
    is in the user's own folder (the workspace cannot be written); else where we are."""
    if cache.parent.name == ".llmos":
        return cache.parent.parent
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if own_folder(folder) == cache.parent), here)


def _make(place: Path, build: Callable[[Path], None]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = place.parent / scratch_name(".making")
    scratch.mkdir()
    try:
        build(scratch)
        _claim(scratch, place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _claim(scratch: Path, place: Path) -> None:
    try:
        scratch.replace(place)
    except OSError:
        if not place.is_dir():  # anything but "somebody else was faster"
            raise


class Columns:
    """Growing arrays written to `directory`, one file each: a data set larger than memory never stands in it."""

    def __init__(self, directory: Path, dtypes: Mapping[str, str]) -> None:
        self.directory = directory
        self.dtypes = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self.lengths = dict.fromkeys(dtypes, 0)
        self.files = {name: (directory / f"{name}.bin").open("wb") for name in dtypes}

    def append(self, **arrays: Any) -> None:
        for name, array in arrays.items():
            values = np.ascontiguousarray(array, self.dtypes[name])
            self.files[name].write(values.tobytes())
            self.lengths[name] += values.size

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        described = {name: [dtype.str, self.lengths[name]] for name, dtype in self.dtypes.items()}
        (self.directory / "columns.json").write_text(json.dumps(described))


def write(directory: Path, dtypes: Mapping[str, str], pieces: Iterable[Mapping[str, Any]]) -> None:
    """Columns made piece by piece, each piece adding to every column."""
    grown = Columns(directory, dtypes)
    for piece in pieces:
        grown.append(**piece)
    grown.close()


def gathered(dtypes: Mapping[str, str], pieces: Iterable[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """The same in memory, for data that is seen once."""
    kept = list(pieces)
    return {
        name: np.concatenate([np.asarray(piece[name], dtype) for piece in kept] or [np.zeros(0, dtype)])
        for name, dtype in dtypes.items()
    }


def columns(directory: Path) -> dict[str, NDArray[Any]]:
    """The arrays that `Columns` wrote there, mapped into memory, read-only."""
    described: dict[str, tuple[str, int]] = json.loads((directory / "columns.json").read_text())
    return {name: _mapped(directory / f"{name}.bin", dtype, size) for name, (dtype, size) in described.items()}


def _mapped(path: Path, dtype: str, size: int) -> NDArray[Any]:
    return np.memmap(path, dtype=dtype, mode="r", shape=(size,)) if size else np.zeros(0, dtype)


_texts: dict[str, str] = {}


def json_entry(cache: Path, kind: str, key: Any, make: Callable[[], Iterable[Any]]) -> list[Any]:
    """A list of JSON values, one per line of a file, made once; once a process too, whatever workspaces it serves."""

    def build(directory: Path) -> None:
        with (directory / "rows.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(value) + "\n" for value in make())

    known = f"{kind}/{of_json(key)}"
    if known not in _texts:
        _texts[known] = (entry(cache, kind, key, build) / "rows.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in _texts[known].splitlines()]
