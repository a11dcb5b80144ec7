"""`llmos diff`: what lies between two checkpoints: how they were made, on what, what they measure and read, each layer's weights.

Only the weights need torch, and they are read one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_cli.core.manifest import Manifest
from llmos_cli.core.view import Cell, Group, Line, Lines, Span, Table, View, number, short, size
from llmos_cli.events import Emit, Metric, Note
from llmos_cli.operations.changed import Changed, changed, leaves
from llmos_cli.operations.summary import MAIN

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace
    from llmos_cli.operations.processors import ProcessorDiff
    from llmos_cli.operations.weights import WeightDiff


@dataclass(frozen=True)
class MetricDiff:
    """Two measurements with their 95 % intervals where known; None where a side was not measured."""

    name: str
    split: str
    before: float | None
    before_interval: tuple[float, float] | None
    after: float | None
    after_interval: tuple[float, float] | None


_DONE = ("method", "sparsity", "bits")


@dataclass(frozen=True)
class Compared:
    """One side: `bytes` of all its files; `own`: what its operation was told that the other's has no word for, defaults left out."""

    rev: str
    checkpoint: str
    operation: str
    bytes: int
    own: Mapping[str, Any]


@dataclass(frozen=True)
class DiffResult:
    """`shared` bytes stand in files that both have; `code`: files of a model's own module, by their hashes; `processor`: tokenizer, or what prepares pictures; `weights` is None where
    they were not compared."""

    before: Compared
    after: Compared
    shared: int
    config: Sequence[Changed]
    data: Sequence[Changed]
    environment: Sequence[Changed]
    code: Sequence[Changed]
    metrics: Sequence[MetricDiff]
    processor: ProcessorDiff
    weights: Sequence[WeightDiff] | None

    def view(self) -> View:
        return Group(
            [
                self._heads(),
                _changes("config", self.config),
                *(_own(side) for side in (self.before, self.after)),
                _changes("data", self.data),
                _changes("code", self.code),
                _changes("environment", self.environment, unsaid={"llmos_source": "not recorded"}),
                _metrics(self.metrics),
                *self._unsure(),
                *_processor(self.processor),
                *_weights(self.weights or ()),
            ]
        )

    def _unsure(self) -> Iterator[View]:
        """Training measures without intervals, which take longer than a small training."""
        known = [m for m in self.metrics if m.name in MAIN and None not in (m.before, m.after)]
        if any(None in (m.before_interval, m.after_interval) for m in known):
            both = f"`llmos eval {self.before.rev} {self.after.rev}`"
            yield Lines([Span(f"{both} measures both with intervals: what training measures has none", "dim")])

    def _heads(self) -> Lines:
        sides: list[Line] = [
            [
                Span(short(side.checkpoint), "id"),
                " ",
                Span(side.rev, "name"),
                f"  {side.operation}, {size(side.bytes)}",
            ]
            for side in (self.before, self.after)
        ]
        operations = [self.before.operation, self.after.operation]
        if operations[0] != operations[1]:
            sides.append(f"made by different operations: {', '.join(operations)}")
        return Lines([*sides, Span(f"{size(self.shared)} stand in files that both have", "dim")])


def diff(ws: Workspace, before: str, after: str, *, weights: bool = True, emit: Emit) -> DiffResult:
    """Compare two revisions. NotFound for one that is not there."""
    from llmos_cli.operations import processors

    ids = [ws.resolve(before), ws.resolve(after)]
    one, other = (ws.manifest(identifier) for identifier in ids)
    ws.runs.tell_gone({*ids})
    return DiffResult(
        before=_side(before, one, other),
        after=_side(after, other, one),
        shared=sum(entry.size for name, entry in one.tree.items() if other.tree.get(name) == entry),
        config=changed(_shared_sections(one, other), _shared_sections(other, one)),
        data=changed(one.made.data, other.made.data),
        environment=changed(one.made.environment, other.made.environment),
        code=changed(_code(one), _code(other)),
        metrics=list(_compared(ws.metrics(one.id), ws.metrics(other.id))),
        processor=processors.compare(ws.checkpoints / one.id, ws.checkpoints / other.id, one, other),
        weights=_compare_weights(ws, ids, emit) if weights else None,
    )


def _config(manifest: Manifest) -> dict[str, Any]:
    return {**manifest.made.config, "seed": manifest.made.seed}


def _shared_sections(manifest: Manifest, other: Manifest) -> dict[str, Any]:
    theirs = _config(other)
    return {name: section for name, section in _config(manifest).items() if name in theirs}


def _code(manifest: Manifest) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in manifest.tree.items() if name.endswith(".py")}


def _side(rev: str, manifest: Manifest, other: Manifest) -> Compared:
    theirs = _config(other)
    alone = {name: section for name, section in _config(manifest).items() if name not in theirs}
    usual = _defaults(manifest.made.operation) if alone else {}
    own = {key: value for key, value in leaves(alone) if value is not None and _says_something(key, value, usual)}
    return Compared(rev, manifest.id, manifest.made.operation, manifest.size, own)


def _says_something(key: str, value: Any, usual: Mapping[str, Any]) -> bool:
    """What nobody chose goes without saying; what was done does not."""
    return value != usual.get(key) or key.rpartition(".")[2] in _DONE


