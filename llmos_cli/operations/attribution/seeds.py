"""Noise of the seed: A's recipe with other seeds, as few as tell B from it.

B's seed first, which the walk needs anyway; then seeds that the workspace has checkpoints of; then new ones. Where the second result is
the first to the bit, the seed decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count

from llmos_cli.operations.attribution import noise
from llmos_cli.operations.attribution.points import Measurement
from llmos_cli.operations.attribution.question import Question
from llmos_cli.operations.attribution.recipes import Recipe, identity, seeded
from llmos_cli.operations.attribution.telling import SeedNoise


def seed_noise(
    question: Question,
    before: Measurement,
    after: Measurement,
    ends: tuple[Measurement | str, Measurement | str],
    change: float,
) -> SeedNoise:
    results = own(question, before, after, ends)
    reason = ""
    for recipe in with_other_seeds(question):
        if len(results) == noise.MOST or _tells(question, results, change):
            break
        seeds = ", ".join(dict.fromkeys(str(step.config["seed"]) for step in recipe))
        found = question.points.of_recipe(recipe, f"{_whose(question)} recipe with seed {seeds}")
        if isinstance(found, str):
            reason = found
            break
        results.append(found)
        if len(results) == 2 and results[0].tree == results[1].tree:
            return SeedNoise([question.value(each) for each in results], 0.0)
    values = [question.value(each) for each in results]
    limit = noise.limit(values, question.span)
    return SeedNoise(values, limit, reason, tells=limit is not None and limit < question.span)


def own(
    question: Question,
    before: Measurement,
    after: Measurement,
    ends: tuple[Measurement | str, Measurement | str],
) -> list[Measurement]:
    """What is known of the recipe as it makes it today, with its own seed."""
    base, last = base_of(question), len(question.differences)
    today = [
        (question.recipe(0), before if not question.worlds.since_before else ends[0] if not question.direct else ""),
        (question.recipe(last), after if not question.worlds.since_after else ends[1] if not question.direct else ""),
    ]
    known = [found for recipe, found in today if identity(recipe) == identity(base) and isinstance(found, Measurement)]
    return known[:1]


def base_of(question: Question) -> Recipe:
    """A's recipe; B's, where A is what B was made from."""
    return question.recipe(0) or question.recipe(len(question.differences))


def with_other_seeds(question: Question) -> Iterator[Recipe]:
    base = base_of(question)
    seen = {identity(base)}
    for recipe in chain(_as_in_b(question), question.points.siblings(base), _new(question, base)):
        if identity(recipe) not in seen:
            seen.add(identity(recipe))
            yield recipe


def _as_in_b(question: Question) -> Iterator[Recipe]:
    if question.recipe(0) and question.differences and question.differences[0].kind == "seed":
        yield question.recipe(1)


def _new(question: Question, base: Recipe) -> Iterator[Recipe]:
    slots = question.points.pair.slots
    used = [step.config["seed"] for slot in slots for step in (slot.before, slot.after) if step]
    return (seeded(base, seed) for seed in count(max(used) + 1))


def _whose(question: Question) -> str:
    return f"{question.sides[0 if question.recipe(0) else 1].rev}'s"


def _tells(question: Question, results: list[Measurement], change: float) -> bool:
    limit = noise.limit([question.value(each) for each in results], question.span)
    return limit is not None and abs(change) > limit
