"""data check: what stands in a source: rows that are empty, broken or there twice, what two splits share, personal data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmos_cli import tasks
from llmos_cli.core.view import Group, Line, Lines, Span, Table, View
from llmos_cli.data import fingerprint, pii, sources
from llmos_cli.data.rows import Rows
from llmos_cli.data.sources import Loaded
from llmos_cli.errors import GateFailed, UsageError
from llmos_cli.events import Emit, Progress, ignore
from llmos_cli.operations import gate
from llmos_cli.operations.config import no_task
from llmos_cli.operations.gate import Requirement, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Workspace
    from llmos_cli.options.data import DataOptions

EXAMPLES = 5
AROUND = 24
"""Characters shown on each side of a mask."""
_OFTEN = 20_000
_TEXTUAL = ("text", "tokens")


@dataclass(frozen=True)
class Example:
    """`row` counts from 1 in its split; `shown`: what stands around it, masked."""

    row: int
    kind: str
    shown: str


@dataclass(frozen=True)
class Part:
    """A split of a source as it stands there. `duplicates`: rows that stood before; `broken`: rows that cannot be read, and why the
    first cannot; characters of the shortest, an average and the longest text. `pii`: rows with personal data, None where it was
    not looked for; `kinds` how often which; `pii_rows` their numbers, the first thousand."""

    source: str
    split: str
    rows: int
    empty: int
    broken: int
    why: str
    duplicates: int
    characters: tuple[int, float, int] | None
    pii: int | None = None
    kinds: Mapping[str, int] = field(default_factory=dict)
    pii_rows: Sequence[int] = ()
    examples: Sequence[Example] = ()


@dataclass(frozen=True)
class DataCheckResult:
    """`overlap`: of each split but that for training, how many inputs stand in that too; empty where the data cannot be split, and
    `unsplit` says why. `metrics` are what requirements speak of."""

    parts: Sequence[Part]
    overlap: Mapping[str, int]
    unsplit: str
    metrics: Mapping[str, float]
    verdicts: Sequence[Verdict]

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)

    def view(self) -> View:
        looked = any(part.pii is not None for part in self.parts)
        headers = [
            "source",
            "split",
            "rows",
            "empty",
            "broken",
            "duplicates",
            "characters: least / mean / most",
            *(["personal"] if looked else []),
        ]
        return Group(
            [
                Table(headers, [_row(part, looked) for part in self.parts], align="llrrrrrr"[: len(headers)]),
                Lines([*self._told()]),
            ]
        )

    def _told(self) -> Iterator[Line]:
        for part in self.parts:
            if part.why:
                yield f"{part.broken:,} rows of {part.source} are broken; the first: {part.why}"
        for name, count in self.overlap.items():
            if count:
                yield f"{count:,} inputs of the {name} split stand in the training split too"
        if self.unsplit:
            yield f"it cannot be split for training: {self.unsplit}"
        for part in self.parts:
            if part.kinds:
                yield f"{part.source}, {part.split}: {', '.join(f'{count:,} {kind}' for kind, count in part.kinds.items())}"
            yield from ([f"  row {each.row:,}  ", each.shown] for each in part.examples)
        for verdict in self.verdicts:
            word = Span("passed", "good") if verdict.passed else Span("failed", "bad")
            yield [word, f"  {verdict.requirement}  {verdict.reason}"]

    def enforce(self) -> None:
        failed = [verdict for verdict in self.verdicts if not verdict.passed]
        if failed:
            raise GateFailed(
                f"the data does not pass: {'; '.join(f'{each.requirement!r} ({each.reason})' for each in failed)}",
                hint="this looks at the rows as they are; `data.mask_pii: true` masks them for all that reads them after"
                if any(each.requirement.startswith("pii") for each in failed)
                else f"what can be required: {', '.join(self.metrics)}",
            )


def _row(part: Part, looked: bool) -> list[str | Span]:
    length = "{:,} / {:,.0f} / {:,}".format(*part.characters) if part.characters else "—"
    counts = [f"{count:,}" for count in (part.rows, part.empty, part.broken, part.duplicates)]
    return [part.source, part.split, *counts, length, *([f"{part.pii or 0:,}"] if looked else [])]


def check(
    ws: Workspace,
    resolved: Resolved,
    *,
    source: str | None = None,
    personal: bool = False,
    requirements: Sequence[Requirement] = (),
    emit: Emit = ignore,
) -> DataCheckResult:
    """Of `source`, or of what training would read; a requirement that is not met is told in the result."""
    if revisions := gate.revisions(requirements):
        raise UsageError(f"{revisions[0]} is no number", hint="data is compared with numbers: `--require 'pii == 0'`")
    options = resolved.config.data
    if source is not None:
        options = options.model_copy(update={"source": source, "evaluate": None, "splits": {}, "format": None})
    if options.task is None:
        raise no_task(ws)
    columns = tasks.load(options.task).columns
    if source is not None and columns[0] not in _TEXTUAL and _has_texts(source, options, cache=ws.cache):
        columns = ("text",)
    if personal and columns[0] not in _TEXTUAL:
        raise UsageError("pictures have no text to look for personal data in", hint="leave --pii out")
    parts = [
        _part(each.source, split, rows, columns, personal, emit)
        for each in sources.listed(options)
        for split, rows in sources.raw(each.source, options, columns, cache=ws.cache).items()
    ]
    overlap, unsplit = {}, ""
    try:
        overlap = _overlap(
            sources.load(options.model_copy(update={"mask_pii": False}), columns, cache=ws.cache), columns
        )
    except UsageError as error:  # rows that are broken or too few are what is looked for here
        unsplit = error.message
    metrics = _metrics(parts, overlap)
    return DataCheckResult(parts, overlap, unsplit, metrics, [gate.judge(each, metrics, {}) for each in requirements])


def _has_texts(source: str, options: DataOptions, *, cache: Path) -> bool:
    """Whether a file that was named is one of texts, whatever this workspace learns from."""
    try:
        return bool(sources.raw(source, options, ("text",), cache=cache))
    except UsageError:
        return False


def _part(source: str, split: str, rows: Rows, columns: Sequence[str], personal: bool, emit: Emit) -> Part:
    seen, lengths, empty, broken, why, duplicates = set[bytes](), list[int](), 0, 0, "", 0
    kinds, marked, examples = Counter[str](), list[int](), list[Example]()
    for index in range(len(rows)):
        if index % _OFTEN == _OFTEN - 1:
            emit(Progress(f"check {split}", index + 1, len(rows), "row"))
        try:
            values = [(name, rows[name][index]) for name in columns]
        except UsageError as error:
            broken, why = broken + 1, why or error.message
            continue
        digest = fingerprint.of_values(sorted(values, key=lambda item: item[0]))
        duplicates += digest in seen
        seen.add(digest)
        texts = _texts(values[0][1])
        if texts is None:
            continue
        lengths.append(sum(map(len, texts)))
        empty += not any(text.strip() for text in texts)
        if personal and (found := [(text, spans) for text in texts if (spans := pii.find(text))]):
            marked.append(index + 1)
            kinds.update(each.kind for _, spans in found for each in spans)
            examples += [_example(index + 1, *found[0])] if len(examples) < EXAMPLES else []
    spread = (min(lengths), sum(lengths) / len(lengths), max(lengths)) if lengths else None
    told = dict(kinds.most_common())
    return Part(
        source, split, len(rows), empty, broken, why, duplicates, spread,
        len(marked) if personal else None, told, marked[:1000], examples,
    )  # fmt: skip


def _texts(value: Any) -> list[str] | None:
    """The texts of an input; None where it is a picture."""
    if isinstance(value, str):
        return [value]
    return value if isinstance(value, list) and all(isinstance(word, str) for word in value) else None


def _example(row: int, text: str, found: Sequence[pii.Found]) -> Example:
    """Around the first: what stands there is masked as a whole, so that nothing shows that should not."""
    before = pii.put(text[: found[0].start], [])
    after = pii.put(text, found)[len(before) :]
    end = AROUND + len(found[0].kind) + 2
    if after.rfind("[", 0, end) > after.rfind("]", 0, end):  # not half of another mask
        end = after.find("]", end) + 1 or end
    return Example(row, found[0].kind, " ".join(f"{before[-AROUND:]}{after[:end]}".split()))


def _overlap(loaded: Loaded, columns: Sequence[str]) -> dict[str, int]:
    inputs = {name: fingerprint.digests(rows, columns[:1]) for name, rows in loaded.splits.items()}
    trained = set(inputs.pop("train", ()))
    return {name: sum(digest in trained for digest in each) for name, each in inputs.items()}


def _metrics(parts: Sequence[Part], overlap: Mapping[str, int]) -> dict[str, float]:
    counted = {
        name: float(sum(getattr(part, name) for part in parts)) for name in ("rows", "empty", "broken", "duplicates")
    }
    counted |= {"overlap": float(sum(overlap.values()))} if overlap else {}
    if any(part.pii is not None for part in parts):
        counted["pii"] = float(sum(part.pii or 0 for part in parts))
        kinds = Counter[str]()
        for part in parts:
            kinds.update(part.kinds)
        counted |= {f"pii.{kind.lower()}": float(kinds[kind]) for kind in pii.KINDS}
    return counted
