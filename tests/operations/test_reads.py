"""What a step reads that lies under the same name and is not the same any more: a tokenizer's folder, calibration's own file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core.workspace import Workspace
from tests.conftest import Llmos

FROM = ("-s", "data.tokenizer={type: from, path: tk}", "-q")


def texts(count: int) -> str:
    return "".join(
        json.dumps({"text": f"The statement number {at} is a line of its own. " * 4}) + "\n" for at in range(count)
    )


def take_tokenizer(ws: Workspace, llmos: Llmos, vocabulary: int) -> None:
    """Into `tk`, from a model that has that many tokens."""
    assert llmos("train", "-q", "-s", f"data.tokenizer.vocab_size={vocabulary}").code == 0
    (ws.root / "tk").mkdir(exist_ok=True)
    for file in ws.checkpoint().path.glob("tokenizer*"):
        shutil.copyfile(file, ws.root / "tk" / file.name)


def causes(told: Any) -> list[tuple[str, list[str]]]:
    return [(each["kind"], [change["key"] for change in each["changes"]]) for each in told["causes"]]


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory, new_workspace: Callable[..., Workspace]) -> Path:
    return new_workspace(tmp_path_factory.mktemp("reads") / "w", "causal-lm").root


@pytest.fixture
def ws(_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    shutil.copytree(_made, tmp_path / "w", symlinks=True)
    monkeypatch.chdir(tmp_path / "w")
    return Workspace.find()


def test_a_tokenizer_that_changed_in_its_folder(ws: Workspace, llmos: Llmos) -> None:
    take_tokenizer(ws, llmos, 300)
    assert llmos("train", *FROM).code == 0 and llmos("tag", "before").code == 0
    take_tokenizer(ws, llmos, 350)
    assert llmos("train", *FROM).code == 0 and llmos("tag", "after").code == 0
    told = llmos("why", "before", "after", "--runs", "0", "--json", "-q").json
    assert ("data", ["tk"]) in causes(told)
    redone = llmos("reproduce", "before", "-q")
    assert redone.code == 5
    assert f"the tokenizer tk is not what {ws.resolve('before')[:12]} was made with" in redone.err


def test_calibrations_own_file(ws: Workspace, llmos: Llmos) -> None:
    """It is kept as it was read, with nothing held out; read again, it is read from there."""
    file = ws.root / "cal.jsonl"
    file.write_text(texts(60))
    untimed = ("-q", "-s", "quantize.latency=false")
    calibrated = (*untimed, "--bits", "4", "-s", "quantize.group_size=16", "-s", "quantize.calibration=cal.jsonl")
    assert llmos("train", "-q").code == 0 and llmos("quantize", *calibrated).code == 0
    assert llmos("tag", "before").code == 0
    bare = shutil.copytree(ws.root, ws.root.parent / "bare", symlinks=True)
    kept = llmos("data", "snapshot", "--json")
    assert kept.code == 0 and "cal.jsonl" in [each["source"] for each in kept.json["taken"]], kept.out

    (bare / "cal.jsonl").write_text(texts(30))
    file.write_text(texts(30))
    with chdir(bare):
        lost = llmos("reproduce", "-q")
    assert lost.code == 5
    assert "the train split of cal.jsonl is not what" in lost.err and "it had 60 rows and has 30 rows now" in lost.err
    kept = llmos("reproduce", "-q")
    assert kept.code == 0, kept.err

    with chdir(shutil.copytree(bare, bare.with_name("less"), symlinks=True)):
        Path("cal.jsonl").unlink()
        gone = llmos("reproduce", "-q")
    assert gone.code == 5 and "cal.jsonl, which" in gone.err and "is gone" in gone.err

    for root, changed in ((bare, "cal.jsonl train (calibration)"), (ws.root, "quantize.calibration")):
        with chdir(root):
            assert llmos("quantize", "HEAD~1", *calibrated).code == 0
            told = llmos("why", "before", "HEAD", "--runs", "0", "--json", "-q").json
        assert ("data", [changed]) in causes(told)
