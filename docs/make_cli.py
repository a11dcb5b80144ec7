"""Write docs/cli.md: every command's help, as the program prints it. Run with `make docs`; a test holds it up to date."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

HERE = Path(__file__).parent

INTRODUCTION = """\
# The command line

Written by `make docs` from the program's own help. Every command takes `--json` (its result, or its error, as one JSON object
with a versioned `schema`) and `-q`. Data goes to stdout, everything else to stderr.

| exit code | means |
|---|---|
| 0 | done (also when the reader of a pipe left) |
| 1 | failed: port in use, disk full, nothing changed... |
| 2 | a flag, argument or config that cannot be right; an ambiguous revision |
| 3 | a gate failed |
| 4 | no such revision, workspace, run or file |
| 5 | corrupt, or not trusted |
| 6 | a conflict, or a lock that was not got in time |
| 130, 143 | interrupted, terminated: state saved |
"""


def reference() -> str:
    from llmos_cli import catalog, lazy

    names = [name for panel in lazy.PANELS.values() for name in panel if name in catalog.commands()]
    names += [name for name in catalog.commands() if name not in names]
    pages = [((), "llmos")] + [((name,), f"llmos {name}") for name in names]
    return INTRODUCTION + "".join(_page(words, title) for words, title in pages)


def _page(words: tuple[str, ...], title: str) -> str:
    below = "".join(_page((*words, name), f"{title} {name}") for name in _group(words))
    return f"\n{'#' * (len(words) + 2)} {title}\n\n```\n{_help(*words)}```\n{below}"


def _group(words: tuple[str, ...]) -> list[str]:
    """Commands of a command that is a group of them, such as `config`."""
    from llmos_cli import lazy

    return lazy.commands_below(words[0]) if len(words) == 1 else []


def _help(*words: str) -> str:
    from llmos_cli import app

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app.run([*words, "--help"])
    return out.getvalue()


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    (HERE / "cli.md").write_text(reference(), encoding="utf-8")
