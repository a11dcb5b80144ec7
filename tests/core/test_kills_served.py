"""Killed before any call by which a deployment says where it answers, or `stop` what it did: what is there is whole, and the same
can be done again."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations import audit
from llmos_cli.operations.config import resolve
from llmos_cli.operations.deploy import DeployResult, check_free, deploy
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.ps import ADDRESS, address_of
from tests.core.durability import unsafe
from tests.core.killing import settle, state
from tests.core.tracing import Forks, copied

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

MODULES = [
    *(__name__, "llmos_cli.app", "llmos_cli.operations.train", "llmos_cli.commands.train"),
    *("llmos_cli.operations.stop", "llmos_cli.commands.stop", "llmos_cli.serve.server"),
]
STOP = ("stop", "-q", "chat")


def serve_until_it_answers() -> None:
    """A deployment that is told to end once it is ready."""
    ws = Workspace.find()
    resolved = resolve(ws, "deploy", files=(), sets=["deploy.name=chat", "deploy.port=0"], unsets=(), flags={})
    deploy(ws, "HEAD", resolved, emit=lambda _: None, announce=lambda _: os.kill(os.getpid(), signal.SIGTERM))


@pytest.fixture(scope="module")
def template(scratch: Path, forks: Forks, new_workspace: Callable[..., Workspace]) -> Path:
    ws = new_workspace(scratch / "w")
    assert forks.run(("train", "-q", "-s", "train.max_steps=1"), ws.root) == 0, forks.said
    settle(ws)
    return copied(ws.root, scratch / "template")


def test_a_deployment_is_killed_at_every_call(forks: Forks, template: Path, scratch: Path, home: None) -> None:
    words, root = (f"{__name__}:serve_until_it_answers",), copied(template, scratch / "w")
    with forks.until("llmos_cli.operations.deploy:_verify", words, root):
        begun = copied(root, scratch / "begun")
        before, noted = state(root), len(records(root))
        calls = forks.calls(words, root, root)
        assert unsafe(calls, root, begun) == []
        assert len(records(root)) == noted + 1
        told = max(at for at, call in enumerate(calls) if call.paths[-1].endswith(f"/{ADDRESS}"))
        for call in calls[: told + 2]:
            copied(begun, root)
            assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
            ws = Workspace.find(root)
            assert fsck(ws).problems == (), f"killed before {call}"
            assert state(root) == before and len(records(root)) in (noted, noted + 1), f"killed before {call}"
            served = [each for each in ws.runs.list() if each.operation == "deploy"]
            assert [each.status for each in served] in ([], ["died"]), f"killed before {call}"
            for address in filter(None, map(address_of, served)):
                assert DeployResult(**address).run == served[0].id, f"killed before {call}"
            check_free(ws, "chat")
        assert told > 10
    assert forks.run(words, root) == 0, forks.said
    assert len(records(root)) == noted + 2


def records(root: Path) -> list[str]:
    """What the audit says, its chain having been followed."""
    ws = Workspace.find(root)
    audit.verify(ws)
    return [line.decode() for line in ws.oplog.audit.lines()]


def test_a_stop_is_killed_at_every_call(forks: Forks, template: Path, scratch: Path, home: None) -> None:
    """Its record comes after its signal: of a stop that is killed in between, only the end of the run itself tells."""
    root = copied(template, scratch / "w")
    noted = len(records(root))
    ending = running(root)
    begun = copied(root, scratch / "begun")
    calls = forks.calls(STOP, root, root)
    ending.join()
    assert unsafe(calls, root, begun) == []
    assert len(records(root)) == noted + 1 and len(calls) > 3
    for call in calls:
        ending = running(copied(template, root))
        assert forks.killed(STOP, root, call) or call.aside, f"{call} never came: {forks.said}"
        ws = Workspace.find(root)
        assert fsck(ws).problems == (), f"killed before {call}"
        assert len(records(root)) in (noted, noted + 1), f"killed before {call}"
        if ws.runs.find("chat").alive:
            assert forks.run(STOP, root) == 0, f"killed before {call}: {forks.said}"
        ending.join()
        assert ws.runs.find("chat").status == "terminated", f"killed before {call}"


def running(root: Path) -> threading.Thread:
    """A run called chat in a process of its own, which ends when it is told to; the thread ends with it."""
    ready, begun = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with Workspace(root).begin("deploy", config={}, name="chat", argv=["llmos"]):
                os.write(begun, b"1")
                signal.pause()
        finally:
            os._exit(0)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    os.close(begun)
    reaper = threading.Thread(target=os.waitpid, args=(pid, 0))
    reaper.start()
    return reaper
