"""Killed just before any call by which a command changes the disk: it never happened, or it is whole, and nothing is damaged.

Of every command all such calls are tried, not some. A kill cannot tell whether bytes would have outlived a power cut: for
that the trace itself is read, see `durability.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from llmos_cli.core.manifest import Made
from llmos_cli.core.objects import files_below, hash_file, share
from llmos_cli.core.refs import HEAD, HEADS, SYMBOLIC, TAGS
from llmos_cli.core.trust import trusted
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.branch import branch
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.integrity.problem import Problem
from llmos_cli.operations.rm import rm
from llmos_cli.operations.seal import seal
from llmos_cli.operations.sign import sign
from llmos_cli.operations.tag import tag
from llmos_cli.operations.trust import trust
from llmos_cli.operations.undo import undo
from llmos_cli.operations.verify import verify
from tests.core.durability import unsafe
from tests.core.killing import State, commit, settle, state, torn
from tests.core.tracing import Forks, copied

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace"),
    pytest.mark.timeout(1200),
]

MODULES = [
    __name__,
    *("llmos_cli.app", "llmos_cli.core.index", "llmos_cli.core.runs", "sqlite3", "concurrent.futures.thread", "yaml"),
    *(
        f"llmos_cli.operations.{verb}"
        for verb in ("tag", "branch", "checkout", "rm", "gc", "undo", "redo", "trust", "status")
    ),
    *(
        f"llmos_cli.commands.{verb}"
        for verb in ("tag", "branch", "checkout", "rm", "gc", "undo", "redo", "trust", "status")
    ),
    *("llmos_cli.operations.init", "llmos_cli.commands.init"),
    *(f"llmos_cli.{kind}.{verb}" for kind in ("operations", "commands") for verb in ("seal", "unseal", "sign")),
    "model_signing.signing",
    *("cryptography.hazmat.primitives.ciphers.aead", "cryptography.hazmat.primitives.kdf.hkdf"),
]


def commit_here() -> None:
    """What is killed: a commit on the branch it finds, half of whose bytes are in the workspace already."""
    ws = Workspace.find()
    commit(ws, (ws.resolve(),), time="9", same="s" * 100, other="new")


def commit_what_is_shared() -> None:
    """A commit with a file of its parent's under a second name."""
    ws = Workspace.find()
    parent = ws.resolve()
    with ws.begin("train", config={"seed": 1}) as run, ws.stage() as staged:
        (staged / "folder").mkdir()
        share(ws.checkpoints / parent / "folder" / "same", staged / "folder" / "same")
        (staged / "other").write_text("new")
        run.commit(staged, Made("train", (parent,), {"seed": 1}, {}, {}, 0, "9"))


def commit_what_was_removed() -> None:
    """The same content made the same way as what `rm` took away."""
    ws = Workspace.find()
    commit(ws, (ws.resolve("base"),), move=False, time="5", same="s" * 100, other="removed")


@pytest.fixture(scope="module")
def template(scratch: Path) -> Path:
    """A workspace with something for every command to do."""
    ws = Workspace.create(scratch / "template")
    (ws.configs / "train.yaml").write_text("seed: 1\n")
    (ws.root / "code.py").write_text("x = 1\n")
    first = commit(ws, (), same="s" * 100, other="first")
    tag(ws, "base")
    tag(ws, "old")
    second = commit(ws, (first,), time="2", same="s" * 100, other="second")
    branch(ws, "other", "base")
    unnamed = commit(ws, (second,), move=False, time="3", same="s" * 100, other="unnamed")
    commit(ws, (unnamed,), move=False, time="4", other="its child")
    removed = commit(ws, (first,), move=False, time="5", same="s" * 100, other="removed")
    commit(ws, (removed,), move=False, time="6", other="child of what is removed")
    rm(ws, [removed])
    for name in ("secret", "sealed", "both"):
        tag(ws, name, commit(ws, (), move=False, time="7", same=name * 100, other=f"{name} too"))
    for number in range(256):  # what is encrypted has a name by chance: each time as many folders are to be made
        (ws.dot / "sealed" / f"{number:02x}").mkdir(parents=True)
    for name in ("sealed", "both"):
        seal(ws, name, ask=lambda _: KEY)
    rm(ws, ["both"], force=True)
    branch(ws, "spare", "base")
    branch(ws, "try/one", "base")
    (ws.configs / "train.yaml").write_text("seed: 2\n")
    commit(ws, (second,), time="7", same="s" * 100, other="third")
    tag(ws, "undone")
    undo(ws)
    undo(ws)
    _leftovers(ws)
    settle(ws)
    return ws.root


