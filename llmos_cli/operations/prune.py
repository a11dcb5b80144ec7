"""`llmos prune`: set weights to zero, or cut whole units out, let the rest make up for it, prove the result, commit it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from llmos_cli.errors import UsageError
from llmos_cli.events import Emit, ignore
from llmos_cli.methods import patterns
from llmos_cli.methods.patterns import Target
from llmos_cli.models.matrices import Matrix
from llmos_cli.models.rewrite import rewrite, rewritten
from llmos_cli.models.statistics import Need
from llmos_cli.operations.compression import cut, resuming
from llmos_cli.operations.compression.allocation import owl
from llmos_cli.operations.compression.cut import check, cut_out, is_structured
from llmos_cli.operations.compression.finish import Outcome, conclude, round_to_stored
from llmos_cli.operations.compression.healing import heal_pruned
from llmos_cli.operations.compression.keeping import Keeping, keeping
from llmos_cli.operations.compression.memory import HEALING, spill, streaming, whole
from llmos_cli.operations.compression.plan import CompressPlan, planned, planned_cut
from llmos_cli.operations.compression.result import CompressResult
from llmos_cli.operations.compression.resuming import as_begun, calibrated
from llmos_cli.operations.compression.saliency import by_gradients
from llmos_cli.operations.compression.subject import Subject, method, needs_of, outranked, subject
from llmos_cli.operations.compression.zeroing import misfit, scored, zeroing
from llmos_cli.operations.heal import HEAL, Healing
from llmos_cli.options.verbs import PruneConfig, PruneOptions

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.runs import Run
    from llmos_cli.core.workspace import Checkpoint, Workspace


def prune(ws: Workspace, rev: str, resolved: Resolved, *, emit: Emit) -> CompressResult:
    """Prune the checkpoint `rev` as the config says.

    Raises UsageError for options that contradict each other, LlmosError when no layer changed or the result does not reload,
    GateFailed when it is worse than `max_kl` or `max_drop` allow. In each case nothing is committed.
    """
    target_of(resolved)
    module, _ = method("prune", resolved.config.prune)
    if is_structured(module):
        check(resolved.config.prune)
    onto, parent = ws.onto(), ws.checkpoint(rev)
    begun = as_begun(ws, parent, resolved)
    with ws.begin("prune", config=begun, files=resolved.files, parents=[parent.id], onto=onto) as run:
        run.listen(emit)
        return carry_out(ws, run, parent, resolved)


def resume(ws: Workspace, name: str | None, *, emit: Emit) -> CompressResult:
    """Go on with the run `name`, or the current branch's last interrupted one, to the same bits."""
    return resuming.resume(ws, "prune", name, carry_out, emit=emit)


def carry_out(ws: Workspace, run: Run, parent: Checkpoint, resolved: Resolved) -> CompressResult:
    """All that happens within a pruning run, from the first block that it has not finished yet."""
    config: PruneConfig = resolved.config
    options = config.prune
    target = target_of(resolved)
    module, own = method("prune", options)
    if is_structured(module):
        return cut_out(ws, run, parent, resolved, module, own)
    needs = needs_of(module, own)
    held(module, options, parent.path, emit=run.emit)
    with ws.stage() as staged, ws.stage() as spilled:
        streams = not options.heal and not by_gradients(module)
        model = subject(ws, parent, resolved, options.ignore, streams=streams, emit=run.emit)
        wanted: set[Need] = {*needs, "norms"} if options.allocation == "owl" else {*needs}
        samples = calibrated(ws, run, model, resolved, wanted, labelled=hasattr(module, "score"))
        with keeping(model, run.state) as kept:
            shares = owl(model, samples.batches, target, run.emit) if options.allocation == "owl" else None
            compress = (
                scored(model, module, own, target, shares, samples.labelled, config, run.emit)
                if by_gradients(module)
                else zeroing(model, module, own, target, shares)
            )
            kept.sweep(compress, samples, needs, spill=spill(options, spilled), stage="prune", emit=run.emit)
            if options.heal:
                healing = Healing(options.heal, config.heal, config.seed, run.state / HEAL)
                heal_pruned(model, healing, run.emit)
            write_pruned(kept, staged)
            outcome = _outcome(kept, target, options.method, staged)
        return conclude(ws, run, model, resolved, outcome, samples.record)


