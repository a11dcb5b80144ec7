"""Processes of Python that need not import torch first: forked from an interpreter that has, and that knows nothing of llmos.

Importing torch and transformers takes seconds, and what many tests start (the process that reads a compressed model back, a
deployment, its engine, the trials of a search) does nothing else before it begins. Under `warmed`, `subprocess` and
`multiprocessing` have such processes forked: with the descriptors, environment, folder and session that were asked for, and as
a child of whoever asked, since the kernel gives an orphan to the next subreaper above it; so pid, signals, exit code and
`wait` are those of any child. llmos itself is imported anew in each. What a fork cannot show is start-up (Ctrl-C among the
imports, another hash seed): tests of that, and one at least of every kind of process, start theirs cold (`pytest.mark.cold`).
"""

from __future__ import annotations

import _posixsubprocess
import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

LIBRARIES = (
    "torch",
    "torch._dynamo",
    "torch.distributed.tensor",
    "safetensors.torch",
    "transformers",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
    "transformers.trainer_utils",
    "compressed_tensors",
    "datasets",
)
SAME = ("PYTHON", "OMP_", "MKL_", "KMP_", "HF_", "TRANSFORMERS_", "TORCH", "TOKENIZERS_", "CUDA_")
"""Variables that libraries and interpreter read when they are loaded: where one differs, the process starts cold."""
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2)."""
STANDARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

cold = _posixsubprocess.fork_exec


class Warm:
    """The other end of a warm interpreter; it ends when this is closed, or its owner ends."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket, self._owner, self._lock = ours, os.getpid(), threading.Lock()
        self._environment = _settings(os.environ)

    @classmethod
    def start(cls, home: Path) -> Warm:
        ours, theirs = socket.socketpair()
        with theirs, warmed(cold):
            program = f"from tests.warm import main; main({theirs.fileno()})"
            subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=Path(__file__).parents[1],
                env={**os.environ, "HOME": str(home)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        return cls(ours)

    def close(self) -> None:
        self._socket.close()

    def fork_exec(self, *told: Any) -> int:
        """As `_posixsubprocess.fork_exec`: the pid of a new child, warm if it can be."""
        args, executables, _, keep, cwd, env, read, _, _, write, _, errors, _, pipe = told[:14]
        _, new_session, group, gid, gids, uid, umask, preexec, *_ = told[14:]
        words = [os.fsdecode(word) for word in args]
        environment = dict(os.environ) if env is None else _unlisted(env)
        special = (gid, gids, uid, preexec) != (None,) * 4 or umask >= 0
        known = os.fsdecode(executables[0]) == sys.executable and self._owner == os.getpid()
        if special or not known or _program(words) is None or _settings(environment) != self._environment:
            return int(cold(*told))
        places = {0: read, 1: write, 2: errors} | {number: number for number in keep if number != pipe}
        request = {
            "words": words,
            "folder": str(Path.cwd() / os.fsdecode(cwd or "")),
            "environment": environment,
            "places": list(places),
            "session": bool(new_session),
            "group": group,
            "ignored": [number for number in STANDARD if signal.getsignal(number) == signal.SIG_IGN],
            "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        }
        return self._ask(request, [place if given == -1 else given for place, given in places.items()])

    def _ask(self, request: dict[str, Any], descriptors: list[int]) -> int:
        data = json.dumps(request).encode()
        with self._lock:
            _adopt(True)
            try:
                socket.send_fds(self._socket, [b"%9d" % len(data)], descriptors)
                self._socket.sendall(data)
                answer = self._socket.recv(16)
            finally:
                _adopt(False)
        return int(answer)


@contextmanager
def warmed(start: Callable[..., int]) -> Iterator[None]:
    """Within the block this process starts others by `start`: the `fork_exec` of a warm one."""
    before = subprocess._fork_exec  # type: ignore[attr-defined]
    _start_with(start)
    try:
        yield
    finally:
        _start_with(before)


def _start_with(start: Callable[..., int]) -> None:
    subprocess._fork_exec = start  # type: ignore[attr-defined]
    _posixsubprocess.fork_exec = start


def _adopt(yes: bool) -> None:
    ctypes.CDLL(None).prctl(SUBREAPER, int(yes), 0, 0, 0)


def _unlisted(env: Sequence[bytes]) -> dict[str, str]:
    return dict(os.fsdecode(line).split("=", 1) for line in env)


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(SAME)}


def _program(words: Sequence[str]) -> tuple[str, list[str], bool] | None:
    """`-c` or `-m` or a file's name, what follows, and whether modules may come from beside it; None if it must be cold."""
    flags = 1
    while flags < len(words) and words[flags] in ("-P", "-I", "-s", "-E", "-B"):
        flags += 1
    rest, beside = list(words[flags:]), not {"-P", "-I"} & set(words[1:flags])
    if not rest or "resource_tracker" in " ".join(rest[:2]):
        return None
    if rest[0] in ("-c", "-m"):
        return rest[0], rest[1:], beside
    return None if rest[0].startswith("-") else ("", rest, beside)


def main(descriptor: int) -> None:
    """Import the libraries and fork a child for every request, until whoever asks is gone."""
    for name in LIBRARIES:
        importlib.import_module(name)
    # One of Arrow's allocator there is, which knows of forks.
    assert threading.active_count() == 1, "a process with threads cannot be forked"
    assert not any(name.partition(".")[0] == "llmos_cli" for name in sys.modules)
    for path in ("", str(Path(__file__).parents[1])):
        while path in sys.path:
            sys.path.remove(path)
    serve(socket.socket(fileno=descriptor))


def serve(asked: socket.socket) -> None:
    gc.collect()
    gc.freeze()
    for number in STANDARD:
        signal.signal(number, signal.SIG_IGN)
    while True:
        length, descriptors, _, _ = socket.recv_fds(asked, 9, 64)
        if not length:
            os._exit(0)
        request = json.loads(asked.recv(int(length), socket.MSG_WAITALL))
        asked.sendall(str(_orphan(request, descriptors)).encode())
        for each in descriptors:
            os.close(each)


def _orphan(request: dict[str, Any], descriptors: list[int]) -> int:
    """The pid of a child whose parent, forked from us, is gone: it is now a child of who asked."""
    read, write = os.pipe()
    if not (between := os.fork()):
        if pid := os.fork():
            os.write(write, str(pid).encode())
            os._exit(0)
        run_forked(request, descriptors)
    os.waitpid(between, 0)
    pid = int(os.read(read, 16))
    os.close(read)
    os.close(write)
    return pid


def run_forked(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """What was asked for: run it, and end as the interpreter would, but for taking the libraries down."""
    code = 1
    try:
        _become(request, descriptors)
        code = _ended(lambda: _run(request["words"]))
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    if request["session"]:
        os.setsid()
    if request["group"] >= 0:
        os.setpgid(0, request["group"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    above = max(request["places"]) + 1
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD, above) for each in descriptors]
    for place, each in zip(request["places"], moved, strict=True):
        os.dup2(each, place)
    _close_all_but(request["places"])
    for number in STANDARD:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else usual)
    # Not ours: who started us may just have blocked some, as multiprocessing does while it starts its tracker.
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])


