"""What of a stage is code, and whether it may run: a command, and the scripts of the workspace that it names.

A workspace comes from anywhere, and so does what a cache holds. So a command runs only when the user has listed its very text,
and each script in it only when its very content is listed (`core/trust.py`), as a model's module is. What a stage that may run
wrote itself, here, is listed with it: it did what it was trusted to do. What came out of a cache, or with the workspace, is not, and
of that only what is data for certain is believed: the rest is made again, which costs time and is never wrong.
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from llmos_cli.core import trust
from llmos_cli.errors import Untrusted
from llmos_cli.operations.pipeline.stages import overlap

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Workspace
    from llmos_cli.operations.pipeline.files import Tree
    from llmos_cli.operations.pipeline.stages import Stage

ENDINGS = (".py", ".sh", ".bash", ".zsh", ".pl", ".rb", ".js", ".lua", ".r", ".R", ".awk", ".mk")
DATA = re.compile(
    r"\.(jsonl?|csv|tsv|te?xt|md|html|xml|ya?ml|log|parquet|arrow|feather|avro|safetensors|gguf|onnx|npy"
    r"|png|jpe?g|gif|svg|webp|pdf|wav|flac|mp3|gz|bz2|xz|zst|tar)",
    re.IGNORECASE,
)
"""Endings of what no program runs by itself. Python imports from a .zip, and a .bin, .pt or .model may be a pickle."""
SHELL = re.compile(r"(ba|da|k|z|fi)?sh")
INTERPRETER = re.compile(rf"{SHELL.pattern}|(python|pypy|perl|ruby|node|lua|php)[\d.]*|julia|deno|bun|Rscript|source")
OPENING = ("then", "do", "else", "{", "!")
"""Words of the shell that a command follows."""
CLOSING = ("done", "fi", "esac", "}")
"""Words of the shell after which a pipe is that of what came before too."""
VARIABLE = re.compile(r"\$(\w+|\{[^}]*\}|\(.*\)|.|$)")


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
            if not any(_writes(other, script) for other in among):
                trust.require(ws, ws.root / script, ask=ask)


def require_now(ws: Workspace, stage: Stage) -> None:
    """The same of a stage whose process is about to start: Untrusted where a script is neither listed nor made here."""
    if stage.options.sh is None:
        return
    trust.require_text(ws, name_of(stage), stage.options.sh)
    for script in files(ws, stage, None):
        try:
            trust.require(ws, ws.root / script)
        except Untrusted as error:
            raise Untrusted(f"{error.message}, and {stage.name} runs it", hint=error.hint) from None


def trust_made(ws: Workspace, outputs: Tree, stages: Iterable[Stage]) -> None:
    """List what of a stage's outputs may be code, by content: it was allowed to run, and has just written them here."""
    found = _unlisted(ws, outputs, stages, lambda name: ws.root / name)
    trust.trust_digests(ws, {name: outputs[name].removesuffix("+x") for name in found})


def foreign(ws: Workspace, outputs: Tree, stages: Iterable[Stage], content: Callable[[str], Path]) -> str:
    """Which of the outputs may be code and is not listed here, "" for none. `content`: where that of an output is, or will be: a
    first line that makes code of a file is seen once it is there."""
    return next(_unlisted(ws, outputs, stages, content), "")


def _unlisted(ws: Workspace, outputs: Tree, stages: Iterable[Stage], content: Callable[[str], Path]) -> Iterator[str]:
    """All but what is data for certain: whatever a command finds without naming it (`sh *.sh`, an import) may be code."""
    listed, ran = trust.trusted(ws), _ran_by(stages)
    for name, sha256 in outputs.items():
        if sha256.removesuffix("+x") in listed:
            continue
        path = PurePath(name)
        is_data = DATA.fullmatch(path.suffix) and not sha256.endswith("+x") and not ran.fullmatch(path.name)
        if not is_data or _is_script(content(name)):
            yield name


