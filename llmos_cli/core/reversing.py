"""What of the logged operations can be taken back, and what of that can be done again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmos_cli.core.operation import Operation
from llmos_cli.errors import NotFound, UsageError


def to_undo(operations: Sequence[Operation], which: str | None) -> Operation:
    """The last one that is still in force, or the one whose id begins with `which`. What only freed is passed over."""
    done, undone = _stacks(operations)
    if which is not None:
        _check_kept(operations, which)
        _check_done(operations, which, done, undone)
    target = _pick(done, which, "undo")
    _check_keyless(target)
    return target


def to_redo(operations: Sequence[Operation]) -> tuple[Operation, Operation]:
    """What the last undo reversed, and that undo."""
    _, undone = _stacks(operations)
    target = _pick(undone, None, "redo")
    return target, next(each for each in reversed(operations) if each.kind == "undo" and each.of == target.id)


def _stacks(operations: Iterable[Operation]) -> tuple[list[Operation], list[Operation]]:
    """What can be undone and what can be redone, the next one last."""
    done: dict[str, Operation] = {}
    undone: dict[str, Operation] = {}
    seals: dict[str, set[str]] = {}
    for operation in operations:
        if operation.kind == "undo" and operation.of in done:
            undone[operation.of] = done.pop(operation.of)
        elif operation.kind == "redo" and operation.of in undone:
            done[operation.of] = undone.pop(operation.of)
        elif operation.kind == "do" and operation.changes:
            done[operation.id] = operation
            undone.clear()
        elif operation.seals or operation.unseals:
            _add_seal(done, seals, operation)
    return list(done.values()), list(undone.values())


def _add_seal(done: dict[str, Operation], seals: dict[str, set[str]], operation: Operation) -> None:
    """Opening what was sealed is its undo, and sealing it again its redo: the two of them leave nothing to take back. `seals`: of each
    operation that sealed or opened, the checkpoints of which that was not taken back so; several may take back one, and one several."""
    left = {*operation.seals, *operation.unseals}
    for of in [of for of in seals if bool(done[of].seals) != bool(operation.seals)]:
        seals[of], left = seals[of] - left, left - seals[of]
        if not seals[of]:
            del done[of], seals[of]
    if left:
        done[operation.id], seals[operation.id] = operation, left


def _check_kept(operations: Iterable[Operation], which: str) -> None:
    for operation in operations:
        if operation.id.startswith(which) and (operation.drops or operation.collects):
            raise UsageError(
                f"operation {operation.id} ({operation.name}) cannot be undone: what it removed is gone for good",
                hint="`llmos op log` lists the others; `llmos undo ID` undoes one of them",
            )


def _check_done(
    operations: Iterable[Operation], which: str, done: Sequence[Operation], undone: Sequence[Operation]
) -> None:
    """One that the log lists and that is not in force: an undo, a redo, or what was undone."""
    found = [operation for operation in operations if operation.id.startswith(which)]
    if len(found) != 1 or found[0] in done:
        return
    said, of = found[0], found[0].of or found[0].id
    _check_keyless(said)
    if said.kind == "do":
        what = "was undone already"
    else:
        what = f"is {'an undo' if said.kind == 'undo' else 'a redo'} of {of}"
    raise UsageError(f"operation {said.id} ({said.name}) {what}", hint=_instead(of, done, undone))


def _instead(identifier: str, done: Sequence[Operation], undone: Sequence[Operation]) -> str:
    """What takes an operation back that was done again, or does one again that was taken back."""
    if identifier in {operation.id for operation in done}:
        return f"`llmos undo {identifier}` takes back what it did"
    if undone and undone[-1].id == identifier:
        return "`llmos redo` does it again"
    if identifier in {operation.id for operation in undone}:
        return "`llmos redo` does again what was undone last, and then this"
    return "other operations came after it, and it can not be done again: `llmos op log` lists them"


def _pick(stack: list[Operation], which: str | None, verb: str) -> Operation:
    if which is None:
        if not stack:
            raise UsageError(f"there is nothing to {verb}", hint="`llmos op log` lists the operations")
        return stack[-1]
    found = [operation for operation in stack if operation.id.startswith(which)]
    if not found:
        raise NotFound(f"{which} names no operation to {verb}", hint="`llmos op log` lists the operations")
    if len(found) > 1:
        raise UsageError(f"{which} names {len(found)} operations to {verb}", hint="give more of its id: `llmos op log`")
    return found[0]


def _check_keyless(target: Operation) -> None:
    if target.seals or target.unseals:
        verb, told = ("unseal", "opens it again, with its key") if target.seals else ("seal", "seals it again")
        ids = target.seals or target.unseals
        rev = f"{ids[0][:12]} --with-lineage" if len(ids) > 1 else ids[0][:12]
        raise UsageError(
            f"undo does not take back operation {target.id} ({target.name}): that takes a key",
            hint=f"`llmos {verb} {rev}` {told}; `llmos undo ID` undoes another of `llmos op log`",
        )
