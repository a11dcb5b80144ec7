"""What comes from a remote is believed only after it was looked at: names that lead elsewhere, sizes that cannot be, manifests
that are not what their id says. All of this is refused before a byte is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from llmos_cli import errors
from llmos_cli.core import lost, manifest, names, records, signatures, snapshots
from llmos_cli.core.listing import read_bytes
from llmos_cli.core.lost import Loss
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.refs import HEADS, ID, TAGS, check_name
from llmos_cli.core.remote import layout
from llmos_cli.core.remote.vouching import Vouching
from llmos_cli.core.seal import Seal, belongs
from llmos_cli.core.seal import parse as parse_seal
from llmos_cli.core.snapshots import Snapshot
from llmos_cli.errors import Corrupt, LlmosError, UsageError

MANIFEST_LIMIT = 64 << 20
"""Bytes: a model of 100,000 files has a manifest of 15 MB."""
REF_LIMIT = 4096
_LARGEST = 1 << 50
_PIECE = 1 << 32
"""Bytes of a piece of a snapshot, which is read as a whole."""
_RUN = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z0-9_-]{1,40}-[0-9a-f]{4,16}")
UNREADABLE = (*errors.UNREADABLE, LlmosError)
RENAME = "nothing was written; give one of them another name where this came from and send it again, or ask who can write there"
AGAIN = (
    "`llmos fsck --remote NAME --repair`, where a workspace has this remote and what is damaged there, sends it again"
)
HINT = "nothing was written; whoever can write to the remote can put such things there, so ask who did"


def read_manifest(text: bytes, checkpoint: str | None = None) -> Manifest:
    """A manifest whose hash is its id (`checkpoint`, where that is known) and whose names stay inside its folder."""
    what = f"the manifest of {checkpoint[:12]}" if checkpoint else "a manifest"
    try:
        found = manifest.parse(text)
        right = manifest.identify(found.tree, found.made) == found.id == (checkpoint or found.id)
        right = right and found.keeps_its_hash
    except UNREADABLE as error:
        raise Corrupt(f"{what} on the remote makes no sense: {_told(error)}", hint=HINT) from error
    if not right:
        raise Corrupt(f"{what} on the remote was altered: its hash is not its id", hint=HINT)
    if not all(ID.fullmatch(parent) for parent in found.made.parents):
        raise Corrupt(f"{what} on the remote names a parent that is no id", hint=HINT)
    check_tree(found.tree, what)
    if manifest.NAME in map(names.folded, found.tree):
        raise Corrupt(f"{what} has itself among its files", hint=HINT)
    return found


def read_seal(text: bytes, found: Manifest) -> Seal:
    """That of the checkpoint: encrypted files of the sizes that its own must have then."""
    what = f"the seal of {found.id[:12]}"
    try:
        seal = parse_seal(text, found.id)
    except UNREADABLE as error:
        raise Corrupt(f"{what} on the remote makes no sense: {_told(error)}", hint=HINT) from error
    if not belongs(seal, found):
        raise Corrupt(f"{what} on the remote lists other files than the manifest", hint=HINT)
    return seal


def read_loss(text: bytes) -> Loss:
    """It says itself whose it is."""
    if (found := lost.parse(text)) is None:
        raise Corrupt("what the remote says of a checkpoint that was given up makes no sense", hint=HINT)
    return found


def read_signature(text: bytes, checkpoint: str) -> Vouching:
    """That of the checkpoint as far as it says itself; whether it is true takes a key. Of before there was `replaces` it replaced none."""
    what = f"the signature of {checkpoint[:12]}"
    try:
        value = layout.parse(text)
        named, bundle, replaces = value["checkpoint"], value["bundle"], frozenset(value.get("replaces", ()))
        signatures.parse(bundle, what)
        if not all(map(ID.fullmatch, replaces)):
            raise ValueError("what it replaced are no hashes")
    except UNREADABLE as error:
        raise Corrupt(f"{what} on the remote makes no sense: {_told(error)}", hint=HINT) from error
    if named != checkpoint or len(bundle) > signatures.LIMIT:
        raise Corrupt(f"{what} on the remote is that of another, or larger than one can be", hint=HINT)
    return Vouching(str(bundle), replaces)


def read_snapshot(text: bytes, snapshot: str) -> Snapshot:
    """What says that it is this snapshot; whether its pieces are its rows is known when they are here."""
    what = f"snapshot {snapshot[:12]}"
    try:
        found = snapshots.parse(text)
        right = snapshots.identify(found.fingerprint) == found.id == snapshot
        sound = found.source.isprintable() and all(map(str.isidentifier, _words(found)))
    except UNREADABLE as error:
        raise Corrupt(f"{what} on the remote makes no sense: {_told(error)}", hint=HINT) from error
    if not (right and sound and all(size <= _PIECE for size in found.pieces.values())):
        raise Corrupt(f"{what} on the remote was altered, or no snapshot can be so", hint=HINT)
    return found


def _words(found: Snapshot) -> Iterator[str]:
    for name, split in found.splits.items():
        yield from (name, *split.columns)


def check_tree(tree: Mapping[str, FileEntry], what: str) -> None:
    """Every name is a plain relative path of its own, on whatever file system; every size can be."""
    for name, entry in tree.items():
        if not ID.fullmatch(entry.sha256) or not 0 <= entry.size <= _LARGEST:
            raise Corrupt(f"{what} gives {name!r} an impossible hash or size ({entry.size:,} bytes)", hint=HINT)
    if why := names.wrong(tree):
        raise Corrupt(f"{what} {why}", hint=RENAME)


def is_id(text: str) -> bool:
    return bool(ID.fullmatch(text))


def read_ref(text: bytes) -> tuple[str, str | None]:
    """A ref's name and what it names; None: it was deleted."""
    try:
        value = layout.parse(text)
        ref, checkpoint = value["ref"], value["value"]
        kind = HEADS if ref.startswith(HEADS) else TAGS
        check_name("ref", ref.removeprefix(kind))
    except UNREADABLE as error:
        raise Corrupt(f"a ref on the remote makes no sense: {_told(error)}", hint=HINT) from error
    if not ref.startswith(kind) or not (
        checkpoint is None or (isinstance(checkpoint, str) and ID.fullmatch(checkpoint))
    ):
        raise Corrupt(f"the ref {ref!r} on the remote names {str(checkpoint)[:80]!r}", hint=HINT)
    return ref, checkpoint


