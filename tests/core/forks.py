"""A warm interpreter that forks a child for every command it is told, so that hundreds can be killed in a minute.

    python -m tests.core.forks      reads one JSON request a line on stdin, answers one JSON line each on stdout

A command that computes for seconds before it commits is run once as far as the function that `until` names, and forked there
for every kill: what is killed is the command in the midst of its work, and the work is done once.

The child stops itself before its first step: whoever asked attaches a tracer and lets it go on. What then runs is `llmos`
with its real entry point, and every call it makes is its own.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
from typing import Any, TextIO


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a command prints is not an answer
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            child(request, answers)
        answer(answers, pid, stopped=not request.get("until"))


def answer(answers: TextIO, pid: int, *, stopped: bool) -> None:
    if stopped:
        os.waitpid(pid, os.WUNTRACED)
        answers.write(json.dumps({"pid": pid}) + "\n")
    _, status = os.waitpid(pid, 0)
    answers.write(json.dumps({"code": os.waitstatus_to_exitcode(status)}) + "\n")


def child(request: dict[str, Any], answers: TextIO) -> None:
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    say_to(request["said"])
    if request.get("until"):
        fork_at(request["until"], request["said"], answers)
    else:
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        code = run(request["words"])
    except SystemExit as end:
        code = int(end.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def say_to(file: str) -> None:
    """What is printed from now on goes there."""
    said = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(said, 1)
    os.dup2(said, 2)


def fork_at(place: str, said: str, answers: TextIO) -> None:
    """At the first call of `module:function`, or `module:Class.method`, this process waits, and a child of it goes on for every line of stdin."""
    name, _, attribute = place.partition(":")
    holder, _, attribute = attribute.rpartition(".")
    module: Any = importlib.import_module(name)
    module = getattr(module, holder) if holder else module
    function = getattr(module, attribute)

    def forked(*args: Any, **named: Any) -> Any:
        setattr(module, attribute, function)
        reopen()
        answers.write(json.dumps({"pid": os.getpid()}) + "\n")
        for line in sys.stdin:
            if json.loads(line).get("end"):
                os._exit(0)
            pid = os.fork()
            if not pid:
                say_to(said)
                adopt()
                os.kill(os.getpid(), signal.SIGSTOP)
                return function(*args, **named)
            answer(answers, pid, stopped=True)
        return None

    setattr(module, attribute, forked)


def reopen() -> None:
    """A run writes to files that it has open, and a study to a database; where the workspace is put back as it was, they are
    others by then."""
    from llmos_cli.core.journal import Journal

    for each in gc.get_objects():
        if isinstance(each, Journal):
            each.close()
    if "optuna" in sys.modules:
        from optuna.storages import RDBStorage

        for each in [each for each in gc.get_objects() if type(each) is RDBStorage]:
            each.remove_session()
            each.engine.dispose()


def adopt() -> None:
    """The processes of a command are those of its fork: it ends them, as the command would. Its temporary files are for the
    other forks too."""
    for process in multiprocessing.active_children():
        process._parent_pid = os.getpid()
    for file in [each for each in gc.get_objects() if type(each) is tempfile._TemporaryFileCloser]:
        file.delete = False


def run(words: list[str]) -> int:
    """`module:function` is called as a command would be; anything else is a command line."""
    if ":" in words[0]:
        from llmos_cli import app

        module, _, name = words[0].partition(":")
        app.app = lambda *args, **named: getattr(importlib.import_module(module), name)()
        return app.run(words)
    from llmos_cli.__main__ import main as entry

    sys.argv = ["llmos", *words]
    entry()
    return 0


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    main()
