"""data snapshot: a checkpoint is made again, and judged on the same rows, whatever became of its source."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.backup import backup
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.remote import add
from llmos_cli.operations.restore import restore

CSV = "data: {task: text-classification, source: rows.csv, sequence_length: 16}\nmodel: {arch: bag}\ntrain: {max_steps: 2}\n"


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory, new_workspace) -> Path:
    from llmos_cli.operations.config import resolve
    from llmos_cli.operations.train import train

    ws = new_workspace(tmp_path_factory.mktemp("data") / "workspace", "text-classification")
    (ws.configs / "train.yaml").write_text(CSV)
    rows = [f"{'good nice fine' if at % 2 else 'bad poor sad'} {at},{at % 2}" for at in range(200)]
    (ws.root / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    train(ws, None, resolve(ws, "train"), emit=lambda event: None)
    return ws.root


@pytest.fixture
def made(_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace of its own with one training on a file."""
    shutil.copytree(_made, tmp_path / "workspace", symlinks=True)
    monkeypatch.chdir(tmp_path / "workspace")
    return Workspace.find()


def change(ws: Workspace) -> None:
    with (ws.root / "rows.csv").open("a") as file:
        file.write("bad new row,0\n" * 40)


def snapshot_of(ws: Workspace) -> str:
    (only,) = ws.snapshots.ids()
    return only


def test_what_was_kept_is_made_again_and_judged_on_the_same_rows(made: Workspace, llmos):
    before = llmos("eval", "-q", "--json").json["evaluations"][0]["metrics"]
    assert llmos("data", "snapshot", "-q").code == 0
    kept = snapshot_of(made)
    change(made)
    shutil.rmtree(made.cache)  # what was derived of the rows is derived again
    judged = llmos("eval", "-q", "--json", "--fresh")
    assert judged.err.count("the data has changed since") == 1 and kept[:12] in judged.err
    numbers = judged.json["evaluations"][0]["metrics"]
    assert numbers["accuracy"] == before["accuracy"] and numbers["loss"] == before["loss"]
    again = llmos("reproduce", "--json", "-q")
    assert again.code == 0, again.err
    assert again.json["steps"][0]["result"] == "identical"
    (made.root / "rows.csv").unlink()
    gone = llmos("train", "-q", "--json")
    assert gone.code == 0 and f"rows.csv: the rows of snapshot {kept[:12]}" in gone.err
    first, second = (made.manifest(entry.id) for entry in made.index.entries())
    assert first.tree == second.tree and first.made.data == second.made.data


def test_new_training_reads_what_is_there_now(made: Workspace, llmos):
    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    change(made)
    assert llmos("train", "-q").code == 0
    now = made.manifest(made.resolve()).made.data["splits"]
    assert now != made.snapshots.find("first").fingerprint
    assert llmos("train", "-q", "-s", "data.source=snapshot:first").code == 0
    assert made.manifest(made.resolve()).made.data["splits"] == made.snapshots.find("first").fingerprint


def test_a_name_moves_when_it_is_told_to(made: Workspace, llmos):
    assert llmos("data", "snapshot", "--name", "v1", "-q").code == 0
    first = snapshot_of(made)
    change(made)
    for dry in ((), ("--dry-run",)):
        refused = llmos("data", "snapshot", "--source", "rows.csv", "--name", "v1", *dry)
        assert refused.code == 2 and f"snapshot v1 is {first[:12]} already" in refused.err and "-f" in refused.err
    assert made.snapshots.ids() == [first] and made.snapshots.names() == {"v1": first}
    assert llmos("data", "snapshot", "HEAD", "--name", "v1", "-q").code == 0, "it has that name"
    assert llmos("data", "snapshot", "HEAD", "--name", "v1/a").code == 2, "a name is no folder"
    assert llmos("data", "snapshot", "--source", "rows.csv", "--name", "v1", "--force", "-q").code == 0
    assert made.snapshots.find("v1").rows == 240 and llmos("undo").code == 0
    assert made.snapshots.find("v1").rows == 200


