"""why: what a metric changed by from A to B, and what changed it: the samples, the seed, data, config, code, environment.

First what costs nothing: equal bytes; a difference that other samples could make as well (both answer for the same, and are resampled
together). Then noise of the seed: A's recipe with other seeds, as few as separate B from it. Then the walk from A's recipe to B's, one
difference at a time, in the order seed, environment, data, config, operation, halving groups (`attribution/walk.py`).

What a difference does is told as the sequential contrast along that one path: with all before it as in B, all after it as in A. So the
effects add up to the whole, and what two do only together counts for the later one; to average over all orders, as Shapley values
do, takes 2^k runs and not k (Shapley 1953; Shorrocks 2013 on decomposing differences, whose "sequential" rule this is).

What cannot be set (code, machine, the rows behind a source) was of its day when A was made, and is of today in what is run again. Where
the two differ, A and A's recipe today are both measured: what lies between them is code, environment or data, and likewise for B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_cli.events import Emit
from llmos_cli.operations import rerun
from llmos_cli.operations.attribution import noise
from llmos_cli.operations.attribution.planning import planned
from llmos_cli.operations.attribution.points import Measurement
from llmos_cli.operations.attribution.question import Question, WhyOptions, asking
from llmos_cli.operations.attribution.samples import moved, shown
from llmos_cli.operations.attribution.seeds import seed_noise
from llmos_cli.operations.attribution.telling import Cause, SeedNoise, Side, Verdict, WhyPlan, WhyResult, named
from llmos_cli.operations.attribution.walk import walk
from llmos_cli.operations.attribution.worlds import WorldChange
from llmos_cli.operations.changed import Changed

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

NOTHING_MOVED = "every byte of the two is the same: there is nothing to explain"
TODAYS = "of llmos, packages, machine and rows only today's can be run"


def why(
    ws: Workspace,
    before: str,
    after: str,
    options: WhyOptions,
    *,
    ask: Callable[[str], bool] | None = None,
    emit: Emit,
) -> WhyResult:
    """UsageError for a metric that their task has not, for two of different tasks, and where nothing was made here; Untrusted where
    a model's own code is not trusted here: `ask` may list it with the user's consent."""
    sides = Side(before, ws.resolve(before)), Side(after, ws.resolve(after))
    if _identical(ws, sides) and not _seen_otherwise(ws, sides, options):
        return WhyResult(options.metric, options.split, *sides, 0.0, None, None, "identical", NOTHING_MOVED)
    with asking(ws, sides, options, emit) as question:
        for module in question.points.pair.modules:
            rerun.code(ws, module, ask)
        return _answered(question, *(question.points.of_checkpoint(side.checkpoint) for side in sides))


def plan(ws: Workspace, before: str, after: str, options: WhyOptions, *, emit: Emit) -> WhyPlan:
    """What `why` would run, at most, and how long that would take."""
    sides = Side(before, ws.resolve(before)), Side(after, ws.resolve(after))
    if _identical(ws, sides) and not _seen_otherwise(ws, sides, options):
        return WhyPlan(options.metric, options.split, *sides, (), (), NOTHING_MOVED)
    with asking(ws, sides, options, emit) as question:
        return planned(question, options.runs)


def _identical(ws: Workspace, sides: tuple[Side, Side]) -> bool:
    one, other = (ws.manifest(side.checkpoint).tree for side in sides)
    return one == other


def _seen_otherwise(ws: Workspace, sides: tuple[Side, Side], options: WhyOptions) -> bool:
    """Whether one of the two was measured on other samples than the other, when they were made: equal bytes with other numbers."""
    one, other = (ws.own_metrics(side.checkpoint) for side in sides)
    asked = [key for key in one.keys() & other.keys() if options.split in ("", key[1])]
    metrics = {key[0] for key in asked if moved(one[key].value, other[key].value)}
    return (options.metric or _own_metric(ws, sides[1])) in metrics if metrics else False


def _own_metric(ws: Workspace, side: Side) -> str:
    from llmos_cli import tasks  # here: most of what is equal to the byte has the same numbers

    checkpoint = ws.checkpoint(side.checkpoint)
    return tasks.of_checkpoint(checkpoint.manifest, checkpoint.config_json()).metric


def _answered(question: Question, before: Measurement, after: Measurement) -> WhyResult:
    """From what costs nothing to what costs most."""
    whole = _contrast(question, before, after)
    change = question.value(after) - question.value(before)
    if before.tree == after.tree:  # what they were measured on, when they were made, is all that can be another
        return _told(question, before, after, [_noisy(whole)] if question.differences else [], "samples", None)
    if not question.differences and not question.worlds.between:
        return _told(question, before, after, [_noisy(whole, "rerun")], "rerun", None)
    if [each.kind for each in question.differences] == ["seed"] and not question.worlds.between:
        return _told(question, before, after, [_noisy(whole)], "seed", None)
    if noise.covers(before.draws[question.metric], after.draws[question.metric]):
        return _told(question, before, after, [_noisy(whole)], "samples", None)
    ends = _ends(question, before, after)
    seeds = seed_noise(question, before, after, ends, change)
    if seeds.limit is not None and abs(change) <= seeds.limit:
        if seeds.reason or not seeds.tells:  # more results might have told them apart
            return _told(question, before, after, [replace(whole, noise=None)], "unclear", seeds)
        return _told(question, before, after, [_noisy(whole)], "seed", seeds)
    causes = _walked(question, before, after, ends, seeds.limit)
    return _told(question, before, after, causes, "explained", seeds)


def _ends(question: Question, before: Measurement, after: Measurement) -> tuple[Measurement | str, Measurement | str]:
    """A's and B's recipe as today's world makes them, or why it cannot; as they are, where that is enough."""
    if question.direct:
        return before, after
    worlds, last, points = question.worlds, len(question.differences), question.points
    return (
        points.of_recipe(question.recipe(0), "A's recipe today") if worlds.since_before else before,
        points.of_recipe(question.recipe(last), "B's recipe today") if worlds.since_after else after,
    )


