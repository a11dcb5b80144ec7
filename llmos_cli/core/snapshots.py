"""Snapshots of data: the very rows that a run read, kept beside the checkpoints under the SHA-256 of what they are.

    .llmos/snapshots/<id>.json           which splits, of how many rows, in which pieces
    .llmos/snapshots/objects/aa/bbbb...  a piece: some rows, one after the other, under the SHA-256 of its bytes

The id is the SHA-256 of the canonical JSON (RFC 8785) of the fingerprint that manifests record: split -> {rows, sha256}. A row
stands in a piece as the bytes that its own digest in that fingerprint is over (for each column by name: the name, `:`, the
length of the value, `:`, the value), so that a snapshot proves by itself that it is what a checkpoint was made with. Pieces end
where the digests of rows say: data that grew or changed in one place shares all its other pieces with what was kept before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli.core import atomic, lines
from llmos_cli.core.hashed import is_part, place, stored, strange
from llmos_cli.core.listing import entries, files, read_bytes
from llmos_cli.core.locks import lock
from llmos_cli.core.refs import DATA, ID, SNAPSHOTS, Refs
from llmos_cli.errors import UNREADABLE, AmbiguousRevision, Corrupt, NotFound
from llmos_cli.events import Emit, ignore

if TYPE_CHECKING:
    from llmos_cli.core.manifest import Made
    from llmos_cli.core.workspace import Workspace

_OBJECTS = "objects"
_FSCK = "`llmos fsck` tells what else is affected"


@dataclass(frozen=True)
class Piece:
    """`size` in bytes."""

    sha256: str
    size: int
    rows: int


@dataclass(frozen=True)
class KeptSplit:
    """`sha256`: over the digests of its rows, in order; `columns` by name."""

    rows: int
    sha256: str
    columns: tuple[str, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Snapshot:
    """`source`: what the rows were read from, in words; `asked`: a hash of the options that chose them; `time`: ISO 8601, UTC."""

    id: str
    source: str
    asked: str
    time: str
    splits: Mapping[str, KeptSplit]

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {name: {"rows": split.rows, "sha256": split.sha256} for name, split in self.splits.items()}

    @property
    def pieces(self) -> dict[str, int]:
        """SHA-256 -> bytes, each once."""
        return {piece.sha256: piece.size for split in self.splits.values() for piece in split.pieces}

    @property
    def rows(self) -> int:
        return sum(split.rows for split in self.splits.values())

    def text(self) -> str:
        """With a hash of all of it: the id is over the rows alone, and not over what was said of them."""
        return _dumped(asdict(self) | {"hash": hashlib.sha256(self._plain().encode()).hexdigest()})

    def is_written(self, text: bytes) -> bool:
        """Whether it was written so, to the byte; before there was a hash it was written without."""
        return text in (self.text().encode(), self._plain().encode())

    def _plain(self) -> str:
        return _dumped(asdict(self))


def _dumped(told: Mapping[str, Any]) -> str:
    return json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def identify(fingerprint: Mapping[str, Any]) -> str:
    """The id of the snapshot of these rows; `fingerprint` is `splits` of what a manifest says of its data."""
    import rfc8785

    told = {name: {"rows": split["rows"], "sha256": split["sha256"]} for name, split in fingerprint.items()}
    return hashlib.sha256(rfc8785.dumps(told)).hexdigest()


_KEPT = rb'"what": "data snapshot ([0-9a-f]{12}) of '


def read_by(made: Made) -> Iterator[str]:
    """Ids of the snapshots, kept or not, of the data that a checkpoint was made with: its own, then what calibrated it."""
    for data in (made.data, (made.data.get("calibration") or {}).get("data") or {}):
        if splits := data.get("splits"):
            yield identify(splits)


def read_in(ws: Workspace, checkpoints: Iterable[str]) -> set[str]:
    """Of the data that these checkpoints were made with, as far as they were not given up, what is kept here."""
    kept = set(ws.snapshots.ids())
    made = (ws.manifest(each).made for each in set(checkpoints) - ws.index.lost()) if kept else ()
    return {snapshot for each in made for snapshot in read_by(each)} & kept


def readers(ws: Workspace, besides: Container[str] = ()) -> dict[str, list[str]]:
    """Snapshot, kept or not -> the checkpoints whose data it is; `besides`: those of which the manifest cannot be read."""
    found: dict[str, list[str]] = {}
    for entry in (each for each in ws.index.entries() if each.id not in besides):
        for snapshot in read_by(ws.manifest(entry.id).made):
            found.setdefault(snapshot, []).append(entry.id)
    return found


def lost(ws: Workspace, besides: Container[str] = ()) -> dict[str, list[str]]:
    """Snapshots that were kept here, as the audit log says, and are not any more, though nobody removed them -> the checkpoints whose data
    they are. Of data that no checkpoint was made with `gc` may have removed one."""
    said = (re.search(_KEPT, line) for line in lines.matching(ws.oplog.audit.path, _KEPT))
    told = {found[1].decode() for found in said if found} - {each[:12] for each in ws.snapshots.ids()}
    if not told:
        return {}
    removed = ws.oplog.removed_snapshots()
    return {each: made for each, made in readers(ws, besides).items() if each[:12] in told and each not in removed}


def parse(text: bytes) -> Snapshot:
    """ValueError, KeyError, TypeError or AttributeError where it makes no sense."""
    value = json.loads(text)
    splits = {str(name): _split(split) for name, split in value["splits"].items()}
    return Snapshot(str(value["id"]), str(value["source"]), str(value["asked"]), str(value["time"]), splits)


def _split(value: Mapping[str, Any]) -> KeptSplit:
    pieces = tuple(Piece(str(p["sha256"]), int(p["size"]), int(p["rows"])) for p in value["pieces"])
    if not value["columns"] or not all(
        ID.fullmatch(piece.sha256) and piece.size >= 0 and piece.rows > 0 for piece in pieces
    ):
        raise ValueError("it has no columns, or a piece no name or no rows")
    return KeptSplit(int(value["rows"]), str(value["sha256"]), tuple(map(str, value["columns"])), pieces)


def described(text: str) -> Snapshot | None:
    """What the log of operations remembers of one; None where it makes no sense."""
    try:
        return parse(text.encode())
    except UNREADABLE:
        return None


def frames(piece: bytes, columns: Sequence[str]) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Of each row of a piece: where it begins and ends, and where the value of each column does. ValueError where it is no row."""
    at, marks = 0, [f"{name}:".encode() for name in columns]
    while at < len(piece):
        begin, values = at, []
        for mark in marks:
            if not piece.startswith(mark, at):
                raise ValueError(f"no column stands at byte {at}")
            colon = piece.index(b":", at + len(mark), at + len(mark) + 20)
            length = piece[at + len(mark) : colon]
            if not length.isdigit():  # nor a sign: a row that led backwards would never end
                raise ValueError(f"no length stands at byte {at + len(mark)}")
            at = colon + 1 + int(length)
            values.append((colon + 1, at))
        if at > len(piece):
            raise ValueError("the last row is cut off")
        yield begin, at, values


