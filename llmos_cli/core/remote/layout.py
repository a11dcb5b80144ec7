"""What stands where in a remote.

    llmos.json               {"llmos": "remote", "format": 1}
    objects/aa/bb...         a file's bytes under their SHA-256
    checkpoints/<id>.json    a manifest all of whose objects are there
    lineage/<id>.json        a manifest alone: its weights were removed before it was sent, or are sealed
    sealed/<id>.json         a seal, where the checkpoint was sealed when it was sent: its encrypted files are objects
    lost/<id>.json           what the checkpoint came from, which was given up where it was pushed from; counts where no manifest is
    signatures/<id>.json     {"checkpoint", "bundle"}: who vouches for a checkpoint
    runs/<run>.json          {"run", "checkpoint", "tree"}: the files of a run, which are objects too
    snapshots/<id>.json      rows of data that a checkpoint was made with; their pieces are objects (`push --data`)
    results/<key>.json       what a stage of a pipeline made (`llmos run --cache-dir`)
    refs/<ref>/00000007      {"ref", "value"}: what a branch or tag was moved to for the seventh time
    backups/<time>.json      what a whole workspace was at one moment; see `backups.py`
    uploads/                 uploads that were cut off

What is JSON of one line has a `hash` of that line, as it is with the empty text in its place; before there was one it had none.
Where a remote is encrypted (`vault.py`), the parts after the first are HMACs, and its format file says so.

A ref is a row of small files, each created exclusively: the last one counts. So two who move it at once are told apart by
the one thing that every decent store can do, a reader never sees half of a move, and nobody holds a lock that outlives him.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmos_cli.core.hashed import place
from llmos_cli.errors import UNREADABLE, Corrupt, LlmosError

FORMAT = 1
FORMAT_FILE = "llmos.json"
OBJECTS = "objects"
CHECKPOINTS = "checkpoints"
LINEAGE = "lineage"
SEALED = "sealed"
LOST = "lost"
SIGNATURES = "signatures"
RUNS = "runs"
SNAPSHOTS = "snapshots"
LOST_MOVES = 10_000
"""Files of a ref's row that may be missing one after another. Refs are moved by adding a file of the next number: what goes further
was not written by llmos, and who went on counting from there would come to names that nobody reads."""
UNCOUNTED = "was not put there by llmos, which counts by one: take that file away there"
RESULTS = "results"
REFS = "refs"
BACKUPS = "backups"
UPLOADS = "uploads"
"""What a store may have left of uploads that were cut off: no part of the remote."""
TELLING = tuple(f"{kind}/" for kind in (CHECKPOINTS, LINEAGE, BACKUPS))
"""Only remotes have folders that are called so."""
_PLAIN = re.compile(r"[a-z0-9._-]")


def object_name(sha256: str) -> str:
    return f"{OBJECTS}/{place(sha256)}"


def checkpoint_name(checkpoint: str) -> str:
    return f"{CHECKPOINTS}/{checkpoint}.json"


def lineage_name(checkpoint: str) -> str:
    return f"{LINEAGE}/{checkpoint}.json"


def seal_name(checkpoint: str) -> str:
    return f"{SEALED}/{checkpoint}.json"


def loss_name(checkpoint: str) -> str:
    return f"{LOST}/{checkpoint}.json"


def signature_name(checkpoint: str) -> str:
    return f"{SIGNATURES}/{checkpoint}.json"


def run_name(run: str) -> str:
    return f"{RUNS}/{run}.json"


def snapshot_name(snapshot: str) -> str:
    return f"{SNAPSHOTS}/{snapshot}.json"


def result_name(key: str) -> str:
    return f"{RESULTS}/{key}.json"


def backup_name(backup: str) -> str:
    return f"{BACKUPS}/{backup}.json"


def ref_name(ref: str, number: int) -> str:
    return f"{REFS}/{escaped(ref.removeprefix('refs/'))}/{number:08d}"


def beyond(numbers: Iterable[int]) -> set[int]:
    """Numbers of a ref's row that no counting came to: those after a gap of more than LOST_MOVES."""
    last, ordered = 0, sorted(numbers)
    for before, number in enumerate(ordered):
        if number - last > LOST_MOVES:
            return set(ordered[before:])
        last = number
    return set()


def escaped(ref: str) -> str:
    """One part of a path, the same on file systems that do not tell `Main` from `main`: `heads%2f%4dain`."""
    return "".join(
        char if _PLAIN.fullmatch(char) else "".join(f"%{byte:02x}" for byte in char.encode()) for char in ref
    )


def text(value: Mapping[str, Any]) -> bytes:
    """A file of one line, with the hash of itself."""
    digest = hashlib.sha256(_line({**value, "hash": ""})).hexdigest()
    return _line({**value, "hash": digest})


def parse(line: bytes) -> dict[str, Any]:
    """What such a file says, without the hash; ValueError where that is not its own, or another of UNREADABLE where it makes no sense."""
    value: dict[str, Any] = json.loads(line)
    said = {key: each for key, each in value.items() if key != "hash"}
    if "hash" in value and text(said) != line:
        raise ValueError("it was altered: it is not what its hash is of")
    return said


def is_written(value: Mapping[str, Any], line: bytes) -> bool:
    """Whether a file that says this (and nothing else) was written so, to the byte: with a hash or, before there was one, without."""
    former = (json.dumps(value), json.dumps(value, sort_keys=True, ensure_ascii=False))
    return line == text(value) or line in [each.encode() + b"\n" for each in former]


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"


def format_text(encryption: Mapping[str, str] | None = None) -> bytes:
    value = {"llmos": "remote", "format": FORMAT} | ({"encryption": dict(encryption)} if encryption else {})
    return json.dumps(value).encode() + b"\n"


def read_format(text: bytes, where: str) -> dict[str, str] | None:
    """What it says of its encryption; None where there is none."""
    try:
        value = json.loads(text)
        number, ours, encryption = int(value["format"]), value["llmos"] == "remote", value.get("encryption")
        sound = encryption is None or all(isinstance(encryption[key], str) for key in ("salt", "check"))
    except UNREADABLE:
        ours, sound, number, encryption = False, False, 0, None
    if not (ours and sound):
        raise Corrupt(f"{FORMAT_FILE} in {where} is not that of a remote", hint="name the folder that was pushed to")
    if number > FORMAT:
        raise LlmosError(
            f"{where} has format {number}, and this llmos knows formats up to {FORMAT}",
            hint="install a newer llmos: `pip install -U llmos-cli`",
        )
    return {str(key): str(said) for key, said in encryption.items()} if encryption else None