def test_what_is_told_of_a_snapshot(made: Workspace, llmos):
    tried = llmos("data", "snapshot", "--dry-run")
    assert tried.out.startswith("would keep ") and not made.snapshots.ids()
    taken = llmos("data", "snapshot", "--name", "first", "--json", "-q").json["taken"][0]
    assert taken["snapshot"] == snapshot_of(made) and taken["checkpoints"] == [made.resolve()]
    assert sum(taken["rows"].values()) == 200 and list(taken["rows"]) == ["train", "validation", "test"]
    assert taken["new"] == taken["size"] > 0
    assert "all of it here already" in llmos("data", "snapshot").out
    (kept,) = llmos("data", "list", "--json").json["snapshots"]
    assert (kept["names"], kept["source"], kept["rows"], kept["checkpoints"]) == (["first"], "rows.csv", 200, 1)
    assert kept["own"] == kept["size"] == taken["size"]
    assert llmos("du", "--json").json["data"] > kept["size"]
    refused = llmos("data", "rm", "first")
    assert refused.code == 2 and "1 checkpoints were made with" in refused.err
    assert llmos("data", "rm", "first", "--dry-run", "--force").code == 0 and made.snapshots.ids()
    assert llmos("data", "rm", "first", "--force").code == 0
    assert not made.snapshots.ids() and llmos("train", "-s", "data.source=snapshot:first").code == 4


def test_what_was_removed_is_undone_with_its_names_and_rows(made: Workspace, llmos):
    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    kept = made.snapshots.find("first")
    assert llmos("data", "snapshot", "--name", "also", "-q").code == 0
    removed = llmos("data", "rm", "also", "--force")
    assert (
        f"removed {kept.id[:12]} (rows.csv)" in removed.out and "`llmos undo` brings it back for 30 days" in removed.out
    )
    assert (made.snapshots.ids(), made.snapshots.names()) == ([], {})
    assert f"snapshot {kept.id[:12]} removed" in llmos("op", "log").out
    assert llmos("gc", "--expire", "now", "--json").json["garbage"] == [], "within the window"
    assert f"snapshot {kept.id[:12]} restored" in llmos("undo").out
    assert made.snapshots.names() == {"first": kept.id, "also": kept.id} and made.snapshots.find("also") == kept
    assert made.snapshots.wrong(kept) == "" and fsck(made).problems == ()
    assert llmos("redo").code == 0 and made.snapshots.ids() == []
    assert llmos("data", "snapshot", "-q").code == 0, "taken again, at another time"
    assert llmos("undo").code == 0 and made.snapshots.names() == {"first": kept.id, "also": kept.id}
    assert llmos("redo").code == 0 and (made.snapshots.ids(), made.snapshots.names()) == ([], {})


def test_removed_rows_go_when_undo_reaches_them_no_more_and_no_run_reads_them(made: Workspace, llmos):
    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    pieces = {sha256 for sha256, _ in made.snapshots.stored()}
    with made.begin("train", config={}):
        assert llmos("data", "rm", "first", "--force").code == 0
        assert llmos("gc", "--window", "now", "-q").code == 0
        assert {sha256 for sha256, _ in made.snapshots.stored()} == pieces
    gone = llmos("gc", "--window", "now", "--json").json["garbage"]
    assert {each["name"] for each in gone if each["kind"] == "piece"} == pieces and not [*made.snapshots.stored()]
    refused = llmos("undo")
    assert refused.code == 4 and "are gone for good" in refused.err and "llmos data snapshot" in refused.err
    assert llmos("data", "snapshot", "-q").code == 0 and llmos("undo").code == 0
    assert list(made.snapshots.names()) == ["first"] and fsck(made).problems == ()


