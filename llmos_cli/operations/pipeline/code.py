"""What of a stage is code, and whether it may run: a command, and the scripts of the workspace that it names.

A workspace comes from anywhere, and so does what a cache holds. So a command runs only when the user has listed its very text,
and each script in it only when its very content is listed (`core/trust.py`), as a model's module is. What a command that may
run wrote itself, here, is listed with it: it did what it was trusted to do. What came out of a cache is not.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from llmos_cli.core import trust
from llmos_cli.core.objects import hash_file
from llmos_cli.errors import Untrusted
from llmos_cli.operations.pipeline.stages import overlap

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Workspace
    from llmos_cli.operations.pipeline.files import Tree
    from llmos_cli.operations.pipeline.stages import Stage

ENDINGS = (".py", ".sh", ".bash", ".zsh", ".pl", ".rb", ".js", ".lua", ".r", ".R", ".awk", ".mk")
INTERPRETER = re.compile(r"(ba|da|k|z|fi)?sh|(python|perl|ruby|node|lua|php)[\d.]*|Rscript|source")
OPENING = ("then", "do", "else", "{", "!")
"""Words of the shell that a command follows."""


def files(ws: Workspace, stage: Stage, resolved: Resolved | None) -> list[str]:
    """The files of code that a stage runs: a model's module, or what a command names in the workspace and does not write itself."""
    if stage.options.sh is not None:
        return [script for script in _scripts(ws, stage.options.sh) if not _writes(stage, script)]
    module = (resolved.mapping.get("model") or {}).get("module") if resolved else None
    return [module.partition(":")[0]] if module else []


def require(
    ws: Workspace, stages: Iterable[Stage], ask: Callable[[str], bool] | None, *, among: Sequence[Stage]
) -> None:
    """Before anything runs: Untrusted (exit 5) where a stage would run what the user has not listed; `ask` may list it with the
    user's consent. A script that a stage `among` those of the run writes is looked at when its time has come."""
    for stage in stages:
        if stage.options.sh is None:
            continue  # a module is asked about by the verb that runs it
        trust.require_text(ws, name_of(stage), stage.options.sh, ask=ask)
        for script in files(ws, stage, None):
            if _writer(script, among) is None:
                trust.require(ws, ws.root / script, ask=ask)


def require_now(ws: Workspace, stage: Stage, among: Sequence[Stage]) -> None:
    """The same of a stage whose process is about to start: Untrusted where a script is neither listed nor made here."""
    if stage.options.sh is None:
        return
    trust.require_text(ws, name_of(stage), stage.options.sh)
    for script in files(ws, stage, None):
        try:
            trust.require(ws, ws.root / script)
        except Untrusted as error:
            writer = _writer(script, among)
            makes = f", or `llmos run --fresh {writer.name}` makes it here" if writer else ""
            raise Untrusted(f"{error.message}, and {stage.name} runs it", hint=f"{error.hint}{makes}") from None


def trust_made(ws: Workspace, outputs: Iterable[str], stages: Iterable[Stage]) -> None:
    """List what of a command's outputs is code, by content: it was allowed to run, and has just written them here."""
    listed, ran = trust.trusted(ws), _ran_by(stages)
    code = [name for name in outputs if name in ran or _is_code(ws.root / name)]
    found = {name: hash_file(ws.root / name).sha256 for name in code}
    trust.trust_digests(ws, {name: sha256 for name, sha256 in found.items() if sha256 not in listed})


def foreign(ws: Workspace, outputs: Tree, stages: Iterable[Stage], contents: Callable[[str], Path]) -> str:
    """Which of the outputs in a cache is code that is not listed here, "" for none. `contents`: where those of a hash are, or
    will be: a first line that makes code of a file is seen once they are there."""
    listed, ran = trust.trusted(ws), _ran_by(stages)
    for name, sha256 in outputs.items():
        plain, executable = sha256.removesuffix("+x"), sha256.endswith("+x")
        is_code = executable or name in ran or name.endswith(ENDINGS) or _is_script(contents(plain))
        if is_code and plain not in listed:
            return name
    return ""


def name_of(stage: Stage) -> str:
    """What a command is called where trusted code is listed."""
    return trust.COMMAND + stage.family


def _writes(stage: Stage, name: str) -> bool:
    return any(overlap(name, output) for output in stage.options.outputs)


def _writer(name: str, stages: Iterable[Stage]) -> Stage | None:
    return next((stage for stage in stages if _writes(stage, name)), None)


def _scripts(ws: Workspace, command: str) -> Iterator[str]:
    """Words of a command that name a file of the workspace which is code: by its ending, its first bytes or its mode, or because
    an interpreter is given it."""
    words = _words(command)
    ran = set(_ran(words))
    for word in dict.fromkeys(words):
        path = ws.root / word
        if _is_file(path) and path.resolve().is_relative_to(ws.root) and (word in ran or _is_code(path)):
            yield str(Path(word)) if not Path(word).is_absolute() else str(path.relative_to(ws.root))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False  # a program of one word (`python -c "..."`) is too long for a name


def _words(command: str) -> list[str]:
    """Without what the shell sets between them, which are words of their own: `sh a.sh; b` names a.sh."""
    lines = command.replace("`", " ; ").replace("\\\n", " ").replace("\n", "\n; ")
    lexer = shlex.shlex(lines, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        return command.split()  # an open quote: the shell will say so


def _ran(words: Iterable[str]) -> Iterator[str]:
    """The word after an interpreter, its flags passed over; a dot is one where a command begins."""
    given, before = False, ";"
    for word in words:
        if given and not word.startswith(("-", "<")):
            yield word
            given = False
        dot = word == "." and (before in OPENING or not set(before) - set(";&|("))
        given = given or dot or INTERPRETER.fullmatch(PurePath(word).name) is not None
        before = word


def _ran_by(stages: Iterable[Stage]) -> set[str]:
    commands = {stage.options.sh for stage in stages if stage.options.sh is not None}
    return {str(PurePath(word)) for command in commands for word in _ran(_words(command))}


def _is_code(path: Path) -> bool:
    return path.suffix in ENDINGS or os.access(path, os.X_OK) or _is_script(path)


def _is_script(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!"
    except FileNotFoundError:
        return False
