"""`llmos quantize`: weights as codes of a few bits, the file in a format that others read, the result proven and committed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from llmos_cli.errors import UsageError
from llmos_cli.events import Emit, ignore
from llmos_cli.methods.grid import usable_group
from llmos_cli.models.lazily import Lazily
from llmos_cli.models.load import skeleton
from llmos_cli.models.matrices import Matrix, matrices
from llmos_cli.models.quantized import Scheme, unpackable, why_not, write_quantized
from llmos_cli.models.rewrite import rewrite
from llmos_cli.operations.compression import resuming
from llmos_cli.operations.compression.coded import Coded, average_bits
from llmos_cli.operations.compression.coding import coding, rounding, whole_blocks
from llmos_cli.operations.compression.embeddings import left_alone_but, outside, round_embeddings
from llmos_cli.operations.compression.finish import Outcome, conclude, round_to_stored
from llmos_cli.operations.compression.form import OTHER_BITS, Form, form_of, is_fp8
from llmos_cli.operations.compression.healing import heal_quantized
from llmos_cli.operations.compression.keeping import Keeping, keeping
from llmos_cli.operations.compression.memory import HEALING, HEALING_CODES, spill, streaming, whole
from llmos_cli.operations.compression.plan import CompressPlan, planned
from llmos_cli.operations.compression.result import CompressResult
from llmos_cli.operations.compression.resuming import as_begun, calibrated
from llmos_cli.operations.compression.rotating import check_unpruned, described, rotated
from llmos_cli.operations.compression.subject import method, needs_of, subject
from llmos_cli.operations.compression.tokens import not_by_token
from llmos_cli.operations.heal import HEAL, Healing
from llmos_cli.options.verbs import QuantizeConfig, QuantizeOptions

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.runs import Run
    from llmos_cli.core.workspace import Checkpoint, Workspace


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
    onto, parent = ws.onto(), ws.checkpoint(rev)
    begun = as_begun(ws, parent, resolved)
    with ws.begin("quantize", config=begun, files=resolved.files, parents=[parent.id], onto=onto) as run:
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
        turn = partial(rotated, ws, kind=options.rotation, folder=turned, seed=config.seed, emit=run.emit)
        streams = not options.heal
        model = subject(ws, parent, resolved, options.ignore, streams=streams, rewritten=turn, emit=run.emit)
        form.check(model.matrices)
        _check_packs(model.model, module)
        samples = calibrated(ws, run, model, resolved, needs, learns=hasattr(module, "refine"))
        coded: dict[str, Coded] = {}
        embedded = round_embeddings(model, form.group_size) if options.embeddings else {}
        unrounded = not_by_token(model) if module.ACTIVATIONS else frozenset()
        with keeping(model, run.state, coded, rounds_inputs=rounding(module), unrounded=unrounded) as kept:
            compress = coding(model, module, own, form, coded)
            hooks = whole_blocks(model, module, own, form, coded, seed=config.seed)
            kept.sweep(
                compress, samples, needs, hooks=hooks, spill=spill(options, spilled), stage="quantize", emit=run.emit
            )
            if options.heal:
                healing = Healing(options.heal, config.heal, config.seed, run.state / HEAL)
                coded = heal_quantized(model, coded, healing, run.emit)
            write_codes(ws, kept, {**coded, **embedded}, module, staged)
            outcome = _outcome(kept, coded, embedded, form, module, options.method, staged)
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
    _check_packs(model, module)
    if options.rotation != "off":
        check_unpruned(ws, checkpoint)
        described(model, options.rotation, resolved.config.seed)

    def become(matrix: Matrix) -> str:
        return f"{form.bits_of(matrix)} bits, groups of {form.group_of(matrix)}"

    def unfit(matrix: Matrix) -> str:
        return why_not(model, matrix.layer) or ""

    found = planned(checkpoint, options, become, unfit, calibrated=bool(module.NEEDS), memory=memory)
    if not options.embeddings:
        return found
    told = {
        name: f"8 bits, groups of {usable_group(matrix.inputs, form.group_size)}"
        for name, matrix in outside(model).items()
    }
    return replace(found, matrices={**told, **found.matrices}, left_alone=left_alone_but(found.left_alone, model))


def _check_packs(model: PreTrainedModel, module: ModuleType) -> None:
    """Before anything is computed: the proof would find that the result does not load."""
    if not module.ACTIVATIONS and (reason := unpackable(model)):
        raise UsageError(reason, hint="`--method w8a8` and `--method fp8` store weights that it finds")


def write_codes(ws: Workspace, kept: Keeping, coded: Mapping[str, Coded], module: ModuleType, staged: Path) -> None:
    """The staged directory: around the codes, the dense tensors of finished blocks of a model that streamed, else those in memory,
    which may have healed since."""
    subject = kept.subject
    source = subject.source
    scheme: Scheme = "fp8" if is_fp8(module) else "w8a8" if module.ACTIVATIONS else "weights"
    codes = Lazily({name: name for name in coded}, lambda name: coded[name].quantized())
    if subject.shelf:
        write_quantized(staged, source, codes, scheme, kept.stored(), unrounded=kept.unrounded)
        return
    with ws.stage() as dense:
        round_to_stored(subject.model, source, but=coded)
        rewrite(subject.model, source, dense)
        write_quantized(staged, dense, codes, scheme, unrounded=kept.unrounded)


def _outcome(
    kept: Keeping, coded: Mapping[str, Coded], embedded: Mapping[str, Coded], form: Form, module: ModuleType,
    name: str, folder: Path,
) -> Outcome:  # fmt: skip
    """`name`: the method's; `folder`: the files."""
    alone, used = kept.subject.left_alone, _used(coded, form)
    return Outcome(
        folder,
        kept.logits(),
        {"bits": average_bits(coded)},
        method=name,
        reached=_reached(coded, used, module) + (", embeddings 8 bits" if embedded else ""),
        changed=len(coded) + len(embedded),
        left_alone={**(left_alone_but(alone, kept.subject.model) if embedded else alone), **kept.skipped},
        used=used,
        notes=_notes(coded, form.group_size, module) + _unrounded(coded, kept.unrounded),
    )


