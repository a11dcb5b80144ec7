"""`--dry-run` on whatever changes a workspace: the act's own words, and not one byte moved."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from llmos_cli import catalog
from llmos_cli.core.manifest import Made
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError
from llmos_cli.lazy import commands_below
from tests.conftest import Llmos
from tests.operations.conftest import committed

READING = "reads, and writes nothing but caches"
EXEMPT = {
    "audit": READING,
    "completion": "prints a script",
    "config": READING,
    "diff": READING,
    "doctor": READING,
    "du": READING,
    "eval": "measures: the run it adds is the record of its answer, and nothing there changes",
    "fsck": READING,
    "generate": READING,
    "log": READING,
    "logs": READING,
    "op": READING,
    "path": READING,
    "predict": "reads the workspace; `-o FILE` is a file of the user's",
    "ps": READING,
    "reproduce": "works in a scratch workspace, and leaves nothing",
    "show": READING,
    "status": READING,
    "stop": "acts on a process, not on the workspace",
    "verify": READING,
    "trust": "writes the user's own list, and `--revoke` takes it back",
}
"""Commands without `--dry-run`, and why."""

SHORT_TRAINING = ("-s", "train.max_steps=1", "-q")
CASES: dict[str, list[tuple[str, ...]]] = {
    "backup": [("backup",)],
    "bisect": [("bisect", "--require", "loss <= 2 * base", "-q")],
    "branch": [("branch", "new"), ("branch", "-m", "other", "renamed"), ("branch", "-d", "other"), ("branch", "-f", "other", "base")],
    "checkout": [("checkout", "other"), ("checkout", "base"), ("checkout", "-b", "new"), ("checkout", "--configs", "-f")],
    "clone": [("clone", "../far", "../copy")],
    "compress": [("compress", "-q", "--target-ratio", "0.5")],
    "data": [("data", "snapshot", "--source", "notes.jsonl"), ("data", "snapshot", "--name", "again"), ("data", "rm", "kept", "--force")],
    "deploy": [("deploy", "--port", "0", "--name", "dry")],
    "export": [("export", "-o", "../out/model"), ("export", "-o", "../dense", "--dtype", "float32"), ("export", "-o", "../m.gguf", "--format", "gguf")],
    "fetch": [("fetch",)],
    "gc": [("gc", "--expire", "now")],
    "import": [("import", "{base}")],
    "init": [("init", "../new"), ("init", "../in/there", "-t", "image-classification")],
    "prune": [("prune", "-q")],
    "pull": [("pull",)],
    "push": [("push", "--remote", "empty"), ("push", "--all", "--remote", "empty"), ("push", "--delete", "--force", "main")],
    "quantize": [("quantize", "-q")],
    "redo": [("redo",)],
    "remote": [("remote", "add", "another", "../there"), ("remote", "rm", "empty")],
    "run": [("run",)],
    "restore": [("restore", "../far", "../back")],
    "rm": [("rm", "-f", "HEAD"), ("rm", "{unnamed}")],
    "seal": [("seal", "--with-lineage", "--key-file", "../seal.key")],
    "sign": [("sign", "--key", "key.pem")],
    "tag": [("tag", "new"), ("tag", "-d", "base"), ("tag", "-f", "base", "HEAD")],
    "train": [("train", *SHORT_TRAINING), ("train", "base", *SHORT_TRAINING)],
    "tune": [("tune", "-q", "--apply"), ("tune", "-q", "--sampler", "grid", "-s", "tune.space={train.batch_size: [2, 4]}")],
    "undo": [("undo",)],
    "unseal": [("unseal", "sealed", "--key-file", "seal.key")],
    "why": [("why", "base", "other", "-q")],
}  # fmt: skip

SAME_WORDS = (
    *("backup", "branch", "checkout", "clone", "data", "export", "fetch", "gc", "init"),
    *("pull", "push", "redo", "remote", "restore", "rm", "seal", "sign", "tag", "undo", "unseal"),
)
"""Whose answer is known before the act; the others tell a plan, or give a number that only the act finds."""


AGE = r"just now|\d+ seconds?( ago)?| +"
"""A second may have passed, and a column be as wide as its words."""
TENSES = {
    "would seal": "sealed",
    "would open": "opened",
    "would be made": "was made",
    "would remove": "removed",
    "would free": "freed",
    "would send": "sent",
    "would get": "got",
    "would move": "moved",
    "would make": "made",
    "would keep": "kept",
    "would back up": "backed up",
    "would restore": "restored",
    "would be deleted": "deleted",
    "would be": "were",
}


def options(command: str, llmos: Llmos) -> set[str]:
    """Of a command, or of all commands of a group."""
    told = "".join(
        llmos(command, *words, "--help").out for words in ((), *((name,) for name in commands_below(command)))
    )
    return set(re.findall(r"--[a-z-]+", told))


def test_every_command_has_it_or_a_reason(llmos):
    having = {name for name in catalog.commands() if "--dry-run" in options(name, llmos)}
    assert having == set(CASES)
    assert set(catalog.commands()) - having == set(EXEMPT)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, new_workspace: Callable[..., Workspace]) -> Path:
    """A workspace in which every case is possible: names, kept configs, an undone operation, something to collect."""
    from llmos_cli.operations.branch import branch
    from llmos_cli.operations.data import snapshot
    from llmos_cli.operations.tag import tag

    ws = new_workspace(tmp_path_factory.mktemp("full") / "w")
    train = ws.configs / "train.yaml"
    committed(ws, "causal-lm", files=[train])
    tag(ws, "base")
    committed(ws, "causal-lm", files=[train], change=lambda model: _shake(model, 1.5))
    branch(ws, "other")
    _sealed(ws)
    snapshot(ws, "base", name="kept")
    committed(ws, "causal-lm", change=lambda model: _shake(model, 2))
    ws.oplog.undo()
    (ws.root / "notes.jsonl").write_text("".join(f'{{"text": "note {number}"}}\n' for number in range(60)))
    train.write_text(train.read_text() + "# edited\n")
    _share(ws, train)
    with (ws.root / "llmos.yaml").open("a") as settings:
        settings.write("pipeline: {base: {verb: train}}\n")
    (ws.dot / "pipeline").mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (ws.root / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    with pytest.raises(LlmosError), ws.begin("train", config={}, argv=[]) as run:
        run.state.mkdir()
        (run.state / "training.pt").write_bytes(b"never resumed")
        raise LlmosError("cut off", hint="")
    return ws.root


def _sealed(ws: Workspace) -> None:
    from llmos_cli.operations.seal import seal
    from llmos_cli.operations.tag import tag

    made = Made("import", (), {}, {}, {}, 0, "2026-11-22T10:45:01Z")
    with ws.begin("import", config={}) as run, ws.stage() as staged:
        (staged / "secret").write_text("secret")
        tag(ws, "sealed", run.commit(staged, made, move=False).id)
    (ws.root / "seal.key").write_text("5" * 64)
    seal(ws, "sealed", key_file=None, ask=lambda _: "5" * 64)


def _share(ws: Workspace, train: Path) -> None:
    """A remote with a checkpoint that is not here, and one that nothing was pushed to."""
    from llmos_cli.operations.backup import backup
    from llmos_cli.operations.clone import clone
    from llmos_cli.operations.push import push

    with open(ws.root / "llmos.yaml", "a") as file:
        file.write("remotes:\n  origin: {url: ../far}\n  empty: {url: ../none}\n")
    push(ws)
    clone(str(ws.root.parent / "far"), ws.root.parent / "clone")
    other = Workspace.find(ws.root.parent / "clone")
    committed(
        other,
        "causal-lm",
        files=[train],
        change=lambda model: _shake(model, 3),
        parents=(str(other.head().checkpoint),),
    )
    push(other)
    backup(ws)


def _shake(model, factor: float) -> None:
    for parameter in model.parameters():
        parameter.mul_(factor)


def state(root: Path) -> dict[str, str]:
    """Every file and its content, and what lies beside the workspace; not the index, which is a cache of them."""
    files = {str(path.relative_to(root.parent)): path for path in sorted(root.parent.rglob("*"))}
    return {name: _digest(path) for name, path in files.items() if "index.sqlite" not in name and "/cache" not in name}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


def cases() -> list[tuple[str, tuple[str, ...]]]:
    return [(name, words) for name, several in CASES.items() for words in several]


@pytest.mark.parametrize(
    ("name", "words"), cases(), ids=lambda value: value if isinstance(value, str) else " ".join(value[1:3])
)
def test_nothing_moves_and_the_words_are_the_acts(name, words, full, llmos, tmp_path, monkeypatch):
    root = tmp_path / "place" / "w"
    shutil.copytree(full, root, symlinks=True)
    shutil.copytree(full.parent / "far", root.parent / "far")
    monkeypatch.chdir(root)
    ws = Workspace.find(root)
    named = set(ws.refs.pointing())
    places = {
        "base": str(ws.checkpoint("base").path),
        "unnamed": next(path.name for path in ws.checkpoints.iterdir() if path.name not in named),
    }
    words = tuple(word.format(**places) if word in ("{base}", "{unnamed}") else word for word in words)
    before = state(root)
    dry = llmos(*words, "--dry-run")
    assert dry.code == 0, dry.err
    assert state(root) == before
    *told, last = dry.out.splitlines()
    assert told and last == "dry run: nothing was changed"
    assert llmos(*words, "--dry-run", "--json").json["dry_run"] is True
    assert state(root) == before
    if name in SAME_WORDS:
        act = llmos(*words)
        assert act.code == 0, act.err
        assert state(root) != before
        acted = re.sub("|".join(TENSES), lambda found: TENSES[found[0]], "\n".join(told) + "\n")
        assert re.sub(AGE, "", acted) == re.sub(AGE, "", act.out)


@pytest.mark.parametrize("words", [("--resume",), ("--run", "x"), ("--jobs", "2", "-c", "a.yaml")])
def test_a_training_that_cannot_be_planned_does_not_begin(words, workspace, llmos):
    ran = llmos("train", "--dry-run", *words)
    assert (ran.code, ran.err.splitlines()[0]) == (2, "error: --dry-run plans one new run")
    assert workspace.runs.list() == []
