"""A remote as others ask for it: what it has, its manifests, runs and refs, and how a ref is moved there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.remote import hostile, layout
from llmos_cli.core.remote.parallel import in_parallel
from llmos_cli.core.remote.store import Store
from llmos_cli.errors import Corrupt, NotFound, UsageError


@dataclass(frozen=True)
class RemoteRef:
    """`number`: how often it was moved; 0 where it never was. `value` is None where there is none (any more)."""

    ref: str
    number: int
    value: str | None


class Remote:
    """`url` is what users know the place by."""

    def __init__(self, name: str, url: str, store: Store) -> None:
        self.name = name
        self.url = url
        self.store = store

    @cached_property
    def is_begun(self) -> bool:
        """Whether anything was ever pushed to it; an error where what is there is not a remote of ours."""
        text = self.store.read(layout.FORMAT_FILE, hostile.REF_LIMIT)
        if text is not None:
            layout.check_format(text, self.url)
            return True
        names = self.store.names("")
        if ".llmos/HEAD" in names:
            raise UsageError(f"{self.url} is a workspace", hint="push from it to a folder of its own, and name that")
        if others := [name for name in names if not name.startswith(f"{layout.UPLOADS}/")]:
            raise UsageError(
                f"{self.url} holds other things already ({min(others)[:60]})",
                hint="name an empty folder for a new remote",
            )
        return False

    def must_be_begun(self) -> None:
        if not self.is_begun:
            raise NotFound(
                f"nothing was ever pushed to {self.url}", hint="`llmos push` from the workspace that has something"
            )

    def begin(self) -> None:
        if not self.is_begun:
            self.store.create(layout.FORMAT_FILE, layout.format_text())
            self.__dict__["is_begun"] = True

    @cached_property
    def checkpoints(self) -> set[str]:
        """Names of the manifests whose objects are all there."""
        return self.store.names(layout.CHECKPOINTS) if self.is_begun else set()

    @cached_property
    def lineage(self) -> set[str]:
        return self.store.names(layout.LINEAGE) if self.is_begun else set()

    @cached_property
    def runs(self) -> set[str]:
        return self.store.names(layout.RUNS) if self.is_begun else set()

    def has_weights(self, checkpoint: str) -> bool:
        return f"{checkpoint}.json" in self.checkpoints

    def has_manifest(self, checkpoint: str) -> bool:
        return self.has_weights(checkpoint) or f"{checkpoint}.json" in self.lineage

    def has_run(self, run: str) -> bool:
        return f"{run}.json" in self.runs

    def manifest(self, checkpoint: str) -> Manifest:
        weights = self.has_weights(checkpoint)
        name = layout.checkpoint_name(checkpoint) if weights else layout.lineage_name(checkpoint)
        text = self.store.read(name, hostile.MANIFEST_LIMIT)
        if text is None:
            raise Corrupt(
                f"{self.name} has lost the manifest of {checkpoint[:12]}, which a ref or a child of it names",
                hint="`llmos push --force` from a workspace that has it sends it again",
            )
        return hostile.read_manifest(text, checkpoint)

    def run(self, name: str) -> tuple[str, str, dict[str, FileEntry]]:
        text = self.store.read(f"{layout.RUNS}/{name}", hostile.MANIFEST_LIMIT)
        return hostile.read_run(text or b"")

    def refs(self) -> dict[str, RemoteRef]:
        """Branches and tags, deleted ones too: who makes one of that name again goes on counting."""
        last: dict[str, str] = {}
        for name in self.store.names(layout.REFS) if self.is_begun else ():
            folder, _, number = name.rpartition("/")
            if len(number) == 8 and number.isdigit() and folder:
                last[folder] = max(number, last.get(folder, ""))
        found = in_parallel(lambda item: self._ref(*item), list(last.items()))
        return {ref.ref: ref for ref in sorted(found, key=lambda ref: ref.ref)}

    def _ref(self, folder: str, number: str) -> RemoteRef:
        text = self.store.read(f"{layout.REFS}/{folder}/{number}", hostile.REF_LIMIT)
        ref, value = hostile.read_ref(text or b"")
        if layout.ref_name(ref, int(number)) != f"{layout.REFS}/{folder}/{number}":
            raise Corrupt(f"the ref {ref} stands under another name on {self.name}", hint="ask who can write there")
        return RemoteRef(ref, int(number), value)

    def move(self, before: RemoteRef, value: str | None) -> bool:
        """Compare and swap: False where somebody else moved it after `before` was read."""
        text = json.dumps({"ref": before.ref, "value": value}) + "\n"
        return self.store.create(layout.ref_name(before.ref, before.number + 1), text.encode())
