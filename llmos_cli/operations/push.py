"""push: bring branches and tags, and all that they stand on, to a remote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llmos_cli.core import heard
from llmos_cli.core.names import in_the_way, wrong
from llmos_cli.core.protection import with_ancestors
from llmos_cli.core.refs import HEAD, HEADS, REMOTES, TAGS
from llmos_cli.core.remote import sending
from llmos_cli.core.remote.remote import Remote, RemoteRef
from llmos_cli.core.view import Group, Lines, View
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import AmbiguousRevision, Conflict, LlmosError, NotFound, UsageError
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.cargo import Cargo, MovedRef


class PushResult(Cargo):
    """What a remote was sent."""

    def view(self) -> View:
        if not (self.refs or self.parts()):
            return f"{self.remote} has all of it already"
        return Group([Lines([self._sent(), *(ref.told for ref in self.refs)])])

    def _sent(self) -> str:
        if not self.parts():
            return f"{self.remote} ({self.url}) has every file already"
        return f"{'would send' if self.dry_run else 'sent'} {', '.join(self.parts())} to {self.remote} ({self.url})"


def push(
    ws: Workspace,
    revs: Sequence[str] = (),
    *,
    everything: bool = False,
    remote: str | None = None,
    data: bool = False,
    force: bool = False,
    dry_run: bool = False,
    emit: Emit = ignore,
) -> PushResult:
    """`data`: the rows that were kept of what these lines were made with go along."""
    place = remotes.named(ws, remote)
    wanted = _all(ws) if everything else _named(ws, revs or (HEAD,))
    with remotes.turn(ws, place):
        there = remotes.opened(ws, place)
        remotes.must_not_be_missing(ws, there)
        known = there.refs()
        moves = list(
            _moves(ws, there, known, {**wanted, **_tags(ws, wanted, known)}, set(wanted), force=force, emit=emit)
        )
        _check_names(there, known, moves)
        missing = sending.lacking(ws, there, list(dict.fromkeys(wanted.values())), data=data, force=force)
        if not dry_run:
            if moves or not missing.empty:
                sending.send(there, missing, emit)
                # Before any ref moves there: where this disk is too full to say so, none does.
                ws.oplog.note(f"push {', '.join(ref.removeprefix('refs/') for ref in wanted)} to {place.name}")
            _move(there, moves, force=force)
            moved = {before.ref: RemoteRef(before.ref, 0, value) for before, value in moves}
            _remember(ws, place.name, {**known, **moved}, emit)
        there.store.close()
    return PushResult(
        place.name,
        place.url,
        tuple(MovedRef(before.ref.removeprefix("refs/"), before.value or "", value) for before, value in moves),
        len(missing.whole),
        len({each.id for each in missing.lineage} - {each.checkpoint for each in missing.sealed}),
        len(missing.runs),
        len(missing.objects),
        missing.bytes,
        dry_run,
        len(missing.signatures),
        len(missing.sealed),
        len(missing.snapshots),
    )


@dataclass(frozen=True)
class DeleteResult:
    """`refs`: where those were that the remote has no more; what they named stays there."""

    remote: str
    url: str
    refs: Mapping[str, str]
    dry_run: bool

    def view(self) -> View:
        gone = "would be deleted" if self.dry_run else "deleted"
        return Lines([f"{name} {gone} on {self.remote}; it was at {value[:12]}" for name, value in self.refs.items()])


def delete(
    ws: Workspace,
    names: Sequence[str],
    *,
    remote: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    emit: Emit = ignore,
) -> DeleteResult:
    """Branches and tags of the remote, by name; yours stay. Conflict where one is not where this workspace last heard of it, unless
    forced: somebody may have moved it on."""
    place = remotes.named(ws, remote)
    with remotes.turn(ws, place):
        there = remotes.opened(ws, place)
        known = there.refs()
        gone = [_there(ws, there, known, name) for name in names]
        for each in gone if not force else ():
            _check_seen(ws, there, each)
        if not dry_run:
            ws.oplog.note(f"push --delete {', '.join(each.ref.removeprefix('refs/') for each in gone)} to {place.name}")
            _move(there, [(known[each.ref], None) for each in gone if known[each.ref].value], force=force)
            _remember(ws, place.name, {**known, **{each.ref: RemoteRef(each.ref, 0, None) for each in gone}}, emit)
        there.store.close()
    told = {each.ref.removeprefix("refs/"): str(each.value) for each in gone}
    return DeleteResult(place.name, place.url, told, dry_run)


def _there(ws: Workspace, there: Remote, known: Mapping[str, RemoteRef], name: str) -> RemoteRef:
    """What is gone already, by a deletion that was cut off or by somebody else's, is where it was seen last."""
    bare = name.removeprefix("refs/")
    refs = [bare] if bare.startswith(("heads/", "tags/")) else [f"heads/{bare}", f"tags/{bare}"]
    told = [each for ref in refs if (each := known.get(f"refs/{ref}")) is not None]
    seen = [replace(each, value=ws.refs.read(_remembered(there.name, each.ref))) for each in told]
    found = [each for each in told if each.value] or [each for each in seen if each.value]
    if len(found) > 1:
        raise AmbiguousRevision(f"{name} is both a branch and a tag there", hint=f"say heads/{name} or tags/{name}")
    if not found:
        raise NotFound(f"{there.name} has no branch and no tag {name}", hint="`llmos fetch` shows what it has")
    return found[0]


