"""What a run was given is kept as it was: what is edited or gone is found, and nobody is handed it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmos_cli.core import kept, records
from llmos_cli.core.manifest import Made
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, Interrupted
from llmos_cli.events import Progress
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.checkout import checkout
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.push import push
from llmos_cli.operations.status import status


@pytest.fixture
def run(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a run that was given `seed: 1`; the config of today says something else."""
    (ws.configs / "train.yaml").write_text("seed: 1\n")
    made = Made("train", (), {}, {}, {}, 0, "2026-11-22T10:45:01Z")
    with ws.begin("train", config={}, files=[ws.configs / "train.yaml"]) as begun, ws.stage() as staged:
        (staged / "a").write_text("weights")
        begun.commit(staged, made)
    (ws.configs / "train.yaml").write_text("seed: 2\n")
    monkeypatch.chdir(ws.root)
    return begun.path


def forge(file: Path) -> None:
    file.write_text(file.read_text() + "seed: 99\n")


@pytest.mark.parametrize("name", ["config.yaml", "configs/train.yaml"])
@pytest.mark.parametrize("harm, what", [(forge, "was edited"), (Path.unlink, "is missing")])
def test_what_a_run_was_given_is_protected(run: Path, llmos, name: str, harm, what: str) -> None:
    assert llmos("fsck").code == 0
    harm(run / name)
    told = llmos("fsck")
    assert told.code == 5 and "1 thing is damaged" in told.err
    row = next(line for line in told.out.splitlines() if f"runs/{run.name}/{name}" in line)
    assert what in row


def test_all_of_it_gone_is_a_line_for_each(run: Path, ws: Workspace, llmos) -> None:
    shutil.rmtree(run / "configs")
    (run / "config.yaml").unlink()
    assert [each.where for each in fsck(ws).problems] == [
        f"runs/{run.name}/config.yaml",
        f"runs/{run.name}/configs/train.yaml",
    ]


def test_what_was_put_beside_it_is_told_and_handed_to_nobody(run: Path, ws: Workspace, llmos) -> None:
    (run / "configs" / "prune.yaml").write_text("seed: 99\n")
    assert "is none of what the run was given" in fsck(ws).problems[0].what
    refused = llmos("checkout", "--configs", "--force")
    assert refused.code == 5 and not (ws.configs / "prune.yaml").exists()


@pytest.mark.parametrize("harm", [forge, Path.unlink])
def test_nobody_is_handed_what_is_no_more_what_the_run_was_given(run: Path, ws: Workspace, llmos, harm) -> None:
    harm(run / "configs" / "train.yaml")
    refused = llmos("checkout", "main", "--configs", "--force")
    assert refused.code == 5 and f"runs/{run.name}/configs/train.yaml" in refused.err and "fsck --repair" in refused.err
    assert (ws.configs / "train.yaml").read_text() == "seed: 2\n"


def test_it_comes_back_from_a_file_that_is_the_same(run: Path, ws: Workspace, llmos) -> None:
    forge(run / "configs" / "train.yaml")
    (ws.configs / "train.yaml").write_text("seed: 1\n")
    told = llmos("fsck", "--repair")
    assert told.code == 0 and f"repaired runs/{run.name}/configs/train.yaml from configs/train.yaml" in told.out
    assert (run / "configs" / "train.yaml").read_text() == "seed: 1\n"


def test_it_comes_back_from_a_remote(run: Path, ws: Workspace, llmos, tmp_path: Path) -> None:
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    forge(run / "config.yaml")
    shutil.rmtree(run / "configs")
    assert llmos("fsck", "--repair").code == 0
    assert (run / "configs" / "train.yaml").read_text() == "seed: 1\n" and "99" not in (run / "config.yaml").read_text()
    assert checkout(ws, configs=True, force=True).restored == ("configs/train.yaml",)


def test_what_nobody_has_any_more_is_given_up_by_name(run: Path, ws: Workspace, llmos) -> None:
    where = f"runs/{run.name}/configs/train.yaml"
    whole = llmos("fsck", "--accept-loss", where)
    assert whole.code == 2 and "there is nothing to give up" in whole.err
    forge(run / "configs" / "train.yaml")
    assert llmos("fsck", "--repair").code == 5
    assert llmos("fsck", "--accept-loss", where).code == 0
    assert f"{where} was given up" in llmos("fsck").out
    assert not (run / "configs" / "train.yaml").exists(), "it is kept where nobody takes it for what it was"
    assert [path.read_text() for path in (ws.dot / "aside").iterdir()] == ["seed: 1\nseed: 99\n"]
    assert "no run in this workspace kept the configs" in llmos("checkout", "--configs").err
    (run / "configs" / "train.yaml").write_text("seed: 99\n")
    assert llmos("fsck").code == 5
    (run / "configs" / "train.yaml").write_text("seed: 1\n")
    said = llmos("fsck")
    assert said.code == 0 and "given up" not in said.out
    assert llmos("checkout", "--configs", "--force").code == 0, "it turned up again"


def test_what_is_forged_leaves_no_workspace(run: Path, ws: Workspace, llmos, tmp_path: Path) -> None:
    forge(run / "configs" / "train.yaml")
    remotes.add(ws, "origin", str(tmp_path / "far"))
    assert f"run {run.name} stays here: configs/train.yaml was edited" in llmos("push").err
    assert not (tmp_path / "far" / "runs").exists()


