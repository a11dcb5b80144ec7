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


def change(ws: Workspace) -> None:
    with (ws.root / "rows.csv").open("a") as file:
        file.write("bad new row,0\n" * 40)


def snapshot_of(ws: Workspace) -> str:
    (only,) = ws.snapshots.ids()
    return only


def test_what_was_kept_is_made_again_and_judged_on_the_same_rows(on_rows: Workspace, llmos):
    before = llmos("eval", "-q", "--json").json["evaluations"][0]["metrics"]
    assert llmos("data", "snapshot", "-q").code == 0
    kept = snapshot_of(on_rows)
    change(on_rows)
    shutil.rmtree(on_rows.cache)  # what was derived of the rows is derived again
    judged = llmos("eval", "-q", "--json", "--fresh")
    assert judged.err.count("the data has changed since") == 1 and kept[:12] in judged.err
    numbers = judged.json["evaluations"][0]["metrics"]
    assert numbers["accuracy"] == before["accuracy"] and numbers["loss"] == before["loss"]
    again = llmos("reproduce", "--json", "-q")
    assert again.code == 0, again.err
    assert again.json["steps"][0]["result"] == "identical"
    (on_rows.root / "rows.csv").unlink()
    gone = llmos("train", "-q", "--json")
    assert gone.code == 0 and f"rows.csv: the rows of snapshot {kept[:12]}" in gone.err
    first, second = (on_rows.manifest(entry.id) for entry in on_rows.index.entries())
    assert first.tree == second.tree and first.made.data == second.made.data


def test_one_whose_list_is_gone_is_missed_and_its_rows_stay(on_rows: Workspace, llmos, tmp_path):
    assert llmos("data", "snapshot", "-q").code == 0
    kept = snapshot_of(on_rows)
    text = on_rows.snapshots.path(kept).read_text()
    add(on_rows, "origin", str(tmp_path / "far"))
    assert llmos("push", "--data", "-q").code == 0
    on_rows.snapshots.path(kept).unlink()
    told = llmos("fsck")
    assert told.code == 5 and f".llmos/snapshots/{kept[:12]}  is missing, and was kept here" in told.out
    assert "piece" not in llmos("gc", "--expire", "now", "--window", "now").out
    assert llmos("fsck", "--repair").code == 0 and on_rows.snapshots.path(kept).read_text() == text
    on_rows.snapshots.path(kept).unlink()
    assert llmos("data", "rm", kept[:12], "--dry-run").out.startswith("would give up ") and llmos("fsck").code == 5
    assert llmos("data", "rm", kept[:12]).code == 0 and llmos("fsck").code == 0
    assert llmos("undo").code == 4 and "piece" in llmos("gc", "--expire", "now", "--window", "now").out
    assert llmos("data", "snapshot", "-q").code == 0 and llmos("data", "rm", kept[:12], "--force").code == 0
    assert llmos("fsck").code == 0, "removed is not missing"


def test_new_training_reads_what_is_there_now(on_rows: Workspace, llmos):
    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    change(on_rows)
    assert llmos("train", "-q").code == 0
    now = on_rows.manifest(on_rows.resolve()).made.data["splits"]
    assert now != on_rows.snapshots.find("first").fingerprint
    assert llmos("train", "-q", "-s", "data.source=snapshot:first").code == 0
    assert on_rows.manifest(on_rows.resolve()).made.data["splits"] == on_rows.snapshots.find("first").fingerprint


def test_a_name_moves_when_it_is_told_to(on_rows: Workspace, llmos):
    assert llmos("data", "snapshot", "--name", "v1", "-q").code == 0
    first = snapshot_of(on_rows)
    change(on_rows)
    for dry in ((), ("--dry-run",)):
        refused = llmos("data", "snapshot", "--source", "rows.csv", "--name", "v1", *dry)
        assert refused.code == 2 and f"snapshot v1 is {first[:12]} already" in refused.err and "-f" in refused.err
    assert on_rows.snapshots.ids() == [first] and on_rows.snapshots.names() == {"v1": first}
    assert llmos("data", "snapshot", "HEAD", "--name", "v1", "-q").code == 0, "it has that name"
    assert llmos("data", "snapshot", "HEAD", "--name", "v1/a").code == 2, "a name is no folder"
    assert llmos("data", "snapshot", "--source", "rows.csv", "--name", "v1", "--force", "-q").code == 0
    assert on_rows.snapshots.find("v1").rows == 240 and llmos("undo").code == 0
    assert on_rows.snapshots.find("v1").rows == 200