def _leftovers(ws: Workspace) -> None:
    """Of a process that is dead, and of a run that nobody resumed."""
    pid = os.fork()
    if not pid:
        from llmos_cli.core.processes import scratch_name

        (ws.dot / "tmp" / scratch_name("stage")).mkdir()
        os._exit(0)
    os.waitpid(pid, 0)
    state = next((ws.root / "runs").iterdir()) / "state"
    state.mkdir()
    (state / "weights").write_text("w")


COMMANDS: dict[str, tuple[str, ...]] = {
    "tag": ("tag", "new"),
    "tag -f": ("tag", "-f", "base"),
    "tag -d": ("tag", "-d", "base"),
    "branch": ("branch", "new"),
    "branch -f": ("branch", "-f", "other", "HEAD"),
    "branch -d": ("branch", "-d", "spare"),
    "branch -m": ("branch", "-m", "main", "trunk"),
    "branch -m out of its folder": ("branch", "-m", "try/one", "try"),
    "tag in a folder": ("tag", "new/one"),
    "checkout": ("checkout", "other"),
    "checkout -b": ("checkout", "-b", "new", "base"),
    "checkout --configs": ("checkout", "--configs", "base"),
    "rm": ("rm", "--force", "base", "other"),
    "gc": ("gc", "--expire", "now"),
    "gc --window": ("gc", "--expire", "now", "--window", "now"),
    "gc --keep-last": ("gc", "--keep-last", "1", "--window", "now"),
    "gc --keep-tagged": ("gc", "--keep-tagged", "--window", "now"),
    "undo": ("undo",),
    "undo rm": ("undo",),
    "redo": ("redo",),
    "redo rm": ("redo",),
    "trust": ("trust", "code.py"),
    "trust --revoke": ("trust", "--revoke", "code.py"),
    "sign": ("sign", "base", "--bundle", "base.sig"),
    "sign --key": ("sign", "base", "--key", "../key.pem"),
    "undo sign": ("undo",),
    "sign --remove": ("sign", "base", "--remove"),
    "seal": ("seal", "secret"),
    "seal --with-lineage": ("seal", "base", "--with-lineage"),
    "unseal": ("unseal", "sealed"),
    "unseal --with-lineage": ("unseal", "pair", "--with-lineage"),
    "rm sealed": ("rm", "--force", "sealed"),
    "commit": (f"{__name__}:commit_here",),
    "commit shared": (f"{__name__}:commit_what_is_shared",),
    "commit again": (f"{__name__}:commit_what_was_removed",),
    "tag -f by hand": ("tag", "-f", "base", "HEAD"),
    "tag -d by hand": ("tag", "-d", "hand"),
    "branch by hand": ("branch", "-f", "main", "base"),
    "checkout by hand": ("checkout", "spare"),
    "commit by hand": (f"{__name__}:commit_here",),
    "undo by hand": ("undo",),
    "undo an older one by hand": ("undo", "{older}"),
    "redo by hand": ("redo",),
    "trust --pipeline": ("trust", "--pipeline"),
}
"""By hand: a ref was moved by no command. Who moves it on writes two operations, and that move is undone and redone like any other."""
MOVED = {name for name in COMMANDS if name.endswith("by hand")} - {"undo by hand", "redo by hand"}
QUICK = {"tag", "checkout", "commit"}
SAID = ("pending.json", "operations.jsonl", "audit.jsonl", "audit.head")
"""Files of `.llmos/` by which a command says what it does, before it does it or at once after that."""
KEY = "5" * 64
BY_HAND = "moved by hand: "


def remove_what_undo_knows(ws: Workspace) -> None:
    rm(ws, ["base", "HEAD"], force=True)


def remove_and_undo(ws: Workspace) -> None:
    remove_what_undo_knows(ws)
    undo(ws)


def grow_older(ws: Workspace) -> None:
    """HEAD is not the last on its branch any more, and has no tag."""
    commit(ws, (ws.resolve(),), time="8", same="s" * 100, other="fourth")