def _used(coded: Mapping[str, Coded], form: Form) -> dict[str, int]:
    """The form that the checkpoint remembers: the method may have one only, and where no layer is Linear, so have the layers."""
    if any(_linear(entry) for entry in coded.values()):
        return {"bits": form.bits, "group_size": form.group_size}
    return {"bits": OTHER_BITS, "group_size": -1}


def _linear(entry: Coded) -> bool:
    return isinstance(entry.matrix.layer, nn.Linear)


def _reached(coded: Mapping[str, Coded], used: Mapping[str, int], module: ModuleType) -> str:
    group_size = used["group_size"]
    sizes = sorted({usable_group(entry.matrix.inputs, group_size) for entry in coded.values() if _linear(entry)})
    there = " and ".join(map(str, sizes or [group_size]))
    groups = "one scale per output channel" if group_size == -1 else f"groups of {there}"
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
        some = "some layers" if group_size in asked.values() else "any layer"
        notes.append(
            f"{group_size} does not divide the inputs of {some}: groups of {', '.join(map(str, smaller))} there"
        )
    return notes


def _unrounded(coded: Mapping[str, Coded], unrounded: Collection[str]) -> list[str]:
    """Of layers that hold codes and take their inputs as they are."""
    names = [entry.matrix.layer_name for entry in coded.values() if entry.matrix.layer_name in unrounded]
    if not names:
        return []
    others = f" and {len(names) - 1} more" if names[1:] else ""
    return [
        f"the inputs of {names[0]}{others} stay as they are: they do not come token by token, and readers would take one scale "
        "for many"
    ]
