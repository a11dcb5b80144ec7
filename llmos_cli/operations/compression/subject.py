"""What a compression starts from: the parent, its data, the method, and the samples to calibrate on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from llmos_cli import catalog, device
from llmos_cli.core.section import Section
from llmos_cli.core.view import short
from llmos_cli.errors import LlmosError, NotFound, UsageError
from llmos_cli.events import Emit, Note
from llmos_cli.models.dequantize import is_quantized
from llmos_cli.models.load import load
from llmos_cli.models.matrices import Matrix, left_alone, matrices
from llmos_cli.models.replay import replaying
from llmos_cli.models.shelf import Shelf
from llmos_cli.models.statistics import Need
from llmos_cli.operations import lineage
from llmos_cli.operations.compression.overlap import disjoint, held_out
from llmos_cli.operations.compression.sound import check_finite
from llmos_cli.operations.eval import Exam, prepare
from llmos_cli.operations.proof import parity_inputs, proof_split
from llmos_cli.options.model import ModelOptions
from llmos_cli.options.verbs import Compressing, PruneOptions, QuantizeOptions
from llmos_cli.tasks.base import Batch, Prepared, Split

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Checkpoint, Workspace

BATCH = 16
"""Samples at once in calibration and evaluation."""


@dataclass(frozen=True)
class Subject:
    """The parent of a compression: its checkpoint, its weights in fp32, its data, and its compressible matrices by name.

    `shelf`: where its blocks lie until it is their turn, when it streams; None where the model is in memory as a whole.
    """

    exam: Exam
    model: PreTrainedModel
    matrices: dict[str, Matrix]
    left_alone: dict[str, str]
    shelf: Shelf | None = None
    rotated: Path | None = None
    """The directory whose weights these are, where they are not the checkpoint's own."""
    compressible: frozenset[str] = frozenset()
    """The parent's matrices, by name; a model that was cut out of it has fewer, and under other names."""

    @property
    def source(self) -> Path:
        return self.rotated or self.checkpoint.path

    @property
    def checkpoint(self) -> Checkpoint:
        return self.exam.checkpoint

    def parent(self) -> PreTrainedModel:
        """The model as its checkpoint has it, read anew: who heals learns from that one."""
        return load(self.checkpoint.path, device=device.pick())

    @property
    def asked(self) -> Batch:
        """The held-out samples that the result in memory and the one read back are compared on."""
        prepared = self.exam.prepared
        return parity_inputs(prepared.splits[proof_split(prepared)], self.model)

    @property
    def widest(self) -> int:
        """Inputs or outputs of its widest matrix."""
        return max(
            (max(matrix.inputs, matrix.shape.numel() // matrix.inputs) for matrix in self.matrices.values()), default=1
        )

    @property
    def device(self) -> torch.device:
        return self.shelf.on if self.shelf else self.model.device


def subject(
    ws: Workspace,
    checkpoint: Checkpoint,
    resolved: Resolved,
    ignore: Sequence[str],
    *,
    streams: bool = False,
    rewritten: Callable[[Exam], Path] | None = None,
    emit: Emit,
) -> Subject:
    """Load the parent and prepare the data it was made with, or what the config says of it.

    `streams`: of its blocks only the names, which is said in a note where it cannot be; under a `memory_budget` with no memory kept
    for later. `rewritten` may give another directory
    for the parent's, which answers the same.
    """
    check_dense(checkpoint)
    options: Compressing = getattr(resolved.config, resolved.verb)
    if streams and options.memory_budget:
        device.give_back_at_once()  # before anything large: room that the C library has once is where it puts things
    data = lineage.effective_data(ws, checkpoint.id, resolved.config.data)
    exam = prepare(ws, checkpoint, data, seed=resolved.config.seed, emit=emit)
    source = rewritten(exam) if rewritten else checkpoint.path
    shelf = _shelf(exam, source, emit) if streams else None
    model = shelf.model if shelf else load(source, device=device.pick())
    changing = matrices(model, ignore)
    check_finite(source, {name for name, _ in model.named_parameters()}.difference(changing))
    return Subject(
        exam, model, changing, left_alone(model, ignore), shelf, source if rewritten else None, frozenset(changing)
    )


def check_dense(checkpoint: Checkpoint) -> None:
    """UsageError for a checkpoint of codes: they are final."""
    if is_quantized(checkpoint.config_json()):
        raise UsageError(
            f"{short(checkpoint.id)} is quantized already", hint="prune and quantize its parent: `llmos log` shows it"
        )


def _shelf(exam: Exam, source: Path, emit: Emit) -> Shelf | None:
    device.give_back()  # what reading and tokenizing the data took
    shelf = Shelf(source, device.pick())
    reason = f"its files hold {shelf.lost[0]} in another form" if shelf.lost else _obstacle(shelf, exam)
    if reason:
        emit(Note(f"the whole model is loaded at once: {reason}"))
    return None if reason else shelf


def _obstacle(shelf: Shelf, exam: Exam) -> str | None:
    """Why the blocks cannot be run one by one; None where they can."""
    split = next(split for split in exam.prepared.splits.values() if len(split))
    one = {name: value for name, value in split.batch([0]).items() if name != "labels"}
    try:
        with replaying(shelf.model, shelf.stack) as replay:
            replay.check(device.move(one, shelf.on), shelf.held)
    except LlmosError as problem:
        return problem.message
    return None


def method(verb: str, options: PruneOptions | QuantizeOptions) -> tuple[ModuleType, Section]:
    """The method's module and its own options; UsageError for a name that is not there."""
    module = catalog.method(verb, options.method).load()
    return module, options.of_method(options.method, module.Options)


def needs_of(module: ModuleType, own: Section) -> Collection[Need]:
    """The calibration statistics that the method asks for, told `own`."""
    needs: Collection[Need] = module.needs(own) if hasattr(module, "needs") else module.NEEDS
    return needs


def outranked(resolved: Resolved, key: str, by: str) -> bool:
    """Whether `key` was not said at all, or only in a config file while `by` was said beside or over the files."""
    mine, other = resolved.origin.get(key, ""), resolved.origin.get(by, "")
    return not mine or (_in_file(mine) and bool(other) and not _in_file(other))


def _in_file(origin: str) -> bool:
    return origin.rpartition(":")[2].isdigit() and not origin.startswith("-s ")


def precision_of(options: Compressing, parent: Checkpoint) -> torch.dtype:
    """Of calibration's arithmetic."""
    config = parent.config_json()
    if options.precision == "auto" and (config.get("dtype") or config.get("torch_dtype")) != "bfloat16":
        return torch.float32
    return device.asked_dtype(options.precision)


def precision_told(options: Compressing, parent: Checkpoint) -> str:
    """As a config says it, never `auto`: what was measured here is what is to be repeated anywhere."""
    return str(precision_of(options, parent)).removeprefix("torch.")


@dataclass(frozen=True)
class Calibration:
    """Training samples without labels; `record` says which they were. `labelled`: the same with them, where they were asked for;
    `dtype`: of the arithmetic in which the model is run on them."""

    batches: list[Batch]
    record: Mapping[str, Any]
    labelled: list[Batch] = field(default_factory=list)
    dtype: torch.dtype = torch.float32


def calibration(
    subject: Subject,
    samples: int,
    needs: Collection[Need],
    *,
    labelled: bool = False,
    seed: int,
    source: str | None = None,
    cache: Path | None = None,
    room: int | None = None,
) -> Calibration:
    """`samples` of the training split, drawn by `seed`: evaluation never sees them. None are read where none are needed.

    `source`: where they come from instead, read with the help of `cache`; those that share text with what evaluation looks at are
    passed over. `room`: bytes that the widest layer's outputs may take, of as many
    samples as are run together; the record is the same whatever that is, the result but for the last bits; of pictures, as if each were one position.
    """
    if not needs and not labelled:
        return Calibration([], {"samples": 0})
    prepared = elsewhere(subject.exam, source, cache, seed) if source and cache else subject.exam.prepared
    split = prepared.splits.get("train")
    if split is None or not len(split):
        raise NotFound("the data has no training samples to calibrate on", hint="set data.source or data.splits")
    shuffled: list[int] = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn, record = shuffled[:samples], {}
    if source:
        drawn, passed = disjoint(split, shuffled, held_out(subject.exam.prepared), samples)
        record = {"source": source, "passed_over": passed, "data": dict(prepared.fingerprint)}
    if not drawn:
        raise UsageError(f"evaluation looks at all of {source}", hint="calibrate on another source")
    batches = _batches(split, drawn, BATCH)
    digest = hashlib.sha256(b"".join(_bytes(batch) for batch in batches)).hexdigest()
    if room is not None:
        positions = batches[0]["input_ids"].shape[1] if "input_ids" in batches[0] else 1
        batches = _batches(split, drawn, min(BATCH, max(1, room // (4 * subject.widest * positions))))
    on = subject.device
    return Calibration(
        [device.move({name: value for name, value in batch.items() if name != "labels"}, on) for batch in batches],
        {"split": "train", "samples": len(drawn), "seed": seed, "sha256": digest, **record},
        [device.move(batch, on) for batch in batches] if labelled else [],
    )


def elsewhere(exam: Exam, source: str, cache: Path, seed: int) -> Prepared:
    """Another source, as the checkpoint's own tokenizer and labels read it; all of it that it does not hold out itself."""
    data = exam.data.all_of(source)
    return exam.task.prepare(data, ModelOptions(), seed=seed, cache=cache, processor=exam.checkpoint.path)


def _batches(split: Split, rows: Sequence[int], size: int) -> list[Batch]:
    return [split.batch(rows[start : start + size]) for start in range(0, len(rows), size)]


def _bytes(batch: Batch) -> bytes:
    return b"".join(batch[name].contiguous().numpy().tobytes() for name in sorted(batch))