def make_keys(ws: Workspace) -> None:
    """Beside the workspace, as a private one should be."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = ec.generate_private_key(ec.SECP256R1())
    (ws.root.parent / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (ws.root.parent / "key.pub").write_bytes(public)


def sign_elsewhere(ws: Workspace) -> None:
    """A signature that a tool of others made of what is here."""
    from model_signing import signing

    make_keys(ws)
    signer = signing.Config().use_elliptic_key_signer(private_key=ws.root.parent / "key.pem")
    signer.sign(ws.checkpoint("base").path, ws.root / "base.sig")


def sign_here(ws: Workspace) -> None:
    sign_elsewhere(ws)
    sign(ws, "base", bundle=ws.root / "base.sig")


def move_by_hand(ref: str, value: str | None) -> Callable[[Workspace], object]:
    return lambda ws: ws.refs.write(ref, ws.resolve(value) if value else None)


def put_head_by_hand(ws: Workspace) -> None:
    (ws.dot / HEAD).write_text(f"{SYMBOLIC}{HEADS}other\n")


def seal_a_pair(ws: Workspace) -> None:
    """Parent and child, one file of which is the same."""
    parent = commit(ws, (), move=False, time="8", same="pair" * 100, other="parent")
    tag(ws, "pair", commit(ws, (parent,), move=False, time="8", same="pair" * 100, other="child"))
    seal(ws, "pair", with_lineage=True, ask=lambda _: KEY)


def move_on(ws: Workspace) -> None:
    move_by_hand(f"{TAGS}base", "secret")(ws)
    tag(ws, "base", "HEAD", force=True)


def move_on_and_undo(ws: Workspace) -> None:
    move_on(ws)
    undo(ws)


def move_on_and_undo_both(ws: Workspace) -> None:
    move_on_and_undo(ws)
    undo(ws)


def put_back_by_hand(ws: Workspace) -> None:
    """A tag was moved twice, and is again where the first time left it."""
    for to in ("HEAD", "secret"):
        tag(ws, "base", to, force=True)
    move_by_hand(f"{TAGS}base", "HEAD")(ws)


def declare_a_pipeline(ws: Workspace) -> None:
    with (ws.root / "llmos.yaml").open("a") as file:
        file.write("pipeline: {count: {sh: 'python code.py', inputs: [code.py]}}\n")


BEFORE: dict[str, Callable[[Workspace], object]] = {
    "gc --keep-last": grow_older,
    "gc --keep-tagged": grow_older,
    "undo rm": remove_what_undo_knows,
    "redo rm": remove_and_undo,
    "trust --revoke": lambda ws: trust(ws, ws.root / "code.py"),
    "seal --with-lineage": lambda ws: gc(ws, window="now"),
    "unseal --with-lineage": seal_a_pair,
    "sign": sign_elsewhere,
    "sign --key": make_keys,
    "undo sign": sign_here,
    "sign --remove": sign_here,
    "tag -f by hand": move_by_hand(f"{TAGS}base", "secret"),
    "tag -d by hand": move_by_hand(f"{TAGS}hand", "base"),
    "branch by hand": move_by_hand(f"{HEADS}main", "secret"),
    "checkout by hand": put_head_by_hand,
    "commit by hand": move_by_hand(f"{HEADS}main", "HEAD~1"),
    "undo by hand": move_on_and_undo,
    "undo an older one by hand": put_back_by_hand,
    "redo by hand": move_on_and_undo_both,
    "trust --pipeline": declare_a_pipeline,
}
"""What was done last, where a command needs more than the template has."""


def begun(name: str, template: Path, scratch: Path) -> Path:
    """The workspace that a command finds."""
    if name not in BEFORE:
        return template
    ws = Workspace.find(copied(template, scratch / "w"))
    BEFORE[name](ws)
    settle(ws)
    return copied(ws.root, scratch / "begun")


def command_line(name: str, start: Path) -> tuple[str, ...]:
    """An operation has another id in every workspace."""
    *_, older, _ = (each.id for each in Workspace(start).oplog.operations())
    return tuple(word.format(older=older) for word in COMMANDS[name])


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_KEY", KEY)


def in_the_clear(root: Path) -> list[Path]:
    """Files, wherever they are, with what a sealed checkpoint holds."""
    ws = Workspace(root)
    secret = {entry.sha256 for each in ws.sealed.all() for entry in ws.manifest(each).tree.values()}
    return [path for path in root.rglob("*") if path.is_file() and hash_file(path).sha256 in secret]


def vouched(root: Path) -> State:
    """No key signs twice alike: of a signature it is told whose it is, once the public key vouches for it."""
    found, ws = state(root), Workspace(root)
    return replace(found, signed={each: verify(ws, each, key=root.parent / "key.pub").signer for each in found.signed})


LOOKED = {"sign --key": vouched}
"""What is seen of a workspace where that is not all of its state."""


def told_of(name: str, now: State, after: State) -> State:
    """What is made again is whole once its weights are back, and nobody's until its run says so. A move by hand is told before it is
    moved on: that alone changes nothing."""
    if name == "commit again" and now.removed == after.removed:
        return replace(now, runs=after.runs)
    *moved, last = now.operations
    by_hand = last.startswith(BY_HAND) and now.operations == after.operations[:-1]
    return replace(now, operations=moved) if by_hand else now


def unrecorded(root: Path) -> set[str]:
    """Code that may run here, and nobody is known to have trusted."""
    ws = Workspace.find(root)
    known = ws.oplog.audit.path.read_text()
    return {name for digest, name in trusted(ws).items() if f"{name} ({digest[:12]})" not in known}


def damaged(root: Path) -> set[Problem]:
    return set(fsck(Workspace.find(root)).problems)


@pytest.mark.parametrize("name", COMMANDS)
def test_synced_before_it_is_named(name: str, forks: Forks, template: Path, scratch: Path, home: None) -> None:
    before = begun(name, template, scratch)
    root = copied(before, scratch / "w")
    assert unsafe(forks.calls(command_line(name, before), root, root), root, before) == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in COMMANDS]
)
def test_killed_at_every_call(name: str, forks: Forks, template: Path, scratch: Path, home: None) -> None:
    root, start = scratch / "w", begun(name, template, scratch)
    words, hurt, looked = command_line(name, start), damaged(copied(start, root)), LOOKED.get(name, state)
    assert bool(hurt) is (name in MOVED)
    before = looked(copied(start, root))
    calls = forks.calls(words, root, root)
    after = looked(root)
    assert after != before and len(calls) > 5 and not damaged(root)
    for call in calls:
        copied(start, root)
        assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
        assert damaged(root) <= hurt, f"killed before {call}"
        assert torn(root) == [], f"killed before {call}"
        assert not in_the_clear(root), f"killed before {call}"
        assert not unrecorded(root), f"killed before {call}"
        assert told_of(name, looked(root), after) in (before, after), f"killed before {call}"
        if looked(root) != after:
            assert forks.run(words, root) == 0, f"killed before {call}: {forks.said}"
            assert looked(root) == after and not damaged(root), f"killed before {call}"


OPERATIONS = [name for name in COMMANDS if name != "commit again"]
"""And what the audit alone is told; a checkpoint that is made again moves nothing."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "tag" else pytest.mark.slow) for name in OPERATIONS]
)
def test_what_a_kill_left_is_synced_before_it_counts(
    name: str, forks: Forks, template: Path, scratch: Path, home: None
) -> None:
    """The power may fail after the kill of an operation, and after the next command: that finds things done which nobody had
    synced, and must not take them for written."""
    root, start = scratch / "w", begun(name, template, scratch)
    words = command_line(name, start)
    calls = forks.calls(words, copied(start, root), root)
    said = [at for at, call in enumerate(calls) if call.paths[-1].endswith(SAID)]
    found: dict[str, list[str]] = {}
    for last, call in pairwise(calls[said[0] : said[-1] + 1]):
        if str(last).endswith('/pending.json")') and last.name == "unlink":
            continue  # an operation that is found pending again is done again
        copied(start, root)
        done = forks.cut(words, root, root, call)
        early = unsafe([*done, *forks.calls(("tag", "next"), root, root)], root, start)
        # A run that was killed may lose the end of its story.
        found[f"killed before {call}, the {call.nth}. of its kind"] = [
            each for each in early if not each.endswith("/events.jsonl")
        ]
    assert {call: what for call, what in found.items() if what} == {}


