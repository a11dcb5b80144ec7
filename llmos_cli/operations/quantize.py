"""`llmos quantize`: weights as codes of a few bits, the file in a format that others read, the result proven and committed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from torch import Tensor, nn

from llmos_cli import device
from llmos_cli.core.section import Section
from llmos_cli.errors import UsageError
from llmos_cli.events import Emit, ignore
from llmos_cli.methods.grid import Grid, usable_group
from llmos_cli.models import headers
from llmos_cli.models.calibrate import Hooks, Turn
from llmos_cli.models.fp8 import Float8Linear
from llmos_cli.models.int8 import QuantizedLinear
from llmos_cli.models.lazily import Lazily
from llmos_cli.models.load import load, skeleton
from llmos_cli.models.matrices import Matrix, matrices
from llmos_cli.models.quantized import Scheme, why_not, write_quantized
from llmos_cli.models.rewrite import rewrite, stored_dtype
from llmos_cli.models.statistics import Statistics
from llmos_cli.operations.compression import resuming
from llmos_cli.operations.compression.coded import Coded
from llmos_cli.operations.compression.embeddings import left_alone_but, outside, round_embeddings
from llmos_cli.operations.compression.finish import Outcome, conclude, round_to_stored
from llmos_cli.operations.compression.frozen import FACTOR, PLACE, scales_free
from llmos_cli.operations.compression.keeping import Keeping, keeping
from llmos_cli.operations.compression.memory import HEALING, HEALING_CODES, spill, streaming, whole
from llmos_cli.operations.compression.plan import CompressPlan, planned
from llmos_cli.operations.compression.result import CompressResult
from llmos_cli.operations.compression.resuming import as_begun, calibrated
from llmos_cli.operations.compression.rotating import check_unpruned, described, rotated
from llmos_cli.operations.compression.subject import Subject, method, needs_of, outranked, subject
from llmos_cli.operations.compression.sweep import Change, Compress, relative_error, sweep
from llmos_cli.operations.heal import HEAL, Healing, heal
from llmos_cli.operations.training.holding import Held
from llmos_cli.options.verbs import QuantizeConfig, QuantizeOptions

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.runs import Run
    from llmos_cli.core.workspace import Checkpoint, Workspace

OTHER_BITS = 8
"""Of convolutions and LSTMs, one scale for each output channel: the only format there is for them."""

UNCODED = "this model has no linear layers to choose bits for"


@dataclass(frozen=True)
class Form:
    """How linear layers are stored: `bits` of a weight, `group_size` inputs that share a scale, and the bits of the layers that a
    glob pattern of `layers` matches, the last one that does."""

    bits: int
    group_size: int
    layers: Mapping[str, int] = field(default_factory=dict)
    symmetric: bool = True
    floats: bool = False

    def bits_of(self, matrix: Matrix) -> int:
        if not isinstance(matrix.layer, nn.Linear):
            return OTHER_BITS
        return next(
            (bits for glob, bits in reversed([*self.layers.items()]) if fnmatchcase(matrix.layer_name, glob)), self.bits
        )

    def group_of(self, matrix: Matrix) -> int:
        return usable_group(matrix.inputs, self.group_size if isinstance(matrix.layer, nn.Linear) else -1)

    def check(self, matrices: Mapping[str, Matrix]) -> None:
        """UsageError for a pattern that no linear layer has."""
        names = [matrix.layer_name for matrix in matrices.values() if isinstance(matrix.layer, nn.Linear)]
        if lost := next((glob for glob in self.layers if not any(fnmatchcase(name, glob) for name in names)), None):
            raise UsageError(
                f"quantize.layers: no linear layer is called {lost!r}",
                hint=f"names are like {names[0]}" if names else UNCODED,
            )


def quantize(ws: Workspace, rev: str, resolved: Resolved, *, emit: Emit) -> CompressResult:
    """Quantize the checkpoint `rev` as the config says.

    Raises UsageError for options that contradict each other, LlmosError when no layer changed or the result does not reload,
    GateFailed when it is worse than `max_kl` or `max_drop` allow. In each case nothing is committed.
    """
    module, _ = method("quantize", resolved.config.quantize)
    form = form_of(resolved, module)
    if form.floats and resolved.config.quantize.heal and resolved.config.heal.codes:
        raise UsageError(f"the codes of {resolved.config.quantize.method} do not learn", hint="leave heal.codes out")
    if resolved.config.quantize.embeddings and not form.symmetric:
        raise UsageError(
            "transformers does not read zero points beside embeddings in codes",
            hint="leave quantize.embeddings or quantize.symmetric=false out",
        )
    parent = ws.checkpoint(rev)
    with ws.begin("quantize", config=as_begun(ws, parent, resolved), files=resolved.files, parents=[parent.id]) as run:
        run.listen(emit)
        return carry_out(ws, run, parent, resolved)


def resume(ws: Workspace, name: str | None, *, emit: Emit) -> CompressResult:
    """Go on with the run `name`, or the current branch's last interrupted one, to the same bits."""
    return resuming.resume(ws, "quantize", name, carry_out, emit=emit)


