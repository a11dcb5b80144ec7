"""A remote as others ask for it: what it has, its manifests, runs and refs, and how a ref is moved there."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from llmos_cli.core import signatures
from llmos_cli.core.cipher import NAME, SALT
from llmos_cli.core.lost import Loss
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.remote import hostile, layout
from llmos_cli.core.remote.parallel import in_parallel
from llmos_cli.core.remote.store import Store
from llmos_cli.core.remote.vault import Vault
from llmos_cli.core.remote.vouching import Vouching
from llmos_cli.core.seal import Seal
from llmos_cli.core.snapshots import Snapshot
from llmos_cli.errors import Corrupt, NotFound, Untrusted, UsageError

_WHO = "ask who can write there"


@dataclass(frozen=True)
class RemoteRef:
    """`number`: how often it was moved; 0 where it never was. `value` is None where there is none (any more)."""

    ref: str
    number: int
    value: str | None


class Remote:
    """`url` is what users know the place by; with a `key` (32 bytes) all but the format file is encrypted."""

    def __init__(self, name: str, url: str, store: Store, key: bytes | None = None) -> None:
        self.name = name
        self.url = url
        self.store = store
        self._key = key
        self._vault: Vault | None = None

    @cached_property
    def is_begun(self) -> bool:
        """Whether anything was ever pushed to it; an error where what is there is not a remote of ours, or the key not its own."""
        text = self.store.read(layout.FORMAT_FILE, hostile.REF_LIMIT)
        if text is not None:
            self._unlock(layout.read_format(text, self.url))
            return True
        if self.store.size(".llmos/HEAD") is not None:
            raise UsageError(f"{self.url} is a workspace", hint="push from it to a folder of its own, and name that")
        if others := [name for name in self.names("") if not name.startswith(f"{layout.UPLOADS}/")]:
            if any(name.startswith(layout.TELLING) for name in others):
                raise Corrupt(
                    f"{layout.FORMAT_FILE} is missing in {self.url}, which holds all else that a remote does",
                    hint="`llmos fsck --remote NAME --repair` writes it again; that of an encrypted remote has a salt that is "
                    "nowhere else: put it back from a copy",
                )
            raise UsageError(
                f"{self.url} holds other things already ({min(others)[:60]})",
                hint="name an empty folder for a new remote",
            )
        return False

    @cached_property
    def is_encrypted(self) -> bool | None:
        """Whether all that was pushed to it is; None where nothing was."""
        text = self.store.read(layout.FORMAT_FILE, hostile.REF_LIMIT)
        return None if text is None else layout.read_format(text, self.url) is not None

    def must_be_ours(self) -> None:
        """Or empty: an error where it is neither, or the key not its own."""
        _ = self.is_begun

    def must_be_begun(self) -> None:
        if not self.is_begun:
            raise NotFound(
                f"nothing was ever pushed to {self.url}", hint="`llmos push` from the workspace that has something"
            )

    def begin(self) -> None:
        if self.is_begun:
            return
        encryption = None
        if self._key is not None:
            salt = os.urandom(SALT)
            encryption = {
                "cipher": NAME,
                "salt": salt.hex(),
                "check": Vault(self.store, self._key, salt).check(),
            }
        self.store.create(layout.FORMAT_FILE, layout.format_text(encryption))
        del self.__dict__["is_begun"]
        self.must_be_begun()  # another may have begun it a moment earlier, with another salt

    def _unlock(self, encryption: Mapping[str, str] | None) -> None:
        if self._key is None and encryption is None:
            return
        if encryption is None:
            raise Untrusted(
                f"{self.url} is not encrypted, and there is a key for it",
                hint="whoever can write there may have replaced it; an unencrypted remote is added, and cloned, without a key",
            )
        if self._key is None:
            raise Untrusted(
                f"{self.url} is encrypted",
                hint="`--key-file FILE` says where its key is, `--encrypted` that LLMOS_KEY has it, in `clone`, `restore` and `remote add`: "
                "where one was added without, `llmos remote rm` it first",
            )
        try:
            vault = Vault(self.store, self._key, bytes.fromhex(encryption["salt"]))
        except ValueError:
            raise Corrupt(
                f"{layout.FORMAT_FILE} in {self.url} makes no sense", hint="ask who can write there"
            ) from None
        if not hmac.compare_digest(vault.check(), encryption["check"]):
            raise Untrusted(
                f"the key is not that of {self.url}", hint="nothing was read or written; which key was it pushed with?"
            )
        self.store = self._vault = vault

    @cached_property
    def checkpoints(self) -> set[str]:
        """Names of the manifests whose objects are all there."""
        return self.names(layout.CHECKPOINTS) if self.is_begun else set()

    @cached_property
    def lineage(self) -> set[str]:
        return self.names(layout.LINEAGE) if self.is_begun else set()

    @cached_property
    def sealed(self) -> set[str]:
        return self.names(layout.SEALED) if self.is_begun else set()

    @cached_property
    def runs(self) -> set[str]:
        return self.names(layout.RUNS) if self.is_begun else set()

    @cached_property
    def signatures(self) -> set[str]:
        return self.names(layout.SIGNATURES) if self.is_begun else set()

    @cached_property
    def snapshots(self) -> set[str]:
        return self.names(layout.SNAPSHOTS) if self.is_begun else set()

    def has_snapshot(self, snapshot: str) -> bool:
        return bool(self.snapshots) and self._is_in(self.snapshots, layout.snapshot_name(snapshot))

    def snapshot(self, snapshot: str) -> Snapshot:
        """Of one that is there."""
        text = self.store.read(layout.snapshot_name(snapshot), hostile.MANIFEST_LIMIT)
        return hostile.read_snapshot(text or b"", snapshot)

    def has_weights(self, checkpoint: str) -> bool:
        return self._is_in(self.checkpoints, layout.checkpoint_name(checkpoint))

    def has_manifest(self, checkpoint: str) -> bool:
        return self.has_weights(checkpoint) or self._is_in(self.lineage, layout.lineage_name(checkpoint))

    def has_seal(self, checkpoint: str) -> bool:
        return bool(self.sealed) and self._is_in(self.sealed, layout.seal_name(checkpoint))

    def seal(self, manifest: Manifest) -> Seal:
        """Of a checkpoint that has one there."""
        return hostile.read_seal(
            self.store.read(layout.seal_name(manifest.id), hostile.MANIFEST_LIMIT) or b"", manifest
        )

    @cached_property
    def lost(self) -> dict[str, Loss]:
        """What was given up where it was pushed from, and has no manifest here."""
        found = map(hostile.read_loss, self.all_in(layout.LOST))
        return {each.checkpoint: each for each in found if not self.has_manifest(each.checkpoint)}

    def has_signature(self, checkpoint: str) -> bool:
        return bool(self.signatures) and self._is_in(self.signatures, layout.signature_name(checkpoint))

    def signature(self, checkpoint: str) -> Vouching | None:
        """The text of its bundle, which nobody has verified."""
        text = self.store.read(layout.signature_name(checkpoint), 2 * signatures.LIMIT)
        return None if text is None else hostile.read_signature(text, checkpoint)

    def has_run(self, run: str) -> bool:
        return self._is_in(self.runs, layout.run_name(run))

    def files_of_run(self, run: str) -> dict[str, FileEntry]:
        """Of one that is there."""
        text = self.store.read(layout.run_name(run), hostile.MANIFEST_LIMIT)
        return hostile.read_run(text or b"")[2]

    def names(self, folder: str) -> set[str]:
        """But for what an operating system puts everywhere, as in a workspace (`listing.py`)."""
        return {name for name in self.store.names(folder) if not f"/{name}".count("/.")}

    def _is_in(self, listed: set[str], name: str) -> bool:
        return self.stored(name).partition("/")[2] in listed

    def stored(self, name: str) -> str:
        """What a file is called where it stands."""
        return self._vault.stored(name) if self._vault else name

    def read_listed(self, name: str, limit: int) -> bytes:
        """Of a file that was found by listing; where names are hidden only its content says which it is."""
        return (self._vault.read_stored(name, limit) if self._vault else self.store.read(name, limit)) or b""

    def chunks_listed(self, name: str) -> Iterator[bytes]:
        """As `read_listed`, of a file of any size."""
        return self._vault.chunks_stored(name) if self._vault else self.store.chunks(name, 0)

    def size_listed(self, name: str) -> int | None:
        """Bytes of its content."""
        return self._vault.size_stored(name) if self._vault else self.store.size(name)

    def manifest(self, checkpoint: str) -> Manifest:
        weights = self.has_weights(checkpoint)
        name = layout.checkpoint_name(checkpoint) if weights else layout.lineage_name(checkpoint)
        text = self.store.read(name, hostile.MANIFEST_LIMIT)
        if text is None:
            raise Corrupt(
                f"{self.name} has lost the manifest of {checkpoint[:12]}, which a ref or a child of it names",
                hint=hostile.AGAIN,
            )
        return hostile.read_manifest(text, checkpoint)

    def new_manifests(self, known: Iterable[str]) -> dict[str, Manifest]:
        """Id -> manifest of all that are listed but for the `known`, in one go."""
        found: dict[str, Manifest] = {}
        for listed, name in ((self.lineage, layout.lineage_name), (self.checkpoints, layout.checkpoint_name)):
            folder = name("").partition("/")[0]
            new = sorted(listed - {self.stored(name(each)).partition("/")[2] for each in known})
            texts = in_parallel(lambda each, f=folder: self.read_listed(f"{f}/{each}", hostile.MANIFEST_LIMIT), new)  # type: ignore[misc]
            for each, text in zip(new, texts, strict=True):
                manifest = hostile.read_manifest(text)
                if self.stored(name(manifest.id)) != f"{folder}/{each}":
                    raise Corrupt(
                        f"the manifest of {manifest.id[:12]} stands under another name on {self.name}", hint=_WHO
                    )
                found[manifest.id] = manifest
        return found

    def new_runs(self, known: Iterable[str]) -> list[tuple[str, str, dict[str, FileEntry]]]:
        """Of all runs that are listed but for the `known`: id, the checkpoint that it committed, files."""
        new = sorted(self.runs - {self.stored(layout.run_name(run)).partition("/")[2] for run in known})
        texts = in_parallel(lambda each: self.read_listed(f"{layout.RUNS}/{each}", hostile.MANIFEST_LIMIT), new)
        found = [hostile.read_run(text) for text in texts]
        for (run, _, _), each in zip(found, new, strict=True):
            if self.stored(layout.run_name(run)) != f"{layout.RUNS}/{each}":
                raise Corrupt(f"run {run} stands under another name on {self.name}", hint=_WHO)
        return found

    def all_in(self, folder: str) -> list[bytes]:
        """The contents of all small files of a folder."""
        names = sorted(self.names(folder)) if self.is_begun else []
        return in_parallel(lambda each: self.read_listed(f"{folder}/{each}", hostile.MANIFEST_LIMIT), names)

    def object(self, entry: FileEntry) -> Iterator[bytes]:
        """Of an object that fits into memory; Corrupt at its end where it is not what its name says."""
        digest, size = hashlib.sha256(), 0
        for chunk in self.store.chunks(layout.object_name(entry.sha256), 0):
            digest.update(chunk)
            size += len(chunk)
            if size > entry.size:
                break
            yield chunk
        if (digest.hexdigest(), size) != (entry.sha256, entry.size):
            raise Corrupt(f"object {entry.sha256[:12]} on {self.name} is not what its name says", hint=hostile.AGAIN)

    def refs(self) -> dict[str, RemoteRef]:
        """Branches and tags, deleted ones too: who makes one of that name again goes on counting."""
        rows: dict[str, list[int]] = {}
        for name in self.names(layout.REFS) if self.is_begun else ():
            folder, _, number = name.rpartition("/")
            if len(number) == 8 and number.isdigit() and folder:
                rows.setdefault(folder, []).append(int(number))
        for folder, numbers in rows.items():
            if strange := layout.beyond(numbers):
                raise Corrupt(f"{layout.REFS}/{folder}/{min(strange):08d} on {self.name} {layout.UNCOUNTED}", hint=_WHO)
        found = in_parallel(lambda item: self._ref(*item), [(folder, max(row)) for folder, row in rows.items()])
        return {ref.ref: ref for ref in sorted(found, key=lambda ref: ref.ref)}

    def _ref(self, folder: str, number: int) -> RemoteRef:
        name = f"{layout.REFS}/{folder}/{number:08d}"
        ref, value = hostile.read_ref(self.read_listed(name, hostile.REF_LIMIT))
        if self.stored(layout.ref_name(ref, number)) != name:
            raise Corrupt(f"the ref {ref} stands under another name on {self.name}", hint=_WHO)
        return RemoteRef(ref, number, value)

    def move(self, before: RemoteRef, value: str | None) -> bool:
        """Compare and swap: False where somebody else moved it after `before` was read."""
        text = layout.text({"ref": before.ref, "value": value})
        return self.store.create(layout.ref_name(before.ref, before.number + 1), text)
