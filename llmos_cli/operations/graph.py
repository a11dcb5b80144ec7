r"""A lineage as characters, the way `git log --graph` draws it.

*    ab12      one line for each checkpoint, children above their parents;
|\            a column for each line that is still waiting for its next checkpoint
| * 9f03
|/
* 77c1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`node` has the star of a checkpoint; `edges` are the lines below it, where columns part or meet."""

    node: str
    edges: tuple[str, ...]


def rows(lineage: Sequence[tuple[str, Sequence[str]]]) -> list[Row]:
    """One row for each (checkpoint, its parents), children first; parents that are not in the list end their column."""
    known = {name for name, _ in lineage}
    waiting: list[str] = []
    drawn = []
    for name, parents in lineage:
        if name not in waiting:
            waiting.append(name)
        column = waiting.index(name)
        node = " ".join("*" if at == column else "|" for at in range(len(waiting)))
        edges, waiting = _below(waiting, column, [parent for parent in dict.fromkeys(parents) if parent in known])
        drawn.append(Row(node, tuple(edges)))
    return drawn


def _below(waiting: Sequence[str], column: int, parents: Sequence[str]) -> tuple[list[str], list[str]]:
    """The edges below a node in `column`, and what each column waits for then."""
    new = [parent for parent in parents if parent not in waiting]
    met = [parent for parent in parents if parent in waiting]
    after, edges = list(waiting), []
    if new:
        after[column] = new[0]
        for extra in new[1:]:
            edges.append(_parted(len(after), column))
            after.insert(column + 1, extra)
        for parent in met:
            edges.append(_bridge(len(after), column, after.index(parent)))
        return edges, after
    for parent in met[1:]:
        edges.append(_bridge(len(after), column, after.index(parent)))
    if met:
        edges.append(_met(len(after), column, after.index(met[0])))
    elif column < len(after) - 1:
        edges.append(_closed(len(after), column))
    del after[column]
    return edges, after


def _parted(width: int, column: int) -> str:
    r"""`| |\ \ `: a new column to the right of `column` pushes the others aside."""
    return "".join("| " if at < column else "|\\" if at == column else " \\" for at in range(width)).rstrip()


def _met(width: int, column: int, target: int) -> str:
    """`|_|/ `: `column` runs into `target`, and the columns on its right move one to the left."""
    if target > column:
        column, target = target, column
    cells = ["| " if at < column else "" for at in range(column)]
    for at in range(target, column):
        cells[at] = "|_" if at < column - 1 else "|/"
    return "".join([*cells, *(" /" for _ in range(column + 1, width))]).rstrip()


def _bridge(width: int, column: int, target: int) -> str:
    """`|-|-|`: a second parent that another column waits for already."""
    low, high = sorted((column, target))
    return "".join("|" + ("-" if low <= at < high else " ") for at in range(width)).rstrip()


def _closed(width: int, column: int) -> str:
    """A line that ended: the columns on its right move one to the left."""
    return "".join("| " if at < column else "  " if at == column else "/ " for at in range(width)).rstrip()