def carry_out(ws: Workspace, run: Run, parent: Checkpoint, resolved: Resolved) -> CompressResult:
    """All that happens within a quantizing run, from the first block that it has not finished yet."""
    config: QuantizeConfig = resolved.config
    options = config.quantize
    module, own = method("quantize", options)
    form, needs = form_of(resolved, module), needs_of(module, own)
    held(config, parent.path, emit=run.emit)
    with ws.stage() as staged, ws.stage() as spilled, ws.stage() as turned:
        model = subject(
            ws,
            parent,
            resolved,
            options.ignore,
            streams=not options.heal,
            rewritten=lambda exam: rotated(ws, exam, options.rotation, turned, seed=config.seed, emit=run.emit),
            emit=run.emit,
        )
        form.check(model.matrices)
        samples = calibrated(ws, run, model, resolved, needs, learns=hasattr(module, "refine"))
        coded: dict[str, Coded] = {}
        embedded = round_embeddings(model, form.group_size) if options.embeddings else {}
        with keeping(model, run.state, coded, rounds_inputs=rounding(module)) as kept:
            compress = coding(model, module, own, form, coded)
            changes = sweep(
                model,
                samples.batches,
                compress,
                needs,
                hooks=whole_blocks(model, module, own, form, coded, seed=config.seed),
                keeper=kept,
                changes=kept.changes,
                spill=spill(options, spilled),
                dtype=samples.dtype,
                stage="quantize",
                emit=run.emit,
            )
            if options.heal:
                coded = heal_quantized(
                    model, coded, Healing(options.heal, config.heal, config.seed, run.state / HEAL), run.emit
                )
            write_codes(ws, kept, {**coded, **embedded}, module, staged)
            logits = kept.logits()
        skipped = {name: change.skipped for name, change in changes.items() if change.skipped}
        used = _used(coded, form)
        outcome = Outcome(
            staged,
            logits,
            {"bits": average_bits(coded)},
            method=options.method,
            reached=_reached(coded, used, module) + (", embeddings 8 bits" if embedded else ""),
            changed=len(coded) + len(embedded),
            left_alone={**(left_alone_but(model.left_alone, model.model) if embedded else model.left_alone), **skipped},
            used=used,
            notes=list(_notes(coded, form.group_size, module)),
        )
        return conclude(ws, run, model, resolved, outcome, samples.record)


def held(config: QuantizeConfig, directory: Path, *, emit: Emit = ignore) -> str:
    """What is in memory at once, in words; UsageError where that cannot be had."""
    options = config.quantize
    if not options.heal:
        return streaming(options, directory)
    return whole(options, directory, HEALING_CODES if config.heal.codes else HEALING, "--heal", emit=emit)


def plan(ws: Workspace, rev: str, resolved: Resolved) -> CompressPlan:
    """What `quantize` would do."""
    options: QuantizeOptions = resolved.config.quantize
    module, _ = method("quantize", options)
    form = form_of(resolved, module)
    checkpoint = ws.checkpoint(rev)
    memory = held(resolved.config, checkpoint.path)
    model = skeleton(checkpoint.path)
    form.check(matrices(model, options.ignore))
    if options.rotation != "off":
        check_unpruned(ws, checkpoint)
        described(model, options.rotation, resolved.config.seed)

    def become(matrix: Matrix) -> str:
        if reason := why_not(model, matrix.layer):
            return f"left alone: {reason}"
        return f"{form.bits_of(matrix)} bits, groups of {form.group_of(matrix)}"

    found = planned(checkpoint, options, become, calibrated=bool(module.NEEDS), memory=memory)
    if not options.embeddings:
        return found
    told = {
        name: f"8 bits, groups of {usable_group(matrix.inputs, form.group_size)}"
        for name, matrix in outside(model).items()
    }
    return replace(found, matrices={**told, **found.matrices}, left_alone=left_alone_but(found.left_alone, model))


def form_of(resolved: Resolved, module: ModuleType) -> Form:
    """What the config asks for. A method may have one form only (`BITS`, `GROUP_SIZE`); what a config file alone says otherwise
    gives way to the method named on the command line."""
    options: QuantizeOptions = resolved.config.quantize
    found = []
    for key, asked, only in (
        ("bits", options.bits, getattr(module, "BITS", None)),
        ("group_size", options.group_size, getattr(module, "GROUP_SIZE", None)),
    ):
        if only is not None and asked != only and not outranked(resolved, f"quantize.{key}", "quantize.method"):
            raise UsageError(f"{options.method} has {key} {only}, not {asked}", hint=f"leave quantize.{key} out")
        found.append(asked if only is None else only)
    if found[1] == 0:
        raise UsageError("group_size 0 means nothing", hint="-1 is one scale per output channel")
    free = getattr(module, "BITS", None) is None
    if not free and not options.symmetric and not outranked(resolved, "quantize.symmetric", "quantize.method"):
        raise UsageError(f"the codes of {options.method} are symmetric", hint="leave quantize.symmetric out")
    return Form(found[0], found[1], options.layers if free else {}, options.symmetric or not free, is_fp8(module))


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


