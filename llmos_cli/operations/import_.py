"""import: a model made elsewhere becomes a checkpoint, with its tokenizer, card and licence, and the hashes of its files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from llmos_cli.core.manifest import Made
from llmos_cli.core.objects import files_below, hash_files
from llmos_cli.core.view import Line, Lines, Span, View, short, size
from llmos_cli.core.workspace import Workspace
from llmos_cli.data import tokenizer_config
from llmos_cli.errors import Conflict
from llmos_cli.events import Emit, Note
from llmos_cli.models import described, foreign, headers, upstream
from llmos_cli.operations.determinism import determinism
from llmos_cli.operations.environment import environment

_BEGINNING = 1 << 20


@dataclass(frozen=True)
class ImportOptions:
    """`file`: which weights file of the source; `revision`: on the hub; `task`: None for the architecture's own; `dtype`: of
    the stored weights, as upstream has them when None; `seed`: of a new head."""

    file: str | None = None
    revision: str | None = None
    task: str | None = None
    dtype: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class ImportResult:
    """`checkpoint` and `run` are "" in a dry run. `fresh`: tensors that upstream lacks and training must fill; `licence` is "" where upstream names none."""

    checkpoint: str
    run: str
    branch: str
    source: str
    task: str
    architecture: str
    parameters: int
    bytes: int
    tokenizer: bool
    chat_template: bool
    licence: str
    fresh: tuple[str, ...]

    def view(self) -> View:
        told = f"{self.architecture} from {self.source}, for {self.task}"
        head: Line = (Span(short(self.checkpoint), "id"), f"  {told}") if self.checkpoint else told
        lines: list[Line] = [
            head,
            f"{self.parameters:,} parameters, {size(self.bytes)}, licence {self.licence or 'not named'}",
        ]
        if not self.tokenizer and "image" not in self.task:
            lines.append(Span("without a tokenizer: set data.tokenizer to train or evaluate it", "warn"))
        if self.fresh:
            lines.append(Span(f"{len(self.fresh)} tensors are new and random ({self.fresh[0]}...): train it", "warn"))
        return Lines(lines)


def import_(ws: Workspace, source: str, options: ImportOptions, *, dry_run: bool = False, emit: Emit) -> ImportResult:
    """Fetch, convert, commit. The branch moves to the imported checkpoint, which has no parents. A dry run does all of it
    but the commit, and keeps nothing: what would go wrong goes wrong now."""
    if dry_run:
        with ws.stage() as staged:
            converted, _ = _converted(source, options, staged, emit)
            return _result(source, converted, staged)
    with ws.begin("import", config={"import": {"source": source, **asdict(options)}}) as run:
        run.listen(emit)
        with ws.stage() as staged:
            converted, read = _converted(source, options, staged, run.emit)
            result = _result(source, converted, staged)
            checkpoint = run.commit(staged, _made(read, converted, options))
        return replace(
            result,
            checkpoint=checkpoint.id,
            run=run.id,
            branch=run.base,
            bytes=checkpoint.manifest.size,
        )


@dataclass(frozen=True)
class Read:
    """`files`: the SHA-256 of each that was read, by its name."""

    origin: Mapping[str, str]
    files: Mapping[str, str]


def _converted(source: str, options: ImportOptions, staged: Path, emit: Emit) -> tuple[foreign.Converted, Read]:
    """Conflict where the source was written to meanwhile: its hashes would be of other bytes than were read."""
    found = upstream.find(source, file=options.file, revision=options.revision)
    before = found.stamps()
    dtype = getattr(torch, options.dtype) if options.dtype else None
    converted = foreign.convert(found, staged, task=options.task, dtype=dtype, seed=options.seed)
    for note in converted.notes:
        emit(Note(note, level="warning"))
    hashes = hash_files(filter(Path.is_file, before))
    if found.stamps() != before:
        raise Conflict(f"{source} was changed while it was read", hint="import it again once nobody writes to it")
    return converted, Read(found.origin, {file.name: entry.sha256 for file, entry in sorted(hashes.items())})


def _result(source: str, converted: foreign.Converted, directory: Path) -> ImportResult:
    return ImportResult(
        checkpoint="",
        run="",
        branch="",
        source=source,
        task=converted.task,
        architecture=converted.architecture,
        parameters=headers.parameters(directory),
        bytes=sum((directory / name).stat().st_size for name in files_below(directory)),
        tokenizer=(directory / "tokenizer.json").exists(),
        chat_template=tokenizer_config.has_chat_template(directory),
        licence=converted.licence or licence(directory),
        fresh=converted.fresh,
    )


def licence(directory: Path) -> str:
    """As the model card's front matter names it, else the first words of a licence file."""
    card = directory / "README.md"
    text = _beginning(card) if card.is_file() else ""
    front = text.split("\n---", 1)[0].splitlines() if text.startswith("---") else []
    for line in front:
        if line.startswith("license:"):
            return described.plain(line.removeprefix("license:"))
    files = sorted([*directory.glob("LICEN[SC]E*")])
    words = _beginning(files[0]).split() if files else []
    return described.plain(" ".join(words[:4]))


def _beginning(file: Path) -> str:
    """What names a licence stands in it, however long it is."""
    with file.open("rb") as stream:
        return stream.read(_BEGINNING).decode(errors="replace")


def _made(read: Read, converted: foreign.Converted, options: ImportOptions) -> Made:
    """What is remembered of upstream: where it was and the hash of every file that was read."""
    named = converted.licence
    facts = environment()
    return Made(
        operation="import",
        parents=(),
        config={"import": {**read.origin, **asdict(options)}, "data": {"task": converted.task}},
        data={"upstream": {**read.origin, "files": read.files, **({"licence": named} if named else {})}},
        environment={**facts, "determinism": determinism("import", {}, facts)},
        seed=options.seed,
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
