"""The codes that training with rounded weights begins with: a quantized parent's own, or those that GPTQ chooses for its weights; weights
that were never trained begin at their nearest codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmos_cli import device
from llmos_cli.errors import LlmosError
from llmos_cli.events import Emit, Note, Progress
from llmos_cli.methods.grid import Codes, Grid
from llmos_cli.methods.quantize import gptq
from llmos_cli.models.calibrate import sequential
from llmos_cli.models.codes import stored_codes
from llmos_cli.models.dequantize import is_quantized
from llmos_cli.models.matrices import Matrix
from llmos_cli.models.save import stored_names
from llmos_cli.models.statistics import Statistics
from llmos_cli.operations.training.rounding import chosen
from llmos_cli.operations.training.start import Start, stored_dtype
from llmos_cli.options.verbs import TrainConfig
from llmos_cli.tasks.base import Batch, Split

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Checkpoint

SAMPLES, BATCH = 64, 16
"""Training samples that GPTQ looks at, and how many at once."""
Grids = Mapping[str, tuple[Matrix, Grid]]


def from_codes(begin: Start, parent: Checkpoint | None, config: TrainConfig) -> bool:
    """Whether what training begins with is the result of a method, and so worth keeping where nothing better comes of it."""
    options = config.train.quantize
    if options.bits is None or parent is None or begin.new:
        return False
    return options.start == "gptq" or is_quantized(parent.config_json())


def beginning(
    begin: Start, parent: Checkpoint | None, model: PreTrainedModel, config: TrainConfig, split: Split, *, emit: Emit
) -> dict[str, Codes]:
    """Matrix name -> codes, of the matrices that training on `split` does not begin at their nearest codes."""
    options = config.train.quantize
    if parent is None or not from_codes(begin, parent, config):
        return {}
    grids = {matrix.name: (matrix, grid) for matrix, grid in chosen(model, options, stored_dtype(begin))}
    found = own_codes(parent, model, grids) if is_quantized(parent.config_json()) else {}
    if found:
        emit(Note(f"{len(found)} matrices begin with the codes and scales of {parent.id[:12]}"))
    rest = {name: pair for name, pair in grids.items() if name not in found}
    if rest and options.start == "gptq":
        found |= by_gptq(model, rest, samples_of(split, config.seed, model.device), emit=emit)
    return found


def own_codes(parent: Checkpoint, model: PreTrainedModel, grids: Grids) -> dict[str, Codes]:
    """Those that the parent's files hold in the form that is asked for."""
    names, found = stored_names(model), dict[str, Codes]()
    with stored_codes(parent.path) as stored:
        for name, (matrix, grid) in grids.items():
            held = stored.get(names.get(name, name))
            if held is None or (held.bits, held.zeros_OG is None) != (grid.bits, grid.symmetric):
                continue
            if held.scales_OG.shape[1] * grid.group == matrix.inputs:
                codes_OI = matrix.flat(held.codes).to(torch.int8)
                on = [None if part is None else device.move(part, model.device) for part in (codes_OI, held.zeros_OG)]
                scale_OG = device.move(held.scales_OG.to(grid.dtype), model.device)
                found[name] = Codes(on[0], scale_OG, on[1])  # type: ignore[arg-type]
    return found


def by_gptq(model: PreTrainedModel, grids: Grids, batches: list[Batch], *, emit: Emit) -> dict[str, Codes]:
    """Block by block, each calibrated on what the blocks before it give with their codes; the model is as it was afterwards."""
    found: dict[str, Codes] = {}
    before = {name: matrix.read() for name, (matrix, _) in grids.items()}

    def visit(statistics: Mapping[str, Statistics]) -> None:
        for name, seen in statistics.items():
            matrix, grid = grids[name]
            if seen.count:
                found[name] = gptq.quantize(matrix.read(), seen, grid, gptq.Options())
                matrix.write(found[name].dequantized())

    def advance(done: int, total: int) -> None:
        emit(Progress("choose codes", done, total, "block", memory=device.memory_used()))

    try:
        layers = {matrix.layer_name: matrix.layer for matrix, _ in grids.values()}
        sequential(model, batches, visit, layers=layers, needs=gptq.NEEDS, advance=advance)
    except LlmosError as problem:
        raise LlmosError(
            problem.message, hint="train.quantize.start=nearest begins with the nearest codes"
        ) from problem
    finally:
        for name, weight_OI in before.items():
            grids[name][0].write(weight_OI)
    return found


def samples_of(split: Split, seed: int, on: torch.device) -> list[Batch]:
    """Drawn by `seed`, without labels."""
    drawn: list[int] = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed)).tolist()[:SAMPLES]
    batches = [split.batch(drawn[start : start + BATCH]) for start in range(0, len(drawn), BATCH)]
    return [device.move(_unlabelled(batch), on) for batch in batches]


def _unlabelled(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}
