"""Killed before any call by which a deployment says where it answers, or `stop` what it did: what is there is whole, and the same
can be done again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core.config import Resolved
from llmos_cli.core.locks import lock
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict, LockTimeout
from llmos_cli.operations import audit
from llmos_cli.operations.config import resolve
from llmos_cli.operations.deploy import DeployResult, check_free, deploy, detach, ready
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.ps import ADDRESS, address_of, ps
from llmos_cli.operations.stop import stop
from tests.core.durability import unsafe
from tests.core.killing import settle, state
from tests.core.tracing import Call, Forks, copied
from tests.warm import Warm, run_forked, warmed

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

MODULES = [
    *(__name__, "llmos_cli.app", "llmos_cli.operations.train", "llmos_cli.commands.train"),
    *("llmos_cli.operations.deploy", "llmos_cli.commands.deploy", "llmos_cli.operations.ps", "tests.warm"),
    *("llmos_cli.operations.stop", "llmos_cli.commands.stop", "llmos_cli.serve.server"),
]
STOP = ("stop", "-q", "chat")
DETACHED = ("deploy", "-q", "-d", "--name", "chat", "--port", "0")
KILL = (*STOP, "--kill", "--timeout", "0")


def serve_until_it_answers() -> None:
    """A deployment that is told to end once it is ready."""
    ws = Workspace.find()
    deploy(ws, "HEAD", asked(ws), emit=lambda _: None, announce=lambda _: os.kill(os.getpid(), signal.SIGTERM))


def detach_until_it_answers() -> None:
    """The same in a process of its own, which is a fork of this one."""
    ws = Workspace.find()
    with warmed(Forked(socket.socketpair()[0]).fork_exec):
        detach(ws, "HEAD", asked(ws), DETACHED, timeout=120)
    stop(ws, "chat")


class Forked(Warm):
    """Forks who asks, so that the tracer on it has the child too."""

    def _ask(self, request: dict[str, Any], descriptors: list[int]) -> int:
        if not (pid := os.fork()):
            for name in [each for each in sys.modules if each.partition(".")[0] == "llmos_cli"]:
                del sys.modules[name]  # what `forks.py` has told it to run
            run_forked(request, descriptors)
        return pid


def asked(ws: Workspace) -> Resolved:
    return resolve(ws, "deploy", files=(), sets=["deploy.name=chat", "deploy.port=0"], unsets=(), flags={})


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


def test_a_detached_deployment_is_killed_at_every_call(forks: Forks, template: Path, scratch: Path, home: None) -> None:
    """Who detached it says so, and under its name nothing is left that keeps another from being deployed. What it opens and writes is left out:
    who waits for it does that too, and would be killed instead."""
    words, root = (f"{__name__}:detach_until_it_answers",), copied(template, scratch / "w")
    assert forks.run(words, root) == 0, forks.said
    before, noted = state(copied(template, root)), len(records(root))
    calls = [call for call in forks.calls(words, root, root) if call.aside and call.name not in ("openat", "write")]
    assert len(records(root)) == noted + 2
    told = max(at for at, call in enumerate(calls) if call.paths[-1].endswith(f"/{ADDRESS}"))
    assert told > 10
    left: dict[str, tuple[Call, Path]] = {}
    for call in calls[: told + 2]:
        copied(template, root)
        code = forks.run(words, root, f"{call.name}:signal=KILL:when={call.nth}")
        assert code == 1 and "the deployment ended before it was ready" in forks.said, f"{call}: {forks.said}"
        ws = Workspace.find(root)
        assert fsck(ws).problems == (), f"killed before {call}"
        assert state(root) == before and len(records(root)) in (noted, noted + 1), f"killed before {call}"
        assert ps(ws).processes == (), f"killed before {call}"
        assert [each.status for each in ps(ws, all=True).processes[1:]] in ([], ["died"]), f"killed before {call}"
        visible = str([(sorted(path.name for path in each.path.iterdir()), each.status) for each in ws.runs.list()])
        if (now := f"{visible} {len(records(root))}") not in left:
            left[now] = call, copied(root, scratch / f"left-{len(left)}")
    assert len(left) > 2
    for call, folder in left.values():
        assert forks.run(words, copied(folder, root)) == 0, f"killed before {call}: {forks.said}"
        assert Workspace.find(root).runs.find("chat").status == "done", f"killed before {call}"


def test_who_detaches_is_killed_and_the_deployment_answers(template: Path, scratch: Path, home: None) -> None:
    """It is listed, keeps its name while it lives, and is stopped like any other."""
    ws = Workspace.find(copied(template, scratch / "w"))
    before = state(ws.root)
    if not (pid := os.fork()):
        os.chdir(ws.root)
        detach(ws, "HEAD", asked(ws), DETACHED, timeout=120)
        os._exit(0)
    try:
        eventually(lambda: len(ps(ws).processes) == 1)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    eventually(lambda: bool(url := ps(ws).processes[0].url) and ready(url))
    assert [(each.name, each.status) for each in ps(ws).processes] == [("chat", "running")]
    with pytest.raises(Conflict, match="a deployment called chat is running"):
        check_free(ws, "chat")
    assert stop(ws, "chat").status == "done"
    check_free(ws, "chat")
    assert fsck(ws).problems == () and state(ws.root) == before


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def records(root: Path) -> list[str]:
    """What the audit says, its chain having been followed."""
    ws = Workspace.find(root)
    audit.verify(ws)
    return [line.decode() for line in ws.oplog.audit.lines()]


@pytest.mark.parametrize("words", [STOP, KILL], ids=["gently", "hard"])
def test_a_stop_is_killed_at_every_call(
    words: tuple[str, ...], forks: Forks, template: Path, scratch: Path, home: None
) -> None:
    """Its record comes before its signal: no run ends by a stop that nobody knows of. One that is deaf is told twice."""
    deaf, signals = words == KILL, 2 if words == KILL else 1
    root = copied(template, scratch / "w")
    noted = len(records(root))
    ending = running(root, deaf=deaf)
    begun = copied(root, scratch / "begun")
    calls = forks.calls(words, root, root)
    ending.join()
    assert unsafe(calls, root, begun) == []
    assert len(records(root)) == noted + signals and len(calls) > 3
    for call in calls:
        ending = running(copied(template, root), deaf=deaf)
        assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
        ws = Workspace.find(root)
        assert fsck(ws).problems == (), f"killed before {call}"
        ending.join(0.5)
        if ws.runs.find("chat").alive:
            assert forks.run(words, root) == 0, f"killed before {call}: {forks.said}"
        else:
            assert len(records(root)) == noted + signals, f"killed before {call}"
        ending.join()
        assert ws.runs.find("chat").status == ("died" if deaf else "terminated"), f"killed before {call}"


def test_what_cannot_be_recorded_is_stopped_all_the_same(
    template: Path, scratch: Path, home: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds the lock that the audit needs: the run ends, and the error says what is not recorded."""
    ws = Workspace.find(copied(template, scratch / "w"))
    noted, ending = len(records(ws.root)), running(ws.root)
    monkeypatch.setenv("LLMOS_WAIT", "0")
    with lock(ws.dot / "locks" / "refs"), pytest.raises(LockTimeout):
        stop(ws, "chat")
    ending.join()
    assert ws.runs.find("chat").status == "terminated" and len(records(ws.root)) == noted


def running(root: Path, *, deaf: bool = False) -> threading.Thread:
    """A run called chat in a process of its own, which ends when it is told to, or when it is killed where it is deaf; the thread ends with it."""
    ready, begun = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with Workspace(root).begin("deploy", config={}, name="chat", argv=["llmos"]):
                if deaf:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
