"""How a run of the pipeline is told: a table, JUnit XML and Markdown for a CI server, and the exit code that its stages amount to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from llmos_cli.core import outfile
from llmos_cli.core.view import Cell, Group, Line, Lines, Span, Style, Table, View, duration, number, short
from llmos_cli.errors import (
    Conflict,
    Corrupt,
    GateFailed,
    Interrupted,
    LlmosError,
    NotFound,
    Terminated,
    UsageError,
)
from llmos_cli.operations import ci
from llmos_cli.operations.pipeline.commands import by_name
from llmos_cli.operations.pipeline.memory import Result
from llmos_cli.operations.pipeline.stages import Stage

Status = Literal[
    "fresh", "restored", "made", "failed", "interrupted", "skipped",
    "would run", "may run", "would be restored", "would fail",
]  # fmt: skip
WORDS: Mapping[str, str] = {"fresh": "up to date", "made": "done"}
STYLES: Mapping[str, Style] = {
    "fresh": "dim",
    "failed": "bad",
    "would fail": "bad",
    "interrupted": "warn",
    "skipped": "warn",
}
MAIN = ("bits_per_byte", "accuracy", "macro_f1", "entity_f1", "loss")
ERRORS = {
    kind.exit_code: kind for kind in (LlmosError, UsageError, NotFound, Corrupt, Conflict, Interrupted, Terminated)
}


@dataclass(frozen=True)
class Told:
    """What became of a stage. `code`: its exit code; `why`: why it ran or did not; `metrics` and `verdicts`: of an eval stage."""

    stage: str
    verb: str
    status: Status
    key: str = ""
    why: str = ""
    checkpoint: str = ""
    seconds: float = 0.0
    code: int = 0
    message: str = ""
    hint: str = ""
    runs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    verdicts: Sequence[Mapping[str, Any]] = ()

    @property
    def good(self) -> bool:
        return self.status in ("fresh", "restored", "made")

    @property
    def word(self) -> str:
        if self.status == "failed" and self.code == GateFailed.exit_code:
            return "gate failed"
        return WORDS.get(self.status, self.status)

    @property
    def main(self) -> str:
        """The first of the numbers that a task is judged by."""
        return next((f"{name} {number(self.metrics[name])}" for name in MAIN if name in self.metrics), "")


def told_of(stage: Stage, result: Result, status: Status, why: str) -> Told:
    revisions = result.facts.get("revisions", {})
    verdicts = [
        {
            **verdict,
            "requirement": by_name(verdict["requirement"], revisions),
            "reason": by_name(verdict["reason"], revisions),
        }
        for verdict in result.said.get("verdicts", ())
    ]
    return Told(
        stage.name,
        stage.verb,
        status,
        result.key,
        why,
        result.checkpoint,
        result.seconds,
        runs=result.runs,
        outputs=tuple(stage.options.outputs),
        metrics=_metrics(result.said),
        verdicts=verdicts,
    )


def _metrics(said: Mapping[str, Any]) -> dict[str, float]:
    """Of the checkpoint that an evaluation judged."""
    for evaluation in said.get("evaluations", ()):
        if evaluation["rev"] == said.get("judged"):
            found = evaluation["metrics"].items()
            return {name: measured["value"] for name, measured in found if measured["value"] is not None}
    return {}


@dataclass(frozen=True)
class RunResult:
    """`stages` in the pipeline's order; `stopped`: the signal that ended the run early, 0 for none."""

    stages: Sequence[Told]
    dry_run: bool
    stopped: int = 0

    @property
    def exit_code(self) -> int:
        """0; of a signal its own; 3 where gates failed and nothing else did; else that of the first stage that failed otherwise."""
        if self.stopped:
            return 128 + self.stopped
        codes = [told.code for told in self.stages if told.code]
        return next((code for code in codes if code != GateFailed.exit_code), codes[0] if codes else 0)

    def enforce(self) -> None:
        """The error that the stages amount to, or would: a rehearsal makes the same checks."""
        if not self.exit_code:
            return
        if self.stopped:
            raise ERRORS[self.exit_code](STOPPED[self.exit_code], hint="`llmos run` goes on where it stopped")
        failed = [told for told in self.stages if told.code]
        first = next(told for told in failed if told.code == self.exit_code)
        names = ", ".join(told.stage for told in failed)
        what = f"{names} {'would not' if self.dry_run else 'did not'} succeed"
        told = f"{what}: {first.message}" if len(failed) == 1 else what
        if self.exit_code == GateFailed.exit_code:
            raise GateFailed(told, hint=first.hint)
        raise ERRORS.get(self.exit_code, LlmosError)(told, hint=first.hint)

    def view(self) -> View:
        rows: list[list[Cell]] = [
            [told.stage, told.verb, _status(told), _made(told), _seconds(told), told.why] for told in self.stages
        ]
        return Group(
            [Table(["stage", "", "", "made", "took", "why"], rows, align="llllrl"), Lines(list(self._failures()))]
        )

    def _failures(self) -> Iterator[Line]:
        for told in self.stages:
            for verdict in told.verdicts:
                word = Span("passed", "good") if verdict["passed"] else Span("FAILED", "bad")
                yield [word, f"  {told.stage}: {verdict['requirement']}  ({verdict['reason']})"]
            if told.message and not told.verdicts:
                yield [Span("would fail" if self.dry_run else "failed", "bad"), f"  {told.stage}: {told.message}"]


