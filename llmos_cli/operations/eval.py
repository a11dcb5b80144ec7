"""`llmos eval`: measure revisions side by side on the same held-out samples, and judge the last one by its gates.

Each evaluation reads the checkpoint's files again, is a run of its own, and is remembered: the same checkpoint on the
same samples with the same options answers from the record, where this workspace measured it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from llmos_cli import device
from llmos_cli.core.refs import ID
from llmos_cli.core.view import short
from llmos_cli.errors import NotFound, UsageError
from llmos_cli.events import Emit, Event, Metric, Note, Progress
from llmos_cli.methods.eval import Subject
from llmos_cli.models import headers
from llmos_cli.models.load import load
from llmos_cli.operations import evaluations, gate, lineage, processors, snapshots
from llmos_cli.operations.config import note_unread
from llmos_cli.operations.evaluations import Evaluation, Measured
from llmos_cli.operations.gate import Requirement, Verdict
from llmos_cli.operations.reports import EvalResult
from llmos_cli.operations.served import measurements, served
from llmos_cli.options.data import DataOptions
from llmos_cli.options.model import ModelOptions
from llmos_cli.options.verbs import EvalOptions
from llmos_cli.serve.sequences import Served
from llmos_cli.tasks import of_checkpoint, scoring
from llmos_cli.tasks.base import Outcome, Prepared, Task
from llmos_cli.tasks.classification import ClassRow, per_class

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Checkpoint, Workspace

UNITS = {"bits_per_byte": "bits/byte", "loss": "nats", "kl_parent": "nats", "kl_base": "nats", "kl_cache": "nats"}
KEPT = "leave eval.kv_cache out"


def evaluate(
    ws: Workspace,
    revs: Sequence[str],
    requirements: Sequence[Requirement],
    resolved: Resolved,
    *,
    fresh: bool = False,
    fetched: bool = False,
    emit: Emit,
) -> EvalResult:
    """Evaluate `revs` and the revisions that `requirements` speak of, which judge the last of `revs`. `fetched`: what other workspaces
    measured counts as well.

    A gate that fails is told in the result, not raised.
    """
    checkpoints = {rev: ws.checkpoint(rev) for rev in dict.fromkeys([*revs, *gate.revisions(requirements)])}
    judged = revs[-1]
    if resolved.config.eval.folds:
        return _cross_validated(ws, checkpoints, judged, requirements, resolved, emit)
    emit = notes_once(emit)
    data = common_data(ws, checkpoints, judged, resolved.config.data, emit)
    found = [
        recall_or_measure(ws, rev, checkpoint, data, resolved, fresh=fresh, fetched=fetched, emit=emit)
        for rev, checkpoint in checkpoints.items()
    ]
    note_unread(resolved, lambda message: emit(Note(message, level="warning")))
    return EvalResult(judged, resolved.config.eval.split, _told(data), found, judge(requirements, found, judged))


def notes_once(emit: Emit) -> Emit:
    """What is to be said of the data is said for the first revision, not for each."""
    said: set[str] = set()

    def hear(event: Event) -> None:
        if not isinstance(event, Note) or event.message not in said:
            emit(event)
        if isinstance(event, Note):
            said.add(event.message)

    return hear


def _cross_validated(
    ws: Workspace,
    checkpoints: Mapping[str, Checkpoint],
    judged: str,
    requirements: Sequence[Requirement],
    resolved: Resolved,
    emit: Emit,
) -> EvalResult:
    from llmos_cli.operations.folds import cross_validate  # brings the training loop along

    options, seed = resolved.config.eval, resolved.config.seed
    found = [
        cross_validate(ws, rev, checkpoint, options, seed=seed, emit=emit) for rev, checkpoint in checkpoints.items()
    ]
    note_unread(resolved, lambda message: emit(Note(message, level="warning")))
    source = _told(lineage.effective_data(ws, checkpoints[judged].id, DataOptions()))
    return EvalResult(judged, "folds", source, found, judge(requirements, found, judged), options.folds)


def judge(requirements: Sequence[Requirement], found: Sequence[Evaluation], judged: str) -> list[Verdict]:
    values = {evaluation.rev: evaluation.values for evaluation in found}
    return [gate.judge(requirement, values[judged], values) for requirement in requirements]


def common_data(
    ws: Workspace, checkpoints: Mapping[str, Checkpoint], judged: str, asked: DataOptions, emit: Emit
) -> DataOptions:
    """One data section for all: the judged checkpoint's, so that every revision answers for the same samples."""
    data = lineage.effective_data(ws, checkpoints[judged].id, asked)
    sections = [lineage.recorded_data(ws, checkpoint.id) for checkpoint in checkpoints.values()]
    lengths = [section["sequence_length"] for section in sections if "sequence_length" in section]
    data = data.model_copy(update={"sequence_length": min([data.sequence_length, *lengths])})
    tokenizers = {tuple(sorted(processors.identity(checkpoint).items())) for checkpoint in checkpoints.values()}
    if len(tokenizers) > 1 and data.task == "causal-lm" and data.max_eval_samples is not None:
        # Sequences of two tokenizers hold different text, so an equal number of them would be another test.
        emit(Note("the revisions have different tokenizers: all of the text is evaluated, not data.max_eval_samples"))
        data = data.model_copy(update={"max_eval_samples": None})
    return data


