"""Bad luck: a full disk, a read-only workspace, somebody else's lock or port, a request that cannot be, Ctrl-C at any moment.

As in test_bad_input.py: one sentence, a hint, the right exit code, no traceback, and the workspace as it was. One row a case.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from llmos_cli.core.workspace import Workspace
from tests.serve.conftest import deployed, environment, eventually
from tests.test_bad_input import state, train

Meanwhile = Callable[[Path], AbstractContextManager[object]]


# What is wrong with the machine while the command runs in the workspace `root`.


@contextlib.contextmanager
def full_disk(root: Path) -> Iterator[None]:
    """Of its own: a small file system where we may mount one, else a limit on the size of files."""
    if may_mount():
        with mounted(root, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
            fill(root)
            yield
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill(root: Path) -> None:
    """Leave room for what a run writes about itself, and none for weights."""
    with (root / "ballast").open("wb") as ballast:
        ballast.write(bytes(shutil.disk_usage(root).free - 60_000))
    with pytest.raises(OSError, match="No space left"):
        (root / "plain").write_bytes(bytes(100_000))
    (root / "plain").unlink()


@contextlib.contextmanager
def read_only(root: Path) -> Iterator[None]:
    """A read-only mount where we may mount one, else a mode, which does not stop root."""
    if os.geteuid() == 0 and not may_mount():
        pytest.skip("needs root that may mount: modes do not bind it")
    if may_mount():
        with mounted(root, "--bind", str(root)):
            subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
            refused(root)
            yield
    else:
        folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        refused(root)
        try:
            yield
        finally:
            for folder in folders:
                folder.chmod(0o755)


def refused(root: Path) -> None:
    with pytest.raises(OSError, match=r"Read-only|Permission denied"):
        (root / "plain").write_text("x")


@functools.cache
def may_mount() -> bool:
    """Root in a container often may not."""
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
        if tried.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)
    return tried.returncode == 0


@contextlib.contextmanager
def mounted(root: Path, *how: str) -> Iterator[None]:
    """`root` with its content behind another mount, entered anew: the current folder is still the one below."""
    aside = root.with_name("aside")
    shutil.copytree(root, aside)
    subprocess.run(["mount", *how, root], check=True)
    try:
        os.chdir(root)
        shutil.copytree(aside, root, dirs_exist_ok=True)
        yield
    finally:
        os.chdir("/")
        subprocess.run(["umount", "-l", root], check=True)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process is moving a ref until its stdin ends."""
    program = (
        "import sys; from pathlib import Path; from llmos_cli.core.workspace import Workspace\n"
        "with Workspace(Path(sys.argv[1])).oplog.locked(): print(flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        yield holder
    finally:
        holder.terminate()
        holder.wait(30)


@contextlib.contextmanager
def busy_port(root: Path) -> Iterator[None]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (root / "configs" / "deploy.yaml").write_text(f"deploy: {{port: {taken.getsockname()[1]}}}\n")
        yield


@dataclass(frozen=True)
class Case:
    """`words` after `llmos`; what the error must say; what is wrong meanwhile."""

    words: str
    code: int
    says: str
    meanwhile: Meanwhile

    def __str__(self) -> str:
        return f"{self.meanwhile.__name__}-{self.words}".replace(" ", "-")[:60]


CASES = [
    Case("train", 1, "cannot write", full_disk),
    Case("quantize --method rtn -s quantize.group_size=16", 1, "cannot write", full_disk),
    Case("export -o there", 1, "cannot write", full_disk),
    Case("train", 1, "cannot write", read_only),
    Case("prune", 1, "cannot write", read_only),
    Case("tag base", 1, "cannot write", read_only),
    Case("undo", 1, "cannot write", read_only),
    Case("deploy --port 0", 1, "cannot write", read_only),
    Case("branch other", 1, "cannot write", read_only),
    Case("--wait 0 tag base", 6, "gave up after 0 s on the lock refs, held for", locked),
    Case("--wait 0.2 undo", 6, "gave up after 0.2 s on the lock refs, held for", locked),
    Case("--wait 0 train", 6, "gave up after 0 s on the lock refs, held for", locked),
    Case("deploy", 1, "is in use", busy_port),
    Case("deploy --detach", 1, "is in use", busy_port),
]


@pytest.fixture(scope="session")
def trained_model(new_workspace, tmp_path_factory) -> Path:
    root = new_workspace(tmp_path_factory.mktemp("trained") / "model").root
    train(root)
    return root


@pytest.fixture
def model(trained_model, tmp_path) -> Path:
    """A copy of a trained workspace."""
    return Path(shutil.copytree(trained_model, tmp_path / "model"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_luck(case, model, llmos, monkeypatch):
    with case.meanwhile(model):
        monkeypatch.chdir(model)
        before = state(model)
        ran = llmos(*shlex.split(case.words))
        assert state(model) == before
    assert ran.code == case.code, ran.err
    check_words(ran.err, case.says)


def check_words(err: str, says: str) -> None:
    """One sentence, a hint, nothing of Python's."""
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert says in error and "unexpectedly" not in error
    assert "\nhint: " in f"\n{err}"
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code"), [("log", 1), ("log --json", 1), ("show nothing", 4), ("show nothing --json", 4), ("nothing", 2)]
)
def test_output_that_nobody_can_take(words, code, model, own_home):
    """A full disk behind the shell's `>`: what cannot be said leaves the exit code what it is, and no traceback."""
    command = [sys.executable, "-m", "llmos_cli", *words.split()]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(command, cwd=model, stdout=full, stderr=subprocess.PIPE, text=True)
        mute = subprocess.run(command, cwd=model, stdout=subprocess.PIPE, stderr=full, text=True)
    assert (ran.returncode, "Traceback" in ran.stderr, ran.stderr.count("error: ")) == (code, False, 1)
    assert mute.returncode == (code if code > 1 else 0)


def test_of_two_commands_at_once_the_second_waits_and_says_for_whom(model, llmos, monkeypatch):
    monkeypatch.chdir(model)
    with locked(model) as holder:
        threading.Timer(1.5, holder.stdin.close).start()
        ran = llmos("tag", "base")
    assert ran.code == 0 and f"by process {holder.pid}" in ran.err, ran.err


REQUESTS = [
    (b"{", "known", 400, "invalid_json"),
    (b"\xff\xfe", "known", 400, "invalid_json"),
    (b'"text"', "known", 400, "invalid_json"),
    (b"prompt=a", "known", 400, "invalid_json"),
    (b'{"max_tokens": 3}', "known", 400, "missing"),
    (b'{"prompt": "a", "max_tokens": "many"}', "known", 400, "invalid_value"),
    (b'{"prompt": "a", "temperature": NaN}', "known", 400, "invalid_value"),
    (b'{"prompt": "a", "max_tokens": 100000}', "known", 400, "context_length_exceeded"),
    (b'{"prompt": "' + b"word " * 5_000 + b'"}', "known", 400, "context_length_exceeded"),
    (b'{"prompt": "' + b"a" * 1_000_000 + b'"}', "known", 413, "request_too_large"),
    (b'{"prompt": "a", "model": "gpt-9"}', "known", 404, "model_not_found"),
    (b'{"prompt": "a"}', "unknown", 401, "invalid_api_key"),
    (b'{"prompt": "a"}', "", 401, "invalid_api_key"),
    (b'{"prompt": "' + b"a" * 4_000_000 + b'"}', "unknown", 401, "invalid_api_key"),
]
"""Body, key, status, code."""


def test_bad_requests(model, tmp_path, monkeypatch):
    monkeypatch.chdir(model)
    with deployed(Workspace.find(), tmp_path, "--warm", "off", env={"LLMOS_API_KEYS": "known"}) as server:
        ask = httpx.Client(base_url=server.url, timeout=60)
        for body, key, status, code in REQUESTS:
            headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
            answer = ask.post("/v1/completions", content=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (body[:60], answer.text)
            assert sorted(answer.json()["error"]) == ["code", "message", "param", "type"]
            assert "Traceback" not in answer.text
        good = ask.post(
            "/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers={"Authorization": "Bearer known"}
        )
        assert good.status_code == 200, good.text


@dataclass(frozen=True)
class CtrlC:
    """SIGINT to `words`, when they have said `at` or, where that is a number, so many seconds after Python was up."""

    words: str
    at: str | float
    says: str
    slow: bool = False

    def __str__(self) -> str:
        return f"{self.words.split()[0]}-{self.at}".replace(" ", "-")


LONG = "-s train.max_steps=1000000"
INTERRUPTIONS = [
    CtrlC(f"train {LONG}", 0.05, "interrupted"),
    CtrlC(f"train {LONG}", "train 1/", "train was interrupted"),
    CtrlC(f"train {LONG}", 0.5, "interrupted"),
    CtrlC("tune --trials 2 -s tune.max_steps=1000000", "tune 0/2", "after 0 of 2 trials", slow=True),
    CtrlC("tune --trials 2 -s tune.max_steps=1000000", 1, "interrupted"),
    CtrlC("prune --heal 1000000", "heal 1/", "prune was interrupted", slow=True),
    CtrlC("prune --heal 1000000", 1.5, "interrupted"),
    CtrlC("quantize -s quantize.group_size=16 --heal 1000000", "heal 1/", "quantize was interrupted", slow=True),
    CtrlC("quantize -s quantize.group_size=16", 1, "interrupted"),
    CtrlC("eval --fresh", 1, "interrupted"),
    CtrlC("deploy --port 0", "serves", "the deployment was interrupted", slow=True),
    CtrlC("deploy --port 0 --detach", 2, "interrupted", slow=True),
    CtrlC("export -o there", 0.5, "interrupted"),
    CtrlC("import there", 0.5, "interrupted"),
]


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * c.slow, id=str(c)) for c in INTERRUPTIONS])
def test_ctrl_c(case, model, llmos, own_home, monkeypatch):
    monkeypatch.chdir(model)
    shutil.copytree(next(model.glob("checkpoints/*")), model / "there" if "import" in case.words else model / "other")
    before = state(model)
    code, said = interrupted(case, model, own_home)
    assert code == 130, said
    check_words(said, case.says)
    assert state(model) == before
    assert llmos("fsck").code == 0
    assert llmos("ps", "--json").json["processes"] == []
    assert not [path for path in model.rglob("*there*") if "import" not in case.words]
    if "--resume" in said:
        assert llmos("status", "--json").json["resumable"]


def interrupted(case: CtrlC, root: Path, home: Path) -> tuple[int, str]:
    """The exit code and all that was said; no process of the group is left."""
    # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); print('up', flush=True)\n"
    program += "from llmos_cli.__main__ import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *shlex.split(case.words)],
        cwd=root,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said = heard(process, "up")
        if isinstance(case.at, str):
            said += heard(process, case.at)
        else:
            time.sleep(case.at)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        said += process.communicate(timeout=120)[0]
        assert eventually(lambda: not alive(process.pid)), "a process was left"
        return process.returncode, said
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def heard(process: subprocess.Popen[str], words: str) -> str:
    """What it says until it says `words`."""
    assert process.stdout is not None
    said = ""
    while words not in said:
        line = process.stdout.readline()
        assert line, f"it ended ({process.poll()}) after saying: {said}"
        said += line
    return said


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