def test_what_is_told_of_a_snapshot(on_rows: Workspace, llmos):
    tried = llmos("data", "snapshot", "--dry-run")
    assert tried.out.startswith("would keep ") and not on_rows.snapshots.ids()
    taken = llmos("data", "snapshot", "--name", "first", "--json", "-q").json["taken"][0]
    assert taken["snapshot"] == snapshot_of(on_rows) and taken["checkpoints"] == [on_rows.resolve()]
    assert sum(taken["rows"].values()) == 200 and list(taken["rows"]) == ["train", "validation", "test"]
    assert taken["new"] == taken["size"] > 0
    assert "all of it here already" in llmos("data", "snapshot").out
    (kept,) = llmos("data", "list", "--json").json["snapshots"]
    assert (kept["names"], kept["source"], kept["rows"], kept["checkpoints"]) == (["first"], "rows.csv", 200, 1)
    assert kept["own"] == kept["size"] == taken["size"]
    assert llmos("du", "--json").json["data"] > kept["size"]
    refused = llmos("data", "rm", "first")
    assert refused.code == 2 and "1 checkpoint made with snapshot " in refused.err
    assert llmos("data", "rm", "first", "--dry-run", "--force").code == 0 and on_rows.snapshots.ids()
    assert llmos("data", "rm", "first", "--force").code == 0
    assert not on_rows.snapshots.ids() and llmos("train", "-s", "data.source=snapshot:first").code == 4


def test_what_was_removed_is_undone_with_its_names_and_rows(on_rows: Workspace, llmos):
    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    kept = on_rows.snapshots.find("first")
    assert llmos("data", "snapshot", "--name", "also", "-q").code == 0
    removed = llmos("data", "rm", "also", "--force")
    assert (
        f"removed {kept.id[:12]} (rows.csv)" in removed.out and "`llmos undo` brings it back for 30 days" in removed.out
    )
    assert (on_rows.snapshots.ids(), on_rows.snapshots.names()) == ([], {})
    assert f"snapshot {kept.id[:12]} removed" in llmos("op", "log").out
    assert llmos("gc", "--expire", "now", "--json").json["garbage"] == [], "within the window"
    assert f"snapshot {kept.id[:12]} restored" in llmos("undo").out
    assert on_rows.snapshots.names() == {"first": kept.id, "also": kept.id} and on_rows.snapshots.find("also") == kept
    assert on_rows.snapshots.wrong(kept) == "" and fsck(on_rows).problems == ()
    assert llmos("redo").code == 0 and on_rows.snapshots.ids() == []
    assert llmos("data", "snapshot", "-q").code == 0, "taken again, at another time"
    assert llmos("undo").code == 0 and on_rows.snapshots.names() == {"first": kept.id, "also": kept.id}
    assert llmos("redo").code == 0 and (on_rows.snapshots.ids(), on_rows.snapshots.names()) == ([], {})


def test_removed_rows_go_when_undo_reaches_them_no_more_and_no_run_reads_them(on_rows: Workspace, llmos):
    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    pieces = {sha256 for sha256, _ in on_rows.snapshots.stored()}
    with on_rows.begin("train", config={}):
        assert llmos("data", "rm", "first", "--force").code == 0
        assert llmos("gc", "--window", "now", "-q").code == 0
        assert {sha256 for sha256, _ in on_rows.snapshots.stored()} == pieces
    gone = llmos("gc", "--window", "now", "--json").json["garbage"]
    assert {each["name"] for each in gone if each["kind"] == "piece"} == pieces and not [*on_rows.snapshots.stored()]
    refused = llmos("undo")
    assert refused.code == 4 and "are gone for good" in refused.err and "llmos data snapshot" in refused.err
    assert llmos("data", "snapshot", "-q").code == 0 and llmos("undo").code == 0
    assert list(on_rows.snapshots.names()) == ["first"] and fsck(on_rows).problems == ()


