"""Sampling: greedy, temperature, nucleus, penalties, log-probabilities."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from llmos_cli.serve.sampling import Sampling, draw, penalise

PROBABILITIES = [0.5, 0.25, 0.15, 0.1]
LOGITS_1V = torch.tensor([PROBABILITIES]).log()


def drawn(wish: Sampling, uniform: float) -> int:
    return draw(LOGITS_1V, [wish], [uniform])[0].token


def test_temperature_zero_takes_the_likeliest():
    assert drawn(Sampling(temperature=0), 0.99) == 0


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 0), (0.49, 0), (0.51, 1), (0.76, 2), (0.95, 3), (0.9999999, 3)])
def test_a_uniform_number_picks_by_cumulative_probability(uniform: float, token: int):
    assert drawn(Sampling(), uniform) == token


@pytest.mark.parametrize(
    ("top_p", "tokens"), [(0.4, {0}), (0.5, {0}), (0.6, {0, 1}), (0.8, {0, 1, 2}), (1.0, {0, 1, 2, 3})]
)
def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p(top_p: float, tokens: set[int]):
    assert {drawn(Sampling(top_p=top_p), step / 100) for step in range(100)} == tokens


def test_even_draws_follow_the_model():
    counts = Counter(drawn(Sampling(), (step + 0.5) / 1000) for step in range(1000))
    assert [counts[token] / 1000 for token in range(4)] == pytest.approx(PROBABILITIES, abs=0.002)


def test_temperature_flattens():
    counts = Counter(drawn(Sampling(temperature=2.0), (step + 0.5) / 1000) for step in range(1000))
    flat = [math.sqrt(p) for p in PROBABILITIES]
    assert [counts[token] / 1000 for token in range(4)] == pytest.approx([p / sum(flat) for p in flat], abs=0.002)


def test_rows_of_one_batch_have_their_own_wishes():
    wishes = [Sampling(temperature=0), Sampling(top_p=0.5), Sampling()]
    tokens = [one.token for one in draw(LOGITS_1V.repeat(3, 1), wishes, [0.95, 0.95, 0.95])]
    assert tokens == [0, 0, 3]


def test_logprobs_are_the_models_before_temperature():
    (one,) = draw(LOGITS_1V, [Sampling(temperature=0.01, logprobs=2)], [0.5])
    assert one.logprob == pytest.approx(math.log(0.5))
    assert [token for token, _ in one.top] == [0, 1]
    assert [logprob for _, logprob in one.top] == pytest.approx([math.log(0.5), math.log(0.25)])


def test_penalties_lower_what_was_said():
    logits_V = torch.zeros(4)
    penalise(logits_V, [2, 2, 3], Sampling(presence_penalty=0.5, frequency_penalty=1.0))
    assert logits_V.tolist() == [0.0, 0.0, -2.5, -1.5]
