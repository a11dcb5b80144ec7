"""Killed before any call of a push, a fetch, a pull, a backup, a restore or a repair: here and there nothing is damaged, every ref is where it was or where
it goes, and the next one finishes it.

The remote is a folder inside the workspace's own, so that both are copied, watched and looked at together.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.objects import files_below, hash_file
from llmos_cli.core.refs import HEAD, HEADS, RUNS, SNAPSHOTS, TAGS
from llmos_cli.core.remote import layout
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.audit import audit
from llmos_cli.operations.backup import backup
from llmos_cli.operations.branch import branch
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fetch import fetch
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.fsck_remote import fsck_remote
from llmos_cli.operations.gc import gc
from llmos_cli.operations.push import push
from llmos_cli.operations.rm import rm
from llmos_cli.operations.seal import seal
from llmos_cli.operations.tag import tag
from llmos_cli.operations.undo import undo
from llmos_cli.transports.local import open_store
from tests.core.durability import unsafe
from tests.core.killing import commit, keep_rows, refs_of, settle, state, torn, vouch
from tests.core.tracing import Call, Forks, copied

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

VERBS = ("push", "fetch", "pull", "remote", "backup", "clone", "restore", "fsck", "undo")
MODULES = [
    *("llmos_cli.app", "llmos_cli.core.index", "llmos_cli.core.runs", "sqlite3", "concurrent.futures.thread", "yaml"),
    *(f"llmos_cli.{kind}.{verb}" for kind in ("operations", "commands") for verb in VERBS),
    *("llmos_cli.transports.local", "llmos_cli.core.remote.arriving", "llmos_cli.operations.integrity.repairing"),
    "llmos_cli.operations.fsck_remote",
]
COMMANDS = {
    "remote add": ("remote", "add", "another", "elsewhere"),
    "remote add --key-file": ("remote", "add", "another", "elsewhere", "--key-file", "far.key"),
    "remote rm": ("remote", "rm", "origin"),
    "undo remote rm": ("undo",),
    "push": ("push", "--all"),
    "push --data": ("push", "--data"),
    "push --data of what is there without": ("push", "--data"),
    "push --delete": ("push", "--delete", "base"),
    "fetch": ("-C", "clone", "fetch"),
    "fetch --data": ("-C", "clone", "fetch", "--data"),
    "fetch --weights": ("-C", "clone", "fetch", "--weights", "HEAD"),
    "fetch --weights of what came without": ("-C", "clone", "fetch", "--weights", "HEAD~2"),
    "fsck --repair": ("fsck", "--repair"),
    "fsck --repair of refs": ("fsck", "--repair"),
    "fsck --repair of a run": ("fsck", "--repair"),
    "push a newer signature": ("push",),
    "fetch a newer signature": ("-C", "clone", "fetch"),
    "fsck --repair of what is sealed": ("fsck", "--repair", "--key-file", "key"),
    "fsck --accept-loss": ("fsck", "--accept-loss", "HEAD~1", "--accept-loss", "HEAD"),
    "fsck --accept-loss audit": ("fsck", "--accept-loss", ".llmos/audit.jsonl"),
    "fsck --accept-loss operations": ("fsck", "--accept-loss", ".llmos/operations.jsonl"),
    "push what was given up": ("push", "--all"),
    "fetch what was given up": ("-C", "clone", "fetch"),
    "pull": ("-C", "clone", "pull"),
    "backup": ("backup",),
}


@pytest.fixture(scope="module")
def template(scratch: Path) -> Path:
    """A workspace that is a commit ahead of its remote, with a clone that is one behind it."""
    ws = Workspace.create(scratch / "w")
    far = ws.root / "far"
    (ws.configs / "train.yaml").write_text("seed: 1\n")
    remotes.add(ws, "origin", str(far))
    first = commit(ws, (), same="s" * 100, other="first")
    push(ws)
    clone(str(far), ws.root / "clone")
    second = commit(ws, (first,), time="2", same="s" * 100, other="second")
    tag(ws, "base")
    push(ws)
    tag(ws, "secret", commit(ws, (first,), move=False, time="4", other="secret", same="secret too"))
    seal(ws, "secret", ask=lambda _: "5" * 64)
    run = ws.index.makers(ws.resolve("secret"))[0][0]
    shutil.rmtree(ws.root / "runs" / run)  # two runs would be sent at once
    ws.refs.write(RUNS + run, None), ws.ledger.forget([run])
    commit(ws, (second,), time="3", same="s" * 100, other="third")
    branch(ws, "other", "HEAD")
    for each in (ws, Workspace.find(ws.root / "clone")):
        settle(each)
    return copied(ws.root, scratch / "template")


def train_on_rows(root: Path) -> None:
    ws = Workspace.find(root)
    commit(ws, (ws.resolve(),), time="8", rows=keep_rows(ws), other="made with data")
    settle(ws)


def push_without_rows(root: Path) -> None:
    train_on_rows(root)
    push(Workspace.find(root))
    settle(Workspace.find(root))


def push_with_rows(root: Path) -> None:
    train_on_rows(root)
    push(Workspace.find(root), data=True)
    settle(Workspace.find(root))


def remove_from_the_clone(root: Path) -> None:
    ws = Workspace.find(root / "clone")
    rm(ws, ["HEAD"], force=True)
    gc(ws, window="now")
    settle(ws)


def come_without(root: Path) -> None:
    """A remote gets weights only when a clone has the manifest."""
    ws = Workspace.find(root)
    for each in ("far", "clone"):
        shutil.rmtree(root / each)
    remotes.remove(ws, "origin")
    remotes.add(ws, "origin", str(root / "far"))
    rm(ws, ["HEAD~2"], force=True)
    push(ws)
    clone(str(root / "far"), root / "clone")
    undo(ws)
    push(ws)
    settle(Workspace.find(root / "clone"))


def damage(root: Path) -> None:
    """A checkpoint that a tag names is lost, and what others shared with it has other bytes wherever it is."""
    ws = Workspace.find(root)
    lost = ws.checkpoint("base").path
    (lost / "folder" / "same").chmod(0o644)
    (lost / "folder" / "same").write_text("t" * 100)
    shutil.rmtree(lost)
    settle(ws)


def lose_what_is_sealed(root: Path) -> None:
    """Two that were pushed before they were sealed have lost an encrypted file that both share, and the rest of one."""
    ws = Workspace.find(root)
    parent = commit(ws, (), move=False, time="8", same="pair" * 100, other="parent")
    tag(ws, "pair", commit(ws, (parent,), move=False, time="8", same="pair" * 100, other="child"))
    push(ws, ["pair"])
    seal(ws, "pair", with_lineage=True, ask=lambda _: "5" * 64)
    for entry in ws.sealed.seal(parent).tree.values():
        ws.sealed.path(entry.sha256).unlink()
    (root / "key").write_text("5" * 64)
    settle(ws)


def move_by_hand(root: Path) -> None:
    """HEAD and a tag are gone, a branch is where no operation left it, and a checkpoint has a file that is none of its."""
    ws = Workspace.find(root)
    (ws.checkpoint("base").path / "folder" / "stray").write_text("mine")
    ws.refs.write(f"{HEADS}other", ws.resolve("HEAD~1"))
    ws.refs.write(f"{TAGS}base", None)
    ws.refs.write(HEAD, None)
    settle(ws)


def lose_a_run(root: Path) -> None:
    ws = Workspace.find(root)
    shutil.rmtree(ws.root / "runs" / ws.index.makers(ws.resolve("base"))[0][0])
    settle(ws)


def sign_anew(root: Path) -> None:
    """A checkpoint that the remote has another signature of, which both here and the clone have had from it."""
    ws = Workspace.find(root)
    vouch(ws, ws.resolve("base"), "one")
    push(ws)
    fetch(Workspace.find(root / "clone"))
    vouch(ws, ws.resolve("base"), "another")
    settle(ws)


def push_signed_anew(root: Path) -> None:
    sign_anew(root)
    push(ws := Workspace.find(root))
    for each in (ws, Workspace.find(root / "clone")):
        settle(each)


def lose(root: Path) -> None:
    """A checkpoint that no remote has is gone, and its child has lost its weights."""
    ws = Workspace.find(root)
    lost = commit(ws, (ws.resolve(),), time="5", other="lost")
    bitten = ws.checkpoints / commit(ws, (lost,), time="6", other="bitten") / "other"
    shutil.rmtree(ws.checkpoints / lost)
    bitten.chmod(0o644)
    bitten.write_text("tooth")
    settle(ws)


def edit(log: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        path = root / ".llmos" / log
        path.write_bytes(path.read_bytes().replace(b"tag base", b"tag face", 1).replace(b'"changes"', b'"chances"', 1))
        settle(Workspace.find(root))

    return act


def give_up(root: Path) -> None:
    lose(root)
    fsck(ws := Workspace.find(root), accept_loss=["HEAD~1", "HEAD"])
    settle(ws)


def push_what_was_given_up(root: Path) -> None:
    give_up(root)
    push(Workspace.find(root))
    settle(Workspace.find(root))


def forget_the_remote(root: Path) -> None:
    remotes.remove(Workspace.find(root), "origin")


BEFORE: dict[str, Callable[[Path], None]] = {
    "undo remote rm": forget_the_remote,
    "push --data": train_on_rows,
    "push --data of what is there without": push_without_rows,
    "fetch --data": push_with_rows,
    "fetch --weights": remove_from_the_clone,
    "fetch --weights of what came without": come_without,
    "fsck --repair": damage,
    "fsck --repair of refs": move_by_hand,
    "fsck --repair of a run": lose_a_run,
    "push a newer signature": sign_anew,
    "fetch a newer signature": push_signed_anew,
    "fsck --repair of what is sealed": lose_what_is_sealed,
    "fsck --accept-loss": lose,
    "fsck --accept-loss audit": edit("audit.jsonl"),
    "fsck --accept-loss operations": edit("operations.jsonl"),
    "push what was given up": give_up,
    "fetch what was given up": push_what_was_given_up,
}
"""What was done last, where a command needs more than the template has."""


def begun(name: str, template: Path, scratch: Path) -> Path:
    """What a command finds."""
    if name not in BEFORE:
        return template
    BEFORE[name](copied(template, scratch / "w"))
    return copied(scratch / "w", scratch / "begun")


@pytest.mark.parametrize("name", COMMANDS)
def test_synced_before_it_is_named(name: str, forks: Forks, template: Path, scratch: Path, home: None) -> None:
    start = begun(name, template, scratch)
    root = copied(start, scratch / "w")
    assert unsafe(forks.calls(COMMANDS[name], root, root), root, start) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_call(name: str, forks: Forks, template: Path, scratch: Path, home: None) -> None:
    words, root, start = COMMANDS[name], scratch / "w", begun(name, template, scratch)
    before, hurt = refs_everywhere(copied(start, root)), damaged(root)
    assert bool(hurt) is name.startswith("fsck")
    calls = forks.calls(words, root, root)
    after, wanted, rows = seen(root), refs_everywhere(root), rows_everywhere(root)
    assert (rows != rows_everywhere(start)) is ("--data" in words)
    for call in calls:
        copied(start, root)
        assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
        assert damaged(root) <= hurt, f"killed before {call}"
        assert torn_there(root) == [], f"killed before {call}"
        assert astray(before, refs_everywhere(root), wanted) == set(), f"killed before {call}"
        assert rows_everywhere(root) in (rows_everywhere(start), rows), f"killed before {call}"
        assert rows_everywhere(root) == rows or wanted == before or refs_everywhere(root) != wanted
        assert clone(str(root / "far"), root / "proof", data=True), f"killed before {call}"
        shutil.rmtree(root / "proof")
        if seen(root) != after or damaged(root):
            assert forks.run(words, root) == 0, f"killed before {call}: {forks.said}"
            assert seen(root) == after, f"killed before {call}"
            assert damaged(root) == set(), f"killed before {call}"


def decay(root: Path) -> None:
    """Of the remote: an object that two checkpoints have is other bytes, one is gone, and a manifest was altered."""
    ws, kept = Workspace.find(root), root / "far"
    tree = ws.manifest(ws.resolve("base")).tree
    spoil(kept / layout.object_name(tree["folder/same"].sha256))
    (kept / layout.object_name(tree["other"].sha256)).unlink()
    spoil(kept / layout.checkpoint_name(ws.resolve("base~1")))


def forget(root: Path) -> None:
    """Of the remote: where a branch was moved to last, and all of a tag; of another checkpoint there is no manifest any more."""
    ws, kept = Workspace.find(root), root / "far"
    (kept / layout.ref_name(f"{HEADS}main", 2)).unlink()
    shutil.rmtree((kept / layout.ref_name(f"{TAGS}base", 1)).parent)
    (kept / layout.checkpoint_name(ws.resolve("base~1"))).unlink()


def spoil(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])


@pytest.mark.parametrize("act", [decay, forget])
def test_a_repair_of_a_remote_is_killed_at_every_call(
    act: Callable[[Path], None], forks: Forks, template: Path, scratch: Path, home: None
) -> None:
    """Nothing there is ever worse than it was, here nothing changes, and the same command ends it."""
    words, root = ("fsck", "--remote", "origin", "--repair"), scratch / "w"
    act(copied(template, root))
    start, hurt, before = copied(root, scratch / "decayed"), decayed(root), refs_everywhere(root)
    assert len(hurt) == 3
    calls = forks.calls(words, root, root)
    assert unsafe(calls, root, start) == []
    after, whole, wanted = seen(root), there_is(root), refs_everywhere(root)
    assert decayed(root) == damaged(root) == set() and torn_there(root) == []
    for call in calls:
        copied(start, root)
        assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
        assert decayed(root) <= hurt, f"killed before {call}"
        assert damaged(root) == set(), f"killed before {call}"
        assert astray(before, refs_everywhere(root), wanted) == set(), f"killed before {call}"
        if there_is(root) != whole:
            assert forks.run(words, root) == 0, f"killed before {call}: {forks.said}"
        assert (seen(root), there_is(root)) == (after, whole), f"killed before {call}"


def test_giving_up_events_is_killed_at_every_call(forks: Forks, template: Path, scratch: Path, home: None) -> None:
    """Of a run that no remote has; its config, which was edited too, comes back from another run. What was there is here for ever."""
    root = copied(template, scratch / "w")
    ws = Workspace.find(root)
    run = f"runs/{ws.index.makers(ws.resolve())[0][0]}"
    events = root / run / "events.jsonl"
    events.write_bytes(edited := events.read_bytes().replace(b'"operation": "train"', b'"operation": "prune"'))
    (root / run / "config.yaml").write_text("seed: 99\n")
    start, hurt = copied(root, scratch / "edited"), damaged(root)
    assert len(hurt) == 2
    words = ("fsck", "--accept-loss", f"{run}/events.jsonl")
    calls = forks.calls(words, root, root)
    assert unsafe(calls, root, start) == []
    after = seen(root)
    assert damaged(root) == set()
    for call in calls:
        copied(start, root)
        assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
        assert damaged(root) <= hurt, f"killed before {call}"
        aside = [path.read_bytes() for path in (root / ".llmos" / "aside").glob("*")]
        assert edited in (events.read_bytes(), *aside), f"killed before {call}"
        if damaged(root):
            assert forks.run(words, root) == 0, f"killed before {call}: {forks.said}"
        assert (damaged(root), seen(root)) == (set(), after), f"killed before {call}"


def decayed(root: Path) -> set[str]:
    """What `fsck --remote` finds."""
    return {each.where for each in fsck_remote(Workspace.find(root), "origin").problems}


def there_is(root: Path) -> dict[str, str]:
    """Every file of the remote that counts, and its hash."""
    names = [name for name in files_below(root / "far") if not name.startswith(f"{layout.UPLOADS}/")]
    return {name: hash_file(root / "far" / name).sha256 for name in names}


@pytest.fixture(scope="module")
def one(scratch: Path) -> Path:
    """A remote that has a checkpoint, the rows that it was made with, and a tag, and nothing beside it."""
    ws = Workspace.create(scratch / "one-source")
    (ws.configs / "train.yaml").write_text("seed: 1\n")
    (scratch / "one").mkdir()
    remotes.add(ws, "origin", str(scratch / "one" / "far"))
    commit(ws, (), rows=keep_rows(ws), other="first")
    tag(ws, "base")
    push(ws, everything=True, data=True)
    return scratch / "one"


@pytest.mark.parametrize("how", ["anew", "into an empty folder", "with data"])
def test_a_clone_is_killed_at_every_call(how: str, forks: Forks, one: Path, scratch: Path, home: None) -> None:
    """There is none, and the same command makes it, or there is a whole one; nothing has to be removed by hand. Into a folder
    that is there only the move differs, with data what comes from its first piece on."""
    root, empty, rows = scratch / "w", how == "into an empty folder", how == "with data"
    words = ("-C", "new", "clone", "../far", ".") if empty else ("clone", "far", "new", *(["--data"] * rows))

    def begun() -> Path:
        copied(one, root)
        if empty:
            (root / "new").mkdir()
        return root / "new"

    new = begun()
    calls = forks.calls(words, root, root)
    assert unsafe(within(calls), root, one) == []
    after, there = state(new), listed(root)
    differs = f"/{SNAPSHOTS}/" if rows else "/whole"
    first = next((at for at, call in enumerate(calls) if differs in str(call)), 0)
    assert bool(first) is (how != "anew") and len(calls) - first > 20
    assert len(Workspace(new).snapshots.ids()) == rows
    for call in calls[first:]:
        new = begun()
        assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
        if not (new / ".llmos").exists():
            assert forks.run(words, root) == 0, f"killed before {call}: {forks.said}"
        assert state(new) == after, f"killed before {call}"
        assert len(Workspace(new).snapshots.ids()) == rows, f"killed before {call}"
        assert fsck(Workspace.find(new)).problems == (), f"killed before {call}"
        assert listed(root) - there <= {".new.cloning", ".new.cloning/whole"}, f"killed before {call}"


def test_a_clone_that_goes_on_from_a_move_by_hand_is_killed_at_every_call(
    forks: Forks, one: Path, scratch: Path, home: None
) -> None:
    """The first was killed as it was to appear, and of what it left somebody took the branch away: the second says so, and ends whole."""
    words, root = ("clone", "far", "new"), copied(one, scratch / "w")
    with forks.until("llmos_cli.core.appearing:appear", words, root):
        pass
    Workspace(root / ".new.cloning").refs.write(f"{HEADS}main", None)
    start = copied(root, scratch / "begun")
    calls = forks.calls(words, root, root)
    assert unsafe(within(calls), root, start) == []
    after = state(root / "new")
    assert after.operations[-3:] == ["clone far", "moved by hand: main", "clone far"]
    pending = next(at for at, call in enumerate(calls) if call.paths[-1].endswith("/pending.json"))
    for call in calls[pending:]:
        copied(start, root)
        assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
        if not (root / "new").exists():
            assert forks.run(words, root) == 0, f"killed before {call}: {forks.said}"
        assert state(root / "new") == after, f"killed before {call}"
        assert fsck(Workspace.find(root / "new")).problems == (), f"killed before {call}"
        assert not (root / ".new.cloning").exists(), f"killed before {call}"


@pytest.fixture(scope="module")
def kept(scratch: Path) -> Path:
    """A remote with a backup, and nothing beside it: of a checkpoint that a tag names and of one whose weights are gone, of a run
    that can go on, of configs, code, and a folder that the pipeline declares."""
    ws = Workspace.create(scratch / "kept-source")
    (ws.configs / "train.yaml").write_text("seed: 1\n")
    (ws.root / "code.py").write_text("x = 1\n")
    (ws.root / "notes").mkdir()
    (ws.root / "notes" / "a.txt").write_text("declared\n")
    with (ws.root / "llmos.yaml").open("a") as file:
        file.write("pipeline: {count: {sh: 'wc notes/*', inputs: [notes]}}\n")
    (scratch / "kept").mkdir()
    remotes.add(ws, "origin", str(scratch / "kept" / "far"))
    first = commit(ws, (), other="first")
    tag(ws, "base")
    rm(ws, [commit(ws, (first,), move=False, time="2", other="removed")])
    gc(ws, window="now")  # what undo could bring back is in no backup
    going_on = ws.runs.list()[0].path / "state"
    going_on.mkdir()
    (going_on / "training.pt").write_bytes(b"to be resumed")
    backup(ws)
    return scratch / "kept"


@pytest.mark.parametrize("empty", [False, True], ids=["anew", "into an empty folder"])
def test_a_restore_is_killed_at_every_call(empty: bool, forks: Forks, kept: Path, scratch: Path, home: None) -> None:
    """There is nothing in its place, and the same command brings it, or there is all that was backed up, to the byte. What the
    first has done is synced by then too, but for its beginning in the folder around: the move to its place is in the same."""
    root = scratch / "w"
    words = ("-C", "new", "restore", "../far", ".") if empty else ("restore", "far", "new")

    def begun() -> Path:
        copied(kept, root)
        if empty:
            (root / "new").mkdir()
        return root / "new"

    new = begun()
    calls = forks.calls(words, root, root)
    assert unsafe(within(calls), root, kept) == []
    after, whole, there = state(new), bytes_of(new), listed(root)
    assert whole == bytes_of(scratch / "kept-source")
    moving = next((at for at, call in enumerate(calls) if "/whole" in str(call)), 0)
    assert bool(moving) is empty and len(calls) - moving > 20
    for call in calls[moving:]:
        new = begun()
        done = forks.cut(words, root, root, call)
        if not (new / ".llmos").exists():
            done += forks.calls(words, root, root)
            early = [
                each for each in unsafe(within(done), root, kept) if not each.endswith(f": {root} is not synced yet")
            ]
            assert early == [], f"killed before {call}, and the power fails when it was done again"
        assert (state(new), bytes_of(new)) == (after, whole), f"killed before {call}"
        ws = Workspace.find(new)
        assert fsck(ws).problems == (), f"killed before {call}"
        assert audit(ws, limit=1).records[0].what.startswith("restore "), f"killed before {call}"
        assert listed(root) - there <= {".new.restoring", ".new.restoring/whole"}, f"killed before {call}"


def bytes_of(root: Path) -> dict[str, str]:
    """Every file of a workspace and its hash, but for what is made anew wherever it stands."""
    own = ("objects", "tmp", "locks", "cache", "identity", "storage", "audit.jsonl", "audit.head")
    skipped = tuple(f".llmos/{name}" for name in (*own, "index.sqlite"))
    return {name: hash_file(root / name).sha256 for name in files_below(root) if not name.startswith(skipped)}


def within(calls: Iterable[Call]) -> list[Call]:
    """Not those by which a lock of the remote is taken."""
    return [call for call in calls if "/far" not in str(call)]


def listed(root: Path) -> set[str]:
    """What lies beside the workspaces."""
    return {str(path.relative_to(root)) for path in [*root.glob(".*"), *root.glob(".*.cloning/*"), *root.glob("*")]}


def seen(root: Path) -> dict[str, object]:
    """Every workspace of the copy, and all refs: what is in the remote is only reached by them."""
    states = {str(part): state(part) for part in (root, root / "clone")}
    vouched = {str(path): path.read_text() for path in (root / "far" / layout.SIGNATURES).glob("*.json")}
    return {**states, **refs_everywhere(root), **rows_everywhere(root), **vouched}


def damaged(root: Path) -> set[tuple[str, ...]]:
    """Of both workspaces what `fsck` finds, and refs whose checkpoint is not whole."""
    found: set[tuple[str, ...]] = set()
    for part in (root, root / "clone"):
        found |= {(str(part), problem.where, problem.what) for problem in fsck(Workspace.find(part)).problems}
        found |= {(str(part), ref) for ref in torn(part)}
    return found


def rows_everywhere(root: Path) -> dict[str, object]:
    """Snapshots of data, by where they are."""
    here = {f"{part}: rows": Workspace(root / part).snapshots.ids() for part in ("", "clone")}
    return {**here, "far: rows": sorted(path.stem for path in (root / "far" / layout.SNAPSHOTS).glob("*.json"))}


def refs_everywhere(root: Path) -> dict[str, str]:
    """Both workspaces' and the remote's, and what each says."""
    here = {f"{part}: {ref}": value for part in ("", "clone") for ref, value in refs_of(root / part).items()}
    return here | {f"far: {ref}": each.value for ref, each in far(root).refs().items() if each.value}


def astray(before: dict[str, str], now: dict[str, str], after: dict[str, str]) -> set[str]:
    """Refs that are neither where they were nor where they go."""
    return {ref for ref in before | now | after if now.get(ref) not in (before.get(ref), after.get(ref))}


def far(root: Path) -> Remote:
    return Remote("far", str(root / "far"), open_store(str(root / "far"), root, "nobody"))


def torn_there(root: Path) -> list[str]:
    """Refs of the remote whose checkpoint, or an ancestor of it, is not whole there: every byte is hashed that it should have."""
    there = far(root)
    return [ref for ref, each in there.refs().items() if each.value and not all(_line_is_whole(there, each.value))]


def _line_is_whole(there: Remote, checkpoint: str) -> Iterator[bool]:
    """Of each ancestor too. A manifest that is not what its id says is Corrupt as it is read."""
    if checkpoint in there.lost:
        for parent in there.lost[checkpoint].parents:
            yield from _line_is_whole(there, parent)
        return
    manifest = there.manifest(checkpoint)
    files = manifest.tree if there.has_weights(checkpoint) else {}
    if there.has_seal(checkpoint):
        files = there.seal(manifest).tree
    yield all(_is(there, entry) for entry in files.values())
    for parent in manifest.made.parents:
        yield from _line_is_whole(there, parent)


def _is(there: Remote, entry: FileEntry) -> bool:
    name = layout.object_name(entry.sha256)
    content = b"".join(there.store.chunks(name, 0)) if there.store.size(name) == entry.size else b""
    return hashlib.sha256(content).hexdigest() == entry.sha256