def _walked(
    question: Question,
    before: Measurement,
    after: Measurement,
    ends: tuple[Measurement | str, Measurement | str],
    limit: float | None,
) -> list[Cause]:
    start, end = ends
    if isinstance(start, str) or isinstance(end, str):
        return [_contrast(question, before, after, limit=limit, reason=start if isinstance(start, str) else str(end))]
    if question.direct:
        return [_contrast(question, before, after, limit=limit)]
    last = len(question.differences)
    at = {0: start, last: end}

    def measure(place: int) -> float | str:
        if place not in at:
            found = question.points.of_recipe(question.recipe(place), _what(question, place))
            if isinstance(found, str):
                return found
            at[place] = found
        return question.value(at[place])

    legs = walk([each.kind for each in question.differences], measure, limit=limit or 0.0)
    steps = [
        _cause(question, question.told(leg.low, leg.high), at[leg.low], at[leg.high], limit, leg.reason) for leg in legs
    ]
    worlds = question.worlds
    if worlds.since_before:
        steps = [_cause(question, _of_world(worlds.since_before), before, start, limit, TODAYS), *steps]
    if worlds.since_after:
        steps = [*steps, _cause(question, _of_world(worlds.since_after, back=True), end, after, limit, TODAYS)]
    return steps


def _what(question: Question, place: int) -> str:
    _, changes = question.told(0, place)
    return f"{named(changes)} as in {question.sides[1].rev}, the rest as in {question.sides[0].rev}"


def _contrast(
    question: Question, before: Measurement, after: Measurement, *, limit: float | None = None, reason: str = ""
) -> Cause:
    """All that differs, at once."""
    kinds, changes = question.told(0, len(question.differences))
    world_kinds, world = _of_world(question.worlds.between)
    together = "+".join(filter(None, [kinds, world_kinds])), [*changes, *world]
    return _cause(question, together, before, after, limit, reason or TODAYS * (not question.differences))


