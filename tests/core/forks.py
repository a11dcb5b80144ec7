"""A warm interpreter that forks a child for every command it is told, so that hundreds can be killed in a minute.

    python -m tests.core.forks      reads one JSON request a line on stdin, answers one JSON line each on stdout

The child stops itself before its first step: whoever asked attaches a tracer and lets it go on. What then runs is `llmos`
with its real entry point, and every call it makes is its own.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a command prints is not an answer
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            child(request)
        os.waitpid(pid, os.WUNTRACED)
        answers.write(json.dumps({"pid": pid}) + "\n")
        _, status = os.waitpid(pid, 0)
        answers.write(json.dumps({"code": os.waitstatus_to_exitcode(status)}) + "\n")


def child(request: dict[str, Any]) -> None:
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    said = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        code = run(request["words"])
    except SystemExit as end:
        code = int(end.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
