"""How often is timed depends on how long it takes."""

import time

import pytest
import torch

from llmos_cli.methods import turns
from llmos_cli.methods.turns import durations

CPU = torch.device("cpu")


def test_passes_take_turns_and_short_ones_take_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SECONDS", 0.02)
    order: list[str] = []
    a, b = durations([[lambda: order.append("a")], [lambda: order.append("b")]], CPU)
    assert len(a) == len(b) == turns.MOST
    assert order[: 2 * turns.WARM] == ["a", "b"] * turns.WARM
    assert order[2 * turns.WARM :][:4] == ["a", "b", "b", "a"], "who begins changes"


def test_long_passes_are_warmed_once_and_timed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SECONDS", 0.001)
    ran: list[int] = []
    (taken,) = durations([[lambda: (ran.append(1), time.sleep(0.01))]], CPU)
    assert len(taken) == turns.FEW
    assert len(ran) == 1 + turns.FEW
