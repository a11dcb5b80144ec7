"""Commands as typer sees them: each built from its file when it is asked for, and none imported to be listed.

typer parses; what it does not do is done here: the list of commands from file names, help from first lines, plain types
converted without pydantic, words offered to the shell.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from llmos_cli import catalog
from llmos_cli.errors import UsageError

PANELS = {
    "Start": ("init", "doctor", "config", "data", "import"),
    "Stages": ("train", "tune", "prune", "quantize", "compress", "eval", "generate", "predict", "deploy", "export"),
    "History": (
        "status",
        "log",
        "show",
        "diff",
        "bisect",
        "why",
        "tag",
        "branch",
        "checkout",
        "undo",
        "redo",
        "op",
        "rm",
        "path",
        "seal",
        "unseal",
        "sign",
        "verify",
        "audit",
    ),
    "Remotes": ("remote", "push", "fetch", "pull", "clone", "backup", "restore"),
    "Processes": ("run", "ps", "logs", "stop"),
    "Housekeeping": ("reproduce", "du", "fsck", "gc", "trust", "completion"),
}
"""The order in which help tells the story; a command that is not listed here appears under "More"."""


class Commands(TyperGroup):
    """The files of `commands/`, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        known = catalog.commands()
        told = [name for panel in PANELS.values() for name in panel if name in known]
        return told + [name for name in known if name not in told]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            self.commands[cmd_name] = _build(catalog.command(cmd_name), ctx)
        return self.commands[cmd_name]

    def get_params(self, ctx: Any) -> Any:
        return [_cheap(parameter) for parameter in super().get_params(ctx)]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Names and first lines, panel by panel, importing nothing."""
        known = dict(catalog.commands())
        panels = {title: [name for name in names if name in known] for title, names in PANELS.items()}
        panels["More"] = [name for name in known if not any(name in names for names in PANELS.values())]
        widest = max(map(len, known), default=0)
        for title, names in panels.items():
            if names:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(widest), known[name].help) for name in names])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **_: Any) -> None:  # type: ignore[override]
        """typer's own `main` turns errors into exits of its own; ours all go to the boundary."""
        program = prog_name or "llmos"
        if "_LLMOS_COMPLETE" in os.environ:
            completion_init()
            self._main_shell_completion(ctx_args={}, prog_name=program, complete_var="_LLMOS_COMPLETE")
        with self.make_context(program, list(sys.argv[1:] if args is None else args)) as ctx:
            self.invoke(ctx)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Names of commands, importing none of them."""
        known = catalog.commands()
        return [Offered(name, known[name].help) for name in self.list_commands(ctx) if name.startswith(incomplete)]


@dataclass(frozen=True)
class Offered:
    """A word offered to the shell; the fields are those that typer's completion reads."""

    value: str
    help: str
    type: str = "plain"


def commands_below(name: str) -> list[str]:
    """Of a command that is a group of commands (`config`), their names."""
    own = getattr(catalog.command(name).load(), "app", None)
    return [str(info.name or getattr(info.callback, "__name__", "")) for info in own.registered_commands] if own else []


def _build(entry: catalog.Entry, ctx: Any) -> Any:
    """Import one command's file and make a typer command of its function, or a group of its `app`."""
    module = entry.load()
    typed = getattr(module, "app", None) or typer.Typer(add_completion=False, rich_markup_mode=None)
    if not hasattr(module, "app"):
        function: Callable[..., None] = getattr(module, entry.module_name.rpartition(".")[2])
        typed.command(entry.name, cls=_Command, help=_paragraphs(module.__doc__ or ""))(function)
    command = get_command(typed)
    command.name = entry.name
    for each in (command, *getattr(command, "commands", {}).values()):
        for parameter in each.get_params(ctx):
            _complete(_cheap(parameter), entry.name)
            _name_in_capitals(parameter)
    return command