def test_a_clone_has_it_as_it_was(run: Path, ws: Workspace, tmp_path: Path) -> None:
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    clone(str(tmp_path / "far"), tmp_path / "copy")
    assert fsck(Workspace.find(tmp_path / "copy")).problems == ()
    assert (tmp_path / "copy" / "configs" / "train.yaml").read_text() == "seed: 1\n"


def test_a_clone_has_the_configs_of_the_whole_line(run: Path, ws: Workspace, tmp_path: Path) -> None:
    """The end of it was quantized: what it was trained with comes from the run before."""
    (parent,) = [ws.resolve()]
    (ws.configs / "quantize.yaml").write_text("seed: 3\n")
    made = Made("quantize", (parent,), {}, {}, {}, 0, "2026-11-22T10:45:02Z")
    files = [ws.configs / "quantize.yaml"]
    with ws.begin("quantize", config={}, files=files, parents=(parent,)) as begun, ws.stage() as staged:
        (staged / "a").write_text("codes")
        begun.commit(staged, made)
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    clone(str(tmp_path / "far"), tmp_path / "copy")
    there = tmp_path / "copy" / "configs"
    assert [(there / f"{each}.yaml").read_text() for each in ("train", "quantize")] == ["seed: 1\n", "seed: 3\n"]
    assert status(Workspace.find(tmp_path / "copy")).changed == ()


def test_a_run_that_goes_on_with_another_config_says_so_first(ws: Workspace) -> None:
    with pytest.raises(Interrupted), ws.begin("train", config={"seed": 1}) as run:
        run.state.mkdir()
        (run.state / "x").write_text("x")
        raise KeyboardInterrupt
    before = (run.path / "config.yaml").read_text()
    with ws.runs.resume(run.id) as again:
        again.reconfigure({"seed": 2})
        assert fsck(ws).problems == ()
        again.emit(Progress("train", 2, 2))
    assert fsck(ws).problems == ()
    after = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(before)
    assert fsck(ws).problems == (), "killed between the two: it had been said, and not yet written"
    forge(run.path / "config.yaml")
    assert fsck(ws).problems != () and before != after


def test_a_run_that_was_given_another_config_by_hand_does_not_go_on(ws: Workspace, llmos, monkeypatch) -> None:
    with pytest.raises(Interrupted), ws.begin("train", config={"seed": 1}) as run:
        run.state.mkdir()
        (run.state / "x").write_text("x")
        raise KeyboardInterrupt
    monkeypatch.chdir(ws.root)
    forge(run.path / "config.yaml")
    refused = llmos("train", "--resume")
    assert refused.code == 5 and "config.yaml was edited" in refused.err


def test_runs_of_before_are_as_good(run: Path, ws: Workspace, llmos) -> None:
    """A run of an llmos that said nothing of its files."""
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    end = {key: value for key, value in json.loads(lines[-1]).items() if key not in ("bytes", "sha256")}
    (run / "events.jsonl").write_text("".join([lines[0], *lines[2:-1], json.dumps(end) + "\n"]))
    ws.ledger.path.unlink()
    forge(run / "configs" / "train.yaml")
    assert fsck(ws).problems == () and llmos("checkout", "--configs", "--force").code == 0


def test_what_it_is_called_is_no_secret(ws: Workspace) -> None:
    (ws.configs / "password.yaml").write_text("seed: 1\n")
    with ws.begin("train", config={}, files=[ws.configs / "password.yaml"]) as run:
        pass
    (run.path / "configs" / "password.yaml").write_text("seed: 2\n")
    assert [each.where for each in fsck(ws).problems] == [f"runs/{run.id}/configs/password.yaml"]


def test_a_name_leads_out_of_no_run(ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    entry = {"sha256": "0" * 64, "size": 1}
    names = ["../../mine", "configs/../config.yaml", "configs/..", "/etc/passwd", "events.jsonl"]
    line = json.dumps({"event": "kept", "at": 1.0, "files": dict.fromkeys(names, entry)})
    (tmp_path / records.EVENTS).write_text(line + "\n")
    assert list(kept.wrong(tmp_path)) == []


def test_the_others_that_read_a_config_refuse_it_too(run: Path) -> None:
    forge(run / "config.yaml")
    with pytest.raises(Corrupt, match=r"config\.yaml was edited"):
        kept.require(run, "config.yaml")


def test_what_a_remote_may_have_is_not_given_up_unasked(run: Path, ws: Workspace, llmos, tmp_path: Path) -> None:
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    forge(run / "configs" / "train.yaml")
    (ws.configs / "train.yaml").write_text("seed: 2\n")
    (tmp_path / "far").rename(tmp_path / "away")
    where = f"runs/{run.name}/configs/train.yaml"
    refused = llmos("fsck", "--accept-loss", where)
    assert refused.code == 6 and "origin could not be asked" in refused.err and (run / "configs/train.yaml").exists()
    (tmp_path / "away").rename(tmp_path / "far")
    assert llmos("fsck", "--accept-loss", where).code == 0
    assert (run / "configs" / "train.yaml").read_text() == "seed: 1\n", "the remote had it"
