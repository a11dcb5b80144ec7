"""Methods on an accelerator: everything stays there, and what they decide is what they decide on the CPU."""

import pytest
import torch

from llmos_cli.methods.grid import Grid
from llmos_cli.methods.patterns import Target
from llmos_cli.methods.prune import magnitude, sparsegpt, wanda
from llmos_cli.methods.quantize import autoround, awq, gptq, rtn, smoothquant, w8a8
from llmos_cli.models.statistics import Statistics

METHODS = (magnitude, wanda, sparsegpt, rtn, gptq, w8a8, awq, smoothquant, autoround)


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__.rpartition(".")[2])
def test_the_same_on_an_accelerator(method) -> None:  # type: ignore[no-untyped-def]
    if not torch.accelerator.is_available():
        pytest.skip("needs an accelerator")
    generator = torch.Generator().manual_seed(0)
    weight_OI, rows_NI = torch.randn(8, 32, generator=generator), torch.randn(64, 32, generator=generator)
    here, there = (
        compressed(method, weight_OI, rows_NI, on) for on in ("cpu", torch.accelerator.current_accelerator())
    )
    assert there.device.type != "cpu"
    assert ((here - there.cpu()).abs() > 1e-3).float().mean() < 0.02


def compressed(method, weight_OI, rows_NI, on):  # type: ignore[no-untyped-def]
    statistics = Statistics()
    rows_NI = rows_NI.to(on)
    statistics.add(rows_NI, 1.01 * rows_NI, {"norms", "hessian", "drift"})
    if hasattr(method, "prune"):
        return method.prune(weight_OI.to(on), statistics, Target(0.5, 2, 4), method.Options())
    grid = Grid(8, 32) if method in (w8a8, smoothquant) else Grid(4, 8, torch.bfloat16)
    return method.quantize(weight_OI.to(on), statistics, grid, method.Options()).dequantized()
