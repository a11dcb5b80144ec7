"""How one matrix becomes codes: its grid, what the method makes of it, and what the method does to its whole block."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from torch import nn

from llmos_cli.core.section import Section
from llmos_cli.methods.grid import Grid
from llmos_cli.models import headers
from llmos_cli.models.calibrate import Hooks, Turn
from llmos_cli.models.fp8 import Float8Linear
from llmos_cli.models.int8 import QuantizedLinear
from llmos_cli.models.matrices import Matrix
from llmos_cli.models.quantized import why_not
from llmos_cli.models.rewrite import stored_dtype
from llmos_cli.models.statistics import Statistics
from llmos_cli.operations.compression.coded import Coded
from llmos_cli.operations.compression.finish import round_to_stored
from llmos_cli.operations.compression.form import Form, is_fp8
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.operations.compression.sweep import Change, Compress, relative_error


def coding(subject: Subject, module: ModuleType, own: Section, form: Form, coded: dict[str, Coded]) -> Compress:
    """How one matrix is quantized: its codes go into `coded`, the values they stand for into the model."""
    grids = gridding(subject, form)
    refines = hasattr(module, "refine")

    def compress(matrix: Matrix, statistics: Statistics) -> Change:
        if reason := why_not(subject.model, matrix.layer):
            return Change(skipped=reason)
        grid = grids(matrix)
        before_OI = matrix.read()
        codes = module.quantize(before_OI, statistics, grid, own)
        matrix.write(codes.dequantized())
        coded[matrix.name] = Coded(matrix, codes, grid, before_OI if refines else None)
        error = relative_error(before_OI, codes.dequantized(), statistics)
        return Change({"bits": grid.bits, "group_size": grid.group, "error": error})

    return compress


def gridding(subject: Subject, form: Form) -> Callable[[Matrix], Grid]:
    """The grid of each matrix: as asked for linear layers, the one format there is for others."""
    entries = headers.of_directory(subject.checkpoint.path)
    usual = subject.exam.task.default_dtype

    def grid(matrix: Matrix) -> Grid:
        linear = isinstance(matrix.layer, nn.Linear)
        symmetric, floats = form.symmetric or not linear, form.floats and linear
        dtype = stored_dtype(matrix.name, entries, usual)
        return Grid(form.bits_of(matrix), form.group_of(matrix), dtype, symmetric, floats)

    return grid


def whole_blocks(
    subject: Subject,
    module: ModuleType,
    own: Section,
    form: Form,
    coded: dict[str, Coded],
    *,
    seed: int,
) -> Hooks:
    """What the method does to a block before and after its matrices, where it says."""
    grids = gridding(subject, form)

    def before(turn: Turn) -> None:
        inside = (matrix for matrix in subject.matrices.values() if matrix.layer_name in turn.layers)
        held = {matrix.name: grids(matrix) for matrix in inside if not why_not(subject.model, matrix.layer)}
        module.prepare(turn, held, own)
        round_to_stored(turn.module, subject.checkpoint.path, but=held, inside=turn.name)

    def after(turn: Turn) -> None:
        held = {name: entry for name, entry in coded.items() if entry.matrix.layer_name in turn.layers}
        refined = module.refine(turn, {name: entry.rounding() for name, entry in held.items()}, own, seed=seed)
        for name, codes in refined.items():
            held[name].matrix.write(codes.dequantized())
        coded.update(
            {name: Coded(held[name].matrix, refined.get(name, held[name].codes), held[name].grid) for name in held}
        )

    return Hooks(before if hasattr(module, "prepare") else None, after if hasattr(module, "refine") else None)


def rounding(module: ModuleType) -> type[QuantizedLinear] | None:
    """The layers that round their inputs as the method's result does."""
    if not module.ACTIVATIONS:
        return None
    return Float8Linear if is_fp8(module) else QuantizedLinear
