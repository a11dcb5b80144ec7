"""fetch: bring here what a remote has, without moving any branch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmos_cli.core.names import in_the_way, wrong
from llmos_cli.core.operation import Change
from llmos_cli.core.protection import with_ancestors
from llmos_cli.core.refs import HEADS, REMOTES, TAGS
from llmos_cli.core.remote import arriving, downloading, receiving
from llmos_cli.core.remote.remote import Remote, RemoteRef
from llmos_cli.core.view import Group, Line, Lines, View
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, NotFound
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.cargo import Cargo, MovedRef
from llmos_cli.operations.push import remember
from llmos_cli.operations.remote import RemoteSettings


class FetchResult(Cargo):
    """What came from a remote; `refs`: its branches (`origin/main`) and tags that are new here, or moved, and branches that are there no more; `lineage`: manifests whose
    weights it does not have."""

    def view(self) -> View:
        return Group([Lines(self.lines())])

    def lines(self) -> list[Line]:
        if not (self.refs or self.parts()):
            return [f"nothing new on {self.remote}"]
        verb = "would get" if self.dry_run else "got"
        got = f"{verb} {', '.join(self.parts())}" if self.parts() else "no new file"
        return [f"{got} from {self.remote} ({self.url})", *(ref.told for ref in self.refs)]


@dataclass(frozen=True)
class Fetched:
    """What others build upon: `branches` of the remote, and the `parents` of every checkpoint that came or would come."""

    result: FetchResult
    branches: Mapping[str, str]
    parents: Mapping[str, tuple[str, ...]]

    def line(self, ws: Workspace, checkpoint: str) -> set[str]:
        """A checkpoint and its ancestors, those included that a dry run did not bring."""
        found: set[str] = set()
        waiting = [checkpoint]
        while waiting:
            each = waiting.pop()
            if each not in found and each in self.parents:
                found.add(each)
                waiting += self.parents[each]
            elif each not in found:
                found |= with_ancestors(ws, [each])
        return found


def fetch(
    ws: Workspace,
    remote: str | None = None,
    *,
    weights: Sequence[str] = (),
    data: bool = False,
    dry_run: bool = False,
    emit: Emit = ignore,
) -> FetchResult:
    """`weights`: revisions whose weights were removed here, and are to come back; `data`: so are the rows that the remote keeps of
    what its lines were made with."""
    again = [ws.resolve(rev) for rev in weights]
    for each in again:
        if (mends := _MENDS.get(ws.closed(each))) is not None:
            emit(Note(f"the weights of {each[:12]} were not removed here: {mends}", "warning"))
    return fetched(ws, remotes.named(ws, remote), weights=again, data=data, dry_run=dry_run, emit=emit).result


_MENDS = {
    "": "`llmos fsck --repair` mends what is damaged",
    "sealed": "it is sealed, and `llmos fsck --repair`, with its key, mends what is damaged",
}


def fetched(
    ws: Workspace,
    place: RemoteSettings,
    *,
    weights: Sequence[str] = (),
    data: bool = False,
    dry_run: bool = False,
    emit: Emit = ignore,
) -> Fetched:
    with remotes.fetching(ws, place):
        there = remotes.opened(ws, place)
        there.must_be_begun()
        refs = there.refs()
        _check_refs(there, refs)
        _check_weights(there, weights)
        tips = [each.value for each in refs.values() if each.value]
        coming = receiving.lacking(ws, there, tips, weights=weights)
        coming = receiving.with_data(ws, coming, there, tips) if data else coming
        tags = list(_new_tags(ws, there, refs, emit))
        _tell_of_lost(ws, there, coming, emit)
        result = _result(place, coming, [*_moved(ws, there, refs), *map(_new, tags)], dry_run)
        if not dry_run:
            _bring(ws, there, coming, tags, emit)
            remember(ws, place.name, {ref: each.value for ref, each in refs.items()})
        there.store.close()
    branches = {
        ref.removeprefix(HEADS): each.value for ref, each in refs.items() if ref.startswith(HEADS) and each.value
    }
    parents = {each.id: each.made.parents for each in coming.checkpoints}
    return Fetched(result, branches, parents | {each.checkpoint: each.parents for each in coming.lost})


def _check_weights(there: Remote, weights: Sequence[str]) -> None:
    for each in weights:
        if not (there.has_weights(each) or there.has_seal(each)):
            raise NotFound(
                f"{there.name} does not have the weights of {each[:12]}", hint="`llmos remote list` shows the others"
            )


def _tell_of_lost(ws: Workspace, there: Remote, coming: receiving.Receiving, emit: Emit) -> None:
    for each in (each for each in coming.lost if each.checkpoint not in ws.lost):
        emit(Note(f"checkpoint {each.checkpoint[:12]} was given up where {there.name} has its line from", "warning"))


def _result(
    place: RemoteSettings, coming: receiving.Receiving, moved: Sequence[MovedRef], dry_run: bool
) -> FetchResult:
    return FetchResult(
        place.name,
        place.url,
        tuple(moved),
        len(coming.whole),
        len(coming.lineage) - len(coming.sealed),
        len(coming.runs),
        len(coming.objects),
        coming.bytes,
        dry_run,
        len(coming.signatures),
        len(coming.sealed),
        len(coming.snapshots),
    )


def _new(tag: Change) -> MovedRef:
    return MovedRef(tag.what.removeprefix("refs/"), "", str(tag.after))


def _check_refs(there: Remote, refs: Mapping[str, RemoteRef]) -> None:
    """`a` and `a/b`, `Main` and `main` would be one file on some disk or other. What was deleted is in nobody's way: its row of files
    stays for ever."""
    if why := wrong(ref for ref, each in refs.items() if each.value):
        raise Corrupt(
            f"{there.name} {why}",
            hint="`llmos push --delete NAME`, from a workspace that has this remote, deletes one of them there",
        )


def _new_tags(ws: Workspace, there: Remote, refs: Mapping[str, RemoteRef], emit: Emit) -> Iterator[Change]:
    """Tags of the remote that are not here become tags here; those that are stay what they are."""
    here = ws.refs.under(TAGS)
    for ref, each in refs.items():
        if not ref.startswith(TAGS) or each.value is None:
            continue
        name = ref.removeprefix(TAGS)
        if name not in here and (other := in_the_way(name, here)):
            told = f"tag {name} of {there.name} is {there.name}/{name} here: your tag {other} stands in its way"
            emit(Note(f"{told} (`llmos tag -d {other}` makes room for the next fetch)", "warning"))
        elif name not in here:
            yield Change(ref, None, each.value)
        elif here[name] != each.value:
            emit(
                Note(
                    f"tag {name} is another on {there.name} ({each.value[:12]}): it is {there.name}/{name} here",
                    "warning",
                )
            )


def _moved(ws: Workspace, there: Remote, refs: Mapping[str, RemoteRef]) -> Iterator[MovedRef]:
    known = ws.refs.under(f"{REMOTES}{there.name}/")
    for ref, each in refs.items():
        before = known.get(ref.removeprefix("refs/"), "")
        if ref.startswith(HEADS) and each.value and each.value != before:
            yield MovedRef(f"heads/{there.name}/{ref.removeprefix(HEADS)}", before, each.value)
    for ref, before in known.items():
        if (now := refs.get(f"refs/{ref}")) is not None and now.value is None and f"refs/{ref}".startswith(HEADS):
            yield MovedRef(f"heads/{there.name}/{ref.partition('/')[2]}", before, "")


def _bring(ws: Workspace, there: Remote, coming: receiving.Receiving, tags: list[Change], emit: Emit) -> None:
    downloading.receive(ws, there, coming, emit)
    with arriving.staged(ws, coming) as prepared:
        arriving.publish_snapshots(ws, coming)
        with ws.oplog.locked(ws.emit):
            arriving.publish(ws, prepared, coming)
            if changes := [*tags, *arriving.signed(ws, coming)]:
                ws.oplog.apply_locked(f"fetch {there.name}", changes)
            elif coming.checkpoints or coming.snapshots:
                ws.oplog.note_locked(f"fetch {there.name}")
        arriving.publish_runs(ws, coming)