class Snapshots:
    """Those of one workspace, whose `.llmos` is `dot`."""

    def __init__(self, dot: Path) -> None:
        self.directory = dot / SNAPSHOTS
        self.lock = dot / "locks" / SNAPSHOTS
        self._refs = Refs(dot)
        self._scratch = dot / "tmp"

    def __contains__(self, snapshot: str) -> bool:
        return self.path(snapshot).exists()

    def path(self, snapshot: str) -> Path:
        return self.directory / f"{snapshot}.json"

    def piece(self, sha256: str) -> Path:
        return self.directory / _OBJECTS / place(sha256)

    def ids(self) -> list[str]:
        return [name[:-5] for name in files(self.directory) if name.endswith(".json") and ID.fullmatch(name[:-5])]

    def all(self) -> list[Snapshot]:
        return [self.read(each) for each in self.ids()]

    def read(self, snapshot: str) -> Snapshot:
        """Of a full id; Corrupt where what is written there is another one, or none."""
        path = self.path(snapshot)
        try:
            found = parse(read_bytes(path))
        except FileNotFoundError:
            raise NotFound(f"there is no snapshot {snapshot[:12]}", hint="`llmos data list` shows them") from None
        except UNREADABLE as error:
            raise Corrupt(f"{path} is not a snapshot: {error}", hint=_FSCK) from error
        if found.id != snapshot or identify(found.fingerprint) != snapshot:
            raise Corrupt(f"{path} is not the snapshot that its name says", hint=_FSCK)
        return found

    def find(self, name: str) -> Snapshot:
        """By name, id, or the beginning of one; NotFound or AmbiguousRevision."""
        named = self._refs.read(DATA + name) if name and ".." not in name else None
        if named is not None:
            return self.read(named)
        found = [each for each in self.ids() if len(name) >= 4 and each.startswith(name)]
        if len(found) > 1:
            raise AmbiguousRevision(f"{name} begins the ids of {len(found)} snapshots", hint="give more of it")
        if not found:
            raise NotFound(f"there is no snapshot {name}", hint="`llmos data list` shows them")
        return self.read(found[0])

    def still(self, emit: Emit = ignore) -> AbstractContextManager[None]:
        """Nobody removes one, or takes one where there are some, until the end of the block."""
        return lock(self.lock, emit=emit) if self.ids() else nullcontext()

    def names(self) -> dict[str, str]:
        """Name -> id of those that were given one."""
        return self._refs.under(DATA)

    def load(self, piece: Piece) -> bytes:
        """Its bytes; Corrupt where they are not those that were kept."""
        try:
            content = read_bytes(self.piece(piece.sha256))
        except FileNotFoundError:
            raise Corrupt(f"a piece of a snapshot is missing ({piece.sha256[:12]})", hint=_FSCK) from None
        if hashlib.sha256(content).hexdigest() != piece.sha256:
            raise Corrupt(f"a piece of a snapshot is not what was kept ({piece.sha256[:12]})", hint=_FSCK)
        return content

    def has(self, sha256: str, size: int) -> bool:
        path = self.piece(sha256)
        return path.is_file() and path.stat().st_size == size

    def store(self, content: bytes) -> str:
        """Keep a piece; one that is there as it should be is left alone. Returns its name."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.piece(sha256)
        if not (self.has(sha256, len(content)) and read_bytes(path) == content):
            atomic.write_bytes(path, content, scratch=self._scratch)
        return sha256

    def write(self, snapshot: Snapshot) -> None:
        """After all its pieces: from now on it is there."""
        atomic.write_text(self.path(snapshot.id), snapshot.text(), scratch=self._scratch)

    def remove(self, snapshot: str) -> None:
        """Its pieces stay for whoever shares them, or `gc`."""
        atomic.remove(self.path(snapshot))

    def stored(self) -> Iterator[tuple[str, Path]]:
        """Every piece on disk: its name and where it is."""
        return ((sha256, Path(entry.path)) for sha256, entry in stored(self.directory / _OBJECTS))

    def whole(self, text: str) -> bool:
        """Whether all pieces are there of one whose description was taken away."""
        snapshot = described(text)
        return snapshot is not None and all(self.has(sha256, size) for sha256, size in snapshot.pieces.items())

    def unheld(self, held: Iterable[str] = ()) -> Iterator[tuple[str, Path]]:
        """Pieces of no snapshot, but for those that are `held` otherwise."""
        kept = {*held, *(sha256 for each in self.all() for sha256 in each.pieces)}
        yield from ((sha256, path) for sha256, path in self.stored() if sha256 not in kept)

    def strange(self) -> Iterator[os.DirEntry[str]]:
        """What lies among the snapshots and their pieces and is neither."""
        known = {f"{each}.json" for each in self.ids()} | {_OBJECTS}
        yield from (each for each in entries(self.directory) if each.name not in known)
        yield from (each for each in entries(self.directory / _OBJECTS) if not is_part(each))
        yield from strange(self.directory / _OBJECTS)

    def damaged(self, snapshot: str) -> str:
        """What is wrong with the one of that id, its JSON included; empty where nothing is."""
        try:
            found = self.read(snapshot)
        except Corrupt as error:
            return error.message
        if not found.is_written(read_bytes(self.path(snapshot))):
            return "was altered: it is not as it was written"
        return self.wrong(found)

    def wrong(self, snapshot: Snapshot) -> str:
        """What is wrong with it, every byte hashed and every row counted; empty where nothing is."""
        for name, split in snapshot.splits.items():
            hasher, rows = hashlib.sha256(), 0
            for piece in split.pieces:
                count = 0
                try:
                    content = self.load(piece)
                    for begin, end, _ in frames(content, split.columns):
                        hasher.update(hashlib.sha256(memoryview(content)[begin:end]).digest())
                        count += 1
                except Corrupt as error:
                    return error.message
                except ValueError as error:
                    return f"a piece of its {name} split makes no sense ({piece.sha256[:12]}: {error})"
                if (count, len(content)) != (piece.rows, piece.size):  # rows are found by these counts
                    return f"a piece of its {name} split has {count} rows, {len(content):,} bytes, and not {piece.rows}, {piece.size:,} ({piece.sha256[:12]})"
                rows += count
            if (rows, hasher.hexdigest()) != (split.rows, split.sha256):
                return f"its pieces are not the rows of its {name} split"
        return ""