def test_removing_is_whole_or_did_not_happen(made: Workspace, llmos, monkeypatch):
    from llmos_cli.core import atomic
    from llmos_cli.core.oplog import OperationLog

    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    before = made.snapshots.find("first")

    def cut_off(log: OperationLog, operation: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OperationLog, "_log", cut_off)
        assert llmos("data", "rm", "first", "--force").code != 0
    assert made.snapshots.find("first") == before and fsck(made).problems == ()
    whole = atomic.remove

    def killed(path: Path) -> None:
        whole(path)
        os._exit(9)

    if not (pid := os.fork()):
        atomic.remove = killed
        llmos("data", "rm", "first", "--force")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    made.oplog.settle()
    assert (made.snapshots.ids(), made.snapshots.names()) == ([], {})
    assert llmos("undo").code == 0 and made.snapshots.find("first") == before


def test_data_that_is_lost_already(made: Workspace, llmos):
    change(made)
    told = llmos("data", "snapshot")
    assert told.code == 5 and "rows.csv is not what" in told.err and "rows now" in told.err
    assert llmos("data", "snapshot", "--json").json["lost"][0]["checkpoint"] == made.resolve()
    assert llmos("data", "snapshot", "--source", "rows.csv").code == 0
    assert made.snapshots.read(snapshot_of(made)).rows == 240
    assert llmos("data", "snapshot", "HEAD", "--source", "rows.csv").code == 2


def test_a_source_before_anything_is_made(workspace: Workspace, llmos):
    assert llmos("data", "snapshot", "--name", "reference", "-q").code == 0
    kept = made = workspace.snapshots.find("reference")
    assert kept.source == "builtin:pydoc" and made.splits["train"].columns == ("text",)
    assert workspace.snapshots.wrong(kept) == ""


def test_gc_keeps_what_is_named_or_was_trained_on(made: Workspace, llmos):
    (made.root / "notes.csv").write_text("text,label\n" + "".join(f"note {at},{at % 2}\n" for at in range(99)))
    assert llmos("data", "snapshot", "-q").code == 0
    trained = snapshot_of(made)
    assert llmos("data", "snapshot", "--source", "notes.csv", "--name", "notes", "-q").code == 0
    made.snapshots.store(b"what a kill left")
    would = llmos("gc", "--expire", "now", "--dry-run", "--json").json["garbage"]
    assert [each["kind"] for each in would if each["kind"] in ("snapshot", "piece")] == ["piece"]
    assert llmos("gc", "--expire", "now").code == 0 and fsck(made).problems == ()
    assert len(made.snapshots.ids()) == 2 and len([*made.snapshots.stored()]) == sum(
        len(each.pieces) for each in made.snapshots.all()
    )
    made.refs.write("refs/data/notes", None)
    (made.dot / "operations.jsonl").write_text("")  # as when the window of the log is over
    assert llmos("gc", "--json").json["garbage"] == [], "young"
    gone = llmos("gc", "--expire", "now", "--json").json["garbage"]
    assert [each["called"] for each in gone if each["kind"] == "snapshot"] == ["notes.csv"]
    assert made.snapshots.ids() == [trained] and made.snapshots.wrong(made.snapshots.read(trained)) == ""


def test_fsck_says_what_a_lost_piece_hurts(made: Workspace, llmos):
    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    assert llmos("fsck", "-q").code == 0
    ((_, path), *_) = made.snapshots.stored()
    path.unlink()
    (made.snapshots.directory / "mine.txt").write_text("?")
    told = llmos("fsck", "--json", "-q")
    assert told.code == 5
    where = {each["where"]: each for each in json.loads(told.out.splitlines()[0])["problems"]}
    assert where[f".llmos/snapshots/{snapshot_of(made)[:12]}"]["hurts"] == ["main"]
    assert "did not put it there" in where[".llmos/snapshots/mine.txt"]["what"]
    made.snapshots.path(snapshot_of(made)).unlink()
    assert any(each.where == "refs/data/first" for each in fsck(made).problems)


