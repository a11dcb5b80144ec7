"""How a compression ends: proven on the staged directory, judged by the guards, and only then a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llmos_cli import device
from llmos_cli.core.manifest import Made
from llmos_cli.events import Metric, Note, Proven
from llmos_cli.models import headers
from llmos_cli.models.rewrite import stored_dtype, usual_dtype
from llmos_cli.operations import lineage
from llmos_cli.operations.compression.memory import proving
from llmos_cli.operations.compression.result import CompressResult
from llmos_cli.operations.compression.subject import BATCH, Subject, precision_told
from llmos_cli.operations.config import note_unread
from llmos_cli.operations.determinism import determinism
from llmos_cli.operations.environment import environment
from llmos_cli.operations.proof import Exhibits, Proof, guard, is_standard, proof_split, prove
from llmos_cli.options.verbs import Compressing

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.runs import Run
    from llmos_cli.core.workspace import Workspace


@dataclass(frozen=True)
class Outcome:
    """What a compression made. `folder`: its files, staged; `logits`: what it answers in memory to the first held-out samples;
    `facts`: numbers of it; `used`: options of the verb as they took effect, where the method or the layers knew better than the
    config. The rest is told to the user: CompressResult says how."""

    folder: Path
    logits: Tensor
    facts: Mapping[str, float]
    method: str
    reached: str
    changed: int
    left_alone: Mapping[str, str]
    used: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def conclude(
    ws: Workspace, run: Run, subject: Subject, resolved: Resolved, outcome: Outcome, record: Mapping[str, Any]
) -> CompressResult:
    """Reload, measure, judge; only then make it a checkpoint. `record`: what it was calibrated on."""
    proof = proven(ws, run, subject, outcome, resolved)
    result = accept(ws, run, subject, resolved, outcome, record, proof)
    run.emit(Proven(result.checkpoint, result.sentence, result))
    return result


def accept(
    ws: Workspace, run: Run, subject: Subject, resolved: Resolved, outcome: Outcome, record: Mapping[str, Any], proof: Proof,
    *, max_latency: float | None = None,
) -> CompressResult:  # fmt: skip
    """Make what was proven a checkpoint, and keep the proof's numbers under its id.

    `max_latency`: of the parent's. GateFailed where the proof is worse than that, `max_kl` or `max_drop`.
    """
    options: Compressing = getattr(resolved.config, resolved.verb)
    guard(proof, subject.exam.task, max_kl=options.max_kl, max_drop=options.max_drop, max_latency=max_latency)
    checkpoint = run.commit(outcome.folder, _made(resolved, subject, record, outcome.used))
    _tell(ws, run, subject, proof, checkpoint.id)
    note_unread(resolved, lambda message: run.emit(Note(message, level="warning")))
    return CompressResult(
        checkpoint=checkpoint.id,
        parent=subject.checkpoint.id,
        run=run.id,
        branch="" if ws.keep_branch else run.base,
        operation=resolved.verb,
        method=outcome.method,
        reached=outcome.reached,
        changed=outcome.changed,
        left_alone=outcome.left_alone,
        healed_steps=options.heal,
        proof=proof,
        notes=outcome.notes,
    )


def proven(ws: Workspace, run: Run, subject: Subject, outcome: Outcome, resolved: Resolved) -> Proof:
    """What it is, reloaded and measured. The most memory that this process took so far, which is what compressing took, is one of its numbers."""
    options: Compressing = getattr(resolved.config, resolved.verb)
    facts = {**outcome.facts, "compressing_memory": device.memory_peak()}
    exam = subject.exam
    base = lineage.uncompressed(ws, subject.checkpoint.id).id
    ancestors = {"kl_parent": subject.checkpoint.path}
    if not ws.closed(base):
        ancestors["kl_base"] = ws.checkpoint(base).path
    exhibits = Exhibits(
        subject.asked, outcome.logits, is_standard(subject.model), outcome.folder, subject.checkpoint.path, ancestors, exam.task, exam.prepared,
        proof_split(exam.prepared), BATCH, subject.compressible, frozenset(subject.matrices),
        untimed="" if options.latency else f"latency was not measured: {resolved.verb}.latency is off",
    )  # fmt: skip
    with ws.stage() as spilled:
        if subject.shelf:
            subject.shelf.close()
            models = 1 + len(set(ancestors.values()))
            exhibits = replace(exhibits, memory=proving(options, subject.checkpoint.path, models, spilled))
        return replace(prove(exhibits, seed=resolved.config.seed, emit=run.emit), facts=facts)


def _tell(ws: Workspace, run: Run, subject: Subject, proof: Proof, checkpoint: str) -> None:
    """What was measured of the result, and of its parent what was not known yet."""
    proof.emit(run.emit, checkpoint, subject.checkpoint.id)
    split = proof_split(subject.exam.prepared)
    for name, found in proof.before.items():
        known = ws.metrics(subject.checkpoint.id)
        if (name, split) not in known:
            of, rows = subject.checkpoint.id, proof.rows
            run.emit(Metric(name, found.value, split, checkpoint=of, low=found.low, high=found.high, samples=rows))


def _made(resolved: Resolved, subject: Subject, record: Mapping[str, Any], used: Mapping[str, Any]) -> Made:
    options: Compressing = getattr(resolved.config, resolved.verb)
    verb = {**resolved.mapping[resolved.verb], "precision": precision_told(options, subject.checkpoint), **used}
    facts = environment(subject.device)
    if resolved.mapping[resolved.verb]["heal"]:
        asked = device.asked_dtype(resolved.config.heal.precision, subject.device)
        facts["precision"] = str(asked).removeprefix("torch.")
    config = {**resolved.mapping, resolved.verb: verb, "data": subject.exam.data.model_dump(mode="json")}
    return Made(
        operation=resolved.verb,
        parents=(subject.checkpoint.id,),
        config=config,
        data={**subject.exam.prepared.fingerprint, "calibration": dict(record)},
        environment={**facts, "determinism": determinism(resolved.verb, resolved.mapping, facts)},
        seed=resolved.config.seed,
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def round_to_stored(model: nn.Module, source: Path, but: Collection[str] = (), inside: str = "") -> None:
    """Every weight to the value that its file's type will hold, so that memory and disk say the same; those `but` stay exact.

    `inside`: where `model` stands in the whole one.
    """
    entries = headers.of_directory(source)
    usual = usual_dtype(entries)
    with torch.no_grad():
        for name, parameter in model.named_parameters(prefix=inside):
            if name not in but:
                parameter.copy_(parameter.to(stored_dtype(name, entries, usual)))
