"""What goes from one place to another in a push or a fetch, in words."""

from __future__ import annotations

from dataclasses import dataclass

from llmos_cli.core.view import Line, Span, size
from llmos_cli.operations.summary import shown_id


@dataclass(frozen=True)
class MovedRef:
    """`before` is empty for a new one, `checkpoint` for one that is there no more."""

    ref: str
    before: str
    checkpoint: str

    @property
    def told(self) -> Line:
        kind, _, name = self.ref.partition("/")
        kind = {"heads": "branch", "tags": "tag"}.get(kind, kind)
        if not self.checkpoint:
            return [f"{kind} ", Span(name, "name"), " is there no more; it was at ", shown_id(self.before)]
        came = [" from ", shown_id(self.before), " to "] if self.before else [" is new, at "]
        # No colon after it: a tag may be called `secret`, and what follows that would be hidden.
        return [f"{kind} ", Span(name, "name"), *came, shown_id(self.checkpoint)]


@dataclass(frozen=True)
class Cargo:
    """`checkpoints` with weights, `lineage` manifests alone, `sealed` encrypted; `bytes` of the files that moved; `snapshots` of data."""

    remote: str
    url: str
    refs: tuple[MovedRef, ...]
    checkpoints: int
    lineage: int
    runs: int
    files: int
    bytes: int
    dry_run: bool
    signatures: int = 0
    sealed: int = 0
    snapshots: int = 0

    def parts(self) -> list[str]:
        """Of what kinds how much, but for refs; empty where no file moved."""
        several = (self.checkpoints, "checkpoint"), (self.sealed, "sealed checkpoint")
        told = " and ".join(counted(count, what) for count, what in several if count)
        return [
            *([f"{told} ({self.files} files, {size(self.bytes)})"] if told else ()),
            *([counted(self.lineage, "manifest") + " without weights"] if self.lineage else ()),
            *([counted(self.runs, "run")] if self.runs else ()),
            *([counted(self.signatures, "signature")] if self.signatures else ()),
            *([counted(self.snapshots, "data snapshot")] if self.snapshots else ()),
        ]


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
