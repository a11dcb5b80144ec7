"""Samples: those that both are measured on for an answer, and those that each was measured on when it was made.

An answer is for the samples that B's data has today. Where a number that was recorded is another than what is measured now, it was
taken on other samples, which the fingerprints of the split tell, or by another llmos, or on another machine: never the samples where
these are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmos_cli.operations.attribution.points import Measurement
from llmos_cli.operations.attribution.question import Question
from llmos_cli.operations.attribution.telling import Cause, Tested
from llmos_cli.operations.attribution.worlds import environment_since, rows_told
from llmos_cli.operations.changed import Changed

SAME = 1e-6
"""Two numbers of one model on the same samples differ by less than this share of them."""
READING = ("sequence_length", "max_eval_samples")
"""Options of `data` that decide how much is read of the rows that a fingerprint tells."""


@dataclass(frozen=True)
class Shown:
    """`values` of A and B as people have seen them, where what lies between that and what is measured now is told: `causes` of it,
    before and after all that was changed to make B of A."""

    values: tuple[float, float]
    causes: tuple[Sequence[Cause], Sequence[Cause]]
    tested: Tested | None

    @property
    def all(self) -> Sequence[Cause]:
        return [*self.causes[0], *self.causes[1]]


def shown(question: Question, before: Measurement, after: Measurement) -> Shown:
    now = [question.value(before), question.value(after)]
    seen = [_recorded(question, side) for side in (0, 1)]
    if _both_elsewhere(question):
        recorded = (seen[0], seen[1]) if seen[0] is not None and seen[1] is not None else None
        return Shown((now[0], now[1]), ((), ()), tested(question, recorded))
    causes: list[Sequence[Cause]] = []
    for side in (0, 1):
        then = seen[side]
        if then is None or not moved(now[side], then):
            causes.append(())
            continue
        causes.append([_otherwise(question, side, now[side] - then if side == 0 else then - now[side])])
        now[side] = then
    return Shown((now[0], now[1]), (causes[0], causes[1]), tested(question))


def tested(question: Question, recorded: tuple[float, float] | None = None) -> Tested | None:
    used = question.points.samples.fingerprint
    if not used:
        return None
    of = [question.sides[side].rev for side in (0, 1) if _split(question, side) and not _others(question, side)]
    others = [question.sides[side].rev for side in (0, 1) if _others(question, side)]
    return Tested(used["rows"], used["sha256"], of, others, recorded)


def differing(question: Question) -> Iterator[Cause]:
    """The samples of either that are not those of the answer, as far as they are a difference between the two."""
    for side in () if _both_elsewhere(question) else (0, 1):
        if found := _others(question, side):
            yield Cause("test", found)


def moved(now: float, seen: float) -> bool:
    return abs(now - seen) > SAME * abs(now)


def _recorded(question: Question, side: int) -> float | None:
    checkpoint = question.sides[side].checkpoint
    found = question.points.ws.own_metrics(checkpoint).get((question.metric, question.split))
    return found.value if found else None


def _split(question: Question, side: int) -> Mapping[str, Any] | None:
    manifest = (question.before, question.after)[side].manifest
    found: Mapping[str, Any] | None = manifest.made.data.get("splits", {}).get(question.split)
    return found


def _both_elsewhere(question: Question) -> bool:
    """Whether the two were measured on the same samples, which are others than there are today: no difference between them."""
    one, other = _split(question, 0), _split(question, 1)
    return one == other and one is not None and one != question.points.samples.fingerprint


def _otherwise(question: Question, side: int, effect: float) -> Cause:
    """What lies between a number that was recorded and what is measured now."""
    manifest = (question.before, question.after)[side].manifest
    others = _others(question, side)
    world = environment_since(question.worlds, manifest)
    kinds = list(dict.fromkeys([*["test"] * bool(others), *(each.kind for each in world)])) or ["rerun"]
    changes = [*others, *(_turned(each.changed, side) for each in world)]
    reason = "what was measured then cannot be measured again" if len(kinds) > 1 else ""
    is_noise = False if world and not others else None  # one model on the same samples
    return Cause("+".join(kinds), changes, effect, noise=is_noise, reason=reason)


def _others(question: Question, side: int) -> list[Changed]:
    """Rows of the split that are others, and how much of it, and of each, is read."""
    manifest, rev = (question.before, question.after)[side].manifest, question.sides[side].rev
    own, used = _split(question, side), question.points.samples.fingerprint
    found = (
        [Changed(f"{question.split} samples of {rev}", rows_told(own), rows_told(used))] if own != used and own else []
    )
    options, asked = manifest.made.config.get("data") or {}, question.points.samples.data
    reading = [(name, options[name], getattr(asked, name)) for name in READING if name in options]
    found += [Changed(f"data.{name} of {rev}", then, now) for name, then, now in reading if then != now]
    return [_turned(each, side) for each in found]


def _turned(change: Changed, side: int) -> Changed:
    """From A's own to those of the answer, and from those to B's own."""
    return Changed(change.key, change.after, change.before) if side else change
