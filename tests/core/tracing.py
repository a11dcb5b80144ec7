"""Commands watched and killed from outside by strace: every call that changes the disk, and death just before any of them.

A first run says which calls there are, in order. The kernel then kills later runs at their first, second, ... call (strace's
fault injection), so that what is tested is the program as it is, with nothing in it that knows of the test.
"""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CHANGING = (
    "open,openat,creat,write,pwrite64,writev,pwritev,copy_file_range,sendfile,fallocate,truncate,ftruncate,fsync,fdatasync,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,chmod,fchmod,fchmodat,"
    "utimensat,ioctl"
)
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+|\?)(.*)")
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"\d+ +<\.\.\. \w+ resumed>(.*)")
_PATH = re.compile(r'"([^"]*)"|<([^<>]*)>')


@dataclass(frozen=True)
class Call:
    """One call on a path of the watched folder. `paths`: all that it names, descriptors too; `nth`: of its name in its
    thread, those on other paths counted as well. `failed`, or never done: the process was killed by then. `aside`: in a thread beside the main one, which another time may do more
    or less of the work."""

    name: str
    arguments: str
    paths: tuple[str, ...]
    nth: int
    failed: bool
    aside: bool

    def __str__(self) -> str:
        return f"{self.name}({self.arguments})"


class Forks:
    """A warm interpreter (`forks.py`) and the tracer on its children. Where a command does not come to its end, or the test is
    cut off meanwhile, all processes there are killed, and what is asked next begins with new ones."""

    def __init__(self, scratch: Path, modules: Sequence[str], *, patience: float = 240.0) -> None:
        self._scratch, self._modules, self._patience = scratch, modules, patience
        self._server = self._started()

    def _started(self) -> subprocess.Popen[str]:
        """All is compiled before: a command that keeps what it compiles makes a call that never comes again."""
        compileall.compile_dir(REPOSITORY / "llmos_cli", quiet=2)
        return subprocess.Popen(
            [sys.executable, "-m", "tests.core.forks", *self._modules],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def close(self) -> None:
        try:
            self._server.communicate(timeout=self._patience)
        except subprocess.TimeoutExpired:
            self._kill()
            self._server.communicate()
            raise

    @contextmanager
    def _nothing_left(self, what: str) -> Iterator[None]:
        """What takes longer than is patient is killed, and told."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self._kill()

        alarm = threading.Timer(self._patience, end)
        alarm.start()
        try:
            yield
        except BaseException as error:
            alarm.cancel()
            self._kill()
            self._server.communicate()
            self._server = self._started()
            if late.is_set():
                told = f"not ended after {self._patience:g} s, and killed: {what}; it had said: {self.said}"
                raise AssertionError(told) from error
            raise
        finally:
            alarm.cancel()

    def _kill(self) -> None:
        """The whole session: a stopped child, those that a command began, process groups of their own too."""
        for pid in [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]:
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == self._server.pid:
                    os.kill(pid, signal.SIGKILL)

    @property
    def said(self) -> str:
        """What the last command printed."""
        said = self._scratch / "said"
        return said.read_text() if said.exists() else ""

    def run(self, words: Sequence[str], folder: Path, inject: str = "") -> int:
        """Its exit code; `inject` is what the kernel is to answer instead, as strace has it: `flock:error=ENOLCK`."""
        how = ["-e", f"trace={inject.partition(':')[0]}", "-e", f"inject={inject}"] if inject else ["-e", "trace=none"]
        return self._traced(words, folder, [*how, "-o", "/dev/null"])

    def calls(self, words: Sequence[str], folder: Path, watched: Path) -> list[Call]:
        """Every call by which the command changes what is in the watched folder; it must succeed."""
        file = self._scratch / "trace"
        code = self._traced(words, folder, ["-y", "-s", "0", "-e", f"trace={CHANGING}", "-o", str(file)])
        assert code == 0, self.said
        return list(_parsed(file.read_text(), f"{watched}/"))

    def killed(self, words: Sequence[str], folder: Path, call: Call) -> bool:
        """Run it, killed just before `call`; whether that call came at all."""
        inject = f"inject={call.name}:signal=KILL:when={call.nth}"
        code = self._traced(words, folder, ["-e", f"trace={call.name}", "-e", inject, "-o", "/dev/null"])
        return code == -9

    def cut(self, words: Sequence[str], folder: Path, watched: Path, call: Call) -> list[Call]:
        """Run it, killed just before `call`, and tell what it had done by then."""
        file = self._scratch / "trace"
        inject = f"inject={call.name}:signal=KILL:when={call.nth}"
        how = ["-y", "-s", "0", "-e", f"trace={CHANGING}", "-e", inject, "-o", str(file)]
        assert self._traced(words, folder, how) == -9, f"{call} never came: {self.said}"
        return list(_parsed(file.read_text(), f"{watched}/"))

    def refused(self, words: Sequence[str], folder: Path, call: Call, errno: str) -> int:
        """Its exit code when the kernel answers `call` with an error instead of doing it."""
        return self.run(words, folder, f"{call.name}:error={errno}:when={call.nth}")

    @contextmanager
    def until(self, place: str, words: Sequence[str], folder: Path) -> Iterator[None]:
        """Within the block the command has come to `module:function`, and is forked there by whatever else is asked."""
        server = self._server
        with self._nothing_left(f"{' '.join(words)}, as far as {place}"):
            assert "pid" in self._ask(**self._request(words, folder), until=place), self.said
        try:
            yield
        finally:
            if self._server is server:
                with self._nothing_left(f"the end of {' '.join(words)} at {place}"):
                    self._ask(end=True)

    def _request(self, words: Sequence[str], folder: Path) -> dict[str, object]:
        ours = {name: value for name, value in os.environ.items() if name == "HOME" or name.startswith("LLMOS_")}
        return {
            "words": list(words),
            "folder": str(folder),
            # Threads of a fork that first use torch at once may find its pool gone.
            "environment": {**ours, "HF_DEACTIVATE_ASYNC_LOAD": "1"},
            "said": str(self._scratch / "said"),
        }

    def _traced(self, words: Sequence[str], folder: Path, how: Sequence[str]) -> int:
        what = f"{' '.join(words)} under strace {' '.join(how)}"
        with self._nothing_left(what):
            pid = self._ask(**self._request(words, folder))["pid"]
        command = ["strace", "-f", "-p", str(pid), *how]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer, self._nothing_left(what):
            assert tracer.stderr
            attached = tracer.stderr.readline()
            assert "attached" in attached, attached
            os.kill(pid, signal.SIGCONT)
            code = self._answer()["code"]
            tracer.stderr.read()
        return code

    def _ask(self, **request: object) -> dict[str, int]:
        assert self._server.stdin
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, int]:
        assert self._server.stdout
        line = self._server.stdout.readline()
        assert line, "the warm interpreter is gone"
        answer: dict[str, int] = json.loads(line)
        return answer


def _parsed(trace: str, watched: str) -> list[Call]:
    calls, seen = [], Counter[tuple[str, str]]()
    for line in _whole_lines(trace):
        if (match := _LINE.match(line)) is None:
            continue
        process, name, arguments, result, _ = match.groups()
        seen[process, name] += 1
        paths = _paths(name, arguments)
        if any(f"{path}/".startswith(watched) for path in paths) and _changes(name, arguments):
            aside = process != trace.split(maxsplit=1)[0]
            calls.append(Call(name, arguments, paths, seen[process, name], result[0] in "-?", aside))
    return calls


def _whole_lines(trace: str) -> Iterator[str]:
    """Where threads interrupt one another, strace tells a call in two lines: it counts when it has returned."""
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        process = line.split(maxsplit=1)[0]
        if line.endswith(_UNFINISHED):
            begun[process] = line.removesuffix(_UNFINISHED)
        elif (resumed := _RESUMED.match(line)) is not None:
            yield begun.pop(process) + resumed[1]
        else:
            yield line


def _paths(name: str, arguments: str) -> tuple[str, ...]:
    """As strace -y tells them: descriptors as `5</path>`, and a name may be relative to the descriptor before it. The folder
    that a whole name did not need is left out, and so are the bytes that were written."""
    found: list[str] = []
    folder = ""
    for text, descriptor in _PATH.findall(arguments):
        if descriptor and name.endswith(("at", "at2")):
            folder = descriptor
        elif descriptor:
            found.append(descriptor)
        elif text:
            found.append(text if text.startswith("/") else f"{folder}/{text}")
    return tuple(found)


def _changes(name: str, arguments: str) -> bool:
    if name in ("open", "openat"):
        return "O_CREAT" in arguments or "O_TRUNC" in arguments
    return name != "ioctl" or "FICLONE" in arguments


def copied(source: Path, target: Path) -> Path:
    """With its hard links and times, over what was there."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", source, target], check=True)
    return target
