"""fsck of what is sealed: encrypted files against the hashes in their seals, by anybody; what they decrypt to, by who has the key."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from llmos_cli.core.cipher import Cipher
from llmos_cli.core.key import VARIABLE, given_key
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.seal import Seal, belongs
from llmos_cli.core.view import short
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, Untrusted
from llmos_cli.operations.integrity.problem import Problem
from llmos_cli.operations.sealing import damaged

Hash = Callable[[Path], FileEntry]


class Sealing:
    """`sealed`: ids of those that are to be whole. `count`: how many checkpoints are sealed, `opened`: of how many the key was at hand and was used."""

    def __init__(self, ws: Workspace, sealed: Iterable[str], key_file: Path | None) -> None:
        self._ws = ws
        self._ids = sorted(sealed)
        self._key = key_at_hand(key_file) if self._ids else None
        self.files = [(sha256, Path(entry.path)) for sha256, entry in ws.sealed.names()]
        self.count = len(self._ids)
        self.opened = 0
        self._fits: list[bool] = []
        """Of each seal that can be read, whether the key is its: however damaged the files are, the seal tells."""

    @property
    def unopened(self) -> int:
        """Of how many the key was at hand, and the files are damaged."""
        return sum(self._fits) - self.opened

    def problems(self, hash_of: Hash) -> Iterator[Problem]:
        found = {sha256: hash_of(path) for sha256, path in self.files}
        named = self._named()
        for checkpoint in self._ids:
            if (self._ws.checkpoints / checkpoint).is_dir():
                yield from self._of(checkpoint, found)
        for sha256, path in self.files:
            if sha256 not in named and found[sha256].sha256 != sha256:
                yield Problem(
                    self._where(path), "has other bytes than its name says, and no seal names it: --repair removes it"
                )

    def must_fit(self, key_file: Path | None) -> None:
        if key_file is not None and self._fits and not any(self._fits):
            raise Untrusted(
                f"the key in {key_file} is that of no sealed checkpoint",
                hint="without a key the encrypted files alone are checked",
            )

    def _named(self) -> set[str]:
        """Also in seals of what was removed, or given up: what is damaged of that hurts nobody."""
        named = set[str]()
        for each in self._ws.sealed.all():
            with suppress(Corrupt):
                named |= {entry.sha256 for entry in self._ws.sealed.seal(each).tree.values()}
        return named

    def _of(self, checkpoint: str, found: dict[str, FileEntry]) -> Iterator[Problem]:
        where = self._where(self._ws.sealed.directory / f"{checkpoint}.json")
        try:
            seal = self._ws.sealed.seal(checkpoint)
        except Corrupt as error:
            yield Problem(where, error.message, checkpoint)
            return
        cipher = seal.cipher(self._key) if self._key else None
        self._fits.append(cipher is not None)
        try:
            manifest = self._ws.manifest(checkpoint)
        except Corrupt:
            return  # told with its checkpoint
        if not belongs(seal, manifest):
            yield Problem(where, "lists other files than the manifest", checkpoint)
            return
        bad = {name: what for name, entry in seal.tree.items() if (what := _difference(found.get(entry.sha256), entry))}
        for name, what in bad.items():
            place = self._where(self._ws.sealed.path(seal.tree[name].sha256))
            yield Problem(place, f"{what} ({name} of {short(checkpoint)}, encrypted)", checkpoint, name)
        if cipher is not None and not bad:
            yield from self._inside(manifest, seal, cipher)

    def _inside(self, manifest: Manifest, seal: Seal, cipher: Cipher) -> Iterator[Problem]:
        self.opened += 1
        for name in damaged(self._ws, manifest, seal, cipher):
            where = f"checkpoints/{short(manifest.id)}/{name}"
            yield Problem(where, "is not what was saved, once it is decrypted", manifest.id)

    def _where(self, path: Path) -> str:
        return str(path.relative_to(self._ws.root))


def way_back(checkpoint: str) -> str:
    """Of what is damaged, and what a remote has in the clear."""
    rev = short(checkpoint)
    return (
        "`llmos fsck --repair --key-file FILE` seals it anew, with its key; without, "
        f"`llmos rm --force {rev}` and `llmos fetch --weights {rev}` bring it back open"
    )


def key_at_hand(key_file: Path | None) -> bytes | None:
    """Nobody is asked for one."""
    if key_file is None and VARIABLE not in os.environ:
        return None
    return given_key(key_file, lambda _: None)


def _difference(found: FileEntry | None, entry: FileEntry) -> str:
    if found is None:
        return "is missing"
    return "" if found == entry else "has other bytes than were written"
