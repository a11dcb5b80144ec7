"""Muon against a slow reference: the singular value decomposition that its iteration stands in for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llmos_cli import device
from llmos_cli.methods.parameters import Parameters
from llmos_cli.methods.train.muon import Options, optimizer, orthogonalized


def by_svd(matrix_OI: Tensor) -> Tensor:
    """The matrix with every singular value replaced by what five scalar iterations make of it."""
    u, s, vt = torch.linalg.svd(matrix_OI.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("shape", [(8, 8), (16, 6), (6, 16)])
def test_orthogonalizing_acts_on_singular_values_alone(shape: tuple[int, int]) -> None:
    stack_KOI = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for result_OI, matrix_OI in zip(orthogonalized(stack_KOI, 5), stack_KOI, strict=True):
        torch.testing.assert_close(result_OI.double(), by_svd(matrix_OI), atol=1e-4, rtol=1e-4)


def test_singular_values_end_near_one_whatever_they_were() -> None:
    u, _ = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(1)))
    matrix_OI = u * torch.logspace(0, -2, 24)
    values = torch.linalg.svdvals(orthogonalized(matrix_OI[None], 5)[0])
    assert values.min() > 0.6 and values.max() < 1.25


def test_a_step_follows_the_written_update() -> None:
    """One step by hand: momentum, look-ahead, orthogonal, scaled to 0.2 sqrt(larger side), decay apart."""
    torch.manual_seed(0)
    weight, gradients = nn.Parameter(torch.randn(6, 4)), [torch.randn(6, 4) for _ in range(3)]
    expected, momentum = weight.detach().double().clone(), torch.zeros(6, 4).double()
    muon = optimizer(Parameters([weight], [], [], []), Options(), learning_rate=0.1, weight_decay=0.01)
    for gradient in gradients:
        weight.grad = gradient.clone()
        muon.step()
        momentum = 0.95 * momentum + 0.05 * gradient.double()
        aim = 0.05 * gradient.double() + 0.95 * momentum
        expected = expected * (1 - 0.1 * 0.01) - 0.1 * 0.2 * 6**0.5 * by_svd(aim)
    # The update is computed in bf16 where that is faster: three significant digits of it.
    tolerance = 1e-4 if device.compute_dtype() == torch.float32 else 5e-3
    torch.testing.assert_close(weight.detach().double(), expected, atol=tolerance, rtol=tolerance)


def test_matrices_of_one_shape_do_not_mix() -> None:
    torch.manual_seed(0)
    values, gradients = [torch.randn(5, 5) for _ in range(3)], [torch.randn(5, 5) for _ in range(3)]
    together = [nn.Parameter(value.clone()) for value in values]
    alone = [nn.Parameter(value.clone()) for value in values]
    for group in ([*together], *([p] for p in alone)):
        muon = optimizer(Parameters(group, [], [], []), Options(), learning_rate=0.1, weight_decay=0.0)
        for parameter in group:
            parameter.grad = gradients[next(i for i, v in enumerate(values) if torch.equal(v, parameter))].clone()
        muon.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_a_convolution_is_a_matrix_of_outputs_by_the_rest() -> None:
    torch.manual_seed(0)
    convolution, flat = nn.Parameter(torch.randn(4, 3, 2, 2)), nn.Parameter(torch.zeros(4, 12))
    flat.data.copy_(convolution.detach().flatten(1))
    gradient = torch.randn(4, 3, 2, 2)
    for parameter, shaped in ((convolution, gradient), (flat, gradient.flatten(1))):
        parameter.grad = shaped.clone()
        optimizer(Parameters([parameter], [], [], []), Options(), learning_rate=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(convolution.flatten(1), flat)


def test_the_rest_is_stepped_by_adamw_without_decay_for_vectors() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(7))
    muon = optimizer(Parameters([], [], [], [ours]), Options(), learning_rate=0.1, weight_decay=0.5)
    adamw = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(3):
        gradient = torch.randn(7)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs)


def test_it_computes_where_its_matrices_are() -> None:
    with FakeTensorMode():
        matrix_KOI = torch.empty(2, 8, 4, device="cuda")
        assert orthogonalized(matrix_KOI, 5).device.type == "cuda"
        assert orthogonalized(matrix_KOI, 5, dtype=torch.bfloat16).dtype == torch.float32
