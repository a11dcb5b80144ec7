"""Which snapshot holds what a checkpoint was made with, and how a config says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_cli.core.manifest import Manifest
from llmos_cli.core.snapshots import identify
from llmos_cli.core.view import short
from llmos_cli.data.snapshots import PREFIX, asked
from llmos_cli.operations import lineage
from llmos_cli.options.data import DataOptions

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

_CHOSEN = ("evaluate", "format", "columns", "splits", "validation_fraction", "test_fraction")
"""Keys that choose and cut rows: of a snapshot that has been done."""


def kept_of(ws: Workspace, made: Manifest) -> str:
    """The snapshot of a checkpoint's own data; empty where none was taken."""
    return _kept(ws, made.made.data)


def calibration_kept_of(ws: Workspace, made: Manifest) -> str:
    """Of the source that calibration had for itself."""
    return _kept(ws, (made.made.data.get("calibration") or {}).get("data") or {})


def _kept(ws: Workspace, data: Mapping[str, Any]) -> str:
    splits = data.get("splits")
    snapshot = identify(splits) if splits and ws.snapshots.ids() else ""
    return snapshot if snapshot and snapshot in ws.snapshots else ""


@dataclass(frozen=True)
class StandIn:
    """`data` reads a snapshot; `fingerprint`: of the sources and splits as they were when it was made; `told`: a sentence."""

    data: DataOptions
    fingerprint: Mapping[str, Any]
    told: str


def standing_in(
    ws: Workspace, checkpoint: str, data: DataOptions, columns: Sequence[str], now: Mapping[str, Any]
) -> StandIn | None:
    """The kept rows of what a checkpoint was made with, where `data` asks for just that and its source (read `now`) has others."""
    for made in lineage.line(ws, checkpoint) if ws.snapshots.ids() else ():
        section = made.made.config.get("data") or {}
        if not (section.get("source") or section.get("splits")):
            continue
        kept = kept_of(ws, made)
        same = asked(DataOptions(**section), columns) == asked(data, columns)
        if not (kept and same) or now["splits"] == made.made.data["splits"]:
            return None
        told = f"the data has changed since {short(made.id)} was made: its snapshot {short(kept)} is read instead"
        fingerprint = {name: made.made.data[name] for name in ("sources", "splits")}
        return StandIn(options_reading(kept, data), fingerprint, told)
    return None


def source_of(snapshot: str) -> str:
    """As a config names it."""
    return PREFIX + snapshot


def reading(snapshot: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """A `data` section that reads a snapshot in place of its source, and is otherwise the same."""
    return {**{name: value for name, value in data.items() if name not in _CHOSEN}, "source": source_of(snapshot)}


def options_reading(snapshot: str, data: DataOptions) -> DataOptions:
    return DataOptions(**reading(snapshot, data.model_dump(exclude_unset=True)))