def _close_all_but(kept: Sequence[int]) -> None:
    for each in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if each not in kept:
            with suppress(OSError):  # the one by which the folder was listed is closed already
                os.close(each)


def _ended(run: Callable[[], None]) -> int:
    try:
        run()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 (the end of a process)
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _run(words: Sequence[str]) -> None:
    program = _program(words)
    assert program is not None
    kind, rest, beside = program
    if kind == "-m":
        _pass_on()
    sys.argv = [kind or rest[0], *rest[1:]]
    sys.modules["__main__"] = ModuleType("__main__")
    if kind == "-c":
        sys.path[:0] = [""] if beside else []
        exec(compile(rest[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
    elif kind == "-m":
        sys.path[:0] = [str(Path.cwd())] if beside else []
        runpy._run_module_as_main(rest[0])  # type: ignore[attr-defined]
    else:
        sys.path[:0] = [str(Path(rest[0]).absolute().parent)] if beside else []
        runpy.run_path(rest[0], run_name="__main__")


def _pass_on() -> None:
    """A process that may start others has a warm interpreter of its own: a fork, of which it does not know."""
    ours, theirs = socket.socketpair()
    if not os.fork():
        _close_all_but([theirs.fileno()])
        for _ in range(3):
            os.open(os.devnull, os.O_RDWR)
        serve(theirs)
    theirs.close()
    _start_with(Warm(ours).fork_exec)
