"""The plan: what an answer may take, before any of it is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from llmos_cli.errors import Corrupt, Untrusted
from llmos_cli.operations import rerun
from llmos_cli.operations.attribution import noise
from llmos_cli.operations.attribution.question import Question
from llmos_cli.operations.attribution.recipes import Recipe, identity
from llmos_cli.operations.attribution.samples import differing, tested
from llmos_cli.operations.attribution.seeds import base_of, with_other_seeds
from llmos_cli.operations.attribution.telling import Cause, Planned, WhyPlan


def planned(question: Question, runs: int) -> WhyPlan:
    steps: list[Planned] = []
    left, known = runs, set[str]()
    for what, recipes, least in _stages(question):
        costs = [question.points.cost(each) for each in recipes if identity(each) not in known]
        known |= {identity(each) for each in recipes}
        dear = [cost for cost in costs if cost != 0.0][:left]
        left -= len(dear)
        seconds = None if None in dear else sum(cost for cost in dear if cost is not None)
        steps.append(Planned(what, min(max(least - (len(costs) - len(dear)), 0), len(dear)), len(dear), seconds))
    return WhyPlan(
        question.metric,
        question.split,
        *question.sides,
        _causes(question),
        steps,
        tested=tested(question),
        refusals=list(_refusals(question)),
    )


def _refusals(question: Question) -> Iterator[str]:
    """What `why` would end with: a model's own code that may not run here."""
    for module in question.points.pair.modules:
        try:
            rerun.code(question.points.ws, module)
        except (Corrupt, Untrusted) as error:
            yield f"{error.message}: {error.hint}"


def _stages(question: Question) -> list[tuple[str, Sequence[Recipe], int]]:
    """What is asked for, in order: what it tells, the recipes at most, and how many at least."""
    worlds, last = question.worlds, len(question.differences)
    if (not last or question.differences[-1].kind == "seed") and not worlds.between:
        return []
    ends = [at for at, since in ((0, worlds.since_before), (last, worlds.since_after)) if since and not question.direct]
    base_known = not worlds.since_before or not question.direct
    seeds = list(islice(with_other_seeds(question), noise.MOST - base_known)) if base_of(question) else []
    stages: list[tuple[str, Sequence[Recipe], int]] = [
        ("code, environment or data since then", [question.recipe(at) for at in ends], len(ends)),
        ("noise of the seed", seeds, 1),
        ("causes from one another", [question.recipe(at) for at in range(1, last)], 0),
    ]
    return [stage for stage in stages if stage[1]]


def _causes(question: Question) -> list[Cause]:
    told = [question.told(at, at + 1) for at in range(len(question.differences))]
    world = [Cause(each.kind, [each.changed]) for each in question.worlds.between]
    return [*differing(question), *(Cause(kind, changes) for kind, changes in told), *world]
