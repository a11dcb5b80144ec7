"""What a checkpoint's weights are, from the headers of its safetensors files alone: names, types, shapes, places.

A safetensors file is 8 bytes (length of the header, little-endian), the header (JSON), the tensors' bytes. A header that
does not fit its file, or whose tensors do not, is `Corrupt`: a truncated file is found before anything is read.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos_cli.core.listing import read_bytes
from llmos_cli.errors import UNREADABLE, Corrupt, NotFound

INDEX = "model.safetensors.index.json"
LARGEST_HEADER = 100_000_000
"""Bytes; safetensors' own limit."""
_LONGEST_NAME = 255
_MOST_SIDES = 64
"""Of one tensor; torch's own limit."""
_AGAIN = "of a checkpoint, `llmos fsck` lists what is damaged; anything else: copy or download it again"
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One stored tensor: `start` and `end` are bytes of `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start


def of_directory(directory: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint directory, sorted by name.

    Raises:
        NotFound: no safetensors file. Corrupt: a file is missing, truncated or does not hold what the index says.
    """
    entries = of_files(files(directory))
    for name, file in _weight_map(directory).items():
        if name not in entries or entries[name].file.name != file:
            raise _corrupt(directory / INDEX, f"it says {name!r} is in {file!r}, which holds no such tensor")
    return dict(sorted(entries.items()))


def of_files(files: Iterable[Path]) -> dict[str, Entry]:
    """Every tensor of several safetensors files. Corrupt where two hold one: nobody could say which is meant."""
    entries: dict[str, Entry] = {}
    for file in files:
        found = of_file(file)
        if twice := next(iter(entries.keys() & found.keys()), None):
            raise _corrupt(file, f"{twice!r} is in {entries[twice].file.name} too")
        entries |= found
    return entries


def files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint directory: those its index names, else all there are."""
    named = sorted(set(_weight_map(directory).values()))
    found = [_inside(directory, name) for name in named] or sorted(directory.glob("*.safetensors"))
    if not found:
        raise NotFound(f"{directory} holds no safetensors file", hint="a checkpoint is a Hugging Face model directory")
    return found


def of_file(file: Path) -> dict[str, Entry]:
    """Every tensor of one safetensors file, checked against the file's size."""
    size = file.stat().st_size if file.is_file() else 0
    header, offset = _read_header(file, size)
    if odd := next((name for name in header if not _is_name(name)), None):
        raise _corrupt(file, f"{odd[:50]!r} is no tensor's name")
    entries = {name: _entry(file, name, value, offset) for name, value in header.items()}
    end = offset
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != end:
            raise _corrupt(file, "its tensors lie over one another, or have room between them")
        end = entry.end
    if end != size:
        raise _corrupt(file, "its tensors do not fill it: it was cut short or something was appended")
    return entries


def parameters(directory: Path) -> int:
    """Weights of the model, counted as the dense ones they stand for (a packed layer counts its real shape); statistics of
    batch norms are no weights."""
    shapes = dense_shapes(of_directory(directory))
    return sum(math.prod(shape) for name, shape in shapes.items() if name.rpartition(".")[2] not in STATISTICS)


def dense_shapes(entries: Mapping[str, Entry]) -> dict[str, tuple[int, ...]]:
    """The shape of every dense weight the stored tensors stand for: scales and zero points left out."""
    shapes = {}
    for name, entry in entries.items():
        if name.endswith("_packed"):
            shapes[name.removesuffix("_packed")] = stored_shape(entries[name.removesuffix("_packed") + "_shape"])
        elif dense_name(name, entries) == name:
            shapes[name] = entry.shape
    return shapes


def quantized_names(names: Iterable[str]) -> list[str]:
    """Dense names of the weights stored as codes: those with a `_scale` beside them."""
    known = set(names)
    bases = (name.removesuffix("_scale") for name in known if name.endswith("_scale"))
    return sorted(base for base in bases if base in known or f"{base}_packed" in known)


def dense_name(name: str, entries: Mapping[str, Entry]) -> str:
    """The dense weight that a stored tensor is (a part of). Scales alone are those of a weight that is tied to another."""
    for suffix in ("_packed", "_scale", "_zero_point", "_shape"):
        base = name.removesuffix(suffix)
        if base != name and (base in entries or f"{base}_packed" in entries or name.endswith(".weight_scale")):
            return base
    return name


def stored_shape(entry: Entry) -> tuple[int, ...]:
    """The int64 values of a `weight_shape` tensor: a few bytes, read from the file."""
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        return struct.unpack(f"<{entry.bytes // 8}q", stream.read(entry.bytes))


def _weight_map(directory: Path) -> dict[str, str]:
    try:
        files = dict(json.loads(read_bytes(directory / INDEX, linked=True))["weight_map"])
        if not all(map(_is_name, [*files, *files.values()])):
            raise ValueError("these are no names")
        return files
    except FileNotFoundError:
        return {}
    except UNREADABLE as problem:
        raise _corrupt(directory / INDEX, "it is not an index of tensors") from problem


def _is_name(name: str) -> bool:
    """Of a tensor or a file: it stands in sentences on a terminal, which other characters would command. (No text: TypeError and the like.)"""
    return len(name) <= _LONGEST_NAME and name.isprintable()


def _inside(directory: Path, name: str) -> Path:
    if Path(name).name != name:
        raise _corrupt(directory / INDEX, f"it names {name!r}, a path outside the directory")
    if not name.endswith(".safetensors"):
        raise _corrupt(directory / INDEX, f"it names {name!r}, which is no safetensors file")
    return directory / name


def _read_header(file: Path, size: int) -> tuple[dict[str, Any], int]:
    if size < 8:
        raise _corrupt(file, "it is missing or shorter than a header")
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(LARGEST_HEADER, size - 8):
            raise _corrupt(file, f"its header claims {length} bytes")
        try:
            header = json.loads(stream.read(length), object_pairs_hook=_once)
        except UNREADABLE as problem:
            raise _corrupt(file, "its header is not JSON") from problem
    if not isinstance(header, dict):
        raise _corrupt(file, "its header is not a table")
    told = header.pop("__metadata__", {})
    if not (isinstance(told, dict) and all(isinstance(value, str) for value in told.values())):
        raise _corrupt(file, "what it says of itself are not names and texts")
    return header, 8 + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """ValueError where a name is said twice: readers differ in which of the two they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _entry(file: Path, name: str, value: Any, offset: int) -> Entry:
    try:
        start, end = value["data_offsets"]
        entry = Entry(file, value["dtype"], tuple(value["shape"]), offset + start, offset + end)
        sides = len(entry.shape) <= _MOST_SIDES and all(type(side) is int and side >= 0 for side in entry.shape)
        fits = sides and start >= 0 and entry.bytes * 8 == math.prod(entry.shape) * BITS[entry.dtype]
    except UNREADABLE as problem:
        raise _corrupt(file, f"the header's entry for {name!r} makes no sense") from problem
    if not fits:
        raise _corrupt(file, f"{name!r} has {entry.bytes} bytes, not what its shape and type need")
    return entry


def _corrupt(file: Path, reason: str) -> Corrupt:
    return Corrupt(f"{file} is corrupt: {reason}", hint=_AGAIN)
