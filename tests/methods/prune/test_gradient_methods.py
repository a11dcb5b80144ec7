"""Fisher and movement on hand-worked matrices, and the competition between layers that they share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.methods.competition import shares
from llmos_cli.methods.patterns import Target
from llmos_cli.methods.prune import fisher, movement


def test_fisher_is_half_the_square_times_the_curvature() -> None:
    weight_OI, fisher_OI = torch.tensor([[2.0, -3.0, 1.0]]), torch.tensor([[0.5, 0.0, 4.0]])
    assert fisher.score(weight_OI, fisher_OI, fisher.Options()).tolist() == [[1.0, 0.0, 2.0]]


def test_fisher_is_exact_for_a_square_loss_whose_parts_are_apart() -> None:
    """Of E (x_i w_i - y_i)^2 / 2 with noise of size one, the Fisher is E x_i^2, and so is the Hessian: what a weight's absence costs."""
    torch.manual_seed(0)
    x_NI, weight_I = torch.randn(50_000, 3) * torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 0.3, 0.2])
    noise_NI = torch.randn(50_000, 3)
    gradient_NI = -noise_NI * x_NI
    found_I = fisher.score(weight_I, gradient_NI.square().mean(0), fisher.Options())
    cost_I = (x_NI * weight_I).square().mean(0) / 2
    torch.testing.assert_close(found_I, cost_I, rtol=0.05, atol=0)


def test_layers_that_matter_less_give_more() -> None:
    scores = {"light": torch.full((2, 4), 0.1), "heavy": torch.full((2, 4), 5.0)}
    assert fisher.allot(scores, Target(0.25), fisher.Options(keep_at_least=0)) == {"light": 0.5, "heavy": 0.0}
    assert fisher.allot(scores, Target(0.25), fisher.Options(scope="layer")) == {"light": 0.25, "heavy": 0.25}
    assert fisher.allot(scores, Target(0.5, 2, 4), fisher.Options()) == {"light": 0.5, "heavy": 0.5}


def test_movement_keeps_what_grows_and_lets_go_what_shrinks() -> None:
    """A step is against the gradient: 1 with gradient -1 grows, -1 with gradient -1 shrinks, and so on."""
    weight_OI, gradient_OI = torch.tensor([[1.0, -1.0, 1.0, -1.0]]), torch.tensor([[-1.0, -1.0, 1.0, 1.0]])
    found_OI = movement.moved(torch.zeros(1, 4), weight_OI, gradient_OI, movement.Options(steps=5))
    assert found_OI.tolist() == [[1.0, -1.0, -1.0, 1.0]]


def test_movement_weighs_large_gradients_like_small_ones_and_none_as_none() -> None:
    torch.manual_seed(0)
    weight_OI, gradient_OI, options = torch.randn(4, 6), torch.randn(4, 6), movement.Options()
    small, large = (movement.moved(torch.zeros(4, 6), weight_OI, k * gradient_OI, options) for k in (1e-6, 1e6))
    torch.testing.assert_close(small, large)
    assert not movement.moved(torch.zeros(4, 6), weight_OI, torch.zeros(4, 6), options).any()


def test_movement_starts_from_sizes() -> None:
    weight_OI = torch.tensor([[1.0, -3.0]])
    assert movement.start(weight_OI, movement.Options()).tolist() == [[0.5, 1.5]]
    assert movement.start(weight_OI, movement.Options(size=0)).tolist() == [[0.0, 0.0]]
    assert movement.start(torch.zeros(1, 2), movement.Options()).tolist() == [[0.0, 0.0]]


def test_the_sparsity_rises_to_its_end_and_stays() -> None:
    options = movement.Options(rising=0.5)
    found = [movement.at(progress, Target(0.8), options).sparsity for progress in (0.0, 0.25, 0.5, 1.0)]
    assert found == pytest.approx([0.0, 0.8 * (1 - 0.5**3), 0.8, 0.8])
    assert [movement.at(p, Target(0.5, 2, 4), options).n for p in (0.0, 0.1, 0.5, 1.0)] == [4, 3, 2, 2]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.floats(0, 0.99), st.integers(0, 5))
def test_together_the_layers_give_exactly_what_was_asked(sizes: list[int], sparsity: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {str(i): torch.randint(0, 4, (1, size), generator=generator).float() for i, size in enumerate(sizes)}
    found = shares(scores, sparsity, keep_at_least=0)
    assert sum(round(found[name] * score.numel()) for name, score in scores.items()) == int(sum(sizes) * sparsity + 0.5)


def test_a_zero_of_either_sign_is_the_smallest() -> None:
    scores = {"a": torch.tensor([[-0.0, 1.0]]), "b": torch.tensor([[0.0, 2.0]])}
    assert shares(scores, 0.5, keep_at_least=0) == {"a": 0.5, "b": 0.5}