def _check_seen(ws: Workspace, there: Remote, ref: RemoteRef) -> None:
    """What was sent from here is known too, though a tag that stands in another's way is not remembered."""
    kind, _, name = ref.ref.removeprefix("refs/").partition("/")
    seen = ws.refs.read(_remembered(there.name, ref.ref))
    if ref.value not in (seen, ws.refs.read(ref.ref)):
        heard = f"was at {seen[:12]} when it was last heard of" if seen else "was never heard of here"
        raise Conflict(
            f"{'branch' if kind == 'heads' else 'tag'} {name} is at {str(ref.value)[:12]} on {there.name}, and {heard}: it was not deleted",
            hint=f"`llmos fetch {there.name}` shows it; `llmos push --delete --force {name}` deletes it all the same",
        )


def _all(ws: Workspace) -> dict[str, str]:
    found = {prefix + name: value for prefix in (HEADS, TAGS) for name, value in ws.refs.under(prefix).items()}
    if not found:
        raise NotFound("there is no branch and no tag to push", hint="`llmos train` makes the first checkpoint")
    return found


def _named(ws: Workspace, revs: Sequence[str]) -> dict[str, str]:
    return dict(_named_one(ws, rev) for rev in revs)


def _named_one(ws: Workspace, rev: str) -> tuple[str, str]:
    """The ref that a revision is: what nothing names over there, nobody could fetch."""
    if rev in (HEAD, "@"):
        head = ws.head()
        if head.branch is not None:
            return HEADS + head.branch, ws.resolve(HEAD)
    bare = rev.removeprefix("refs/")
    refs = [bare] if bare.startswith(("heads/", "tags/")) else [f"heads/{bare}", f"tags/{bare}"]
    found = [(f"refs/{ref}", value) for ref in refs if (value := ws.refs.under(_kind(ref)).get(ref.partition("/")[2]))]
    if len(found) > 1:
        raise AmbiguousRevision(f"{rev} is both a branch and a tag", hint=f"say heads/{rev} or tags/{rev}")
    if found:
        return found[0]
    if rev in remotes.settings(ws):
        raise UsageError(f"{rev} is a remote, not a branch", hint=f"`llmos push --remote {rev}`")
    raise _nameless(ws, rev, ws.resolve(rev))


def _nameless(ws: Workspace, rev: str, checkpoint: str) -> UsageError:
    said = f"{rev} ({checkpoint[:12]}) is neither a branch nor a tag"
    for kind in (HEADS, TAGS):
        for name, value in ws.refs.under(kind).items():
            if value == checkpoint:
                return UsageError(f"{said}, but {name} is at it", hint=f"`llmos push {name}`")
    return UsageError(
        f"{said}, and what nothing names could not be fetched again", hint=f"`llmos tag NAME {rev}` gives it a name"
    )


def _kind(ref: str) -> str:
    return HEADS if ref.startswith("heads/") else TAGS


def _tags(ws: Workspace, wanted: Mapping[str, str], known: Mapping[str, RemoteRef]) -> dict[str, str]:
    """Tags on the lines that are pushed travel along."""
    tags = {TAGS + name: value for name, value in ws.refs.under(TAGS).items()}
    news = {ref: value for ref, value in tags.items() if ref not in known or known[ref].value != value}
    line = with_ancestors(ws, wanted.values()) if news else set()
    return {ref: value for ref, value in news.items() if value in line}


