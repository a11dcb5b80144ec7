"""Training with rounded weights begins at GPTQ's codes, or at a quantized parent's own: to the bit, and nothing worse is kept."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_cli.core.workspace import Workspace
from llmos_cli.events import Metric, Note
from llmos_cli.methods.grid import Codes, Grid, nearest, searched
from llmos_cli.models.codes import stored_codes
from llmos_cli.models.load import load
from llmos_cli.models.matrices import matrices
from llmos_cli.operations.training.rounding import PLACE, placed, rounding
from llmos_cli.options.verbs import RoundedOptions
from tests.conftest import Llmos
from tests.operations.test_train import hashes, killed, resume, trained, weights

THREE = ("train.quantize.bits=3", "train.quantize.group_size=16")
WILD = ("train.learning_rate=0.3", "train.optimizer=adamw")
"""Far too much for weights that were trained already: all that comes after the start is worse."""


@given(st.integers(0, 2**31), st.sampled_from([2, 3, 4]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_weight_is_placed_where_its_code_is_the_nearest(seed: int, bits: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(4, 16, generator=generator)
    weight_OI[0, :3] = 0
    grid = Grid(bits, 8, torch.bfloat16, symmetric)
    near = nearest(weight_OI, searched(weight_OI, grid, torch.ones(16)), grid)
    # Codes as GPTQ leaves them: some of them one or two steps away from the nearest.
    off_OI = torch.randint(-2, 3, (4, 16), generator=generator) * (torch.rand(4, 16, generator=generator) < 0.3)
    off_OI[0, :3] = 0
    codes = Codes((near.codes_OI + off_OI).clamp(grid.low, grid.high).to(torch.int8), near.scale_OG, near.zero_OG)
    found_OI = placed(weight_OI, codes, grid)
    again = nearest(found_OI, searched(weight_OI, grid, torch.ones(16)), grid)
    assert torch.equal(again.codes_OI, codes.codes_OI)
    scale_OI = codes.scale_OG.float().abs().repeat_interleave(8, 1)
    assert ((found_OI - codes.dequantized()).abs() <= (PLACE + 1e-3) * scale_OI).all()
    close_OI = ((weight_OI - codes.dequantized()).abs() <= PLACE * scale_OI) & (found_OI != codes.dequantized())
    torch.testing.assert_close(found_OI[close_OI], weight_OI[close_OI])
    assert (found_OI[0, :3] == 0).all()


def test_the_start_is_what_quantize_gives(workspace: Workspace, llmos: Llmos) -> None:
    """With so wild a rate the start stays the best, and so what is kept are the codes of `llmos quantize`."""
    trained(workspace)
    fp32 = ("-s", "quantize.precision=float32")  # as training computes
    assert llmos("quantize", "--bits", "3", "--group-size", "16", "-s", "quantize.latency=false", *fp32).code == 0
    by_gptq = weights(workspace)
    told: list[str] = []
    result = trained(
        workspace, "HEAD~1", *THREE, *WILD, emit=lambda event: told.append(event.message) if isinstance(event, Note) else None
    )  # fmt: skip
    assert result.kept_step == 0
    names = list(matrices(load(workspace.checkpoint("HEAD").path)))
    assert all(torch.equal(weights(workspace)[name], by_gptq[name]) for name in names)
    nearest_ones = trained(workspace, "HEAD~1", *THREE, *WILD, "train.quantize.start=nearest")
    assert nearest_ones.kept_step > 0  # its start is no result of anything


def test_a_quantized_parent_begins_with_its_own_codes_and_never_ends_worse(workspace: Workspace, llmos: Llmos) -> None:
    trained(workspace)
    assert (
        llmos("quantize", "--method", "rtn", "--bits", "3", "--group-size", "16", "-s", "quantize.latency=false").code
        == 0
    )
    parent, before = workspace.checkpoint(), weights(workspace)
    notes: list[str] = []
    kept = trained(
        workspace, "HEAD", *THREE, *WILD, emit=lambda event: notes.append(event.message) if isinstance(event, Note) else None
    )  # fmt: skip
    assert kept.kept_step == 0 and any("begin with the codes and scales of" in note for note in notes)
    with stored_codes(parent.path) as theirs, stored_codes(workspace.checkpoint().path) as ours:
        assert set(theirs) == set(ours)
        for name in theirs:
            assert torch.equal(theirs[name].codes, ours[name].codes)
            assert torch.equal(theirs[name].scales_OG, ours[name].scales_OG)
    gentle = trained(workspace, "HEAD~1", *THREE, "train.learning_rate=0.02", "train.keep=last")
    changed = weights(workspace)
    assert gentle.kept_step > 0
    assert any(not torch.equal(changed[name], before[name]) for name in matrices(load(parent.path)))


def test_beside_a_teacher_the_start_is_kept_until_something_is_nearer_to_it(workspace: Workspace) -> None:
    trained(workspace)
    events: list[Metric] = []
    taught = trained(
        workspace, "HEAD", *THREE, "train.teacher=HEAD", "train.teacher_weight=1", "train.learning_rate=0.02",
        emit=lambda event: events.append(event) if isinstance(event, Metric) else None,
    )  # fmt: skip
    far = {event.step: event.value for event in events if event.name == "kl_teacher"}
    assert min(far) == 0 and len(far) > 1
    assert far[taught.kept_step] == min(far.values())


def test_another_form_than_the_parents_is_chosen_anew(workspace: Workspace, llmos: Llmos) -> None:
    trained(workspace)
    assert (
        llmos("quantize", "--method", "rtn", "--bits", "4", "--group-size", "16", "-s", "quantize.latency=false").code
        == 0
    )
    notes: list[str] = []
    trained(
        workspace, "HEAD", *THREE, emit=lambda event: notes.append(event.message) if isinstance(event, Note) else None
    )
    assert not any("begin with the codes" in note for note in notes)
    told = workspace.checkpoint().config_json()["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert told["num_bits"] == 3


def test_a_run_that_was_cut_off_ends_with_the_same_codes(workspace: Workspace) -> None:
    trained(workspace)
    first = workspace.resolve()
    sets = (*THREE, "train.max_steps=6", "train.learning_rate=1e-3")
    killed(workspace, signal.SIGINT, *sets, rev="HEAD")
    resume(workspace, None, emit=lambda event: None)
    resumed = hashes(workspace)
    trained(workspace, first, *sets)
    assert hashes(workspace) == resumed


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_computed_with_at_first_are_the_codes(symmetric: bool) -> None:
    from llmos_cli.models.build import build
    from llmos_cli.options.model import ModelOptions
    from tests.models.conftest import FACTS

    model: Any = build(ModelOptions(arch="llama"), "causal-lm", FACTS["causal-lm"], seed=0)
    options = RoundedOptions(bits=3, group_size=16, symmetric=symmetric)
    begun: dict[str, Codes] = {}
    for name, matrix in matrices(model).items():
        weight_OI, grid = matrix.read(), Grid(3, 16, torch.bfloat16, symmetric)
        codes = nearest(weight_OI, searched(weight_OI, grid, torch.ones(matrix.inputs)), grid)
        begun[name] = Codes(-codes.codes_OI.clamp_min(-3), codes.scale_OG, codes.zero_OG)
    with rounding(model, options, torch.bfloat16, begun) as rounded:
        for name, entry in rounded.fakes.items():
            assert torch.equal(entry.matrix.flat(entry.matrix.layer.weight.detach()), begun[name].dequantized())
    assert all(torch.equal(rounded.codes[name].codes, begun[name].codes_OI) for name in begun)
