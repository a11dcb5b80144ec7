"""What a training run starts from: which data, and which weights.

Without a revision: a new model. With one: its weights, and training continues where `model:` is absent or says the same
and the labels are the same; otherwise a new model is built and takes over the weights whose name and shape match.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedModel

from llmos_cli import device, tasks
from llmos_cli.errors import UsageError
from llmos_cli.events import Emit, Note
from llmos_cli.models.blocks import layers, weights
from llmos_cli.models.build import OWN_DEFAULTS, build, freeze_backbone, transfer
from llmos_cli.models.dequantize import is_quantized
from llmos_cli.models.load import load
from llmos_cli.operations import lineage
from llmos_cli.operations.config import no_task
from llmos_cli.operations.training import teacher as teaching
from llmos_cli.options.data import DataOptions
from llmos_cli.options.model import ModelOptions
from llmos_cli.options.verbs import TrainConfig
from llmos_cli.tasks.base import Prepared, Task

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Checkpoint, Workspace


PRUNED = 0.05
"""Share of zeros from which a model counts as pruned."""


@dataclass(frozen=True)
class Start:
    """`model`: the options that built it, or would; `new`: whether its weights are not simply the parent's."""

    task: Task
    data: DataOptions
    model: ModelOptions
    prepared: Prepared
    new: bool


def start(ws: Workspace, parent: Checkpoint | None, config: TrainConfig, teacher: Checkpoint | None = None) -> Start:
    """Prepare the data and decide on the model; nothing is built yet. `teacher` gives a new model its tokenizer and its labels."""
    data = config.data if parent is None else lineage.effective_data(ws, parent.id, config.data)
    task = _task(ws, parent, data)
    data = data.model_copy(update={"task": task.name})
    if teacher is not None:
        teaching.check_task(teacher, task)
    if parent is None:
        prepared = _prepare(ws, task, data, config, processor=teacher.path if teacher else None)
        begin = Start(task, data, config.model, prepared, new=True)
        return teaching.vocabulary(teacher, begin) if teacher else begin
    asked = _completed(parent, config.model)
    if not _same_model(parent, asked):
        return Start(task, data, asked, _prepare(ws, task, data, config, parent.path, relabel=True), new=True)
    return _continued(ws, parent, task, data, config)


def make_model(
    begin: Start, ws: Workspace, parent: Checkpoint | None, config: TrainConfig, emit: Emit
) -> PreTrainedModel:
    """The model on its device, in fp32, which is what optimizers need whatever the weights are stored in."""
    if parent is not None and not begin.new:
        model = load(parent.path, dtype=torch.float32)
        if not _holds(config):
            _warn_of_zeros(model, parent, emit)
        if config.train.quantize.bits is None:
            _warn_of_codes(parent, emit)
    else:
        facts = {**begin.prepared.facts, "sequence_length": begin.data.sequence_length}
        source = parent.config_json() if parent is not None else None
        model = build(begin.model, begin.task.name, facts, seed=config.seed, root=ws.root, source=source)
        if parent is not None:
            _take_over(model, parent, emit)
    if config.model.freeze == "backbone":
        freeze_backbone(model)
    return device.move(model, device.pick())


def _task(ws: Workspace, parent: Checkpoint | None, data: DataOptions) -> Task:
    if data.task is not None:
        return tasks.load(data.task)
    if parent is not None:
        return tasks.of_checkpoint(parent.manifest, parent.config_json())
    raise no_task(ws)


def _prepare(
    ws: Workspace,
    task: Task,
    data: DataOptions,
    config: TrainConfig,
    processor: Path | None = None,
    *,
    relabel: bool = False,
) -> Prepared:
    return task.prepare(data, config.model, seed=config.seed, cache=ws.cache, processor=processor, relabel=relabel)


def _completed(parent: Checkpoint, asked: ModelOptions) -> ModelOptions:
    """Sizes without an architecture are changes to the parent's own."""
    if asked.arch is not None or asked.module is not None or not asked.widths():
        return asked
    own = _recorded_model(parent, parent.config_json())
    return ModelOptions(**{**own, **asked.widths(), "freeze": asked.freeze, "dtype": asked.dtype})


def _same_model(parent: Checkpoint, asked: ModelOptions) -> bool:
    """Whether `model:` names no architecture, or the one the parent has: by what it was made with, else by its config.json."""
    if asked.arch is None and asked.module is None:
        return True
    recorded = parent.manifest.made.config.get("model")
    if recorded and recorded.get("arch", recorded.get("module")):
        return _identity(ModelOptions(**recorded)) == _identity(asked)
    has = parent.config_json()
    return asked.arch == has.get("model_type") and all(has.get(key) == value for key, value in asked.widths().items())


def _identity(options: ModelOptions) -> tuple[Any, ...]:
    return options.arch, options.module, sorted(options.widths().items())