def test_removing_is_whole_or_did_not_happen(on_rows: Workspace, llmos, monkeypatch):
    from llmos_cli.core import atomic
    from llmos_cli.core.oplog import OperationLog

    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    before = on_rows.snapshots.find("first")

    def cut_off(log: OperationLog, operation: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OperationLog, "_log", cut_off)
        assert llmos("data", "rm", "first", "--force").code != 0
    assert on_rows.snapshots.find("first") == before and fsck(on_rows).problems == ()
    whole = atomic.remove

    def killed(path: Path) -> None:
        whole(path)
        os._exit(9)

    if not (pid := os.fork()):
        atomic.remove = killed
        llmos("data", "rm", "first", "--force")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    on_rows.oplog.settle()
    assert (on_rows.snapshots.ids(), on_rows.snapshots.names()) == ([], {})
    assert llmos("undo").code == 0 and on_rows.snapshots.find("first") == before


def test_data_that_is_lost_already(on_rows: Workspace, llmos):
    change(on_rows)
    told = llmos("data", "snapshot")
    assert told.code == 5 and "rows.csv is not what" in told.err and "rows now" in told.err
    assert llmos("data", "snapshot", "--json").json["lost"][0]["checkpoint"] == on_rows.resolve()
    assert llmos("data", "snapshot", "--source", "rows.csv").code == 0
    assert on_rows.snapshots.read(snapshot_of(on_rows)).rows == 240
    assert llmos("data", "snapshot", "HEAD", "--source", "rows.csv").code == 2


def test_a_source_before_anything_is_made(workspace: Workspace, llmos):
    assert llmos("data", "snapshot", "--name", "reference", "-q").code == 0
    kept = on_rows = workspace.snapshots.find("reference")
    assert kept.source == "builtin:pydoc" and on_rows.splits["train"].columns == ("text",)
    assert workspace.snapshots.wrong(kept) == ""


def test_gc_keeps_what_is_named_or_was_trained_on(on_rows: Workspace, llmos):
    (on_rows.root / "notes.csv").write_text("text,label\n" + "".join(f"note {at},{at % 2}\n" for at in range(99)))
    assert llmos("data", "snapshot", "-q").code == 0
    trained = snapshot_of(on_rows)
    assert llmos("data", "snapshot", "--source", "notes.csv", "--name", "notes", "-q").code == 0
    on_rows.snapshots.store(b"what a kill left")
    would = llmos("gc", "--expire", "now", "--dry-run", "--json").json["garbage"]
    assert [each["kind"] for each in would if each["kind"] in ("snapshot", "piece")] == ["piece"]
    assert llmos("gc", "--expire", "now").code == 0 and fsck(on_rows).problems == ()
    assert len(on_rows.snapshots.ids()) == 2 and len([*on_rows.snapshots.stored()]) == sum(
        len(each.pieces) for each in on_rows.snapshots.all()
    )
    on_rows.refs.write("refs/data/notes", None)
    assert llmos("gc", "--window", "now", "--json").json["garbage"] == [], "young"
    gone = llmos("gc", "--window", "now", "--expire", "now", "--json").json["garbage"]
    assert [each["called"] for each in gone if each["kind"] == "snapshot"] == ["notes.csv"]
    assert on_rows.snapshots.ids() == [trained] and on_rows.snapshots.wrong(on_rows.snapshots.read(trained)) == ""


def test_fsck_says_what_a_lost_piece_hurts(on_rows: Workspace, llmos):
    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    assert llmos("fsck", "-q").code == 0
    ((_, path), *_) = on_rows.snapshots.stored()
    path.unlink()
    (on_rows.snapshots.directory / "mine.txt").write_text("?")
    told = llmos("fsck", "--json", "-q")
    assert told.code == 5
    where = {each["where"]: each for each in json.loads(told.out.splitlines()[0])["problems"]}
    assert where[f".llmos/snapshots/{snapshot_of(on_rows)[:12]}"]["hurts"] == ["main"]
    assert "did not put it there" in where[".llmos/snapshots/mine.txt"]["what"]
    on_rows.snapshots.path(snapshot_of(on_rows)).unlink()
    assert any(each.where == "refs/data/first" for each in fsck(on_rows).problems)


def test_a_backup_has_it_and_does_not_copy_it_first(on_rows: Workspace, llmos, tmp_path: Path):
    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    add(on_rows, "origin", str(tmp_path / "far"))
    backup(on_rows)
    restore(str(tmp_path / "far"), tmp_path / "again")
    again = Workspace(tmp_path / "again")
    assert again.snapshots.names() == on_rows.snapshots.names() and fsck(again).problems == ()
    assert again.snapshots.find("first") == on_rows.snapshots.find("first")
    assert again.snapshots.wrong(again.snapshots.find("first")) == ""


