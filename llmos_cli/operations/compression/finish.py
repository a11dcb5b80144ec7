"""How a compression ends: proven on the staged directory, judged by the guards, and only then a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llmos_cli import device
from llmos_cli.core.manifest import Made
from llmos_cli.events import Metric
from llmos_cli.models import headers
from llmos_cli.models.rewrite import stored_dtype, usual_dtype
from llmos_cli.operations import lineage
from llmos_cli.operations.compression.memory import proving
from llmos_cli.operations.compression.subject import BATCH, Subject
from llmos_cli.operations.environment import environment
from llmos_cli.operations.proof import Exhibits, Proof, guard, is_standard, proof_split, prove
from llmos_cli.options.verbs import Compressing

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.runs import Run
    from llmos_cli.core.workspace import Checkpoint, Workspace


@dataclass(frozen=True)
class Guards:
    max_kl: float | None
    max_drop: float | None
    max_latency: float | None = None
    """Of the parent's."""


def prove_and_commit(
    ws: Workspace, run: Run, subject: Subject, staged: Path, resolved: Resolved, guards: Guards, record: Mapping[str, Any],
    facts: Mapping[str, float], logits: Tensor, used: Mapping[str, Any] | None = None,
) -> tuple[Checkpoint, Proof]:  # fmt: skip
    """Reload, measure, judge; only then make it a checkpoint. The numbers are kept under its id.

    The most memory that this process took so far, which is what compressing took, is one of them. `logits`: what the result in memory answers to the first held-out samples; `used`: options of the verb as they took effect, where the method or the layers knew better than the config.
    """
    options: Compressing = getattr(resolved.config, resolved.verb)
    facts = {**facts, "compressing_memory": device.memory_peak()}
    exam = subject.exam
    split = proof_split(exam.prepared)
    base = lineage.uncompressed(ws, subject.checkpoint.id).id
    ancestors = {"kl_parent": subject.checkpoint.path}
    if base not in ws.dropped:
        ancestors["kl_base"] = ws.checkpoint(base).path
    exhibits = Exhibits(
        logits, is_standard(subject.model), staged, subject.checkpoint.path, ancestors, exam.task, exam.prepared, split, BATCH,
        frozenset(subject.matrices), untimed="" if options.latency else f"latency was not measured: {resolved.verb}.latency is off",
    )  # fmt: skip
    with ws.stage() as spilled:
        if subject.shelf:
            subject.shelf.close()
            models = 1 + len(set(ancestors.values()))
            exhibits = replace(exhibits, memory=proving(options, subject.checkpoint.path, models, spilled))
        proof = replace(prove(exhibits, seed=resolved.config.seed, emit=run.emit), facts=facts)
    guard(proof, exam.task, max_kl=guards.max_kl, max_drop=guards.max_drop, max_latency=guards.max_latency)
    checkpoint = run.commit(staged, _made(resolved, subject, record, used or {}))
    proof.emit(run.emit, checkpoint.id, subject.checkpoint.id)
    for name, found in proof.before.items():
        known = ws.metrics(subject.checkpoint.id)
        if (name, split) not in known:
            run.emit(Metric(name, found.value, split, checkpoint=subject.checkpoint.id, low=found.low, high=found.high))
    return checkpoint, proof


def _made(resolved: Resolved, subject: Subject, record: Mapping[str, Any], used: Mapping[str, Any]) -> Made:
    verb = {**resolved.mapping[resolved.verb], **used}
    config = {**resolved.mapping, resolved.verb: verb, "data": subject.exam.data.model_dump(mode="json")}
    return Made(
        operation=resolved.verb,
        parents=(subject.checkpoint.id,),
        config=config,
        data={**subject.exam.prepared.fingerprint, "calibration": dict(record)},
        environment=environment(subject.device),
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