def _paragraphs(docstring: str) -> str:
    """The docstring as help: examples, indented or beginning with our name, keep their lines, which typer would fill otherwise."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(f"\b\n{text}" if text.startswith(("    ", "llmos ")) else text for text in paragraphs)


class _Command(TyperCommand):
    """A command whose help also lists the methods of its verb and, with `--method X`, the options of X."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        self._said = list(args)
        return super().make_context(info_name, args, parent, **extra)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        verb = str(self.name)
        if any("--method" in parameter.opts for parameter in self.params):
            _list_methods(verb, _option_value(self._said, "--method"), formatter)
        super().format_epilog(ctx, formatter)


def _option_value(args: Sequence[str], option: str) -> str | None:
    """What `--method X` or `--method=X` said, before anything is parsed: help comes first."""
    for at, arg in enumerate(args):
        if arg.startswith(f"{option}="):
            return arg.partition("=")[2]
        if arg == option and at + 1 < len(args):
            return args[at + 1]
    return None


def _list_methods(verb: str, chosen: str | None, formatter: Any) -> None:
    with formatter.section("Methods"):
        formatter.write_dl([(name, entry.help) for name, entry in catalog.methods(verb).items()])
    if chosen is not None:
        options = catalog.options(catalog.method(verb, chosen))
        with formatter.section(f"Options of {chosen} (-s {verb}.{chosen}.NAME=VALUE)"):
            formatter.write_dl([(f"{o.name} <{o.type}>", o.told) for o in options] or [("none", "")])


_METAVARS = {str: "TEXT", int: "N", float: "X", Path: "PATH", list[str]: "TEXT", list[Path]: "PATH"}


def _name_in_capitals(parameter: Any) -> None:
    """In help, arguments are called REV and FILE, and options take N or TEXT, where their command does not say better."""
    if parameter.param_type_name == "argument":
        parameter.metavar = (parameter.metavar or parameter.name.upper()).strip("[].")
        parameter.display_type_rich = lambda ctx: None
    elif parameter.metavar is None and not parameter.type_descriptor.is_choice:
        parameter.metavar = _METAVARS.get(parameter.type_descriptor.annotation)


def _complete(parameter: Any, verb: str) -> None:
    """Offer revisions, runs, methods and config keys to the shell, by the parameter's name."""
    if parameter._custom_shell_complete is None:
        parameter._custom_shell_complete = lambda ctx, param, incomplete: _offers(param.name, verb, incomplete)


def _offers(parameter: str, verb: str, incomplete: str) -> list[str]:
    from llmos_cli.operations.completion import names_for

    return names_for(parameter, verb, incomplete)


def _cheap(parameter: Any) -> Any:
    """Give a parameter of a plain type a plain converter: typer's own would import pydantic, half the time of `status`."""
    if parameter.type_descriptor.annotation in (bool, str, int, float, Path, list[str], list[Path]):
        parameter._runtime_param = _Plain(parameter)
    return parameter


class _Plain:
    """Converts what the command line says to a plain type, within the parameter's bounds; None was not said."""

    def __init__(self, parameter: Any) -> None:
        annotation = parameter.type_descriptor.annotation
        self._one = {list[str]: str, list[Path]: Path}.get(annotation, annotation)
        self._called = parameter.opts[-1] if parameter.param_type_name == "option" else parameter.name.upper()
        self._low, self._high = parameter.min, parameter.max

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if param.multiple or param.nargs == -1:
            return tuple(self._convert(item, ctx) for item in value or ())
        return None if value is None else self._convert(value, ctx)

    def _convert(self, text: Any, ctx: Any) -> Any:
        try:
            value = self._one(text)
        except ValueError:
            kind = "a whole number" if self._one is int else "a number"
            raise UsageError(f"{self._called} takes {kind}, not {text!r}", hint=_help_of(ctx)) from None
        if self._low is not None and value < self._low:
            raise UsageError(f"{self._called} must be at least {self._low}, not {text}", hint=_help_of(ctx))
        if self._high is not None and value > self._high:
            raise UsageError(f"{self._called} must be at most {self._high}, not {text}", hint=_help_of(ctx))
        return value


def _help_of(ctx: Any) -> str:
    return f"`{ctx.command_path if ctx else 'llmos'} --help` says what it takes"