def read_run(text: bytes) -> tuple[str, str, dict[str, FileEntry]]:
    """A run's id, the checkpoint that it committed (or "") and its files."""
    try:
        value = layout.parse(text)
        run, checkpoint = str(value["run"]), str(value["checkpoint"])
        tree = {str(name): FileEntry(str(e["sha256"]), int(e["size"])) for name, e in value["tree"].items()}
    except UNREADABLE as error:
        raise Corrupt(f"a run on the remote makes no sense: {_told(error)}", hint=HINT) from error
    if not _RUN.fullmatch(run) or (checkpoint and not ID.fullmatch(checkpoint)):
        raise Corrupt(f"a run on the remote is called {run[:80]!r}", hint=HINT)
    check_tree(tree, f"run {run}")
    if any(name.split("/")[0].casefold() == "state" for name in tree):
        raise Corrupt(f"run {run} on the remote brings a state to be resumed from", hint=HINT)
    return run, checkpoint, tree


def check_events(path: Path, run: str) -> None:
    """The events of a run that is over, of which the index can make rows: else every later command would stumble over it."""
    if why := wrong_events(path):
        raise Corrupt(f"run {run} on the remote: {why}", hint=HINT)


def wrong_events(path: Path) -> str | None:
    """Why these are not the events of a run that is over; None where they are."""
    ended = False
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        if not line:
            continue
        event = records.parse(line)
        if event is None or event.get("status") == "running":
            return f"line {number} of its events makes no sense"
        ended = event["event"] == "ended" or (ended and event["event"] != "started")
    return None if ended else "it never ended"


def _told(error: BaseException) -> str:
    return (error.message if isinstance(error, LlmosError | UsageError) else f"{type(error).__name__} {error}")[:120]
