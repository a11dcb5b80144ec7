"""Where a checkpoint comes from: its line of first parents, the ancestor that nothing compressed yet, the data it was made with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from llmos_cli.core.manifest import Manifest
from llmos_cli.options.data import DataOptions

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

COMPRESSING = frozenset({"prune", "quantize", "compress"})
"""Operations whose result is an approximation of its parent."""


def line(ws: Workspace, checkpoint: str) -> Iterator[Manifest]:
    """The manifests of a checkpoint (a full id) and of its first parents, nearest first. What was given up has none: the line goes on
    with what that came from."""
    manifest = ws.manifest(checkpoint)
    yield manifest
    parents = manifest.made.parents
    while parents:
        if ws.closed(at := parents[0]) == "lost":
            parents = ws.parents(at)
            continue
        yield (manifest := ws.manifest(at))
        parents = manifest.made.parents


def uncompressed(ws: Workspace, checkpoint: str) -> Manifest:
    """The nearest one of the line whose own line was never compressed: itself, or what compression started from.

    Where even the root was made by compressing, it is the root.
    """
    ancestors = list(line(ws, checkpoint))
    compressed = [at for at, manifest in enumerate(ancestors) if _compresses(manifest)]
    return ancestors[min(max(compressed) + 1, len(ancestors) - 1)] if compressed else ancestors[0]


def _compresses(manifest: Manifest) -> bool:
    """Training with rounded weights does too, but from nothing it has no ancestor to approximate."""
    made = manifest.made
    rounded = (made.config.get("train") or {}).get("quantize") or {}
    return made.operation in COMPRESSING or bool(made.parents and rounded.get("bits"))


def recorded_data(ws: Workspace, checkpoint: str) -> dict[str, Any]:
    """The `data` section that the checkpoint, or the nearest ancestor that recorded one, was made with; empty for none."""
    sections = (manifest.made.config.get("data") for manifest in line(ws, checkpoint))
    return dict(
        next((section for section in sections if section and (section.get("source") or section.get("splits"))), {})
    )


def effective_data(ws: Workspace, checkpoint: str, asked: DataOptions) -> DataOptions:
    """The recorded data with what `asked` sets explicitly on top; where it names its own source or files, only that.

    Task, sequence length and masking stay the checkpoint's in either case, unless `asked` says otherwise; of files for splits, which
    stand in for the source, its columns too, and its format where they end as it does.
    """
    recorded = recorded_data(ws, checkpoint)
    if {"source", "splits"} & asked.model_fields_set and (asked.source is not None or asked.splits):
        kept = ["task", "sequence_length", "mask_pii"]
        if asked.source is None:
            kept += ["columns", *(["format"] if _end_alike(recorded, asked.splits.values()) else [])]
        recorded = {name: recorded[name] for name in kept if name in recorded}
    return asked.over(recorded)


def _end_alike(recorded: Mapping[str, Any], files: Iterable[str]) -> bool:
    """Whether the files have the endings of those that the recorded format was said of."""
    source = recorded.get("source")
    known = [source] if isinstance(source, str) else list((recorded.get("splits") or {}).values())
    return {PurePath(file).suffix for file in files} <= {PurePath(file).suffix for file in known}