def name_of(stage: Stage) -> str:
    """What a command is called where trusted code is listed."""
    return trust.COMMAND + stage.family


def _writes(stage: Stage, name: str) -> bool:
    return any(overlap(name, output) for output in stage.options.outputs)


def _scripts(ws: Workspace, command: str) -> Iterator[str]:
    """Words of a command that name a file of the workspace which is code: by its ending, its first bytes or its mode, or because
    an interpreter is given it. They are looked for where the command begins, and in each folder that it goes to."""
    words = _words(command)
    ran = set(_ran(words))
    folders = ["", *(folder for before, folder in itertools.pairwise(words) if before in ("cd", "pushd"))]
    for word, folder in itertools.product(dict.fromkeys(words), dict.fromkeys(folders)):
        path = ws.root / folder / word
        if _is_file(path) and path.resolve().is_relative_to(ws.root) and (word in ran or _is_code(path)):
            yield os.path.relpath(path, ws.root)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False  # a program of one word (`python -c "..."`) is too long for a name


def _words(command: str) -> list[str]:
    """Without what the shell sets between them, which are words of their own: `sh a.sh; b` names a.sh. What is several words within
    quotes may be a command too (`sh -c "sh a.sh"`): its words come after all others."""
    lines = command.replace("`", " ; ").replace("\\\n", " ").replace("\n", "\n; ")
    lexer = shlex.shlex(lines, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return command.split()  # an open quote: the shell will say so
    return words + [each for word in words if len(word.split()) > 1 for each in (";", *_words(word))]


def _ran(words: Sequence[str]) -> Iterator[str]:
    """The words that may be the script that an interpreter is given; a dot is an interpreter where a command begins. One without
    any, after a pipe, runs what it is sent: that may be in whatever is named before the pipe."""
    before, sent = "", list[str]()
    for is_between, group in itertools.groupby(words, lambda word: set(word) <= set(";&|()")):
        part = list(group)
        if is_between:
            before = part[-1]
            continue
        piped = before in ("|", "|&")
        for at, word in enumerate(part):
            dot = word == "." and (at == 0 or part[at - 1] in OPENING)
            if dot or INTERPRETER.fullmatch(PurePath(word).name):
                given = _given(PurePath(word).name, part[at + 1 :])
                yield from sent if given == [] and piped else given or ()
        sent = [*(sent if piped or part[0] in CLOSING else ()), *part]


def _given(interpreter: str, words: Sequence[str]) -> list[str] | None:
    """Its script, and before that what may be the value of a flag (`bash -o pipefail x`); None where a flag holds the program itself."""
    holds_program = re.compile(r"-\w*c" if SHELL.fullmatch(interpreter) else r"-\w*[cem]")
    found: list[str] = []
    after_flag = False
    for word in words:
        if word.startswith(">"):
            break
        if word.startswith("<") or word.isdigit():
            continue
        if holds_program.fullmatch(word):
            return None
        if not word.startswith("-"):
            found.append(word)
            if not after_flag or word.endswith(ENDINGS):
                break
        after_flag = word.startswith("-")
    return found


def _ran_by(stages: Iterable[Stage]) -> re.Pattern[str]:
    return _given_by(frozenset(stage.options.sh for stage in stages if stage.options.sh is not None))


@functools.cache
def _given_by(commands: frozenset[str]) -> re.Pattern[str]:
    """The names of files that interpreters are given, wherever they lie; what is a variable or a pattern may be any."""
    names = {PurePath(VARIABLE.sub("*", word)).name for command in commands for word in _ran(_words(command))}
    return re.compile("|".join(fnmatch.translate(name) for name in sorted(names)))


def _is_code(path: Path) -> bool:
    return path.suffix in ENDINGS or os.access(path, os.X_OK) or _is_script(path)


def _is_script(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!"
    except FileNotFoundError:
        return False
