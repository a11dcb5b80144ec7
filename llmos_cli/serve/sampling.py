"""Sampling: which token comes next in each row, and how likely it was.

Everything is computed for all rows at once. Randomness is one uniform number per row, drawn from the request's own generator:
a seeded request draws the same tokens whoever shares its batch.

Shapes: B rows, V vocabulary, K alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmos_cli import device


@dataclass(frozen=True)
class Sampling:
    """How a request wants its tokens drawn; temperature 0 is greedy. `logprobs`: how many alternatives to report, None for no logprobs."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None


GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class Drawn:
    """A token, the log-probability the model gave it, and the likeliest alternatives with theirs."""

    token: int
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


def draw(logits_BV: Tensor, wishes: Sequence[Sampling], uniforms: Sequence[float]) -> list[Drawn]:
    """The next token of each row; `uniforms` are numbers in [0, 1), one per row."""
    tokens_B = logits_BV.argmax(-1)
    random_rows = [row for row, wish in enumerate(wishes) if wish.temperature > 0]
    if random_rows:
        chosen = [wishes[row] for row in random_rows]
        on = logits_BV.device if device.has_fp64(logits_BV.device) else torch.device("cpu")
        picked = pick(device.move(logits_BV[random_rows], on), chosen, [uniforms[row] for row in random_rows])
        tokens_B[random_rows] = device.move(picked, tokens_B.device)
    tokens = tokens_B.tolist()
    measured = [row for row, wish in enumerate(wishes) if wish.logprobs is not None]
    drawn = [Drawn(token) for token in tokens]
    if measured:
        counts = [wishes[row].logprobs or 0 for row in measured]
        for row, result in zip(measured, measure(logits_BV[measured], tokens_B[measured], counts), strict=True):
            drawn[row] = result
    return drawn


def pick(logits_BV: Tensor, wishes: Sequence[Sampling], uniforms: Sequence[float]) -> Tensor:
    """Inverse-CDF sampling under temperature and top-p (nucleus, arXiv:1904.09751): `tokens_B`."""
    temperature_B1 = torch.tensor([[wish.temperature] for wish in wishes], device=logits_BV.device)
    probability_BV = torch.softmax(logits_BV.float() / temperature_B1, dim=-1)
    uniform_B1 = torch.tensor([[u] for u in uniforms], dtype=torch.float64, device=logits_BV.device)
    if all(wish.top_p >= 1 for wish in wishes):
        return inverse_cdf(probability_BV, uniform_B1)
    # Most likely first, so that a nucleus is a prefix; at least one token always stays.
    sorted_BV, order_BV = probability_BV.sort(dim=-1, descending=True, stable=True)
    top_p_B1 = torch.tensor([[wish.top_p] for wish in wishes], device=logits_BV.device)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    kept_BV = sorted_BV.masked_fill((before_BV >= top_p_B1) & (before_BV > 0), 0.0)
    return order_BV.gather(1, inverse_cdf(kept_BV, uniform_B1)[:, None])[:, 0]


def inverse_cdf(weight_BV: Tensor, uniform_B1: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds `uniform` of the total. In fp64: fp32 sums of a large vocabulary drift."""
    cumulative_BV = weight_BV.double().cumsum(-1)
    index_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True)
    return index_B1[:, 0].clamp(max=weight_BV.shape[1] - 1)


def measure(logits_BV: Tensor, tokens_B: Tensor, counts: Sequence[int]) -> list[Drawn]:
    """Log-probabilities of given tokens and of each row's `counts` likeliest, before temperature and top-p."""
    logprob_BV = torch.log_softmax(logits_BV.float(), dim=-1)
    own = logprob_BV.gather(1, tokens_B[:, None])[:, 0].tolist()
    values_BK, indices_BK = logprob_BV.topk(max([*counts, 1]), dim=-1)
    rows = zip(tokens_B.tolist(), own, indices_BK.tolist(), values_BK.tolist(), counts, strict=True)
    return [
        Drawn(token, logprob, list(zip(indices[:count], values[:count], strict=True)))
        for token, logprob, indices, values, count in rows
    ]


def penalise(logits_V: Tensor, generated: Sequence[int], wish: Sampling) -> None:
    """Lower, in place, the logits of tokens already generated, as the OpenAI API defines both penalties."""
    if not generated or not (wish.presence_penalty or wish.frequency_penalty):
        return
    tokens_N, counts_N = torch.tensor(list(generated), device=logits_V.device).unique(return_counts=True)
    logits_V[tokens_N] -= wish.presence_penalty + wish.frequency_penalty * counts_N.to(logits_V.dtype)