def _of_world(changes: Sequence[WorldChange], *, back: bool = False) -> tuple[str, list[Changed]]:
    told = [each.changed for each in changes]
    if back:
        told = [Changed(each.key, each.after, each.before) for each in told]
    return "+".join(dict.fromkeys(each.kind for each in changes)), told


def _cause(
    question: Question,
    what: tuple[str, list[Changed]],
    before: Measurement,
    after: Measurement,
    limit: float | None,
    reason: str = "",
) -> Cause:
    kind, changes = what
    effect = question.value(after) - question.value(before)
    draws = before.draws[question.metric], after.draws[question.metric]
    low, high = noise.interval(*draws)
    within = noise.covers(*draws) or (limit is not None and abs(effect) <= limit)
    is_noise = True if within or kind == "seed" else None if limit is None else False
    return Cause(kind, changes, effect, low, high, is_noise, reason if len(changes) > 1 else "")


def _noisy(cause: Cause, kind: str = "") -> Cause:
    return replace(cause, kind=kind or cause.kind, noise=True)


def _told(
    question: Question,
    before: Measurement,
    after: Measurement,
    causes: Sequence[Cause],
    verdict: Verdict,
    seeds: SeedNoise | None,
) -> WhyResult:
    """With what was measured otherwise when A and B were made: the numbers that people have seen."""
    seen = shown(question, before, after)
    if before.tree == after.tree and any(cause.kind != "test" for cause in seen.all):
        verdict = "explained"
    low, high = noise.interval(before.draws[question.metric], after.draws[question.metric])
    one, other = question.sides
    return WhyResult(
        metric=question.metric,
        split=question.split,
        before=Side(one.rev, one.checkpoint, seen.values[0]),
        after=Side(other.rev, other.checkpoint, seen.values[1]),
        change=seen.values[1] - seen.values[0],
        low=None if seen.all else low,
        high=None if seen.all else high,
        verdict=verdict,
        answer=_sentence(verdict, causes, seen.all, question.value(after) - question.value(before)),
        tested=seen.tested,
        seeds=seeds,
        causes=[*seen.causes[0], *causes, *seen.causes[1]],
        runs=list(question.points.asked.values()),
    )


def _sentence(verdict: Verdict, causes: Sequence[Cause], measuring: Sequence[Cause], change: float) -> str:
    """What other samples, or another llmos that measured, did comes first of whatever else there is to say."""
    if verdict == "explained" or not measuring:
        return _told_of(verdict, [*measuring, *causes], change)
    samples = all(cause.kind == "test" for cause in measuring)
    changes = [change for cause in measuring for change in cause.changes]
    what = "the samples" if samples else named(changes) if changes else "measuring again"
    alike = "on the same ones" if samples else "measured alike"
    if not change:
        return f"all of it is {what}: {alike} there is no difference"
    effect = sum(cause.effect or 0.0 for cause in measuring)
    return f"{effect:+.4g} of it is {what}; {alike}, {_told_of(verdict, causes, change)}"


def _told_of(verdict: Verdict, causes: Sequence[Cause], change: float) -> str:
    if verdict == "samples" and not change:
        return "on the same samples it is the same: there is nothing to explain"
    if verdict == "samples":
        return "on other samples of the same kind the two could differ as much or not at all: no more than noise of the samples"
    if verdict == "unclear":
        return "it may be noise of the seed: more runs would tell"
    if verdict == "rerun":
        return "nothing that was recorded differs: it is what running the same again makes"
    if verdict == "seed":
        alone = causes and all(cause.kind == "seed" for cause in causes)
        return (
            "only the seed differs: noise of the seed" if alone else "other seeds move it as much: no more than noise"
        )
    main = sorted((cause for cause in causes if not cause.noise), key=lambda cause: -abs(cause.effect or 0.0))
    if not main:
        return "none of these by itself is more than noise; together they are"
    return "; ".join(f"{named(cause.changes)}: {cause.effect:+.4g}" for cause in main)