STOPPED = {Interrupted.exit_code: "interrupted", Terminated.exit_code: "terminated by SIGTERM"}


def _status(told: Told) -> str | Span:
    style = STYLES.get(told.status)
    return Span(told.word, style) if style else told.word


def _made(told: Told) -> str:
    return ", ".join(filter(None, [short(told.checkpoint), *told.outputs, told.main])) if told.good else ""


def _seconds(told: Told) -> str:
    return duration(told.seconds) if told.seconds else ""


def write_junit(result: RunResult, path: Path) -> None:
    outfile.write(path, ci.junit(_suite(result)))


def _suite(result: RunResult) -> ElementTree.Element:
    """One test case a stage, and one a gate."""
    suite = ElementTree.Element("testsuite", name="llmos run")
    for told in result.stages:
        case = _case(suite, "llmos.stage", told.stage, 0.0 if told.status in ("fresh", "restored") else told.seconds)
        if told.status == "skipped":
            ElementTree.SubElement(case, "skipped", message=told.why)
        elif told.code:
            kind = "failure" if told.code == GateFailed.exit_code else "error"
            ElementTree.SubElement(case, kind, message=told.message).text = told.hint
        for verdict in told.verdicts:
            gate = _case(suite, f"llmos.gate.{told.stage}", verdict["requirement"], 0.0)
            if not verdict["passed"]:
                ElementTree.SubElement(gate, "failure", message=verdict["reason"])
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(sum(1 for _ in suite.iter(tag))))
    return suite


def _case(suite: ElementTree.Element, kind: str, name: str, seconds: float) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=kind, name=name, time=f"{seconds:.3f}")


def write_summary(result: RunResult, path: Path) -> None:
    outfile.write(path, markdown(result))


def markdown(result: RunResult) -> str:
    """For a pull request or a job's page."""
    marks = {"failed": "**failed**", "interrupted": "**interrupted**", "would fail": "**would fail**"}
    rows = [["stage", "result", "made", "took", "why"], ["---"] * 5]
    for told in result.stages:
        word = "**gate failed**" if told.word == "gate failed" else marks.get(told.status, told.word)
        rows.append([f"`{told.stage}`", word, *map(ci.text, (_made(told), _seconds(told), told.message or told.why))])
    lines = [ci.row(row) for row in rows]
    gates = [
        f"- {'passed' if verdict['passed'] else '**FAILED**'} `{told.stage}`: `{verdict['requirement']}` ({ci.text(verdict['reason'])})"
        for told in result.stages
        for verdict in told.verdicts
    ]
    return "\n".join([*lines, *([""] if gates else []), *gates]) + "\n"