def test_a_record_that_a_kill_left_is_synced_before_the_next(
    forks: Forks, template: Path, scratch: Path, home: None
) -> None:
    """Where it is no operation, nothing else is synced in between: the log could get two records ahead of its head."""
    words, root = ("trust", "code.py"), scratch / "w"
    calls = forks.calls(words, copied(template, root), root)
    said = [at for at, call in enumerate(calls) if call.paths[-1].endswith(SAID)]
    found = {}
    for call in calls[said[0] : said[-1] + 2]:
        copied(template, root)
        done = forks.cut(words, root, root, call)
        found[f"killed before {call}"] = unsafe([*done, *forks.calls(words, root, root)], root, template)
    assert {call: what for call, what in found.items() if what} == {}


def test_init_is_killed_at_every_call(forks: Forks, scratch: Path) -> None:
    """There is no workspace yet, and it can be begun again, or there is one with all its configs."""
    words, root = ("init", "x"), scratch / "begun"
    (scratch / "nothing").mkdir()
    calls = forks.calls(words, copied(scratch / "nothing", root), root)
    assert unsafe(calls, root, scratch / "nothing") == []
    whole = files_below(root / "x")
    for call in calls:
        copied(scratch / "nothing", root)
        assert forks.killed(words, root, call), f"{call} never came: {forks.said}"
        if not (root / "x" / ".llmos" / "HEAD").exists():
            assert forks.run(words, root) == 0, f"killed before {call}: {forks.said}"
        left = [name for name in files_below(root / "x") if not name.startswith(".llmos/tmp/")]
        assert left == whole, f"killed before {call}"
        assert fsck(Workspace.find(root / "x")).problems == ()