def is_fp8(module: ModuleType) -> bool:
    return getattr(module, "FLOATS", False)


def rounding(module: ModuleType) -> type[QuantizedLinear] | None:
    """The layers that round their inputs as the method's result does."""
    if not module.ACTIVATIONS:
        return None
    return Float8Linear if is_fp8(module) else QuantizedLinear


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


def heal_quantized(subject: Subject, coded: Mapping[str, Coded], healing: Healing, emit: Emit) -> dict[str, Coded]:
    """Learn the parent's logits by scales, norms and biases."""
    kept = {id(parameter) for parameter in subject.model.parameters() if parameter.dim() > 1}
    names = {name for name, parameter in subject.model.named_parameters() if id(parameter) in kept}
    parts = {name: (entry.matrix, entry.codes, entry.grid) for name, entry in coded.items()}
    teacher = subject.parent()
    weights: dict[str, Tensor] = {}
    if healing.options.codes:
        dense = teacher if subject.source == subject.checkpoint.path else load(subject.source, device=device.pick())
        weights = {name: matrix.read() for name, matrix in matrices(dense).items() if name in parts}
    with scales_free(parts, weights) as learnt:
        free = Held(
            trainable=lambda name: name.endswith((FACTOR, PLACE)) or not (name in names or name.endswith(".original"))
        )
        heal(subject.model, teacher, subject.exam, healing, free, emit=emit)
    return {name: Coded(entry.matrix, learnt[name], entry.grid) for name, entry in coded.items()}


def write_codes(ws: Workspace, kept: Keeping, coded: Mapping[str, Coded], module: ModuleType, staged: Path) -> None:
    """The staged directory: around the codes, the dense tensors of finished blocks of a model that streamed, else those in memory,
    which may have healed since."""
    subject = kept.subject
    source = subject.source
    scheme: Scheme = "fp8" if is_fp8(module) else "w8a8" if module.ACTIVATIONS else "weights"
    codes = Lazily({name: name for name in coded}, lambda name: coded[name].quantized())
    if subject.shelf:
        write_quantized(staged, source, codes, scheme, kept.stored())
        return
    with ws.stage() as dense:
        round_to_stored(subject.model, source, but=coded)
        rewrite(subject.model, source, dense)
        write_quantized(staged, dense, codes, scheme)


def average_bits(coded: Mapping[str, Coded]) -> float:
    """Bits a weight over all quantized matrices, scales and zeros included."""
    bits = 0
    for entry in coded.values():
        codes = entry.codes
        zeros = 0 if codes.zero_OG is None else codes.zero_OG.numel()
        bits += (entry.matrix.shape.numel() + zeros) * entry.grid.bits + codes.scale_OG.nbytes * 8
    return bits / sum(entry.matrix.shape.numel() for entry in coded.values())


def _used(coded: Mapping[str, Coded], form: Form) -> dict[str, int]:
    """The form that the checkpoint remembers: the method may have one only, and where no layer is Linear, so have the layers."""
    if any(_linear(entry) for entry in coded.values()):
        return {"bits": form.bits, "group_size": form.group_size}
    return {"bits": OTHER_BITS, "group_size": -1}


def _linear(entry: Coded) -> bool:
    return isinstance(entry.matrix.layer, nn.Linear)


def _reached(coded: Mapping[str, Coded], used: Mapping[str, int], module: ModuleType) -> str:
    group_size = used["group_size"]
    groups = "one scale per output channel" if group_size == -1 else f"groups of {group_size}"
    rounded = module.ACTIVATIONS and any(_linear(entry) for entry in coded.values())
    inputs = f", inputs rounded to {module.ACTIVATIONS} bits" if rounded else ""
    kinds = sorted({entry.grid.bits for entry in coded.values() if _linear(entry)}) or [used["bits"]]
    bits = (
        f"{kinds[0]} to {kinds[-1]} bits ({average_bits(coded):.2f} a weight with scales)"
        if kinds[1:]
        else f"{kinds[0]} bits"
    )
    return f"{'8-bit floats' if is_fp8(module) and inputs else bits}, {groups}{inputs}"


def _notes(coded: Mapping[str, Coded], group_size: int, module: ModuleType) -> list[str]:
    linear = {name: entry for name, entry in coded.items() if _linear(entry)}
    notes = []
    if others := [entry for name, entry in coded.items() if name not in linear]:
        notes.append(
            f"{len(others)} matrices of convolutions or LSTMs are kept with {OTHER_BITS} bits per output channel"
        )
    if module.ACTIVATIONS and not linear:
        notes.append("only Linear layers round their inputs, and none of these is one")
    if any(not entry.grid.symmetric for entry in linear.values()):
        notes.append(
            "transformers reads zero points only with quantization_config=CompressedTensorsConfig(dequantize=True)"
        )
    asked = {name: usable_group(entry.matrix.inputs, group_size) for name, entry in linear.items()}
    smaller = sorted({group for name, group in asked.items() if 0 < group_size != group})
    if smaller:
        notes.append(
            f"{group_size} does not divide the inputs of some layers: groups of {', '.join(map(str, smaller))} there"
        )
    return notes