def _told(data: DataOptions) -> str:
    """The sources, or the files that stand in for them, for people."""
    sources = data.source if isinstance(data.source, list) else [data.source]
    names = [source if isinstance(source, str) or source is None else source.source for source in sources]
    return data.evaluate or ", ".join(name for name in names if name) or ", ".join(dict.fromkeys(data.splits.values()))


def recall_or_measure(
    ws: Workspace,
    rev: str,
    checkpoint: Checkpoint,
    data: DataOptions,
    resolved: Resolved,
    *,
    fresh: bool = False,
    fetched: bool = False,
    emit: Emit,
) -> Evaluation:
    exam, teachers, key = _asked(ws, checkpoint, data, resolved, emit)
    if not fresh and (known := evaluations.known(ws, key, rev, fetched=fetched, emit=emit)):
        return known
    config = {**resolved.mapping, "data": data.model_dump(mode="json")}
    with ws.begin("eval", config=config, files=resolved.files, parents=[checkpoint.id]) as run:
        run.listen(emit)
        measured = measure(ws, rev, exam, teachers, resolved.config.eval, seed=resolved.config.seed, emit=run.emit)
        evaluation = replace(measured, run=run.id)
        split, rows = evaluation.split, exam.prepared.rows(evaluation.split)
        for name, found in evaluation.metrics.items():
            value, low, high = found.value, found.low, found.high
            run.emit(Metric(name, value, split, checkpoint=checkpoint.id, low=low, high=high, samples=rows))
        evaluations.keep(run, key, evaluation)
    return evaluation


def recall(
    ws: Workspace, rev: str, checkpoint: Checkpoint, data: DataOptions, resolved: Resolved, *, emit: Emit
) -> Evaluation | None:
    """What is known already; the data is read for it, and nothing is computed."""
    return evaluations.known(ws, _asked(ws, checkpoint, data, resolved, emit)[2], rev, emit=emit)


def _asked(
    ws: Workspace, checkpoint: Checkpoint, data: DataOptions, resolved: Resolved, emit: Emit
) -> tuple[Exam, dict[str, Checkpoint], str]:
    """The rows that it answers for, what it is compared with, and the key of what that measures."""
    exam = prepare(ws, checkpoint, data, seed=resolved.config.seed, emit=emit)
    teachers = _teachers(ws, checkpoint, emit)
    if resolved.config.eval.kv_cache != "keep":
        teachers["kl_cache"] = checkpoint
    return exam, teachers, _key(exam, teachers, resolved)


@dataclass(frozen=True)
class Exam:
    """A checkpoint and the data it is to answer for."""

    checkpoint: Checkpoint
    task: Task
    data: DataOptions
    prepared: Prepared


def prepare(ws: Workspace, checkpoint: Checkpoint, data: DataOptions, *, seed: int, emit: Emit) -> Exam:
    """The data as this checkpoint's own tokenizer and labels read it; where that is the data it was made with, kept, and not so
    any more in its source, as it was kept."""
    task = of_checkpoint(checkpoint.manifest, checkpoint.config_json())
    data = data.model_copy(update={"task": task.name})

    def read(data: DataOptions) -> Prepared:
        return task.prepare(data, ModelOptions(), seed=seed, cache=ws.cache, processor=checkpoint.path)

    prepared = read(data)
    if kept := snapshots.standing_in(ws, checkpoint.id, data, task.columns, prepared.fingerprint):
        prepared = replace(read(kept.data), fingerprint={**prepared.fingerprint, **kept.fingerprint})
        emit(Note(kept.told, level="warning"))
    for note in prepared.notes:
        emit(Note(note, level="warning"))
    return Exam(checkpoint, task, data, prepared)


def _teachers(ws: Workspace, checkpoint: Checkpoint, emit: Emit) -> dict[str, Checkpoint]:
    """What KL is measured to: the parent and the nearest uncompressed ancestor, where they are there and comparable."""
    base = lineage.uncompressed(ws, checkpoint.id).id
    named = {"kl_parent": next(iter(checkpoint.manifest.made.parents), None), "kl_base": base}
    teachers: dict[str, Checkpoint] = {}
    for name, identifier in named.items():
        if identifier is None or identifier == checkpoint.id:
            continue
        if closed := ws.closed(identifier):
            emit(Note(f"no {name}: the weights of {identifier[:12]} are {closed}", level="warning"))
        elif _comparable(checkpoint, teacher := ws.checkpoint(identifier)):
            teachers[name] = teacher
    return teachers


