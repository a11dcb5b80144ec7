"""A seal: what a sealed checkpoint's files are called and what they hold now, readable by everybody, with nothing in it that opens them.

    {"checkpoint", "cipher", "salt", "check", "tree": {name: {"sha256", "size"}}, "hash"}

`tree` has the names of the manifest's, and the hash and size of each file as it is encrypted. `hash` is that of all the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmos_cli.core import own_hash
from llmos_cli.core.cipher import NAME, Cipher, encrypted_size
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.refs import ID
from llmos_cli.errors import UNREADABLE, Corrupt, Untrusted


@dataclass(frozen=True)
class Seal:
    """`salt` and `check` (64 hexadecimal digits each): with them a key is told from another."""

    checkpoint: str
    salt: str
    check: str
    tree: Mapping[str, FileEntry] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all encrypted files, each once."""
        return sum({entry.sha256: entry.size for entry in self.tree.values()}.values())

    def text(self) -> str:
        """All of its file, to the byte."""
        tree = {name: {"sha256": entry.sha256, "size": entry.size} for name, entry in self.tree.items()}
        value = {
            "checkpoint": self.checkpoint,
            "cipher": NAME,
            "salt": self.salt,
            "check": self.check,
            "tree": tree,
        }
        return own_hash.line(value) + "\n"

    def cipher(self, key: bytes) -> Cipher | None:
        """None: it was sealed with another key."""
        cipher = Cipher(key, bytes.fromhex(self.salt))
        return cipher if cipher.fits(self.check) else None

    def opener(self, key: bytes) -> Cipher:
        if (cipher := self.cipher(key)) is None:
            raise Untrusted(
                f"the key is not that of {self.checkpoint[:12]}",
                hint="nothing was changed; which key was it sealed with?",
            )
        return cipher


def parse(text: bytes, checkpoint: str) -> Seal:
    """The seal of a checkpoint; Corrupt where it is not one, to the byte."""
    what = f"the seal of {checkpoint[:12]}"
    try:
        value = json.loads(text)
        tree = {str(name): FileEntry(str(e["sha256"]), int(e["size"])) for name, e in value["tree"].items()}
        found = Seal(str(value["checkpoint"]), str(value["salt"]), str(value["check"]), tree)
        whole = found.text().encode() == text
    except UNREADABLE as error:
        raise Corrupt(f"{what} makes no sense: {type(error).__name__}", hint=_HINT) from error
    hashes = (found.salt, found.check, *(entry.sha256 for entry in tree.values()))
    if not (whole and found.checkpoint == checkpoint and all(map(ID.fullmatch, hashes))):
        raise Corrupt(f"{what} was altered, or is that of another", hint=_HINT)
    return found


def belongs(seal: Seal, manifest: Manifest) -> bool:
    """Whether it is about the files that the manifest lists, each as large as it must be."""
    sizes = {name: encrypted_size(entry.size) for name, entry in manifest.tree.items()}
    return seal.checkpoint == manifest.id and {name: entry.size for name, entry in seal.tree.items()} == sizes


def name_of(sha256: str) -> str:
    """What the file with this content is called where it is encrypted: another key for each content."""
    return f"sealed/{sha256}"


_HINT = "a backup or a remote may have it whole; `llmos fsck` tells what else is damaged"
