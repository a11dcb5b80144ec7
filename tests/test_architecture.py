"""The shape of the tree: layers, what may be heavy, names that correspond, nothing forgotten in the wheel."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from llmos_cli import catalog

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMMANDS = sorted(path for path in (ROOT / "commands").glob("*.py") if path.stem != "__init__")
HEAVY = {"torch", "transformers", "datasets", "optuna", "numpy", "sklearn", "compressed_tensors"}
SLOW = HEAVY | {"pydantic", "yaml", "rich"}


def test_imports_point_downward():
    linter = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert linter.returncode == 0, linter.stdout


def test_the_wheel_holds_every_package():
    setuptools = PROJECT["tool"]["setuptools"]
    top = {"llmos_cli.commands": ROOT / "commands", "llmos_cli.configs": ROOT / "configs"}
    below = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "llmos_cli").rglob("__init__.py")}
    assert set(setuptools["packages"]) == below | set(top)
    assert {name: ROOT / folder for name, folder in setuptools["package-dir"].items()} == {
        "llmos_cli": ROOT / "llmos_cli",
        **top,
    }


def test_every_folder_with_code_is_a_package():
    for path in (ROOT / "llmos_cli").rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), (
            f"{path.parent} has no __init__.py: it would be missing in the wheel"
        )


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_command_imports_only_words_at_its_top(path):
    allowed = {"llmos_cli.session", "llmos_cli.errors", "typer", *sys.stdlib_module_names}
    for name in _imported(ast.parse(path.read_text()).body):
        assert name in allowed or name.partition(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_command_is_named_like_its_file_and_its_operation(path):
    tree = ast.parse(path.read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    groups = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "app"]
    assert path.stem in functions or groups
    assert (ROOT / "llmos_cli" / "operations" / path.name).exists()


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_command_can_answer_in_json(path):
    tree = ast.parse(path.read_text())
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.args.args):
        flags = {
            argument.arg: ast.unparse(argument.annotation) for argument in function.args.args if argument.annotation
        }
        if not function.name.startswith("_"):
            assert (flags.get("json"), flags.get("quiet")) == ("JsonFlag", "QuietFlag"), function.name


def test_help_is_sentences():
    for kind in (
        catalog.commands(),
        *(catalog.methods(verb) for verb in ("prune", "quantize", "train", "tune", "eval")),
    ):
        for name, entry in kind.items():
            assert entry.help.endswith("."), f"the docstring of {name} does not open with a sentence: {entry.help!r}"


def test_nothing_heavy_is_imported_to_show_help_or_load_a_command():
    script = """
import sys, contextlib, io, importlib
from llmos_cli import app, catalog
with contextlib.redirect_stdout(io.StringIO()):
    assert app.run(["--help"]) == 0
early = set(sys.modules)
for entry in catalog.commands().values():
    entry.load()
print(*early, "|", *sys.modules)
"""
    early, _, after = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.partition("|")
    assert SLOW.isdisjoint(early.split())
    assert not any(name.startswith("llmos_cli.commands.") for name in early.split())
    assert SLOW.isdisjoint(after.split())


QUICK = (
    "status",
    "log",
    "tag",
    "branch",
    "du",
    "ps",
    "path HEAD",
    "show HEAD",
    "gc --dry-run",
    "rm --help",
    "fsck",
    "logs x",
    "stop x",
)


def test_what_answers_at_gits_speed_imports_nothing_slow(workspace):
    script = """
import sys, contextlib, io
from llmos_cli import app
for words in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        app.run(words.split())
    slow = {"torch", "transformers", "datasets", "optuna", "numpy", "pydantic", "yaml", "rich"} & set(sys.modules)
    assert not slow, f"{words}: {slow}"
"""
    ran = subprocess.run([sys.executable, "-c", script, *QUICK], cwd=workspace.root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


MISTAKEN = ("train", "train --dry-run", "tune", "prune", "quantize", "compress --target-ratio 0.5", "eval", "deploy")


def test_a_mistake_in_a_config_is_told_before_anything_slow_is_imported(workspace):
    script = """
import sys, contextlib, io
from llmos_cli import app
for words in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = app.run([*words.split(), "-s", f"{words.split()[0]}.nonsense=1"])
    assert code == 2 and ".nonsense" in said.getvalue(), f"{words}: {said.getvalue()}"
    slow = {"torch", "transformers", "datasets", "optuna", "numpy"} & set(sys.modules)
    assert not slow, f"{words}: {slow}"
"""
    ran = subprocess.run([sys.executable, "-c", script, *MISTAKEN], cwd=workspace.root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def _imported(body: list[ast.stmt]) -> list[str]:
    """Modules imported at the top of a file; `if TYPE_CHECKING` costs nothing."""
    names: list[str] = []
    for node in body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names


def test_doctor_tells_of_every_extra():
    from llmos_cli.operations.doctor import EXTRAS

    extras = PROJECT["project"]["optional-dependencies"]
    assert set(EXTRAS) == extras.keys() - {"all", "dev"}
