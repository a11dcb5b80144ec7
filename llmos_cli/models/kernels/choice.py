"""Which form of a quantized layer is fastest here: measured once for a kind of layer, and remembered in the user's cache folder.

Never slower than dense: a form is used alone when it is at least as fast, within noise, for few rows and for many; where each of
two is better for some, both are held; where none is faster the layer is dequantized, and that is told.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from llmos_cli import device
from llmos_cli.core import atomic
from llmos_cli.core.places import cache_home
from llmos_cli.models.kernels import forms, native
from llmos_cli.models.kernels.codes import Codes

ROWS = (1, 4, 16, 128)
"""Tokens multiplied at once: one stream, some, many, a prompt. A measurement holds up to the next."""
NOISE = 1.05
"""What is slower than dense by less than this is called as fast."""
TURNS, BUDGET = 5, 0.006
"""Turns that each form has, and the seconds of one."""

Times = Mapping[str, Sequence[float]]
"""Seconds by form, for each of ROWS."""


@dataclass(frozen=True)
class Chosen:
    """A product that takes the form that is best for as many rows as it is given: `forms[i]` up to `limits[i]` of them."""

    kind: str
    times: Times
    limits: tuple[float, ...]
    forms: tuple[forms.Form, ...]

    def __call__(self, x: Tensor) -> Tensor:
        if len(self.forms) == 1:
            return self.forms[0].product(x)
        rows = x.numel() // x.shape[-1]
        return next(form for limit, form in zip(self.limits, self.forms, strict=True) if rows < limit).product(x)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for form in dict.fromkeys(self.forms) for tensor in form.tensors)

    @property
    def told(self) -> str:
        """As a sentence's end: the kind of layer, the form for it, and how many times faster than dense it was."""
        if self.names == ("dense",):
            return f"{self.kind}: dequantized, for no kernel here is faster"
        held = " and ".join(dict.fromkeys(self.names))
        used = [next(f for limit, f in zip(self.limits, self.forms, strict=True) if rows < limit) for rows in ROWS]
        gains = [self.times["dense"][at] / self.times[form.name][at] for at, form in enumerate(used)]
        return (
            f"{self.kind}: {held}, {', '.join(f'{gain:.1f}x' for gain in gains)} at {', '.join(map(str, ROWS))} tokens"
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(form.name for form in self.forms)


def choose(codes: Codes, dtype: torch.dtype) -> Chosen:
    """The best product with `codes`, whose inputs will be `dtype`, on the device they are on."""
    times = _compared(codes, dtype)
    names = best(times)
    built = {name: forms.build(name, codes, dtype) for name in dict.fromkeys(names)}
    starts = [at for at, name in enumerate(names) if at == 0 or names[at - 1] != name]
    limits = [*(float(ROWS[at]) for at in starts[1:]), math.inf]
    return Chosen(codes.kind(), times, tuple(limits), tuple(built[names[at]] for at in starts))


def _compared(codes: Codes, dtype: torch.dtype) -> Times:
    """Nothing is measured where there is nothing to choose from."""
    return {"dense": [1.0] * len(ROWS)} if forms.usable(codes, dtype) == ["dense"] else measured(codes, dtype)


def best(times: Times) -> list[str]:
    """The form to use for each of ROWS: one alone if it is nowhere slower than dense, else the fastest for each."""
    coded = {name: seconds for name, seconds in times.items() if name != "dense"}
    dense = times["dense"]
    sound = [
        name for name, seconds in coded.items() if all(s <= NOISE * d for s, d in zip(seconds, dense, strict=True))
    ]
    if sound:
        alone = min(sound, key=lambda name: sum(map(math.log, coded[name])))
        return [alone] * len(dense)
    if not coded:
        return ["dense"] * len(dense)
    other = min(coded, key=lambda name: sum(min(0.0, math.log(s / d)) for s, d in zip(coded[name], dense, strict=True)))
    return [other if s < d else "dense" for s, d in zip(coded[other], dense, strict=True)]


def seconds(codes: Codes, dtype: torch.dtype, rows: int) -> float:
    """How long the product that `choose` would take is measured to take for so many rows."""
    name = best(_compared(codes, dtype))[max(at for at, least in enumerate(ROWS) if least <= max(1, rows))]
    return measured(codes, dtype, (rows,))[name][0]


def measured(codes: Codes, dtype: torch.dtype, rows: Sequence[int] = ROWS) -> Times:
    """For each number of `rows`. Codes of fewer bits than kernels hold them in take as long as those that fill them."""
    names, where = forms.usable(codes, dtype), codes.codes_OI.device
    kind = replace(codes, bits=codes.held).kind() + ("" if rows == ROWS else f" at {', '.join(map(str, rows))}")
    key = f"{_machine(where)} / {str(dtype).removeprefix('torch.')} / {kind}"
    known = _remembered()
    if set(known.get(key, {})) != set(names):
        known[key] = time_forms(codes, dtype, names, rows)
        _remember(known)
    return known[key]


def time_forms(
    codes: Codes, dtype: torch.dtype, names: Sequence[str], rows: Sequence[int] = ROWS
) -> dict[str, list[float]]:
    """Seconds of one product. Forms take turns, and the fastest call of each counts: a busy machine only ever makes one slower."""
    built = [forms.build(name, codes, dtype) for name in names]
    times: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for count in rows:
            x = torch.randn(count, codes.shape[1], dtype=dtype, device=codes.codes_OI.device)
            turns = [[_fastest_call(form, x) for form in built] for _ in range(TURNS)]
            for name, found in zip(names, zip(*turns, strict=True), strict=True):
                times[name].append(min(found))
    return times


def _fastest_call(form: forms.Form, x: Tensor) -> float:
    form.product(x)
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 200 and sum(seconds) < BUDGET):
        device.synchronize(x.device)
        start = time.perf_counter()
        form.product(x)
        device.synchronize(x.device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@functools.cache
def _machine(where: torch.device) -> str:
    """What a measurement holds for."""
    threads = f"{torch.get_num_threads()} threads" if where.type == "cpu" else where.type
    return f"{device.device_name(where)} / torch {torch.__version__} / {threads} / kernels {native.version()}"


def _remembered() -> dict[str, dict[str, list[float]]]:
    try:
        known = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}  # absent, or half-written by something else: measured again
    return known if isinstance(known, dict) else {}


def _remember(known: Mapping[str, Times]) -> None:
    try:
        atomic.write_text(_file(), json.dumps(known, indent=1))
    except OSError:
        return  # a read-only home only costs measuring again


def _file() -> Path:
    return cache_home() / "kernels.json"