def test_a_saved_snapshot_reads_like_its_page_says(on_rows: Workspace, llmos):
    """By nothing but the standard library: a row is columns by name, length and value, and the id is over their hashes."""
    import hashlib

    llmos("data", "snapshot", "-q")
    folder = on_rows.dot / "snapshots"
    told = json.loads((folder / f"{snapshot_of(on_rows)}.json").read_text())
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
    assert hashlib.sha256(canonical).hexdigest() == told["id"] == snapshot_of(on_rows)
    assert splits == on_rows.manifest(on_rows.resolve()).made.data["splits"]


def test_nothing_is_half_kept_on_a_full_disk(on_rows: Workspace, llmos, monkeypatch):
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
    assert told.code == 1 and "the disk is full" in told.err and not on_rows.snapshots.ids()
    monkeypatch.setattr(atomic, "_write_synced", whole)
    assert llmos("gc", "-q").code == 0 and not [*on_rows.snapshots.stored()]
    assert llmos("data", "snapshot", "-q").code == 0 and fsck(on_rows).problems == ()


@pytest.mark.parametrize("key", [False, True], ids=["plain", "encrypted"])
def test_it_travels_where_it_is_asked_to(on_rows: Workspace, llmos, tmp_path: Path, key: bool, monkeypatch):
    far, keyed = str(tmp_path / "far"), ("--key-file", str(tmp_path / "key")) if key else ()
    assert llmos("data", "snapshot", "-q").code == 0
    kept = snapshot_of(on_rows)
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
    assert there.snapshots.read(kept) == on_rows.snapshots.read(kept) and fsck(there).problems == ()
    monkeypatch.chdir(there.root)  # where there is no rows.csv
    judged = llmos("eval", "-q", "--fresh")
    assert judged.code == 0 and f"the rows of snapshot {kept[:12]}" in judged.err
    monkeypatch.chdir(tmp_path / "bare")
    assert llmos("fetch", "--data", "--json").json["snapshots"] == 1
    assert llmos("fetch", "--data", "--json").json["snapshots"] == 0
    assert Workspace(tmp_path / "bare").snapshots.ids() == [kept]


def test_what_a_remote_says_of_data_is_not_believed(on_rows: Workspace, llmos, tmp_path: Path):
    (on_rows.root / "notes.csv").write_text("text,label\n" + "".join(f"note {at},{at % 2}\n" for at in range(99)))
    assert llmos("data", "snapshot", "-q").code == 0
    kept = snapshot_of(on_rows)
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


def test_damaged_snapshots_come_back_from_a_remote(on_rows: Workspace, llmos, tmp_path: Path):
    assert llmos("data", "snapshot", "--name", "first", "-q").code == 0
    kept, where = snapshot_of(on_rows), f".llmos/snapshots/{snapshot_of(on_rows)[:12]}"
    assert llmos("remote", "add", "origin", str(tmp_path / "far")).code == 0
    assert llmos("push", "-q", "--data").code == 0
    fsck(on_rows, repair=True)  # a copied workspace: its files are shared again
    text = on_rows.snapshots.path(kept).read_text()
    (one, path), *_ = on_rows.snapshots.stored()
    piece = f"{where} (piece {one[:12]})"
    lying = text.replace('"size": ', '"size": 1', 1)
    for damage, back in {
        (path, None): piece,
        (path, b"x" * path.stat().st_size): piece,
        (on_rows.snapshots.path(kept), None): where,
        (on_rows.snapshots.path(kept), b"?"): where,
        (on_rows.snapshots.path(kept), lying.encode()): where,
    }.items():
        damage[0].unlink() if damage[1] is None else damage[0].write_bytes(damage[1])
        assert fsck(on_rows).problems
        mended = fsck(on_rows, repair=True)
        assert mended.problems == () and [(each.where, each.source) for each in mended.repaired] == [(back, "origin")]
        assert on_rows.snapshots.path(kept).read_text() == text


@pytest.mark.parametrize(
    "piece", [b"text:-9:sx", b"text:+1:s", b"text:1_0:s", b"text:9:s", b"label:1:s", b"text:", b"text:" + b"9" * 99]
)
def test_a_row_that_is_none(piece: bytes):
    from llmos_cli.core.snapshots import frames

    with pytest.raises(ValueError):
        list(frames(piece, ("text",)))
