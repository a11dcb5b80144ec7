"""A checkpoint in sparse storage: its safetensors under other names with zeros left out, and sparse.json that says how.

    sparse.json                   {"format": "llmos-sparse", "version": 1, "files": {...}, "tensors": {...}}
    sparse-00001-of-00009.safetensors ...
    config.json, tokenizer, card, licence: as they are

`files` gives, for each file of the checkpoint that was rewritten, its SHA-256 and the sparse file that holds its tensors ("" for
the index, which follows from them); `tensors`, for each that is stored sparsely, its shape and encoding (`models/sparse.py`): its parts are `NAME.places`
and `NAME.values`. All others are stored as they are. Shards are read and written one at a time. No other program mistakes the
directory for a model: there is no model.safetensors in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmos_cli.core.atomic import as_made_here
from llmos_cli.core.objects import hash_file
from llmos_cli.errors import Corrupt, UsageError
from llmos_cli.models import headers, packing, sparse
from llmos_cli.models.dequantize import bits_by_layer
from llmos_cli.models.save import METADATA, write_streamed
from llmos_cli.models.sparse import Encoding

FILE = "sparse.json"
FORMAT, VERSION = "llmos-sparse", 1
PARTS = ("places", "values")
PACKED = "_packed"


@dataclass(frozen=True)
class Written:
    """`encodings` counts the tensors of each encoding."""

    encodings: Mapping[str, int]


def write(source: Path, target: Path) -> Written:
    """Write the weights of checkpoint directory `source` sparsely into `target`."""
    entries = headers.of_directory(source)
    bits = {
        f"{name}{PACKED}": width
        for name, width in bits_by_layer(json.loads((source / "config.json").read_bytes()), entries).items()
    }
    files = headers.files(source)
    records: dict[str, Any] = {}
    described: dict[str, Any] = {headers.INDEX: {"sha256": hash_file(source / headers.INDEX).sha256, "holds": ""}}
    for number, file in enumerate(files, 1):
        name = f"sparse-{number:05d}-of-{len(files):05d}.safetensors"
        save_file(_encoded(load_file(file), bits, records), target / name, metadata=METADATA)
        as_made_here(target / name)
        described[file.name] = {"sha256": hash_file(file).sha256, "holds": name}
    told = {"format": FORMAT, "version": VERSION, "files": described, "tensors": records}
    (target / FILE).write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    kinds = [f"{each['n']}:{each['m']}" if each["m"] else "mask" for each in records.values()]
    return Written({kind: kinds.count(kind) for kind in dict.fromkeys(kinds)})


def restore(source: Path, target: Path) -> None:
    """Write the checkpoint's own weight files into `target`, byte for byte.

    Raises UsageError for a newer version, Corrupt where the bytes are not those that were exported.
    """
    told = _described(source)
    holds = {held: name for name, each in told["files"].items() if (held := each["holds"])}
    groups = [[held] for held in sorted(holds)]
    try:
        write_streamed(groups, lambda group: _decoded(load_file(_inside(source, group[0])), told["tensors"]), target)
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, SafetensorError) as problem:
        raise _corrupt(source, str(problem)) from problem
    for name, each in told["files"].items():
        if hash_file(_inside(target, name)).sha256 != each["sha256"]:
            raise _corrupt(source, f"{name} does not come back as it was")


def _described(source: Path) -> dict[str, Any]:
    try:
        told = json.loads((source / FILE).read_bytes())
        if told["format"] != FORMAT:
            raise ValueError(f"the format is {told['format']!r}")
        version = int(told["version"])
        sums = [(each["sha256"], each["holds"]) for each in told["files"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise _corrupt(source, f"{FILE} makes no sense ({problem})") from problem
    if version > VERSION or not sums:
        raise UsageError(f"{source} has sparse storage of version {version}", hint="a newer llmos reads it")
    return dict(told)


def _encoded(shard: dict[str, Tensor], bits: Mapping[str, int], records: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a shard as they are stored; what is encoded is noted in `records`."""
    stored: dict[str, Tensor] = {}
    for name, value in shard.items():
        width = 0 if f"{name.removesuffix(PACKED)}_zero_point" in shard else bits.get(name, 0)
        elements = _codes(shard, name, width) if width else value.reshape(len(value), -1) if value.dim() > 1 else None
        encoding = sparse.best(elements, width) if elements is not None else None
        if elements is None or encoding is None:
            stored[name] = value
            continue
        records[name] = {**asdict(encoding), "shape": list(elements.shape if width else value.shape)}
        stored |= {f"{name}.{part}": part_value for part, part_value in sparse.encode(elements, encoding).items()}
    return stored


def _codes(shard: Mapping[str, Tensor], name: str, bits: int) -> Tensor:
    outputs, inputs = shard[f"{name.removesuffix(PACKED)}_shape"].tolist()
    assert shard[name].shape[0] == outputs
    return packing.unpack(shard[name], bits, inputs)


def _decoded(stored: dict[str, Tensor], records: Mapping[str, Any]) -> dict[str, Tensor]:
    shard = {name: value for name, value in stored.items() if not name.endswith(PARTS) or _whole(name) not in records}
    for name in {_whole(name) for name in stored} & set(records):
        record = records[name]
        shape, encoding = tuple(record["shape"]), Encoding(record["n"], record["m"], record["bits"])
        parts = {part: stored[f"{name}.{part}"] for part in PARTS}
        value = sparse.decode(parts, (shape[0], math.prod(shape[1:])), encoding)
        shard[name] = packing.pack(value, encoding.bits) if encoding.bits else value.reshape(shape)
    return shard


def _whole(name: str) -> str:
    """The tensor that a part belongs to."""
    return name.rpartition(".")[0] if name.endswith(tuple(f".{part}" for part in PARTS)) else name


def _inside(directory: Path, name: str) -> Path:
    if Path(name).name != name:
        raise ValueError(f"{name!r} is a path outside the directory")
    return directory / name


def _corrupt(source: Path, reason: str) -> Corrupt:
    return Corrupt(f"{source} is corrupt: {reason}", hint="copy it again, or export the checkpoint again")
