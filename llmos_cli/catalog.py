"""What can be named: commands, methods and tasks, found by their files, then by entry points.

Nothing is imported to list them: a name is a file's name (`half_quadratic.py` is `half-quadratic`), its help is the
first line of its docstring, read from the source. Adding one is dropping in a file, or declaring an entry point in the group
`llmos.commands`, `llmos.tasks` or `llmos.methods.<verb>` of another distribution.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from llmos_cli.errors import UsageError

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """Something with a name and a file; `path` is None for an entry point, whose file is found on loading."""

    name: str
    module_name: str
    path: Path | None

    @property
    def help(self) -> str:
        return summary(self.path) if self.path else self.module_name

    def load(self) -> ModuleType:
        return importlib.import_module(self.module_name)


Method = Entry


def commands() -> Mapping[str, Entry]:
    return _found("commands", _commands_folder())


def command(name: str) -> Entry:
    """Looked for by its file first, so that running one command does not list them all."""
    stem = name.replace("-", "_")
    for path in (_commands_folder() / f"{stem}.py", _commands_folder() / f"{stem}_.py"):
        if path.is_file() and _name(path.stem) == name:
            return Entry(name, f"llmos_cli.commands.{path.stem}", path)
    return pick("command", name, commands())


def methods(verb: str) -> Mapping[str, Method]:
    """Methods of `prune`, `quantize`, `train` (optimizers), `tune` (samplers) or `eval`."""
    return _found(f"methods.{verb}", PACKAGE / "methods" / verb)


def method(verb: str, name: str) -> Method:
    return pick(f"{verb} method", name, methods(verb))


def tasks() -> Mapping[str, Entry]:
    return {name: entry for name, entry in _found("tasks", PACKAGE / "tasks").items() if _defines_task(entry)}


def task(name: str) -> Entry:
    return pick("task", name, tasks())


def pick(kind: str, name: str, among: Mapping[str, Entry]) -> Entry:
    """`among[name]`, or a UsageError that knows what was meant."""
    if name in among:
        return among[name]
    raise UsageError(f"there is no {kind} called {name!r}", hint=did_you_mean(name, among))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean X?` where something is close, otherwise all there is."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"


@cache
def _found(group: str, folder: Path) -> Mapping[str, Entry]:
    files = {entry.name: entry for entry in _in_folder(group, folder)}
    return {**_entry_points(f"llmos.{group}"), **files}


def _in_folder(group: str, folder: Path) -> Iterator[Entry]:
    for path in sorted(folder.glob("*.py")):
        if not path.stem.startswith("_"):
            yield Entry(_name(path.stem), f"llmos_cli.{group}.{path.stem}", path)


def _name(stem: str) -> str:
    """`import_.py` is the command `import`: the underscore keeps a keyword from being a file's name."""
    return stem.strip("_").replace("_", "-")


def _commands_folder() -> Path:
    """`commands/` beside `llmos_cli/` in a checkout, inside it in an installed wheel."""
    beside = PACKAGE.parent / "commands"
    inside = PACKAGE / "commands"
    return inside if inside.is_dir() else beside


def _defines_task(entry: Entry) -> bool:
    """`tasks/` also holds what tasks share; a task's own file says `TASK = ...`."""
    return entry.path is None or "\nTASK" in entry.path.read_text(encoding="utf-8")


def _entry_points(group: str) -> dict[str, Entry]:
    if group not in _groups_installed():
        return {}
    from importlib.metadata import entry_points

    return {point.name: Entry(point.name, point.value.partition(":")[0], None) for point in entry_points(group=group)}


@cache
def _groups_installed() -> frozenset[str]:
    """Our groups that some installed distribution mentions: reading a few small files beats importing importlib.metadata."""
    groups: set[str] = set()
    for folder in sys.path:
        for path in Path(folder or ".").glob("*.dist-info/entry_points.txt"):
            text = path.read_text(encoding="utf-8", errors="replace")
            groups |= {line.strip("[] ") for line in text.splitlines() if line.startswith("[llmos.")}
    return frozenset(groups)


def summary(path: Path) -> str:
    """First line of a source file's docstring, without importing it."""
    with path.open(encoding="utf-8") as file:
        first = file.readline().strip()
    if not first.startswith('"""'):
        return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    return first.removeprefix('"""').removesuffix('"""').strip()


@dataclass(frozen=True)
class Option:
    """One option of a method, as its source declares it."""

    name: str
    type: str
    default: str
    doc: str

    @property
    def told(self) -> str:
        return f"{self.doc} [{self.default}]".strip() if self.default else self.doc


def options(method: Method) -> list[Option]:
    """The fields of a method's `Options` class, read from its source: importing it would import torch."""
    if method.path is None:
        return []
    classes = [
        node for node in ast.parse(method.path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
    ]
    return [option for node in classes if node.name == "Options" for option in _fields(node)]


def _fields(node: ast.ClassDef) -> Iterator[Option]:
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield Option(statement.target.id, ast.unparse(statement.annotation), _default(statement.value), _doc(after))


def _default(value: ast.expr | None) -> str:
    """`0.01` of `x: float = 0.01` and of `x: float = Field(0.01, gt=0)`."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Field":
        value = value.args[0] if value.args else None
    return "" if value is None else ast.unparse(value)


def _doc(statement: ast.stmt | None) -> str:
    """The string under a field."""
    if (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    ):
        return " ".join(statement.value.value.split())
    return ""
