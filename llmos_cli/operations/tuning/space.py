"""A search space: for each config key a range or a list of choices, as `configs/tune.yaml` writes it.

train.learning_rate: {low: 1e-4, high: 1e-2, log: true}
model.num_hidden_layers: {low: 2, high: 8, step: 2}
train.optimizer: [adamw, muon]
model: {choices: [{arch: llama, hidden_size: 128}, {arch: gpt2, n_embd: 128}]}    keys that belong together
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from llmos_cli.errors import UsageError

Scalar = bool | int | float | str
_FORM = "write {low: 1e-4, high: 1e-2, log: true}, {low: 2, high: 8, step: 2} or a list of choices"


@dataclass(frozen=True)
class Range:
    """Whole numbers where `low`, `high` and `step` all are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __str__(self) -> str:
        told = f"{self.low:g} to {self.high:g}" + (f" by {self.step:g}" if self.step else "")
        return told + (", logarithmic" if self.log else "")

    @property
    def whole(self) -> bool:
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def distribution(self) -> BaseDistribution:
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(float(self.low), float(self.high), log=self.log, step=self.step)

    def values(self) -> Sequence[Scalar] | None:
        """Every value, or None for a range without a step."""
        if self.whole and not self.log:
            return range(int(self.low), int(self.high) + 1, int(self.step or 1))
        if self.step is None:
            return None
        count = math.floor((self.high - self.low) / self.step + 1e-9)
        return [self.low + k * self.step for k in range(count + 1)]

    def edges(self) -> tuple[Scalar, Scalar]:
        """The lowest value and the highest."""
        values = self.values()
        return (self.low, self.high) if values is None else (values[0], values[-1])

    def value(self, setting: Any) -> Any:
        """What the study calls this setting; None where it is not in the range."""
        if not _is_number(setting) or not self.low <= setting <= self.high:
            return None
        values = self.values()
        return setting if values is None or setting in values else None

    def setting(self, value: Any) -> Any:
        """Of a continuous range four digits: no more are meant, and what is trained is what `--apply` writes."""
        return value if self.whole or self.step is not None else float(f"{value:.4g}")


@dataclass(frozen=True)
class Choices:
    """Optuna stores scalars only: a list or a mapping stands under its JSON text."""

    choices: tuple[Any, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.values()))

    def distribution(self) -> BaseDistribution:
        return CategoricalDistribution(self.values())

    def values(self) -> list[Scalar]:
        return [_label(choice) for choice in self.choices]

    def edges(self) -> tuple[Scalar, Scalar]:
        """The first choice and the last."""
        return _label(self.choices[0]), _label(self.choices[-1])

    def value(self, setting: Any) -> Any:
        return _label(setting) if setting in self.choices else None

    def setting(self, value: Any) -> Any:
        return self.choices[self.values().index(value)]


Dimension = Range | Choices
Space = Mapping[str, Dimension]


def read(space: Mapping[str, Any]) -> dict[str, Dimension]:
    """The `tune.space` of a config; UsageError where a key's value is neither a range nor choices."""
    if not space:
        raise UsageError("the search space is empty", hint=f"under tune.space, give config keys their ranges: {_FORM}")
    return {key: _dimension(key, value) for key, value in space.items()}


def _dimension(key: str, value: Any) -> Dimension:
    if isinstance(value, list):
        return _choices(key, value)
    if isinstance(value, Mapping) and set(value) == {"choices"}:
        return _choices(key, value["choices"])
    if isinstance(value, Mapping) and {"low", "high"} <= set(value) <= {"low", "high", "log", "step"}:
        return _range(key, value)
    raise UsageError(f"tune.space.{key} is neither a range nor a list of choices: {value!r}", hint=_FORM)


def _choices(key: str, choices: Any) -> Choices:
    if not isinstance(choices, list) or not choices:
        raise UsageError(f"tune.space.{key} has no choices", hint=_FORM)
    if len({json.dumps(choice, sort_keys=True) for choice in choices}) < len(choices):
        raise UsageError(f"tune.space.{key} lists a choice twice", hint="list each choice once")
    return Choices(tuple(choices))


def _range(key: str, value: Mapping[str, Any]) -> Range:
    low, high, log, step = value["low"], value["high"], value.get("log", False), value.get("step")
    if not all(_is_number(number) for number in (low, high, 1 if step is None else step)) or not isinstance(log, bool):
        raise UsageError(f"tune.space.{key} is not a range of numbers: {dict(value)!r}", hint=_FORM)
    if low > high:
        raise UsageError(f"tune.space.{key}: low {low} is above high {high}", hint="swap them")
    if log and low <= 0:
        raise UsageError(f"tune.space.{key}: a logarithmic range cannot start at {low}", hint="start above 0")
    if step is not None and (log or step <= 0):
        raise UsageError(f"tune.space.{key}: a step must be above 0 and goes with no log", hint="drop `log` or `step`")
    return Range(low, high, log, step)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _label(choice: Any) -> Scalar:
    if isinstance(choice, bool | int | float | str):
        return choice
    return json.dumps(choice, sort_keys=True)


def settings(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Config keys and values of a trial; a mapping chosen for `model` sets `model.arch`, `model.hidden_size`..."""
    found: dict[str, Any] = {}
    for key, value in params.items():
        setting = space[key].setting(value)
        if isinstance(setting, Mapping):
            found |= {f"{key}.{name}": item for name, item in setting.items()}
        else:
            found[key] = setting
    return found


def place_of(space: Space, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values that a config has already, as the study calls them; None where it lies outside the space."""
    place = {key: dimension.value(_at(config, key)) for key, dimension in space.items()}
    return None if None in place.values() else place


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config