def test_a_backup_has_it_and_does_not_copy_it_first(made: Workspace, llmos, tmp_path: Path):
    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    add(made, "origin", str(tmp_path / "far"))
    backup(made)
    restore(str(tmp_path / "far"), tmp_path / "again")
    again = Workspace(tmp_path / "again")
    assert again.snapshots.names() == made.snapshots.names() and fsck(again).problems == ()
    assert again.snapshots.find("first") == made.snapshots.find("first")
    assert again.snapshots.wrong(again.snapshots.find("first")) == ""


def test_a_saved_snapshot_reads_like_its_page_says(made: Workspace, llmos):
    """By nothing but the standard library: a row is columns by name, length and value, and the id is over their hashes."""
    import hashlib

    llmos("data", "snapshot", "-q")
    folder = made.dot / "snapshots"
    told = json.loads((folder / f"{snapshot_of(made)}.json").read_text())
    splits = {}
    for name, split in told["splits"].items():
        digests, texts = b"", []
        for piece in split["pieces"]:
            data = (folder / "objects" / piece["sha256"][:2] / piece["sha256"][2:]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == piece["sha256"] and len(data) == piece["size"]
            at = 0
            for _ in range(piece["rows"]):
                begin = at
                for column in split["columns"]:
                    head, length, _ = data[at:].split(b":", 2)
                    assert head.decode() == column
                    at += len(head) + len(length) + 2 + int(length)
                texts.append(data[at - int(length) + 1 : at].decode())
                digests += hashlib.sha256(data[begin:at]).digest()
        splits[name] = {"rows": len(texts), "sha256": hashlib.sha256(digests).hexdigest()}
        assert all(text.split()[0] in ("good", "bad") for text in texts)
    canonical = json.dumps(splits, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(canonical).hexdigest() == told["id"] == snapshot_of(made)
    assert splits == made.manifest(made.resolve()).made.data["splits"]


def test_nothing_is_half_kept_on_a_full_disk(made: Workspace, llmos, monkeypatch):
    import errno

    from llmos_cli.core import atomic

    whole = atomic._write_synced
    calls = iter(range(10))

    def refusing(path: Path, data: bytes) -> None:
        if next(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(path, data)

    monkeypatch.setattr(atomic, "_write_synced", refusing)
    told = llmos("data", "snapshot", "-q")
    assert told.code == 1 and "the disk is full" in told.err and not made.snapshots.ids()
    monkeypatch.setattr(atomic, "_write_synced", whole)
    assert llmos("gc", "-q").code == 0 and not [*made.snapshots.stored()]
    assert llmos("data", "snapshot", "-q").code == 0 and fsck(made).problems == ()


@pytest.mark.parametrize("key", [False, True], ids=["plain", "encrypted"])
def test_it_travels_where_it_is_asked_to(made: Workspace, llmos, tmp_path: Path, key: bool, monkeypatch):
    far, keyed = str(tmp_path / "far"), ("--key-file", str(tmp_path / "key")) if key else ()
    assert llmos("data", "snapshot", "-q").code == 0
    kept = snapshot_of(made)
    assert llmos("remote", "add", "origin", far, *keyed).code == 0
    assert llmos("push", "-q").code == 0
    assert llmos("clone", far, tmp_path / "bare", "--data", *keyed).code == 0
    assert Workspace(tmp_path / "bare").snapshots.ids() == [], "a push alone sends no data"
    sent = llmos("push", "--data", "--json", "-q").json
    assert (sent["snapshots"], sent["checkpoints"]) == (1, 0) and sent["bytes"] > 0
    assert "has all of it already" in llmos("push", "--data").out
    told = llmos("clone", far, tmp_path / "there", "--data", *keyed)
    assert told.code == 0 and "1 data snapshot" in told.out
    there = Workspace(tmp_path / "there")
    assert there.snapshots.read(kept) == made.snapshots.read(kept) and fsck(there).problems == ()
    monkeypatch.chdir(there.root)  # where there is no rows.csv
    judged = llmos("eval", "-q", "--fresh")
    assert judged.code == 0 and f"the rows of snapshot {kept[:12]}" in judged.err
    monkeypatch.chdir(tmp_path / "bare")
    assert llmos("fetch", "--data", "--json").json["snapshots"] == 1
    assert llmos("fetch", "--data", "--json").json["snapshots"] == 0
    assert Workspace(tmp_path / "bare").snapshots.ids() == [kept]


def test_what_a_remote_says_of_data_is_not_believed(made: Workspace, llmos, tmp_path: Path):
    (made.root / "notes.csv").write_text("text,label\n" + "".join(f"note {at},{at % 2}\n" for at in range(99)))
    assert llmos("data", "snapshot", "-q").code == 0
    kept = snapshot_of(made)
    assert llmos("remote", "add", "origin", str(tmp_path / "far")).code == 0
    assert llmos("push", "-q", "--data").code == 0
    described = tmp_path / "far" / "snapshots" / f"{kept}.json"
    whole = json.loads(described.read_text())
    pieces = [piece for split in whole["splits"].values() for piece in split["pieces"]]
    lies = {
        "altered": whole | {"id": "0" * 64},
        "another": whole | {"source": "a\x1b[2Jb"},
        "makes no sense": whole | {"splits": {"train": {"rows": 1}}},
        "is not what it says": json.loads(json.dumps(whole)),
    }
    lies["is not what it says"]["splits"]["train"]["pieces"] = [pieces[-1]]
    lies["rows, "] = json.loads(json.dumps(whole))
    lies["rows, "]["splits"]["train"]["pieces"][0]["rows"] -= 1
    for what, lie in lies.items():
        described.write_text(json.dumps(lie))
        told = llmos("clone", tmp_path / "far", tmp_path / "there", "--data")
        assert told.code == 5 and ("was altered" if what == "another" else what) in told.err, told.err
        assert not (tmp_path / "there").exists()
    described.write_text(json.dumps(whole))
    assert llmos("clone", tmp_path / "far", tmp_path / "there", "--data").code == 0


def test_damaged_snapshots_come_back_from_a_remote(made: Workspace, llmos, tmp_path: Path):
    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    kept, where = snapshot_of(made), f".llmos/snapshots/{snapshot_of(made)[:12]}"
    assert llmos("remote", "add", "origin", str(tmp_path / "far")).code == 0
    assert llmos("push", "-q", "--data").code == 0
    text = made.snapshots.path(kept).read_text()
    (one, path), *_ = made.snapshots.stored()
    piece = f"{where} (piece {one[:12]})"
    lying = text.replace('"size": ', '"size": 1', 1)
    for damage, back in {
        (path, None): piece,
        (path, b"x" * path.stat().st_size): piece,
        (made.snapshots.path(kept), None): where,
        (made.snapshots.path(kept), b"?"): where,
        (made.snapshots.path(kept), lying.encode()): where,
    }.items():
        damage[0].unlink() if damage[1] is None else damage[0].write_bytes(damage[1])
        assert fsck(made).problems
        mended = fsck(made, repair=True)
        assert mended.problems == () and [(each.where, each.source) for each in mended.repaired] == [(back, "origin")]
        assert made.snapshots.path(kept).read_text() == text


@pytest.mark.parametrize(
    "piece", [b"text:-9:sx", b"text:+1:s", b"text:1_0:s", b"text:9:s", b"label:1:s", b"text:", b"text:" + b"9" * 99]
)
def test_a_row_that_is_none(piece: bytes):
    from llmos_cli.core.snapshots import frames

    with pytest.raises(ValueError):
        list(frames(piece, ("text",)))
