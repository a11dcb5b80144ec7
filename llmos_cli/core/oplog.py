"""The operation log: every move of a ref (but `runs/`, and `remotes/`, which say what was seen) is one operation, recorded with
what was before, so that it can be undone.

`.llmos/operations.jsonl` has one line per operation. An operation may change several refs and files of the workspace
(a config that `tune --apply` edits): it is written to `.llmos/pending.json` first, then carried out, then logged; one
that was cut off by a kill or a power failure is finished by the next one to take the lock. So all of it happens or none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from llmos_cli.core import access, atomic, continuity, lines, reach, reversing
from llmos_cli.core.audit import Audit, Author, author
from llmos_cli.core.dropped import Dropped
from llmos_cli.core.history import History
from llmos_cli.core.listing import must_be_plain, read_bytes, read_text
from llmos_cli.core.locks import lock
from llmos_cli.core.operation import (
    Change,
    Operation,
    blocked,
    check_secrets,
    moved_meanwhile,
    new,
    parse,
    told,
    written,
)
from llmos_cli.core.refs import DATA, FIRST, HEAD, HEADS, MOVED, RUNS, SNAPSHOTS, SYMBOLIC, Refs
from llmos_cli.core.sealed import Sealed
from llmos_cli.errors import Corrupt, LlmosError, NotFound, NotPlain
from llmos_cli.events import Emit, Note, ignore

WINDOW = 30 * 24 * 3600.0
"""Seconds for which operations protect the checkpoints they moved from and to."""
KEPT = f"{WINDOW / 86400:g}d"
"""The same as `gc` is told it."""
_BY_HAND = "moved by hand: "
"""With this begins the name of an operation that says what somebody else did."""
_TAIL = 1 << 20
"""More than one line can be, as a rule: a config file before and after."""


class OperationLog(History):
    """While `rehearsing` an operation is checked like any other, told, and not carried out."""

    def __init__(self, root: Path, dot: Path, refs: Refs) -> None:
        super().__init__(dot / "operations.jsonl")
        self.rehearsing = False
        self._root = root
        self._dot = dot
        self._refs = refs
        self._dropped = Dropped(dot)
        self._sealed = Sealed(root, dot)
        self.audit = Audit(dot)
        self._pending = dot / "pending.json"
        self._emit: Emit = ignore
        """Who holds the lock hears of what is applied within."""

    def apply(self, name: str, changes: Sequence[Change], *, emit: Emit = ignore) -> Operation:
        """Make all the changes, or none and a Conflict when something is not as `before` says."""
        return self._apply(new(name, changes), emit)

    @property
    def is_pending(self) -> bool:
        """Whether an operation is being carried out, or was cut off and will be finished."""
        return self._pending.exists()

    def settle(self, emit: Emit = ignore) -> None:
        """Finish what a killed process left half done, before anybody builds on what the refs say."""
        if self.is_pending or self._sealed.waits():
            with self.locked(emit):
                pass

    @contextlib.contextmanager
    def locked(self, emit: Emit = ignore) -> Iterator[None]:
        """Nobody else moves a ref, and nobody collects garbage, until the end of the block."""
        if self.rehearsing:
            yield
            return
        access.require_change()
        self._emit = emit
        with lock(self._dot / "locks" / "refs", emit=emit):
            for log in (self.path, *self.audit.files):  # now, while nothing is half done
                must_be_plain(log)
            if link := reach.linked(self._dot):
                raise NotPlain(
                    f"{link} is a link: nothing is changed in a workspace while that would be changed elsewhere",
                    hint="make it a folder again, with what is behind it if that is this workspace's",
                )
            self._finish_pending()
            self._sealed.tidy()
            yield

    def apply_locked(self, name: str, changes: Sequence[Change], *, run: str = "") -> Operation:
        """`apply` for a caller that is inside `locked()`. With `run`, its ref is set to what the last change names too."""
        return self._apply_locked(new(name, changes, run))

    def free_locked(self, name: str, *, drops: Sequence[str] = (), collects: Sequence[str] = ()) -> Operation:
        """Remove the weights of checkpoints, and checkpoints that nothing names, children before their parents: for good."""
        return self._apply_locked(replace(new(name, ()), drops=tuple(drops), collects=tuple(collects)))

    def seal_locked(self, name: str, *, seals: Sequence[str] = (), unseals: Sequence[str] = ()) -> Operation:
        """Seal checkpoints whose seals are expected, or open those whose files were offered (`sealed.py`)."""
        return self._apply_locked(replace(new(name, ()), seals=tuple(seals), unseals=tuple(unseals)))

    def note(self, what: str, *, emit: Emit = ignore) -> None:
        """Record for the audit what moved no ref here: something left the workspace, or came."""
        if not self.rehearsing:
            with self.locked(emit):
                self.note_locked(what)

    def note_locked(self, what: str) -> None:
        """`note` for a caller that is inside `locked()`."""
        self.audit.append(what, author())

    def undo(
        self,
        which: str | None = None,
        *,
        also: Callable[[Operation], Iterable[Change]] = lambda _: (),
        emit: Emit = ignore,
    ) -> Operation:
        """Reverse the last operation that is still in force, or the one whose id begins with `which`. What only freed is passed over.
        `also`: what goes with it that no operation made."""
        operations = list(self.operations())
        target = reversing.to_undo(operations, which)
        for flaw in continuity.flaws(self, self.audit, operations):
            if flaw.operation == target.id:
                what = flaw.ref or f"what `{target.name}` moved"
                raise Corrupt(f"{what} would go where it may never have been: {flaw.what}", hint=continuity.HINT)
        changes = [change.reversed() for change in reversed(target.changes)]
        own = {change.what for change in changes}
        changes += [change for change in also(target) if change.what not in own]
        return self._apply(new(f"undo {target.name}", changes, target.run, "undo", target.id), emit)

    def redo(self, *, emit: Emit = ignore) -> Operation:
        """Do again what the last `undo` reversed."""
        target, undone = reversing.to_redo(list(self.operations()))
        changes = [change.reversed() for change in reversed(undone.changes)]
        return self._apply(new(f"redo {target.name}", changes, target.run, "redo", target.id), emit)

    def said(self, ref: str) -> str | None:
        """What a ref says; where that makes no sense, where the log left it: what whoever overwrites it may go back to."""
        if self._refs.senseless(ref):
            return self.left().get(ref, (FIRST if ref == HEAD else None, ""))[0]
        return self._refs.read(ref)

    def _apply(self, operation: Operation, emit: Emit) -> Operation:
        with self.locked(emit):
            return self._apply_locked(operation)

    def _apply_locked(self, operation: Operation) -> Operation:
        if link := reach.link_before(self._root, self._dot, operation):
            raise NotPlain(
                f"{link} is a link, or behind one: what is there is not this workspace's, and `{operation.name}` changes nothing of it",
                hint="make it a folder of the workspace, and try again",
            )
        self._compare(operation)
        check_secrets(operation)
        if operation.kind != "do":
            self._check_there(operation)
        if self.rehearsing:
            return operation
        if (own := self._own(operation)) is not None:
            self._do(own)
        return self._do(operation)

    def _do(self, operation: Operation) -> Operation:
        """Written down, carried out and logged."""
        committed = self._refs.read(RUNS + operation.run) if operation.run else None
        marked = [checkpoint for checkpoint in operation.drops if checkpoint not in self._dropped]
        try:
            atomic.write_text(self._pending, written(operation), scratch=self._dot / "tmp")
        except LlmosError:
            if not operation.collects:  # on a full disk `gc` goes without: half of a collection hurts nobody
                raise
        try:
            self._carry_out(operation)
        except BaseException:  # a full disk or Ctrl-C: none of it happened, unless all of it did
            if self._logged(operation):
                atomic.sync_file(self.path)
                self._drop(operation)
            else:
                self._take_back(operation, committed, marked)
            self._pending.unlink(missing_ok=True)
            raise
        return operation

    def _finish_pending(self) -> None:
        try:
            operation = parse(read_bytes(self._pending))
        except FileNotFoundError:
            return
        from llmos_cli.core import finishing  # here: most find nothing pending

        if operation is None or reach.link_before(self._root, self._dot, operation):
            self._emit(Note(finishing.set_aside(self._dot, self._pending), "warning"))
            return
        finishing.sync(self._root, self._dot, operation, log=self.path)
        self._carry_out(operation)

    def _compare(self, operation: Operation) -> None:
        leaving = {change.what for change in operation.changes if change.after is None}
        made: list[Change] = []
        for change in operation.changes:
            if change.is_ref and self._refs.senseless(change.what):
                continue
            now = self._current(change)
            if (change.removes or change.loses or change.snapshot) and change.alike(now, change.after):
                continue  # what came back by itself, from a remote, and rows that were kept again are as good as undone
            if not change.alike(now, change.before):
                raise moved_meanwhile(operation, change, now)
            if change.is_ref and change.after and now is None:
                made.append(change)
                if other := self._refs.in_the_way(change.what, leaving):
                    raise blocked(change, other)
        # Whoever asked before has not had the lock since: somebody else may have made the other one.
        alike = self._refs.alike((change.what for change in made), leaving)
        for change in made:
            if other := alike.get(change.what):
                raise blocked(change, other)

    def _own(self, operation: Operation) -> Operation | None:
        """What somebody moved by hand, and this moves on, is an operation of its own before it: told, and undone like any other."""
        if not self.path.exists() or operation.name.startswith(continuity.BY_ITSELF):
            return None
        moved = [each.what for each in operation.changes if each.what == HEAD or each.what.startswith(MOVED)]
        found = [each for ref in moved if (each := self.by_hand(ref)) is not None]
        if not found:
            return None
        said = (
            f"{each.name} from {told(each.before, each.after)} to {told(each.after, each.before)}" for each in found
        )
        self._emit(
            Note(f"somebody moved {', '.join(said)}, by no command: that is an operation of its own now", "warning")
        )
        return new(f"{_BY_HAND}{', '.join(each.name for each in found)}", found)

    def by_hand(self, ref: str) -> Change | None:
        """From where the log left it to where it is. An old clone wrote HEAD and its branch by no operation."""
        if self._refs.senseless(ref):
            return None
        last, now = self.last_of(ref), self._refs.read(ref)
        before = last.after if last is not None else FIRST if ref == HEAD else None
        if now == before or (last is None and ref.startswith((HEAD, HEADS)) and continuity.is_old_clone(self.audit)):
            return None
        return Change(ref, before, now)

    def _check_there(self, operation: Operation) -> None:
        """What an old operation moved from or to, or removed, may have been freed since."""
        back = self._check_rows(operation)
        damaged = {change.loses for change in operation.changes}
        for change in operation.changes:
            removed = change.removes if change.after is None else ""
            if removed and removed not in damaged and not self._whole(removed):
                raise NotFound(
                    f"cannot {operation.name}: the weights of {told(removed)} are gone for good",
                    hint=f"a remote may have them: `llmos fetch --weights {told(removed)}` brings them back; "
                    "`llmos undo ID` takes back another operation",
                )
            names_one = change.is_ref and change.after and not change.after.startswith(SYMBOLIC)
            if names_one and change.after not in back and not self._place(change.what, str(change.after)).exists():
                raise NotFound(
                    f"cannot {operation.name}: {'snapshot' if change.what.startswith(DATA) else 'checkpoint'} {told(change.after)} is gone",
                    hint="`llmos op log` lists the operations; `llmos undo ID` takes back another one",
                )

    def _whole(self, checkpoint: str) -> bool:
        """Whether what was removed is still there: its files, or those that they were sealed to."""
        return checkpoint in self._sealed or self._dropped.whole(self._root, checkpoint)

    def _check_rows(self, operation: Operation) -> set[str]:
        """The snapshots of data that it puts back."""
        back = {change.snapshot: change.after for change in operation.changes if change.snapshot and change.after}
        if back:
            from llmos_cli.core.snapshots import Snapshots  # here: most operations are not of data

            kept = Snapshots(self._dot)
            for snapshot, text in back.items():
                if not (snapshot in kept or kept.whole(text)):
                    raise NotFound(
                        f"cannot {operation.name}: the rows of snapshot {told(snapshot)} are gone for good",
                        hint="`llmos data snapshot` keeps them again; `llmos undo ID` takes back another operation",
                    )
        return set(back)

    def _place(self, ref: str, value: str) -> Path:
        """Where that stands which a ref names."""
        return self._dot / SNAPSHOTS / f"{value}.json" if ref.startswith(DATA) else self._root / "checkpoints" / value

    def _current(self, change: Change) -> str | None:
        if change.is_ref:
            return self._refs.read(change.what)
        try:
            return read_text(self._root / change.what, linked=True, errors="surrogateescape")
        except FileNotFoundError:
            return None

    def _carry_out(self, operation: Operation) -> None:
        """Idempotent, since it is repeated after a crash. Weights go last: until then all of it can be taken back. What nothing
        names goes first, for half of that hurts nobody and makes the room that the log needs on a full disk."""
        self._set(operation, operation.changes)
        if operation.run and operation.kind == "do":
            self._refs.write(RUNS + operation.run, operation.changes[-1].after)
        with self._out_of_the_way():
            self._collect(operation)
        for checkpoint in operation.drops:
            self._dropped.mark(checkpoint)
        for checkpoint in operation.seals:
            self._sealed.close(checkpoint)
        for checkpoint in operation.unseals:
            self._sealed.open(checkpoint)
        self._log(operation)
        recorded = self._recorded(operation)
        with self._out_of_the_way():
            self._drop(operation)
            if not recorded:
                self._audit(operation)
        atomic.remove(self._pending)

    @contextlib.contextmanager
    def _out_of_the_way(self) -> Iterator[None]:
        """What cannot be removed must not be in everybody's way: `gc` tries again."""
        try:
            yield
        except BaseException:
            atomic.remove(self._pending)
            raise

    def _log(self, operation: Operation) -> None:
        try:
            if not self._logged(operation):
                lines.append(self.path, written(operation).encode())
        except LlmosError:
            if not operation.collects:  # what was removed made no room: then it is done, and cannot be said
                raise

    def _recorded(self, operation: Operation) -> bool:
        """Recorded for the audit; what frees a full disk need not have room for that before."""
        try:
            self._audit(operation)
        except LlmosError:
            if not (operation.collects or operation.drops):
                raise
            return False
        return True

    def _audit(self, operation: Operation) -> None:
        """With what was logged before it and could not be recorded then: the disk was full."""
        head = self.audit.settled()
        if operation.id == head.operation:
            return
        waiting = self._logged_after(head.logged) or {operation: written(operation).strip().encode()}
        for each, line in (waiting if operation in waiting else waiting | {operation: b""}).items():
            self.audit.append(each.name, each.by or Author(), operation=each.id, line=line, logged=True, at=each.time)

    def _logged_after(self, last: str) -> dict[Operation, bytes]:
        """With their lines, the oldest first. None where the log does not have `last`: it is older than the audit, or a new one."""
        found: dict[Operation, bytes] = {}
        for line in reversed(lines.end(self.path, _TAIL).split(b"\n")):
            if (each := parse(line)) is not None:
                if each.id == last:
                    return dict(reversed(found.items()))
                found[each] = line
            if not last:
                break
        return {}

    def _drop(self, operation: Operation) -> None:
        for checkpoint in operation.drops:
            self._dropped.drop(self._root / "checkpoints" / checkpoint)
        for checkpoint in operation.seals:
            self._sealed.clear(checkpoint)
        if opened := (*operation.drops, *operation.unseals):
            self._sealed.forget(opened)

    def _collect(self, operation: Operation) -> None:
        if operation.collects:
            from llmos_cli.core.removal import collect  # here: most operations remove nothing

            collect(self._root, self._dot, self._refs, operation.collects)

    def _take_back(self, operation: Operation, committed: str | None, marked: Sequence[str]) -> None:
        self._set(operation, [change.reversed() for change in operation.changes])
        if operation.run and operation.kind == "do":
            self._refs.write(RUNS + operation.run, committed)
        for checkpoint in marked:
            self._dropped.restore(checkpoint)
        for checkpoint in operation.seals:
            self._sealed.reopen(checkpoint)
        for checkpoint in operation.unseals:
            self._sealed.shut(checkpoint)

    def _set(self, operation: Operation, changes: Sequence[Change]) -> None:
        """What goes goes first: `a` makes room for `a/b`. What was moved by hand stays where it is."""
        if operation.name.startswith(_BY_HAND):
            return
        for change in sorted(changes, key=lambda change: change.after is not None):
            if not (change.is_ref and self._refs.senseless(change.what)) and change.alike(
                self._current(change), change.after
            ):
                continue
            if change.is_ref:
                self._refs.write(change.what, change.after)
            elif change.after is None:
                atomic.remove(self._root / change.what)
            else:
                atomic.write_text(self._root / change.what, change.after, scratch=self._dot / "tmp")

    def _logged(self, operation: Operation) -> bool:
        """Whether it is among the last ones, and whole: nothing is logged while another is pending."""
        marked = f'"id": "{operation.id}"'.encode()
        last = lines.end(self.path, len(written(operation)) + _TAIL).split(b"\n")
        return any(parse(line) is not None for line in last if marked in line)
