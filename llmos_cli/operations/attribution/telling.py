"""What `why` answers, and what it would do, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmos_cli.core.view import Cell, Group, Line, Lines, Span, Table, View, duration, number, short
from llmos_cli.operations.changed import Changed

if TYPE_CHECKING:
    from llmos_cli.operations.attribution.points import Rerun

Verdict = Literal["identical", "samples", "seed", "rerun", "unclear", "explained"]


@dataclass(frozen=True)
class Side:
    """`value` of the metric; None where nothing had to be measured."""

    rev: str
    checkpoint: str
    value: float | None = None


@dataclass(frozen=True)
class Cause:
    """What is otherwise in B, and by how much that changes the metric, all above it in the list being as in B and all below as in A.

    `kind`: seed, environment, data, config, operation, code, test (other samples), rerun (nothing that was recorded), or several, joined by `+`, that were not told apart.
    `low`, `high`: 95 % interval over the samples; None where there is none. `noise`: whether it is no more than noise; None where
    that is not known. `reason`: why several were not told apart.
    """

    kind: str
    changes: Sequence[Changed]
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    noise: bool | None = None
    reason: str = ""


@dataclass(frozen=True)
class SeedNoise:
    """`results` of one recipe with different seeds; two of them differ by no more than `limit`, None where they are too few to say,
    and why there are not more. `tells`: whether that is less than any two values of the metric can differ by."""

    results: Sequence[float]
    limit: float | None
    reason: str = ""
    tells: bool = True


@dataclass(frozen=True)
class Tested:
    """The samples that both are measured on: `rows` of them with the fingerprint `sha256`; `of`: the revisions that were measured on
    them when they were made, `others`: those that were measured on others. `seen`: the two values on samples that both had then and
    nobody has today."""

    rows: int
    sha256: str
    of: Sequence[str]
    others: Sequence[str]
    seen: tuple[float, float] | None = None

    def told(self, split: str) -> Line:
        which = f"{self.rows:,} {split} rows {short(self.sha256)}"
        if self.of:
            others = "".join(f"; {rev} was measured on others" for rev in self.others)
            return f"both measured on the {which} of {' and '.join(dict.fromkeys(self.of))}{others}"
        if not self.others:
            return f"both measured on the {which} of today"
        then = f", where they were {' → '.join(map(number, self.seen))}" if self.seen else ""
        whom = " and ".join(dict.fromkeys(self.others))
        return Span(f"both measured on the {which} of today; when made, {whom} on others{then}", "warn")


@dataclass(frozen=True)
class WhyResult:
    """`change` from A to B with its 95 % interval over the samples; `seeds` is None where they were of no account."""

    metric: str
    split: str
    before: Side
    after: Side
    change: float
    low: float | None
    high: float | None
    verdict: Verdict
    answer: str
    tested: Tested | None = None
    seeds: SeedNoise | None = None
    causes: Sequence[Cause] = ()
    runs: Sequence[Rerun] = ()

    def view(self) -> View:
        if self.verdict == "identical":
            return Lines([self.answer])
        return Group(
            [Lines(list(self._heads())), causes_view(self.causes), Lines([Span(self.answer, "bold"), *self._cost()])]
        )

    def _heads(self) -> Iterator[Line]:
        values = " → ".join(number(side.value or 0.0) for side in (self.before, self.after))
        yield f"{self.metric} on {self.split}: {values}, {self.change:+.4g}{_interval(self.low, self.high)}"
        if self.tested:
            yield self.tested.told(self.split)
        count = len(self.seeds.results) if self.seeds else 0
        if self.seeds and self.seeds.limit is not None and not self.seeds.tells:
            yield Span(
                f"{count} runs that differ in the seed alone lie too far apart to tell how far it moves it", "warn"
            )
        elif self.seeds and self.seeds.limit is not None:
            yield f"two runs that differ in the seed alone differ by up to {number(self.seeds.limit)} (from {count} runs)"
        elif self.seeds:
            yield Span(f"how far the seed alone moves it is not known: {self.seeds.reason}", "warn")

    def _cost(self) -> Iterator[Line]:
        ran = [run for run in self.runs if run.how == "run"]
        told = [f"{_times(len(ran), 'recipe')} run again in {duration(sum(run.seconds for run in ran))}"] if ran else []
        for how, words in (("remembered", "remembered"), ("found", "made so in this workspace")):
            if count := sum(run.how == how for run in self.runs):
                told.append(f"{count} {words}")
        if told:
            yield Span(", ".join(told), "dim")


@dataclass(frozen=True)
class Planned:
    """`seconds` for all of `at_most` runs, as long as recorded runs took and what each takes beside; None where none is recorded."""

    what: str
    at_least: int
    at_most: int
    seconds: float | None


@dataclass(frozen=True)
class WhyPlan:
    """`refusals`: for what `why` itself would do nothing."""

    metric: str
    split: str
    before: Side
    after: Side
    causes: Sequence[Cause]
    steps: Sequence[Planned]
    answer: str = ""
    tested: Tested | None = None
    refusals: Sequence[str] = ()

    @property
    def seconds(self) -> float | None:
        """At most."""
        costs = [step.seconds for step in self.steps]
        return None if None in costs else sum(cost for cost in costs if cost is not None)

    def view(self) -> View:
        if self.answer:
            return Lines([self.answer])
        rows: list[list[Cell]] = [
            [
                step.what,
                _range(step.at_least, step.at_most),
                duration(step.seconds) if step.seconds is not None else None,
            ]
            for step in self.steps
        ]
        total = (
            f", {duration(self.seconds)} with the start of each, as recorded runs took"
            if self.seconds is not None
            else ""
        )
        most = sum(step.at_most for step in self.steps)
        end = f"would run at most {_times(most, 'recipe')} again{total}" if most else "nothing would be run again"
        refused = [Span(f"would refuse: {each}", "warn") for each in self.refusals]
        steps = Table(["to tell", "runs", "at most"], rows, align="lrr")
        samples = [self.tested.told(self.split)] if self.tested else []
        return Group([causes_view(self.causes), Lines(samples), steps, Lines([*refused, end])])


def causes_view(causes: Sequence[Cause]) -> View:
    rows: list[list[Cell]] = []
    for cause in causes:
        effect = None if cause.effect is None else f"{cause.effect:+.4g}{_interval(cause.low, cause.high)}"
        head: list[Cell] = [cause.kind.replace("+", ", "), "", "", "", effect, _word(cause)]
        lines = [[change.key, _cell(change.before), _cell(change.after)] for change in cause.changes] or [["", "", ""]]
        for at, line in enumerate(lines):
            rows.append([head[0] if not at else "", *line, *(head[4:] if not at else ["", ""])])
    known = any(cause.effect is not None for cause in causes)
    headers = ["cause", "changed", "before", "after", "effect", ""]
    if not known:
        return Table(headers[:4], [row[:4] for row in rows], align="llll")
    return Table(headers, rows, align="llllrl") if rows else Lines([])


def named(changes: Sequence[Changed]) -> str:
    keys = list(dict.fromkeys(_name(change) for change in changes))
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _name(change: Changed) -> str:
    if change.key != "operation":
        return change.key
    return str(change.after) if change.after is not None else f"without {change.before}"


def _word(cause: Cause) -> str:
    if cause.noise:
        return "noise"
    if cause.reason:
        return f"together: {cause.reason}"
    return "" if cause.noise is False else "perhaps noise"


def _cell(value: object) -> str:
    text = "—" if value is None else str(value)
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return short(text)
    return text if len(text) <= 40 else text[:39] + "…"


def _interval(low: float | None, high: float | None) -> str:
    return f" [{low:+.4g}, {high:+.4g}]" if low is not None and high is not None else ""


def _range(low: int, high: int) -> str:
    return str(high) if low == high else f"{low} to {high}"


def _times(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