def _moves(
    ws: Workspace,
    there: Remote,
    known: Mapping[str, RemoteRef],
    refs: Mapping[str, str],
    asked: set[str],
    *,
    force: bool,
    emit: Emit,
) -> Iterator[tuple[RemoteRef, str]]:
    alive = [ref for ref, each in known.items() if each.value]
    for ref, value in refs.items():
        before = known.get(ref) or RemoteRef(ref, 0, None)
        if before.value == value:
            continue
        if ref not in asked and before.value is None and (other := in_the_way(ref, alive)):
            name = ref.removeprefix(TAGS)
            emit(
                Note(
                    f"tag {name} stays here: {other.removeprefix('refs/')} on {there.name} stands in its way", "warning"
                )
            )
        elif before.value is None or force or (ref.startswith(HEADS) and before.value in with_ancestors(ws, [value])):
            yield before, value
        elif ref in asked:
            raise _diverged(ws, there, before, value)
        else:
            told = f"tag {ref.removeprefix(TAGS)} is at {before.value[:12]} on {there.name} and at {value[:12]} here"
            emit(Note(f"{told}: left as it is (`llmos push --force {ref.removeprefix('refs/')}` moves it)", "warning"))


def _check_names(there: Remote, known: Mapping[str, RemoteRef], moves: Sequence[tuple[RemoteRef, str]]) -> None:
    """What a fetch would refuse is not sent."""
    refs = {ref for ref, each in known.items() if each.value} | {before.ref for before, _ in moves}
    if why := wrong(sorted(refs)):
        raise UsageError(
            f"nobody could fetch from {there.name} then: it {why}",
            hint="`llmos branch -m` renames a branch, `llmos tag NEW OLD` and `llmos tag -d OLD` a tag; "
            "`llmos push --delete NAME` deletes one there",
        )


def _diverged(ws: Workspace, there: Remote, before: RemoteRef, value: str) -> Conflict:
    name = before.ref.removeprefix(HEADS).removeprefix(TAGS)
    at = str(before.value)
    if before.ref.startswith(TAGS):
        return Conflict(
            f"tag {name} is at {at[:12]} on {there.name} and at {value[:12]} here",
            hint=f"`llmos push --force {name}` moves it there",
        )
    behind = "which is not here yet" if not (ws.checkpoints / at).is_dir() else "and neither comes from the other"
    if value in with_ancestors(ws, [at]):
        behind = "which is ahead"
    return Conflict(
        f"{name} is at {at[:12]} on {there.name}, {behind}; here it is at {value[:12]}",
        hint=f"`llmos fetch` shows theirs as {there.name}/{name}; `llmos push --force {name}` puts yours in its place",
    )


def _move(there: Remote, moves: Sequence[tuple[RemoteRef, str | None]], *, force: bool) -> None:
    for before, value in moves:
        if (why := there.store.no_exclusive_create) and not force:
            raise LlmosError(
                f"everything was sent to {there.name} but {before.ref.removeprefix('refs/')} was not moved: {why}",
                hint="`--force` moves it; make sure that nobody else pushes meanwhile",
            )
        if not there.move(before, value):
            now = there.refs().get(before.ref)
            name = before.ref.removeprefix("refs/").partition("/")[2]
            raise Conflict(
                f"{name} on {there.name} moved to {str(now and now.value)[:12]} while {value[:12] if value else 'its deletion'} was being pushed",
                hint="nothing was lost and what was sent stays there: `llmos fetch`, then push again",
            )


def _remember(ws: Workspace, remote: str, refs: Mapping[str, RemoteRef], emit: Emit) -> None:
    """What fails here is of this workspace: what was asked for is done."""
    try:
        remember(ws, remote, {ref: each.value for ref, each in refs.items()})
    except LlmosError:
        emit(Note(f"{remote} has all of it: that alone could not be written down here", "warning"))
        raise


def remember(ws: Workspace, remote: str, refs: Mapping[str, str | None]) -> None:
    """Write down where the remote's refs are, as far as their checkpoints are here. No operation that could be undone: it is
    what was seen, and undoing it would not undo what is there."""
    prefix = _remembered(remote, "")
    here = {value for value in refs.values() if value and (ws.checkpoints / value).is_dir()}
    with ws.oplog.locked(ws.emit):
        seen = {ref.removeprefix("refs/"): value for ref, value in refs.items() if value in here}
        gone = set(ws.refs.under(prefix)) - {ref.removeprefix("refs/") for ref, value in refs.items() if value}
        with heard.moving(ws, remote, {**seen, **dict.fromkeys(gone)}):
            _write(ws, prefix, seen, gone)


def _write(ws: Workspace, prefix: str, seen: Mapping[str, str | None], gone: Iterable[str]) -> None:
    for ref in gone:
        ws.refs.write(prefix + ref, None)
    for ref, value in seen.items():
        if ws.refs.read(prefix + ref) != value and not ws.refs.in_the_way(prefix + ref):
            ws.refs.write(prefix + ref, value)


def _remembered(remote: str, ref: str) -> str:
    return f"{REMOTES}{remote}/{ref.removeprefix('refs/')}"
