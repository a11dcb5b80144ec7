"""What `fsck` found, and how it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from llmos_cli.core.audit import Break
from llmos_cli.core.view import Group, Lines, Table, View, size
from llmos_cli.operations.audit import told_break
from llmos_cli.operations.cargo import counted
from llmos_cli.operations.integrity.giving_up import GivenUp
from llmos_cli.operations.integrity.problem import GivenUpFile, Problem, Repaired
from llmos_cli.operations.integrity.sharing_again import Denied

_INDEX_DIFFERED = {
    True: "the index differed from the files, and was made anew",
    False: "the index differs from the files, and was not used: `llmos fsck` makes it anew where it may write",
}


@dataclass(frozen=True)
class FsckResult:
    """`index_differed` from the files, and was made anew where the workspace can be written; `repaired`: what was damaged before, and where good bytes were;
    `sealed`: how many checkpoints are, `opened`: how many of them the key at hand opens, which were decrypted and compared too."""

    checkpoints: int
    files: int
    bytes: int
    problems: tuple[Problem, ...]
    index_differed: bool = False
    repaired: tuple[Repaired, ...] = ()
    index_made_anew: bool = False
    sealed: int = 0
    opened: int = 0
    unopened: int = 0
    """Sealed ones of which the key at hand is that, and that it does not open: they are damaged."""
    given_up: tuple[GivenUp, ...] = ()
    """What is lost for good, and no damage since somebody said so (`--accept-loss`)."""
    given_up_files: tuple[GivenUpFile, ...] = ()
    audit_breaks: tuple[Break, ...] = ()
    unshared: Mapping[str, int] = field(default_factory=dict)
    """Checkpoint -> bytes that share nothing with an object: no damage, but `du` counts on it."""
    denied: Denied = field(default_factory=Denied)
    """What of that this user cannot link, and who can."""
    lost: tuple[str, ...] = ()
    """Checkpoints that repairing did not bring back, or not the weights of: what `--accept-loss` gives up."""
    lost_called: str = ""
    """The first of these, by as many digits as tell it from all that are here."""
    clear: Mapping[str, str] = field(default_factory=dict)
    """Sealed checkpoints that are damaged -> the name of a remote that has them in the clear: what the key of the seal repairs."""

    @property
    def sentence(self) -> str:
        count = len(self.problems)
        hurt = sorted({name for problem in self.problems for name in problem.hurts})
        return f"{count} thing{'s are' if count > 1 else ' is'} damaged" + (
            f"; hurt: {', '.join(hurt)}" if hurt else ""
        )

    def view(self) -> View:
        checkpoints, files = counted(self.checkpoints, "checkpoint"), counted(self.files, "file")
        checked = f"{checkpoints}, {files}, {size(self.bytes)} hashed"
        rows = [[each.where, each.what, ", ".join(each.hurts)] for each in self.problems]
        verdict = f"{len(rows)} damaged" if rows else "everything is as it was saved"
        return Group(
            [
                Lines([each.told for each in self.repaired]),
                _INDEX_DIFFERED[self.index_made_anew] if self.index_differed else "",
                Table(["where", "what", "hurts"], rows, align="lll") if rows else "",
                Lines(
                    [
                        *(each.told for each in self.given_up),
                        *(each.told for each in self.given_up_files),
                        *map(told_break, self.audit_breaks),
                    ]
                ),
                Lines(
                    [*self._told_unshared(), f"{checked}: {verdict}", *([self._told_sealed()] if self.sealed else [])]
                ),
            ]
        )

    def _told_unshared(self) -> Iterator[str]:
        if self.unshared:
            of = f"{size(sum(self.unshared.values()))} of {counted(len(self.unshared), 'checkpoint')}"
            yield f"{of} share nothing with .llmos/objects: what is equal would be stored again, and `du` takes it for shared; {self._told_links()}"

    def _told_links(self) -> str:
        """Only what --repair will do for this user."""
        if not self.denied.size:
            return "--repair links them"
        if self.denied.size == sum(self.unshared.values()):
            return f"--repair by {self.denied.who} or root links them"
        return f"--repair links them, but for {size(self.denied.size)}, which it links for {self.denied.who} or root"

    def _told_sealed(self) -> str:
        """What this says of what cannot be read."""
        rest = self.sealed - self.opened - self.unopened
        inside = [f"{self.opened} decrypted and compared with the manifest"] if self.opened else []
        inside += [f"{self.unopened} not decrypted, being damaged"] if self.unopened else []
        inside += [f"{rest} not decrypted: --key-file or LLMOS_KEY would"] if rest else []
        return f"{self.sealed} sealed, {', '.join(inside)}"