def _defaults(operation: str) -> dict[str, Any]:
    from llmos_cli.options.verbs import ROOTS  # here: to compare two of one kind takes no pydantic

    return dict(leaves(ROOTS[operation]().model_dump(mode="json"))) if operation in ROOTS else {}


def _compared(
    before: Mapping[tuple[str, str], Metric], after: Mapping[tuple[str, str], Metric]
) -> Iterator[MetricDiff]:
    for name, split in {**after, **before}:
        one, other = before.get((name, split)), after.get((name, split))
        yield MetricDiff(name, split, *_told(one), *_told(other))


def _told(metric: Metric | None) -> tuple[float | None, tuple[float, float] | None]:
    if metric is None:
        return None, None
    known = metric.low is not None and metric.high is not None
    return metric.value, (metric.low, metric.high) if known else None  # type: ignore[return-value]


def _compare_weights(ws: Workspace, ids: Sequence[str], emit: Emit) -> list[WeightDiff] | None:
    closed = [f"{short(identifier)} are {why}" for identifier in ids if (why := ws.closed(identifier))]
    if closed:
        emit(Note(f"the weights of {' and of '.join(dict.fromkeys(closed))}: only the rest is compared", "warning"))
        return None
    from llmos_cli.operations.weights import compare

    return compare(ws.checkpoint(ids[0]), ws.checkpoint(ids[1]), emit=emit)


def _changes(title: str, changes: Sequence[Changed], *, unsaid: Mapping[str, str] = {}) -> Table | Lines:
    """`unsaid`: words for what older manifests do not have, by key; what only one of two operations has is a dash."""
    if not changes:
        return Lines([])
    rows: list[list[Cell]] = [
        [c.key, *(_cell(each) or unsaid.get(c.key) for each in (c.before, c.after))] for c in changes
    ]
    return Table([title, "before", "after"], rows, align="lll")


def _own(side: Compared) -> Table | Lines:
    if not side.own:
        return Lines([])
    rows = [[key, _cell(value)] for key, value in side.own.items()]
    return Table([f"only {side.operation} has", "value"], rows, align="ll")


def _cell(value: Any) -> str | None:
    """Hashes are cut: that they differ is what counts."""
    if value is None:
        return None
    text = str(value)
    return text[:12] if len(text) == 64 and all(digit in "0123456789abcdef" for digit in text) else text


def _metrics(metrics: Sequence[MetricDiff]) -> Table | Lines:
    if not metrics:
        return Lines([])
    rows: list[list[Cell]] = [
        [m.name, m.split, _measured(m.before, m.before_interval), _measured(m.after, m.after_interval), _difference(m)]
        for m in metrics
    ]
    return Table(["metric", "split", "before", "after", "change"], rows, align="llrrr")


def _measured(value: float | None, interval: tuple[float, float] | None) -> str | None:
    if value is None:
        return None
    return number(value) + (f" [{number(interval[0])}, {number(interval[1])}]" if interval else "")


def _difference(metric: MetricDiff) -> str | None:
    if metric.before is None or metric.after is None:
        return None
    if not metric.before:
        return f"{metric.after:+.4g}"
    return f"{100 * (metric.after / metric.before - 1):+.2f} %" + (", in both intervals" if _uncertain(metric) else "")


def _uncertain(metric: MetricDiff) -> bool:
    """Whether each value lies in the other's interval: then they do not tell the two apart."""
    if metric.before_interval is None or metric.after_interval is None:
        return False
    assert metric.before is not None and metric.after is not None, "an interval is around a value"
    (low, high), (lower, upper) = metric.before_interval, metric.after_interval
    return metric.before != metric.after and low <= metric.after <= high and lower <= metric.before <= upper


def _processor(found: ProcessorDiff) -> Iterator[View]:
    rows = [[c.key, _cell(c.before), _cell(c.after)] for c in found.settings]
    if (vocabulary := found.vocabulary) is not None:
        rows.append(["tokens", _cell(vocabulary.before), _cell(vocabulary.after)])
        rows.append(["tokens with the same number", str(vocabulary.same), str(vocabulary.same)])
    if rows:
        yield Table(["tokenizer", "before", "after"], rows, align="lll")


def _weights(weights: Sequence[WeightDiff]) -> Iterator[View]:
    """The weights that changed; those that did not are counted."""
    changed = [w for w in weights if w.change != 0 or w.before != w.after]
    if changed:
        rows: list[list[Cell]] = [[w.name, _percent(w.change), *_sides(w)] for w in changed]
        yield Table(["weight", "change", "norm", "sparsity", "bits", "size"], rows, align="lrrrrr")
    if weights:
        yield Lines([f"{len(weights) - len(changed)} of {len(weights)} tensors are equal"])


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.3g} %"


def _sides(weight: WeightDiff) -> Iterator[str]:
    """`0 % → 50 %`, or one value where both sides agree."""
    sides = (weight.before, weight.after)
    yield _arrow(*(None if side is None else number(side.norm) for side in sides))
    yield _arrow(*(None if side is None else _percent(side.sparsity) for side in sides))
    yield _arrow(*(None if side is None else str(side.bits) for side in sides))
    yield _arrow(*(None if side is None else size(side.bytes) for side in sides))


def _arrow(before: str | None, after: str | None) -> str:
    return f"{before or '—'} → {after or '—'}" if before != after else str(before)
