"""What a stage says is kept within bounds, and where there is no room for it the run still tells of its stages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.pipeline.log import Log, before
from tests.core.test_limits import in_memory, mounts

LINES = st.lists(st.tuples(st.text("ab\u00e9", max_size=40), st.booleans()), max_size=60)


@given(LINES, st.integers(20, 300))
def test_the_last_lines_are_kept_and_no_more(tmp_path_factory: pytest.TempPathFactory, lines, most: int) -> None:
    path = tmp_path_factory.mktemp("log") / "deep" / "stage.txt"
    told: list[str] = []
    with Log(path, told.append, most=most) as log:
        for line, flush in lines:
            log.write(line)
            if flush:
                log.flush()
    kept = (before(path).read_bytes() if before(path).exists() else b"") + path.read_bytes()
    said = "".join(f"{line}\n" for line, _ in lines).encode()
    assert said.endswith(kept) and len(kept) <= most and not told
    assert len(kept) >= min(len(said), most // 2)
    with Log(path, told.append, most=most):
        assert not before(path).exists(), "of another run"


def test_a_log_that_cannot_be_written_is_told_once() -> None:
    told: list[str] = []
    with Log(Path("/proc/nowhere/stage.txt"), told.append) as log:
        for _ in range(3):
            log.write("x"), log.flush()
    assert len(told) == 1 and told[0].startswith("what it says is not kept: ")


def test_gc_forgets_old_logs(empty: Workspace, llmos) -> None:
    (empty.root / "llmos.yaml").write_text("format: 1\npipeline:\n  loud: {sh: echo loud}\n")
    assert llmos("trust", "--pipeline").code == 0
    assert llmos("run", "-q").code == 0
    log = empty.dot / "pipeline" / "logs" / "loud.txt"
    log.with_name("loud.txt.1").write_text("before\n")
    assert llmos("gc", "-q").code == 0 and log.exists(), "it is young"
    gone = {each["name"] for each in llmos("gc", "--expire", "now", "--json").json["garbage"]}
    assert gone == {"pipeline/logs/loud.txt", "pipeline/logs/loud.txt.1"} and not log.exists()


@pytest.mark.parametrize("mark", [pytest.param("", marks=mounts)], ids=["on a full disk"])
def test_a_full_disk_is_the_stages_own_failure(mark: str, llmos, tmp_path: Path, monkeypatch) -> None:
    with in_memory(tmp_path) as disk:
        ws = Workspace.create(disk / "ws")
        monkeypatch.chdir(ws.root)
        talk = "head -c 6000000 /dev/zero | tr '\\0' x | fold -w 99"
        (ws.root / "llmos.yaml").write_text(
            json.dumps({"format": 1, "pipeline": {"loud": {"sh": talk}, "after": {"sh": "true", "needs": ["loud"]}}})
        )
        assert llmos("trust", "--pipeline").code == 0
        report = tmp_path / "report.xml"
        told = llmos("run", "--json", "--junit", str(report))
        assert told.code == 1
        loud, after = told.json["stages"]
        assert (loud["status"], after["status"]) == ("failed", "skipped")
        assert "the disk is full" in loud["message"], loud
        assert "loud: what it says is not kept" in told.err
        assert len(list(ElementTree.parse(report).getroot().iter("testcase"))) == 2
        assert llmos("gc", "--expire", "now").code == 0
        assert os.statvfs(disk).f_bavail > 800
        assert llmos("fsck").code == 0
