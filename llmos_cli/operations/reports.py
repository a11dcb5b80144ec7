"""How an evaluation is told: a table, Markdown for a pull request, JUnit XML for a CI server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from llmos_cli.core import outfile
from llmos_cli.core.view import Cell, Group, Lines, Span, Table, View, number, short, size
from llmos_cli.operations import ci, gate
from llmos_cli.operations.evaluations import Evaluation, Measured
from llmos_cli.operations.gate import Verdict

if TYPE_CHECKING:
    from llmos_cli.tasks.classification import ClassRow

FEW_CLASSES = 30
"""A longer table by class is for `--json`."""
FIGURES = ("precision", "recall", "f1", "support")
"""Of each class."""


@dataclass(frozen=True)
class EvalResult:
    """`judged` is the revision that the gates are about; `source` names the data."""

    judged: str
    split: str
    source: str
    evaluations: Sequence[Evaluation]
    verdicts: Sequence[Verdict]
    folds: int | None = None

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)

    def enforce(self) -> None:
        """GateFailed where a gate failed."""
        gate.enforce(self.verdicts)

    def view(self) -> View:
        return Group([self._metrics(), self._classes(), self._gates(), self._remark()])

    def _metrics(self) -> Table:
        headers = ["metric", *(f"{e.rev} ({short(e.checkpoint)})" for e in self.evaluations)]
        rows: list[list[Cell]] = [[name, *cells] for name, cells in self._rows()]
        return Table(headers, rows, align="l" + "r" * len(self.evaluations))

    def _rows(self) -> Iterator[tuple[str, list[Cell]]]:
        """Metrics in the order of the evaluation that has most of them."""
        fullest_first = sorted(self.evaluations, key=lambda evaluation: -len(evaluation.metrics))
        names = dict.fromkeys(name for evaluation in fullest_first for name in evaluation.metrics)
        for name in names:
            found = [evaluation.metrics.get(name) for evaluation in self.evaluations]
            yield name, [told(measured) if measured else None for measured in found]

    def _classes(self) -> Table | Lines:
        rows = self._judged().classes
        if not rows:
            return Lines([])
        if len(rows) > FEW_CLASSES:
            return Lines([_too_many(rows)])
        cells: list[list[Cell]] = [[row.label, *(getattr(row, figure) for figure in FIGURES)] for row in rows]
        return Table(["class", *FIGURES], cells, align="lrrrr")

    def _judged(self) -> Evaluation:
        return next(evaluation for evaluation in self.evaluations if evaluation.rev == self.judged)

    def _gates(self) -> Lines:
        words = {True: Span("passed", "good"), False: Span("FAILED", "bad")}
        return Lines([[words[v.passed], f"  {v.requirement}  ({v.reason})"] for v in self.verdicts])

    def _remark(self) -> Lines:
        samples = f"{self._judged().samples:,} samples of"
        if self.folds:
            spread = f"mean ± standard deviation over {self.folds} folds of the {samples} {self.source}"
        else:
            spread = f"95 % intervals over {samples} the {self.split} split of {self.source}"
        remarks = [spread]
        if cached := [evaluation.rev for evaluation in self.evaluations if evaluation.cached]:
            remarks.append(f"{', '.join(cached)}: measured before; --fresh measures again")
        return Lines([Span(remark, "dim") for remark in remarks])


def _too_many(rows: Sequence[ClassRow]) -> str:
    return f"{len(rows)} classes: --json has a row for each"


def told(measured: Measured) -> str:
    """`1.886 [1.871, 1.902]`, `2.3 MB`, `0.97 ± 0.01`."""
    if measured.unit == "bytes":
        return size(measured.value)
    unit = (
        ""
        if measured.unit in ("", "bits/byte", "nats")
        else measured.unit
        if measured.unit == "x"
        else f" {measured.unit}"
    )
    text = _precise(measured.value) + unit
    if measured.sd is not None:
        return f"{text} ± {number(measured.sd)}"
    if measured.low is not None and measured.high is not None:
        return f"{text} [{_precise(measured.low)}, {_precise(measured.high)}]"
    return text


def _precise(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else number(value)


def markdown(result: EvalResult) -> str:
    """A table of metrics, one of classes and a list of gates, for a pull request's comment."""
    headers = ["metric", *(f"`{e.rev}` ({short(e.checkpoint)})" for e in result.evaluations)]
    lines = [ci.row(headers), ci.row(["---", *("---:" for _ in result.evaluations)])]
    lines += [
        ci.row([ci.text(name), *(ci.text(str(cell)) if cell is not None else "—" for cell in cells)])
        for name, cells in result._rows()
    ]
    lines += _classes_in_markdown(result._judged().classes)
    if result.verdicts:
        lines.append("")
        lines += [
            f"- {'passed' if v.passed else '**FAILED**'} `{v.requirement}` ({ci.text(v.reason)})"
            for v in result.verdicts
        ]
    return "\n".join(lines) + "\n"


def _classes_in_markdown(rows: Sequence[ClassRow]) -> list[str]:
    if not rows or len(rows) > FEW_CLASSES:
        return ["", _too_many(rows)] if rows else []
    figures = [[ci.text(row.label), *(number(getattr(row, figure)) for figure in FIGURES)] for row in rows]
    return ["", ci.row(["class", *FIGURES]), ci.row(["---", *("---:" for _ in FIGURES)]), *map(ci.row, figures)]


def write_junit(result: EvalResult, path: Path) -> None:
    outfile.write(path, ci.junit(_suite(result)))


def _suite(result: EvalResult) -> ElementTree.Element:
    """One test case a gate; the measured numbers are the suite's properties."""
    suite = ElementTree.Element(
        "testsuite",
        name=f"llmos eval {result.judged}",
        tests=str(len(result.verdicts)),
        failures=str(sum(not verdict.passed for verdict in result.verdicts)),
        errors="0",
        skipped="0",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for evaluation in result.evaluations:
        for name, value in evaluation.values.items():
            ElementTree.SubElement(properties, "property", name=f"{evaluation.rev}.{name}", value=repr(value))
        for row in evaluation.classes:
            for figure in FIGURES:
                key, told_as = f"{evaluation.rev}.{row.label}.{figure}", repr(getattr(row, figure))
                ElementTree.SubElement(properties, "property", name=key, value=told_as)
    for verdict in result.verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname="llmos.gate", name=verdict.requirement)
        if not verdict.passed:
            ElementTree.SubElement(case, "failure", message=verdict.reason)
    return suite