def _comparable(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether the same logits of both mean the same class."""
    mine, theirs = one.config_json(), other.config_json()
    same = ("vocab_size", "id2label", "num_labels", "architectures")
    return processors.identity(one) == processors.identity(other) and all(mine.get(k) == theirs.get(k) for k in same)


def _key(exam: Exam, teachers: Mapping[str, Checkpoint], resolved: Resolved) -> str:
    """Everything that decides the numbers."""
    options: EvalOptions = resolved.config.eval
    machine = [device.device_name(device.pick()), device.threads()] if options.latency else []
    return evaluations.key_of(
        {
            "format": 3,
            "checkpoint": exam.checkpoint.id,
            "data": exam.prepared.fingerprint,
            "limits": [exam.data.sequence_length, exam.data.max_eval_samples],
            "split": options.split,
            "batch_size": options.batch_size,
            "seed": resolved.config.seed,
            "teachers": {name: teacher.id for name, teacher in teachers.items()},
            "measurements": sorted(name for name, _ in measurements(timed=options.latency)),
            "machine": machine,
            **({"kv_cache": options.kv_cache} if options.kv_cache != "keep" else {}),
        }
    )


def measure(
    ws: Workspace,
    rev: str,
    exam: Exam,
    teachers: Mapping[str, Checkpoint],
    options: EvalOptions,
    *,
    seed: int,
    emit: Emit,
) -> Evaluation:
    """Load the checkpoint from its files and measure it: quality on every sample, then the measurements of methods/eval; what
    is timed is timed as it would be served."""
    split = exam.prepared.splits.get(options.split)
    if split is None or not len(split):
        raise NotFound(
            f"the data has no {options.split} split", hint=f"it has {', '.join(exam.prepared.splits)}: set eval.split"
        )
    model = load(exam.checkpoint.path, device=device.pick())
    judged = _with_cache(exam, model, options.kv_cache)
    outcome = _outcome(exam, judged, split, teachers, options, stage=f"evaluate {_shown(rev)}", emit=emit)
    facts = exam.prepared.facts
    intervals = scoring.intervals(exam.task, outcome, facts, seed=seed)
    metrics = {
        name: Measured(found.value, UNITS.get(name, ""), found.low, found.high) for name, found in intervals.items()
    }
    subject = Subject(model, split, exam.checkpoint.path, options.batch_size, _base_parameters(ws, exam.checkpoint))
    as_served = served(exam.task, subject, kv_cache=options.kv_cache) if options.latency else subject
    modules = list(measurements(timed=options.latency))
    for done, (_, module) in enumerate(modules, 1):
        emit(Progress(f"measure {_shown(rev)}", done, len(modules), unit="measurement"))
        on = as_served if module.TIMED else subject
        metrics |= {key: Measured(value, module.UNITS[key]) for key, value in module.measure(on).items()}
    classes = _classes(outcome, facts)
    return Evaluation(rev, exam.checkpoint.id, exam.task.name, options.split, len(split), metrics, classes)


def _shown(rev: str) -> str:
    """A name as it was given, an id as ids are shown."""
    return short(rev) if ID.fullmatch(rev) else rev


def _with_cache(exam: Exam, model: PreTrainedModel, kv_cache: str) -> nn.Module:
    """The model, or its answers through a deployment's cache."""
    if kv_cache == "keep":
        return model
    if exam.task.name != "causal-lm":
        raise UsageError(f"only language models have a cache, and this one is for {exam.task.name}", hint=KEPT)
    return Served(model, kv_cache=kv_cache)


def _outcome(
    exam: Exam,
    model: Any,
    split: Any,
    teachers: Mapping[str, Checkpoint],
    options: EvalOptions,
    *,
    stage: str,
    emit: Emit,
) -> Outcome:
    """Every sample judged once for each teacher; one teacher under two names is asked once."""
    judge = partial(scoring.evaluate, exam.task, model, split, batch_size=options.batch_size, emit=emit, stage=stage)
    if not teachers:
        return judge()
    kl: dict[str, Tensor] = {}
    for teacher in {teacher.id: teacher for teacher in teachers.values()}.values():
        outcome = judge(teacher=load(teacher.path, device=device.pick()))
        kl |= {name: outcome.extra["kl"] for name, other in teachers.items() if other.id == teacher.id}
    return replace(outcome, extra=kl)


def _classes(outcome: Outcome, facts: Mapping[str, Any]) -> Sequence[ClassRow]:
    return per_class(outcome, facts) if facts.get("id2label") else ()


def _base_parameters(ws: Workspace, checkpoint: Checkpoint) -> int:
    """Of the nearest uncompressed ancestor, from the shapes in its files; from its own where those are gone."""
    base = lineage.uncompressed(ws, checkpoint.id).id
    path = checkpoint.path if ws.closed(base) else ws.checkpoint(base).path
    return headers.parameters(path)
