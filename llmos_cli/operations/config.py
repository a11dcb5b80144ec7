"""Configs: resolve a verb's, show it with its origins, print its JSON Schema, check files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli import catalog, tasks
from llmos_cli.core import config, yaml12
from llmos_cli.core.config import Resolved
from llmos_cli.core.section import Section
from llmos_cli.core.view import Line, Lines, Span
from llmos_cli.errors import NotFound, UsageError
from llmos_cli.operations.templates import shipped
from llmos_cli.options.verbs import ROOTS

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

SECTIONS = frozenset(name for root in ROOTS.values() for name in root.model_fields)


def resolve(
    workspace: Workspace | None,
    verb: str,
    *,
    files: Sequence[Path] = (),
    sets: Sequence[str] = (),
    unsets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Resolved:
    """The config of `verb` from all its layers, its methods' own options checked too."""
    return config.resolve(
        verb,
        root_model=root_of(verb),
        workspace=workspace,
        files=files,
        sets=sets,
        unsets=unsets,
        flags=flags,
        defaults=defaults,
        methods=methods,
        sections=SECTIONS,
        shipped=partial(shipped, verb),
    )


def no_task(ws: Workspace) -> UsageError:
    """What kind of task it is is said by the training config alone."""
    gone = not (ws.configs / "train.yaml").exists()
    hint = "configs/train.yaml, which says it, is gone: `llmos status` tells which run kept a copy"
    return UsageError(
        "data.task is not set", hint=hint if gone else f"`data: {{task: ...}}` is one of {', '.join(tasks.names())}"
    )


def root_of(verb: str) -> type[Section]:
    if verb not in ROOTS:
        raise UsageError(f"{verb!r} has no config", hint=catalog.did_you_mean(verb, ROOTS))
    return ROOTS[verb]


def methods(section: str) -> Mapping[str, Callable[[], type[Section] | None]]:
    """Of a section, its methods and how to load their Options: only the file that is asked for is imported."""
    return {name: partial(_options, method) for name, method in catalog.methods(section).items()}


def _options(method: catalog.Method) -> type[Section] | None:
    return getattr(method.load(), "Options", None)


@dataclass(frozen=True)
class ConfigShow:
    """`config` as it would be used; `origin` of every value that is not a default."""

    verb: str
    config: Mapping[str, Any]
    origin: Mapping[str, str]

    def view(self) -> Lines:
        return Lines(list(_lines(self.config, self.origin)))


def show(
    workspace: Workspace, verb: str, *, files: Sequence[Path] = (), sets: Sequence[str] = (), unsets: Sequence[str] = ()
) -> ConfigShow:
    resolved = resolve(workspace, verb, files=files, sets=sets, unsets=unsets)
    return ConfigShow(verb, resolved.mapping, resolved.origin)


def _lines(mapping: Mapping[str, Any], origin: Mapping[str, str], prefix: str = "", depth: int = 0) -> Iterable[Line]:
    for key, value in mapping.items():
        indent, name = "  " * depth, f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, origin, f"{name}.", depth + 1)
        else:
            told = f"{indent}{key}: {yaml12.dump(value)}"
            yield (told.ljust(40), Span(f"  # {origin[name]}", "dim")) if name in origin else told


@dataclass(frozen=True)
class ConfigSchema:
    verb: str
    json_schema: Mapping[str, Any]

    def view(self) -> str:
        import json

        return json.dumps(self.json_schema, indent=2, ensure_ascii=False)


def schema(verb: str) -> ConfigSchema:
    """The JSON Schema of `configs/<verb>.yaml`, for editors, the methods' own options included."""
    root = root_of(verb)
    told = root.model_json_schema()
    for name, field in root.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section) and section.has_methods:
            definition = told["$defs"][section.__name__]
            definition["additionalProperties"] = False
            definition["properties"] |= {
                method.name: _method_schema(method) for method in catalog.methods(name).values()
            }
    return ConfigSchema(verb, told)


def _method_schema(method: catalog.Method) -> dict[str, Any]:
    """Names and words of a method's options, read from its source: loading it would import torch. The source of another
    distribution's method is found by loading it."""
    if method.path is None:
        options = _options(method)
        told = {name: field.description or "" for name, field in (options.model_fields if options else {}).items()}
    else:
        told = {option.name: option.told for option in catalog.options(method)}
    properties = {name: {"description": words} for name, words in told.items()}
    return {"type": "object", "description": method.help, "properties": properties, "additionalProperties": False}


@dataclass(frozen=True)
class ConfigCheck:
    files: tuple[str, ...]

    def view(self) -> Lines:
        return Lines([(Span("ok", "good"), f"  {file}") for file in self.files])


def check(workspace: Workspace | None, file: Path | None = None, *, verb: str | None = None) -> ConfigCheck:
    """Check one file (its verb is its name's stem unless given), or every config of the workspace."""
    if file is not None:
        _check_file(file, verb or file.stem, None)
        return ConfigCheck((str(file),))
    assert workspace is not None, "without a file, a workspace"
    verbs = [verb] if verb else list(ROOTS)
    files = [(name, path) for name in verbs if (path := workspace.configs / f"{name}.yaml").is_file()]
    pipeline = verb is None and _check_pipeline(workspace)
    if not files:
        raise NotFound(f"there are no config files in {workspace.configs}", hint="`llmos init` writes them")
    for name, path in files:
        _check_file(path, name, workspace.root)
        resolve(workspace, name)
    checked = tuple(str(path.relative_to(workspace.root)) for _, path in files)
    return ConfigCheck((*checked, "llmos.yaml") if pipeline else checked)


def _check_pipeline(workspace: Workspace) -> bool:
    """Whether llmos.yaml has stages; ConfigError where they make no sense."""
    from llmos_cli.operations.pipeline import stages  # here: stages resolve their configs by this file

    if not stages.there(workspace):
        return False
    stages.read(workspace)
    return True


def _check_file(path: Path, verb: str, root: Path | None) -> None:
    config.check(config.read_file(path, root), root_of(verb), methods=methods)


def note_unread(resolved: Resolved, say: Callable[[str], None]) -> None:
    """Say which options were set and had no effect: at the end of a run."""
    for key in config.unread(resolved):
        say(f"{key} was set and had no effect")
