"""Every quantizing method on weights and inputs that no sane model has: codes that can be stored, values that are finite, zeros kept."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor

from llmos_cli.methods import quantize
from llmos_cli.methods.grid import Grid, usable_group
from llmos_cli.methods.hessian import damped
from llmos_cli.methods.quantize import gptq, rtn
from llmos_cli.models.statistics import Statistics

METHODS: dict[str, Any] = {
    name: importlib.import_module(f"{quantize.__name__}.{name}")
    for _, name, _ in pkgutil.iter_modules(quantize.__path__)
}
OUTPUTS, INPUTS = 6, 24


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_outlier() -> Tensor:
    weight_OI = noise(OUTPUTS, INPUTS)
    weight_OI[2, 5] = 1e4
    return weight_OI


def dead_rows() -> Tensor:
    weight_OI = noise(OUTPUTS, INPUTS)
    weight_OI[1], weight_OI[:, 3] = 0, 0
    return weight_OI


WEIGHTS = {
    "zeros": torch.zeros(OUTPUTS, INPUTS),
    "constant": torch.full((OUTPUTS, INPUTS), 0.37),
    "of one sign": noise(OUTPUTS, INPUTS).abs() + 1,
    "an outlier": one_outlier(),
    "dead rows and columns": dead_rows(),
    "tiny": noise(OUTPUTS, INPUTS) * 1e-30,
    "vanishing": noise(OUTPUTS, INPUTS) * 1e-44,
    "large": noise(OUTPUTS, INPUTS) * 1e4,
    "one output": noise(1, INPUTS),
}


def inputs(kind: str) -> Tensor:
    rows_NI = noise(40, INPUTS, seed=1)
    if kind == "one token":
        return rows_NI[:1]
    if kind == "constant":
        return torch.ones(40, INPUTS)
    if kind == "zeros":
        return torch.zeros(40, INPUTS)
    if kind == "dead channels":
        rows_NI[:, ::2] = 0
    if kind == "an outlier":
        rows_NI[:, 7] *= 1e5
    if kind == "huge":
        return rows_NI * 1e12
    if kind == "tiny":
        return rows_NI * 1e-18
    return rows_NI


KINDS = ["plain", "one token", "constant", "zeros", "dead channels", "an outlier", "huge", "tiny"]


def seen(kind: str) -> Statistics:
    statistics, rows_NI = Statistics(), inputs(kind)
    statistics.add(rows_NI, rows_NI * (1 + 0.01 * noise(*rows_NI.shape, seed=2)), {"hessian", "drift", "norms"})
    return statistics


def grid(module: Any, bits: int, group: int, dtype: torch.dtype, symmetric: bool) -> Grid:
    bits, group = getattr(module, "BITS", bits), getattr(module, "GROUP_SIZE", group)
    return Grid(bits, usable_group(INPUTS, group), dtype, symmetric)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_codes_can_be_stored_and_values_are_finite(name: str, kind: str, dtype: torch.dtype) -> None:
    module, statistics = METHODS[name], seen(kind)
    for told, weight_OI in WEIGHTS.items():
        stored_OI = weight_OI.to(dtype).float()
        for symmetric in (True, False):
            on = grid(module, 3, 7, dtype, symmetric)  # 7 does not divide 24: groups of 6
            codes = module.quantize(stored_OI, statistics, on, module.Options())
            values_OI = codes.dequantized()
            assert torch.isfinite(values_OI).all(), told
            assert (values_OI[stored_OI == 0] == 0).all(), told
            assert on.low <= codes.codes_OI.min() and codes.codes_OI.max() <= on.high, told
            assert codes.scale_OG.dtype == dtype and torch.isfinite(codes.scale_OG).all(), told
            assert values_OI.abs().max() <= 2 * stored_OI.abs().max() + 1e-30, told


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4])
def test_gptq_is_never_above_rtn_there_either(kind: str, bits: int) -> None:
    """In the objective of its own Hessian, as it was damped: row by row, whatever the weights."""
    statistics = seen(kind)
    statistics.drift_II = None
    hessian_II = damped(statistics.hessian_II, gptq.Options().damping)
    for told, weight_OI in WEIGHTS.items():
        on = grid(gptq, bits, 8, torch.float32, True)
        ours_O, plain_O = (
            gptq.objective(module.quantize(weight_OI, statistics, on, module.Options()), weight_OI, hessian_II)
            for module in (gptq, rtn)
        )
        assert (ours_O <= plain_O).all(), told
