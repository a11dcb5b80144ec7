"""How often is timed depends on how long it takes."""

import time

import pytest
import torch

from llmos_cli.methods import turns
from llmos_cli.methods.turns import durations

CPU = torch.device("cpu")


def test_long_passes_are_warmed_once_and_timed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SECONDS", 0.001)
    ran: list[int] = []
    (taken,) = durations([[lambda: (ran.append(1), time.sleep(0.01))]], CPU)
    assert len(taken) == turns.FEW
    assert len(ran) == 1 + turns.FEW