def held(module: ModuleType, options: PruneOptions, directory: Path, *, emit: Emit = ignore) -> str:
    """What is in memory at once, in words; UsageError where that cannot be had."""
    if options.heal or by_gradients(module):
        return whole(options, directory, HEALING, "--heal" if options.heal else options.method, emit=emit)
    return streaming(options, directory)


def plan(ws: Workspace, rev: str, resolved: Resolved) -> CompressPlan:
    """What `prune` would do."""
    options: PruneOptions = resolved.config.prune
    target = target_of(resolved)
    module, own = method("prune", options)
    parent = ws.checkpoint(rev)
    if is_structured(module):
        check(options)
        return planned_cut(parent, module, own, options, cut.held(options, parent.path))

    def unfit(matrix: Matrix) -> str:
        return "" if target.fits(matrix.inputs) else misfit(matrix, target)

    calibrated = bool(module.NEEDS) or hasattr(module, "score")
    return planned(
        parent, options, lambda _: str(target), unfit, calibrated=calibrated, memory=held(module, options, parent.path)
    )


NOT_SMALLER = (
    "the files are no smaller: a zero is stored like any other weight; `llmos export --format sparse` leaves zeros out"
)


def target_of(resolved: Resolved) -> Target:
    """What to reach. A sparsity that only a config file says gives way to an n:m pattern of the command line."""
    options: PruneOptions = resolved.config.prune
    asked = options.sparsity
    if options.pattern == "unstructured" and not asked:
        raise UsageError("--sparsity 0 takes nothing away", hint="--sparsity 0.5 takes half of the weights")
    if options.pattern != "unstructured" and options.allocation != "uniform":
        raise UsageError(
            f"pattern {options.pattern} says how many of each group stay: prune.allocation={options.allocation} has nothing to share out",
            hint="unset prune.allocation, or leave --pattern out",
        )
    if options.pattern != "unstructured" and outranked(resolved, "prune.sparsity", "prune.pattern"):
        return patterns.target(options.pattern, None)
    return patterns.target(options.pattern, asked)


def write_pruned(kept: Keeping, staged: Path) -> None:
    """The staged directory: from the finished blocks of a model that streamed, else from memory, which may have healed since."""
    subject = kept.subject
    source = subject.checkpoint.path
    if subject.shelf is None:
        round_to_stored(subject.model, source)
        rewrite(subject.model, source, staged)
        return
    rewritten(kept.stored(), source, staged)


def _outcome(kept: Keeping, target: Target, name: str, folder: Path) -> Outcome:
    """`name`: the method's; `folder`: the files."""
    logits, sparsity = kept.logits(), sparsity_of(kept.subject, kept)
    return Outcome(
        folder,
        logits,
        {"sparsity": sparsity},
        method=name,
        reached=f"{sparsity:.1%} zeros ({target})",
        changed=len(kept.changes) - len(kept.skipped),
        left_alone={**kept.subject.left_alone, **kept.skipped},
        notes=[NOT_SMALLER],
    )


def sparsity_of(subject: Subject, kept: Keeping) -> float:
    """Share of exact zeros in the matrices that the method was given."""
    zeros = kept.zeros if subject.shelf else {name: _zeros(matrix) for name, matrix in subject.matrices.items()}
    return sum(zeros.values()) / max(1, sum(matrix.shape.numel() for matrix in subject.matrices.values()))


def _zeros(matrix: Matrix) -> int:
    return int((matrix.parameter == 0).sum())