def _continued(ws: Workspace, parent: Checkpoint, task: Task, data: DataOptions, config: TrainConfig) -> Start:
    """The parent's own model, unless the task or the labels are new and it needs another head."""
    has = parent.config_json()
    asked = ModelOptions(**{**_recorded_model(parent, has), "freeze": config.model.freeze, "dtype": config.model.dtype})
    if tasks.of_checkpoint(parent.manifest, has).name != task.name:
        return Start(task, data, asked, _prepare(ws, task, data, config, parent.path, relabel=True), new=True)
    if "labels" in task.columns or "label" in task.columns or "tags" in task.columns:
        relabelled = _prepare(ws, task, data, config, parent.path, relabel=True)
        if not _labels(relabelled.facts) <= _labels(has):
            return Start(task, data, asked, relabelled, new=True)
    return Start(task, data, asked, _prepare(ws, task, data, config, parent.path), new=False)


def _labels(facts: Mapping[str, Any]) -> set[str]:
    return set((facts.get("id2label") or {}).values())


def _recorded_model(parent: Checkpoint, has: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` section that would build the parent's architecture again."""
    recorded = dict(parent.manifest.made.config.get("model") or {})
    if recorded.get("arch") or recorded.get("module"):
        return recorded
    arch = has["model_type"]
    plain = CONFIG_MAPPING[arch]().to_dict()
    decided_by_data = {
        "vocab_size",
        "id2label",
        "label2id",
        "num_labels",
        "architectures",
        "transformers_version",
        "dtype",
    }
    names = CONFIG_MAPPING[arch].attribute_map
    unlike = {names.get(key, key) for key in OWN_DEFAULTS}
    widths = {key: value for key, value in has.items() if key in plain and (key in unlike or plain[key] != value)}
    return {"arch": arch, **{key: value for key, value in widths.items() if key not in decided_by_data}}


def _warn_of_codes(parent: Checkpoint, emit: Emit) -> None:
    """What is trained is in fp32, and is stored so that nothing is rounded again."""
    if is_quantized(parent.config_json()):
        emit(
            Note(
                f"{parent.id[:12]} is quantized, and what comes of this training is not; `train.quantize.bits` trains in few bits, "
                "and a parent that is trained first can be quantized after.",
                level="warning",
            )
        )


def _warn_of_zeros(model: PreTrainedModel, parent: Checkpoint, emit: Emit) -> None:
    """Training on labels alone moves every weight, pruned ones too; learning from a teacher, or in fewer bits, holds them."""
    zeros = _zeros(model)
    if zeros > PRUNED:
        emit(
            Note(
                f"{zeros:.0%} of the weights of {parent.id[:12]} are zero, and training will change them; "
                "`llmos prune --heal`, `train.teacher` and `train.quantize` train with them held.",
                level="warning",
            )
        )


def stored_dtype(begin: Start) -> torch.dtype:
    """The type that the checkpoint keeps its weights in."""
    named: torch.dtype = getattr(torch, begin.model.dtype) if begin.model.dtype else begin.task.default_dtype
    return named


def _holds(config: TrainConfig) -> bool:
    """Whether a pruned parent's zeros stay: where what is trained is to stand for that parent, smaller or by its teaching."""
    return config.train.teacher is not None or config.train.quantize.bits is not None


def held(
    begin: Start, ws: Workspace, parent: Checkpoint | None, model: PreTrainedModel, config: TrainConfig, emit: Emit
) -> dict[str, Tensor]:
    """Of a pruned parent that goes on learning from a teacher, or in fewer bits: parameter name -> True where a weight may differ
    from zero."""
    if parent is None or begin.new or not _holds(config):
        return {}
    zeros = _zeros(model)
    if zeros <= PRUNED and not any(made.made.operation == "prune" for made in lineage.line(ws, parent.id)):
        return {}
    emit(Note(f"{zeros:.0%} of the weights of {parent.id[:12]} are zero, and stay so."))
    pruned = {id(matrix) for matrix in _matrices(model)}
    return {name: p != 0 for name, p in model.named_parameters() if id(p) in pruned}


def _zeros(model: PreTrainedModel) -> float:
    """Their share of all compressible weights."""
    matrices = _matrices(model)
    return sum(int((matrix == 0).sum()) for matrix in matrices) / max(1, sum(matrix.numel() for matrix in matrices))


def _matrices(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    return [matrix for layer in layers(model).values() for matrix in weights(layer).values()]


def _take_over(model: PreTrainedModel, parent: Checkpoint, emit: Emit) -> None:
    moved = transfer(model, parent.path)
    if not moved.copied:
        raise UsageError(
            f"No weight of {parent.id[:12]} fits the model: no name and shape is the same.",
            hint="`--unset model` continues its training as the model that it is; without REV, training is from scratch.",
        )
    emit(
        Note(
            f"{len(moved.copied)} tensors come from {parent.id[:12]}; {len(moved.fresh)} are new{_listed(moved.fresh)}."
        )
    )
    if moved.unused:
        emit(
            Note(f"{len(moved.unused)} tensors of {parent.id[:12]} have no place in the model{_listed(moved.unused)}.")
        )


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f" ({shown})" if names else ""
