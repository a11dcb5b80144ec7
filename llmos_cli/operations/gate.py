"""A gate: `METRIC OP BOUND`, what a checkpoint must measure to pass.

    bits_per_byte <= 1.9              a number
    bits_per_byte <= 1.05 * base      the same metric of another revision
    throughput >= 2 * throughput@v1   any metric of another revision

The text is read by one regular expression and compared by one of five operators: nothing of it is ever executed. What
reads as a number is a number; a revision whose name is all digits is reached by `1 * 20240101`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from llmos_cli.errors import GateFailed, UsageError

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_METRIC = r"[A-Za-z_][\w./-]*"
_REVISION = r"(?:@[~^0-9]*|[^\s*@<>=]+)"

_REQUIREMENT = re.compile(rf"\s*(?P<metric>{_METRIC})\s*(?P<op><=|>=|==|<|>)\s*(?P<bound>\S.*?)\s*", re.ASCII)
_PLAIN = re.compile(_NUMBER, re.ASCII)
_RELATIVE = re.compile(
    rf"(?:(?P<factor>{_NUMBER})\s*\*\s*)?(?:(?P<metric>{_METRIC})@)?(?P<revision>{_REVISION})", re.ASCII
)

_FORM = "write METRIC OP BOUND, for example 'bits_per_byte <= 1.9' or 'bits_per_byte <= 1.05 * base'"


@dataclass(frozen=True)
class Bound:
    """`factor` itself where `revision` is empty, otherwise `factor` times `metric` of `revision`."""

    factor: float
    metric: str = ""
    revision: str = ""


@dataclass(frozen=True)
class Requirement:
    text: str
    metric: str
    op: str
    bound: Bound


@dataclass(frozen=True)
class Verdict:
    """`value` or `limit` is None where a metric was not measured; then the gate has failed, and `produced` are those that were."""

    requirement: str
    value: float | None
    limit: float | None
    passed: bool
    reason: str
    produced: tuple[str, ...] = ()


def parse(text: str) -> Requirement:
    """Read one requirement; UsageError for anything that is not METRIC OP BOUND."""
    match = _REQUIREMENT.fullmatch(text)
    if match is None:
        raise UsageError(f"the requirement {text!r} is not METRIC OP BOUND", hint=_FORM)
    return Requirement(
        text=" ".join(text.split()),
        metric=match["metric"],
        op=match["op"],
        bound=_parse_bound(match["bound"], match["metric"], text),
    )


def _parse_bound(bound: str, metric: str, text: str) -> Bound:
    if _PLAIN.fullmatch(bound):
        return Bound(_finite(bound, text))
    match = _RELATIVE.fullmatch(bound)
    if match is None:
        raise UsageError(
            f"the bound {bound!r} of the requirement {text!r} is neither a number nor a revision", hint=_FORM
        )
    return Bound(_finite(match["factor"] or "1", text), match["metric"] or metric, match["revision"])


def _finite(number: str, text: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise UsageError(f"the number {number} in the requirement {text!r} is too large", hint=_FORM)
    return value


def revisions(requirements: Iterable[Requirement]) -> list[str]:
    """The revisions that bounds speak of, each once, in order."""
    return list(dict.fromkeys(r.bound.revision for r in requirements if r.bound.revision))


def judge(
    requirement: Requirement, measured: Mapping[str, float], others: Mapping[str, Mapping[str, float]]
) -> Verdict:
    """Compare `measured` of the judged checkpoint with the bound; `others` holds the measurements of each named revision.

    A metric that was not measured, or is NaN, fails.
    """
    value = measured.get(requirement.metric)
    if value is None:
        return Verdict(requirement.text, None, None, False, _absent(requirement.metric), tuple(sorted(measured)))
    bound = requirement.bound
    if not bound.revision:
        limit = bound.factor
    elif (other := others[bound.revision].get(bound.metric)) is not None:
        limit = bound.factor * other
    else:
        absent = f"{bound.revision}: {_absent(bound.metric)}"
        return Verdict(requirement.text, value, None, False, absent, tuple(sorted(others[bound.revision])))
    passed = OPERATORS[requirement.op](value, limit)
    return Verdict(
        requirement.text, value, limit, passed, f"{requirement.metric} is {value:.6g}, the bound {limit:.6g}"
    )


def _absent(metric: str) -> str:
    return f"nothing measured here is called {metric}"


def enforce(verdicts: Iterable[Verdict]) -> None:
    """Raise GateFailed if any of them failed, saying which; where a metric is missing, the way out is one that is there."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if failed:
        reasons = "; ".join(f"{verdict.requirement!r} ({verdict.reason})" for verdict in failed)
        produced = dict.fromkeys(name for verdict in failed for name in verdict.produced)
        raise GateFailed(
            f"the gate failed: {reasons}",
            hint=f"it produced {', '.join(produced)}" if produced else "compare the checkpoints with `llmos diff`",
        )
