"""Sealed checkpoints: nothing of them is left in the clear, nobody reads them without the key, and they open to the same bytes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_cli.core.cipher import PIECE
from llmos_cli.core.objects import files_below, hash_file
from llmos_cli.core.seal import Seal
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict, Corrupt, LlmosError, NotFound, Untrusted, UsageError
from llmos_cli.operations import seal as sealing
from llmos_cli.operations.du import du
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.rm import rm
from llmos_cli.operations.seal import seal
from llmos_cli.operations.tag import tag
from llmos_cli.operations.undo import undo
from llmos_cli.operations.unseal import unseal
from tests.conftest import Llmos
from tests.core.conftest import Commit, commit_to

pytest.importorskip("cryptography", reason="needs the tool cryptography")
KEY, OTHER = "5" * 64, "6" * 64


def typed(_: str) -> str:
    return KEY


def nobody(_: str) -> None:
    return None


def content(ws: Workspace, checkpoint: str) -> dict[str, bytes]:
    folder = ws.checkpoints / checkpoint
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def in_the_clear(ws: Workspace, checkpoint: str) -> list[Path]:
    secret = {entry.sha256 for entry in ws.manifest(checkpoint).tree.values() if entry.size}
    return [each for each in ws.root.rglob("*") if each.is_file() and hash_file(each).sha256 in secret]


FILES = st.dictionaries(
    st.sampled_from(["config.json", "folder/a", "folder/deeper/b", "z"]),
    st.one_of(st.binary(max_size=200), st.sampled_from([b"", b"x" * PIECE, b"y" * (PIECE + 1)])),
    min_size=1,
)


@settings(max_examples=8, deadline=None)
@given(files=FILES)
def test_there_and_back(scratch: Path, files: dict[str, bytes]) -> None:
    ws = Workspace.create(scratch / os.urandom(4).hex())
    made = committed(ws, files)
    before = content(ws, made)
    assert seal(ws, ask=typed).checkpoints == (made,)
    assert content(ws, made).keys() == {"manifest.json"} and in_the_clear(ws, made) == []
    assert fsck(ws).problems == ()
    unseal(ws, ask=typed)
    assert content(ws, made) == before and made not in ws.sealed
    assert {name for name, _ in ws.sealed.names()} == set() and fsck(ws).problems == ()
    assert all((ws.checkpoints / made / name).stat().st_mode & 0o777 == 0o444 for name in before)
    ws.checkpoint()


def committed(ws: Workspace, files: dict[str, bytes], parents: tuple[str, ...] = ()) -> str:
    from llmos_cli.core.manifest import Made

    made = Made("train", parents, {}, {}, {}, 0, "2026-11-22T10:45:01Z")
    with ws.begin("train", config={}, parents=parents) as run, ws.stage() as staged:
        for name, data in files.items():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_bytes(data)
        return run.commit(staged, made).id


@pytest.fixture(scope="module")
def template(scratch: Path) -> Path:
    ws = Workspace.create(scratch / "template")
    committed(ws, {"a": b"one" * 50, "folder/b": b"two", "c": b""})
    seal(ws, ask=typed)
    return ws.root


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_flipped_missing_or_extra_byte_is_found_without_the_key(template: Path, data: st.DataObject) -> None:
    ws = Workspace(template)
    damaged = ws.sealed.directory / data.draw(st.sampled_from(files_below(ws.sealed.directory)))
    good, mode = damaged.read_bytes(), damaged.stat().st_mode
    place = data.draw(st.integers(0, len(good) - 1))
    bad = data.draw(
        st.sampled_from(
            [
                good[:place] + bytes([good[place] ^ data.draw(st.integers(1, 255))]) + good[place + 1 :],
                good[:place] + good[place + 1 :],
                good[:place] + b"\0" + good[place:],
            ]
        )
    )
    damaged.chmod(0o644)
    damaged.write_bytes(bad)
    found = fsck(ws).problems
    damaged.write_bytes(good)
    damaged.chmod(mode)
    assert found and {each.checkpoint for each in found} == {ws.resolve()} and {*found[0].hurts} == {"main"}
    assert fsck(ws).problems == ()


def test_a_lost_file_and_one_in_the_clear_are_found(ws: Workspace, commit: Commit) -> None:
    made = commit(a="secret", b="more")
    seal(ws, ask=typed)
    (ws.checkpoints / made.id / "a").write_text("secret")
    lost = ws.sealed.path(ws.sealed.seal(made.id).tree["b"].sha256)
    kept = lost.rename(ws.root / "kept")
    said = sorted((each.where.split("/")[0], each.what.split(":")[0]) for each in fsck(ws).problems)
    assert said == [
        (".llmos", f"is missing (b of {made.id[:12]}, encrypted)"),
        ("checkpoints", "is in the clear, and the checkpoint is sealed"),
    ]
    with pytest.raises(Corrupt, match=r"b of the sealed .* is missing"):
        unseal(ws, ask=typed)
    assert made.id in ws.sealed
    kept.rename(lost)
    assert [(each.kind, each.size) for each in gc(ws).garbage] == [("open", len("secret"))]
    assert fsck(ws).problems == () and in_the_clear(ws, made.id) == []


def test_with_the_key_the_tree_is_checked_too(ws: Workspace, commit: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    made, other = commit(a="secret"), commit(a="else", scratch=True)
    for each in (made, other):
        seal(ws, each.id, ask=typed)
    assert (fsck(ws).sealed, fsck(ws).opened) == (2, 0)
    key_file = ws.root.parent / "key"
    key_file.write_text(KEY)
    assert fsck(ws, key_file=key_file).opened == 2
    key_file.write_text(OTHER)
    with pytest.raises(Untrusted, match="is that of no sealed checkpoint"):
        fsck(ws, key_file=key_file)
    # Somebody without the key puts the other's encrypted file in its place, and writes a seal that fits.
    found, theirs = ws.sealed.seal(made.id), ws.sealed.seal(other.id)
    exchanged = Seal(made.id, found.salt, found.check, theirs.tree)
    shutil.rmtree(ws.sealed.path(found.tree["a"].sha256).parent)
    (ws.sealed.directory / f"{made.id}.json").write_text(exchanged.text())
    monkeypatch.setenv("LLMOS_KEY", KEY)
    shorter = [each.what for each in fsck(ws).problems]
    assert shorter == ["lists other files than the manifest"]  # 6 and 4 bytes


def test_the_right_key_is_told_from_a_wrong_one_where_all_that_is_sealed_is_damaged(
    ws: Workspace, commit: Commit, llmos: Llmos, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = commit(a="secret")
    key_file = ws.root.parent / "key"
    seal(ws, key_file=key_file, ask=nobody)
    encrypted = next(Path(entry.path) for _, entry in ws.sealed.names())
    encrypted.chmod(0o644)
    encrypted.write_bytes(encrypted.read_bytes()[:-1])
    monkeypatch.chdir(ws.root)
    ran = llmos("fsck", "--key-file", str(key_file))
    assert ran.code == 5 and f"(a of {made.id[:12]}, encrypted)" in ran.out
    assert "1 sealed, 1 not decrypted, being damaged\n" in ran.out
    assert "1 thing is damaged" in ran.err and "no sealed checkpoint" not in ran.err
    key_file.write_text(OTHER)
    assert "is that of no sealed checkpoint" in llmos("fsck", "--key-file", str(key_file)).err
    (ws.sealed.directory / f"{made.id}.json").write_text("{}")  # nothing is left to tell a key by
    assert "makes no sense" in llmos("fsck", "--key-file", str(key_file)).out


def test_an_exchanged_file_of_the_same_size_takes_the_key(ws: Workspace, commit: Commit, monkeypatch) -> None:
    made, other = commit(a="secret"), commit(a="others", scratch=True)
    for each in (made, other):
        seal(ws, each.id, ask=typed)
    found, theirs = ws.sealed.seal(made.id), ws.sealed.seal(other.id)
    (ws.sealed.directory / f"{made.id}.json").write_text(Seal(made.id, found.salt, found.check, theirs.tree).text())
    assert fsck(ws).problems == ()
    monkeypatch.setenv("LLMOS_KEY", KEY)
    assert [each.what for each in fsck(ws).problems] == ["is not what was saved, once it is decrypted"]
    with pytest.raises(Corrupt, match="was altered or cut off"):
        unseal(ws, made.id, ask=typed)
    assert in_the_clear(ws, made.id) == []


def test_what_shares_a_file_is_named_or_comes_along(ws: Workspace, commit: Commit) -> None:
    first, second = commit(a="1", b="2"), commit(b="2", c="3")
    third, fourth = commit(c="3", d="4"), commit(d="5")
    tag(ws, "middle", second.id)
    with pytest.raises(UsageError, match="shares files with") as error:
        seal(ws, first.id, ask=typed)
    assert f"{second.id[:12]} (middle)" in error.value.message and third.id[:12] in error.value.message
    assert "--with-lineage" in error.value.hint and ws.sealed.all() == set()
    assert {*seal(ws, first.id, with_lineage=True, dry_run=True, ask=nobody).checkpoints} == {
        first.id,
        second.id,
        third.id,
    }
    assert ws.sealed.all() == set()
    seal(ws, first.id, with_lineage=True, ask=typed)
    assert ws.sealed.all() == {first.id, second.id, third.id} and ws.checkpoint(fourth.id)
    assert len(list(ws.sealed.names())) == 4 and in_the_clear(ws, second.id) == []
    with pytest.raises(UsageError, match="shares files with") as error:
        unseal(ws, second.id, ask=typed)
    assert first.id[:12] in error.value.message and third.id[:12] in error.value.message
    assert "--with-lineage" in error.value.hint and len(ws.sealed.all()) == 3
    assert in_the_clear(ws, first.id) == [], "opening one opens nothing of the others"
    assert unseal(ws, first.id, with_lineage=True, dry_run=True, ask=nobody).files == 6 and len(ws.sealed.all()) == 3
    unseal(ws, first.id, with_lineage=True, ask=typed)
    assert ws.sealed.all() == set() and list(ws.sealed.names()) == [] and fsck(ws).problems == ()


@pytest.fixture
def mixed(ws: Workspace, commit: Commit) -> tuple[str, str, str]:
    """Three that share a file, of which the last one was made open after the others were sealed: as an import of the same tokenizer is."""
    first, second = commit(a="1", same="t").id, commit(a="2", same="t").id
    seal(ws, first, with_lineage=True, ask=typed)
    return first, second, commit(a="3", same="t").id


def test_what_is_open_opens_what_shares_its_files(ws: Workspace, mixed: tuple[str, str, str]) -> None:
    first, second, third = mixed
    with pytest.raises(UsageError, match=f"{third[:12]} is open, and shares files with the sealed") as error:
        unseal(ws, ask=typed)
    assert first[:12] in error.value.message and second[:12] in error.value.message
    assert {*unseal(ws, with_lineage=True, ask=typed).checkpoints} == {first, second}
    assert ws.sealed.all() == set() and fsck(ws).problems == () and all(map(ws.checkpoint, mixed))
    with pytest.raises(UsageError, match="is not sealed"):
        unseal(ws, with_lineage=True, ask=typed)


def test_what_is_sealed_beside_something_open_opens_too(ws: Workspace, mixed: tuple[str, str, str]) -> None:
    unseal(ws, mixed[0], with_lineage=True, ask=typed)
    assert ws.sealed.all() == set() and fsck(ws).problems == ()


def test_a_group_that_was_sealed_with_two_keys_opens_with_each(ws: Workspace, mixed: tuple[str, str, str]) -> None:
    first, second, third = mixed
    seal(ws, third, ask=lambda _: OTHER)
    notes: list[str] = []
    with pytest.raises(Untrusted, match=f"the key is not that of {first[:12]}"):
        unseal(ws, first, with_lineage=True, ask=lambda _: OTHER)
    unseal(ws, first, with_lineage=True, ask=typed, emit=lambda event: notes.append(getattr(event, "message", "")))
    assert f"{third[:12]} (main) shares files with it and stays sealed: it takes another key" in notes
    assert ws.sealed.all() == {third} and ws.checkpoint(second)
    with pytest.raises(Untrusted, match=f"the key is not that of {third[:12]}"):
        unseal(ws, first, with_lineage=True, ask=typed)
    assert unseal(ws, third, ask=lambda _: OTHER).checkpoints == (third,)
    assert fsck(ws).problems == ()


def test_what_was_removed_while_sealed_and_can_come_back_is_in_the_way_of_opening(
    ws: Workspace, mixed: tuple[str, str, str]
) -> None:
    first, second, _ = mixed
    rm(ws, [first], force=True)
    with pytest.raises(UsageError, match=f"shares files with {first[:12]}, removed and still there for undo"):
        unseal(ws, second, with_lineage=True, ask=typed)
    undo(ws)
    unseal(ws, second, with_lineage=True, ask=typed)
    assert ws.sealed.all() == set() and fsck(ws).problems == ()


def test_what_was_given_up_is_not_in_the_way_of_opening(ws: Workspace, mixed: tuple[str, str, str]) -> None:
    first, second, _ = mixed
    ws.sealed.path(ws.sealed.seal(first).tree["a"].sha256).unlink()
    with pytest.raises(Corrupt, match=f"a of the sealed {first[:12]} is missing"):
        unseal(ws, second, with_lineage=True, ask=typed)
    assert fsck(ws, accept_loss=[first]).problems == ()
    assert unseal(ws, second, ask=typed).checkpoints == (second,)
    assert fsck(ws).problems == () and ws.checkpoint(second)


def test_undo_knows_what_was_opened_piece_by_piece(ws: Workspace, mixed: tuple[str, str, str]) -> None:
    first, _, third = mixed
    tag(ws, "mine")
    seal(ws, third, ask=typed)
    with pytest.raises(UsageError, match="takes a key") as error:
        undo(ws)
    assert f"`llmos unseal {third[:12]}` opens it again" in error.value.hint
    unseal(ws, third, with_lineage=True, ask=typed)  # what two operations sealed
    assert undo(ws).operation.name == "undo tag mine"
    seal(ws, third, with_lineage=True, ask=typed)
    with pytest.raises(UsageError, match="takes a key") as error:
        undo(ws)
    opens = error.value.hint.partition("`")[2].partition("`")[0]
    assert opens.startswith("llmos unseal ") and opens.endswith(" --with-lineage")
    unseal(ws, opens.split()[2], with_lineage=True, ask=typed)
    assert first not in ws.sealed


def test_what_came_later_with_the_same_files_is_sealed_as_well(ws: Workspace, commit: Commit) -> None:
    made = commit(a="secret", b="more")
    seal(ws, ask=typed)
    later = commit(a="secret", b="other")
    with pytest.raises(UsageError, match=f"is sealed, and shares files with {later.id[:12]}") as refused:
        seal(ws, made.id, ask=typed)
    assert "--with-lineage" in (refused.value.hint or "")
    assert seal(ws, made.id, with_lineage=True, ask=typed).checkpoints == (later.id,)
    assert in_the_clear(ws, later.id) == [] and fsck(ws).problems == ()
    with pytest.raises(UsageError, match="is sealed already"):
        seal(ws, made.id, with_lineage=True, ask=typed)


def test_the_key_is_in_a_file_or_the_environment_or_typed(
    ws: Workspace, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = commit(a="secret")
    with pytest.raises(Untrusted, match="there is no key") as error:
        seal(ws, ask=nobody)
    assert error.value.exit_code == 5
    with pytest.raises(UsageError, match="is in the workspace"):
        seal(ws, key_file=ws.root / "configs" / "key", ask=nobody)
    answers = iter((KEY, OTHER))
    with pytest.raises(Untrusted, match="differ"):
        seal(ws, ask=lambda _: next(answers))
    assert ws.checkpoint()
    key_file = ws.root.parent / "keys" / "mine"
    result = seal(ws, key_file=key_file, ask=nobody)
    assert result.new_key == str(key_file) and key_file.stat().st_mode & 0o077 == 0
    with pytest.raises(UsageError, match="is sealed already"):
        seal(ws, key_file=key_file, ask=nobody)
    monkeypatch.setenv("LLMOS_KEY", OTHER)
    with pytest.raises(Untrusted, match=f"the key is not that of {made.id[:12]}"):
        unseal(ws, ask=nobody)
    monkeypatch.setenv("LLMOS_KEY", "nonsense")
    with pytest.raises(Untrusted, match="64 hexadecimal digits"):
        unseal(ws, ask=nobody)
    assert unseal(ws, key_file=key_file, ask=nobody).checkpoints == (made.id,)  # a flag goes before the environment
    with pytest.raises(UsageError, match="is not sealed"):
        unseal(ws, ask=nobody)


def test_a_new_key_that_sealed_nothing_goes_again(ws: Workspace, commit: Commit) -> None:
    made, key_file = commit(a="secret"), ws.root.parent / "key"
    status = (made.path / "a").stat()
    (made.path / "a").chmod(0o644)
    (made.path / "a").write_text("SECRET")
    os.utime(made.path / "a", ns=(status.st_atime_ns, status.st_mtime_ns))  # seen only once it is read
    with pytest.raises(Corrupt, match="is not what was saved"):
        seal(ws, key_file=key_file, ask=nobody)
    assert not key_file.exists() and made.id not in ws.sealed


def test_what_reads_says_so_and_what_lists_marks_it(ws: Workspace, commit: Commit, llmos: Llmos, monkeypatch) -> None:
    monkeypatch.chdir(ws.root)
    monkeypatch.setenv("LLMOS_KEY", KEY)
    base = commit(a="base")
    made = commit(a="secret")
    tag(ws, "mine")
    assert llmos("seal").code == 0
    for words in (
        "path",
        "export -o ../x",
        "eval",
        "quantize",
        "prune",
        "generate",
        "sign",
        "verify --key ../public",
    ):
        ran = llmos(*words.split())
        assert ran.code == 5 and f"checkpoint {made.id[:12]} is sealed" in ran.err, (words, ran.err)
        assert f"`llmos unseal {made.id[:12]} --key-file FILE` opens it" in ran.err
    assert "sealed" in llmos("log").out and "(sealed)" in llmos("tag").out and "sealed)" in llmos("status").out
    assert "(sealed)" in llmos("show").out and "sealed" in llmos("du").out
    assert llmos("show", "--json").json["checkpoint"]["sealed"] is True
    compared = llmos("diff", "mine", "HEAD~1")
    assert compared.code == 0 and f"the weights of {made.id[:12]} are sealed: only the rest is" in compared.err
    assert llmos("checkout", base.id).code == 0 and llmos("checkout", "main").code == 0
    assert "1 sealed, 1 decrypted and compared with the manifest" in llmos("fsck").out
    undone = llmos("undo", llmos("op", "log", "--json").json["operations"][2]["id"])
    assert undone.code == 2 and f"`llmos unseal {made.id[:12]}` opens it again, with its key" in undone.err
    assert f"seal {made.id[:12]}" in llmos("audit").out and llmos("audit", "--verify").code == 0
    assert llmos("unseal", "mine").code == 0 and llmos("path").code == 0


def test_gc_and_rm(ws: Workspace, commit: Commit) -> None:
    kept, gone, dropped = commit(a="kept"), commit(a="gone", scratch=True), commit(a="dropped", scratch=True)
    for each in (kept, gone, dropped):
        seal(ws, each.id, ask=typed)
    assert gc(ws, expire="now").garbage == ()
    used = {each.id: (each.own, each.sealed) for each in du(ws).usage}
    assert used[kept.id] == (4 + 40 + 16, True)
    assert rm(ws, [dropped.id], force=True).removed[0].freed == 7 + 40 + 16
    with pytest.raises(NotFound, match="were removed") as error:
        unseal(ws, dropped.id, ask=typed)
    assert error.value.hint.startswith("`llmos op log` has what removed them")
    assert ws.closed(dropped.id) == "removed" and fsck(ws).problems == () and gc(ws).garbage == ()
    undo(ws)
    assert ws.closed(dropped.id) == "sealed" and fsck(ws).sealed == 3
    rm(ws, [dropped.id], force=True)
    assert [(each.kind, each.size) for each in gc(ws, window="now").garbage] == [("remains", 63)]
    assert ws.sealed.all() == {kept.id, gone.id} and len(list(ws.sealed.names())) == 2
    nameless = ws.sealed.path("ab" + "0" * 62)
    nameless.parent.mkdir(exist_ok=True)
    nameless.write_text("left by a kill")
    assert [each.kind for each in gc(ws, expire="now").garbage] == ["sealed"] and not nameless.exists()
    ws.oplog.path.unlink()  # nothing names what is on no branch
    ws.refs.write("refs/heads/main", kept.id)
    assert {each.name: each.size for each in gc(ws, expire="now", window="now").garbage} == {gone.id: 60, dropped.id: 0}
    assert ws.sealed.all() == {kept.id} and len(list(ws.sealed.names())) == 1
    unseal(ws, kept.id, ask=typed)


def test_undo_says_that_it_takes_a_key(ws: Workspace, commit: Commit) -> None:
    made = commit(a="secret")
    tag(ws, "mine")
    seal(ws, ask=typed)
    with pytest.raises(UsageError, match=r"undo does not take back operation .*: that takes a key") as error:
        undo(ws)
    assert f"`llmos unseal {made.id[:12]}` opens it again, with its key" in error.value.hint
    unseal(ws, ask=typed)  # which is its undo: what is next to be undone is the tag
    assert undo(ws).operation.name == "undo tag mine"
    seal(ws, ask=typed)
    tag(ws, "again")
    assert undo(ws).operation.name == "undo tag again"
    with pytest.raises(UsageError, match="takes a key"):
        undo(ws)


def test_what_was_removed_and_can_come_back_is_in_the_way(ws: Workspace, commit: Commit) -> None:
    removed, made = commit(a="secret"), commit(a="secret", b="more")
    rm(ws, [removed.id], force=True)
    with pytest.raises(UsageError, match=f"shares files with {removed.id[:12]}, removed and still there") as error:
        seal(ws, with_lineage=True, ask=typed)
    assert "llmos gc --window now" in error.value.hint
    gc(ws, window="now")
    assert seal(ws, ask=typed).checkpoints == (made.id,)
    assert in_the_clear(ws, made.id) == [] and fsck(ws).problems == ()


def test_what_is_being_read_or_can_go_on_is_not_sealed(ws: Workspace, commit: Commit) -> None:
    made = commit(a="secret")
    with ws.begin("eval", config={}, parents=[made.id]), pytest.raises(UsageError, match="is in use by the running"):
        seal(ws, ask=typed)
    with pytest.raises(LlmosError), ws.begin("train", config={}, parents=[made.id]) as run:
        run.state.mkdir()
        (run.state / "weights").write_text("half of it")
        raise LlmosError("cut off", hint="")
    with pytest.raises(UsageError, match="which can be resumed"):
        seal(ws, ask=typed)
    gc(ws, expire="now")
    seal(ws, ask=typed)


def test_what_was_made_of_it_goes_from_the_cache_and_from_the_pipelines_memory(ws: Workspace, commit: Commit) -> None:
    made = commit(a="secret")
    for name in (
        "cache/teachers/x/logp.bin",
        "cache/tokenizers/x/tokenizer.json",
        f"tmp/fetch/{made.manifest.tree['a'].sha256}",
        f"pipeline/objects/{made.manifest.tree['a'].sha256}",
    ):
        (ws.dot / name).parent.mkdir(parents=True)
        (ws.dot / name).write_text("secret")
    (ws.cache / "streams").mkdir()
    seal(ws, ask=typed)
    assert in_the_clear(ws, made.id) == [] and [each.name for each in ws.cache.iterdir()] == ["streams"]


def test_others_who_commit_the_same_file_meanwhile(ws: Workspace, commit: Commit, monkeypatch) -> None:
    made, encrypted = commit(a="secret"), sealing.encrypted

    def slow(*args: object) -> object:
        commit_to(ws, {"b": "secret"}, scratch=True)
        return encrypted(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(sealing, "encrypted", slow)
    with pytest.raises(Conflict, match="came or went meanwhile"):
        seal(ws, made.id, ask=typed)
    assert ws.sealed.all() == set() and ws.checkpoint(made.id)
    assert fsck(ws).problems == () and {each.kind for each in gc(ws).garbage} <= {"leftover"}


def test_a_damaged_file_is_not_sealed(ws: Workspace, commit: Commit) -> None:
    made = commit(a="secret")
    times = (ws.checkpoints / made.id / "a").stat()
    (ws.checkpoints / made.id / "a").chmod(0o644)
    (ws.checkpoints / made.id / "a").write_text("secreT")
    os.utime(ws.checkpoints / made.id / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(Corrupt, match="is not what was saved"):
        seal(ws, ask=typed)
    assert ws.sealed.all() == set() and content(ws, made.id)["a"] == b"secreT"


def test_a_key_typed_on_a_terminal(ws: Workspace, commit: Commit) -> None:
    """Twice, and not to be seen: a slip of the hand would cost a model."""
    commit(a="secret")
    assert on_a_terminal(ws, "seal", KEY, KEY) == 0 and ws.sealed.all()
    assert on_a_terminal(ws, "unseal", KEY) == 0 and not ws.sealed.all()


def on_a_terminal(ws: Workspace, verb: str, *lines: str) -> int:
    import pty

    pid, terminal = pty.fork()
    if not pid:
        os.chdir(ws.root)
        os.execv(sys.executable, [sys.executable, "-m", "llmos_cli", verb])
    shown = b""
    for line in lines:
        while not shown.endswith(b": "):
            shown += os.read(terminal, 1000)
        os.write(terminal, f"{line}\n".encode())
        shown += os.read(terminal, 2)
    try:
        while more := os.read(terminal, 1000):
            shown += more
    except OSError:
        pass  # the other end is closed
    assert KEY.encode() not in shown
    return os.waitpid(pid, 0)[1]
