"""What a part of a model takes in each number of bits: the kernels' own times, of the rows that one answer has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli import device
from llmos_cli.core.workspace import Workspace
from llmos_cli.events import ignore
from llmos_cli.methods.grid import usable_group
from llmos_cli.models.kernels import choice
from llmos_cli.models.kernels.codes import Codes
from llmos_cli.operations.compression.pace import paced, told_apart
from llmos_cli.operations.compression.sensitivity import Part
from llmos_cli.operations.compression.subject import subject
from llmos_cli.operations.config import resolve

Base = Callable[..., Workspace]


@pytest.mark.parametrize("template", ["causal-lm", "text-classification"])
def test_layers_are_timed_as_one_answer_has_them(base: Base, template: str) -> None:
    """A new token is one row, and what is fed alike one product; a classifier's layers are alone, and have a row for each token."""
    ws = base(template)
    here = subject(ws, ws.checkpoint(), resolve(ws, "compress", sets=["compress.target_latency=0.9"]), [], emit=ignore)
    split, decodes = here.exam.prepared.splits["test"], template == "causal-lm"
    names = [name for name in here.matrices if ".layers.0." in name or ".layer.0." in name][:3]
    (found,) = paced(here, split, [Part(tuple(names), {4: 1, 8: 1}, {4: 2.0, 8: 1.0})], 32)

    def seconds(bits: int, *layers: str) -> float:
        outputs, inputs = sum(here.matrices[name].shape[0] for name in layers), here.matrices[layers[0]].inputs
        groups = torch.ones(outputs, inputs // usable_group(inputs, 32))
        codes = Codes(torch.zeros(outputs, inputs, dtype=torch.int8), groups, bits)
        rows = 1 if decodes else split.batch([0])["input_ids"].numel()
        return choice.seconds(codes, device.compute_dtype(device.pick()) if decodes else torch.float32, rows)

    expected = {b: seconds(b, *names) if decodes else sum(seconds(b, name) for name in names) for b in (4, 8)}
    assert found.bits_seconds == told_apart(expected) and min(expected.values()) > 0


def test_what_has_one_form_only_takes_no_time_that_bits_could_save(base: Base) -> None:
    ws = base("image-classification")
    here = subject(ws, ws.checkpoint(), resolve(ws, "compress", sets=["compress.target_latency=0.9"]), [], emit=ignore)
    parts = [Part((name,), {8: 1}, {8: 1.0}) for name in here.matrices]
    found: list[Any] = paced(here, here.exam.prepared.splits["test"], parts, 32)
    assert [part.bits_seconds for part in found] == [{8: 0.0}] * len(parts)


@given(st.dictionaries(st.integers(2, 8), st.floats(1e-6, 1), min_size=1))
def test_fewer_bits_are_faster_past_noise_or_not_at_all(seconds: dict[int, float]) -> None:
    found = told_apart(seconds)
    for fewer in seconds:
        for more in (bits for bits in seconds if bits > fewer):
            assert found[fewer] == found[more] or found[fewer] * choice.NOISE < found[more]
