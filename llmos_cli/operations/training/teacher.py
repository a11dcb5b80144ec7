"""The teacher of a training run: which checkpoint, whether it can teach this model, and in which form it does.

It runs in every step, or what it says of the training split is computed once and read from the cache (`train.teacher_top`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from llmos_cli import device, tasks
from llmos_cli.core.config import Resolved
from llmos_cli.core.view import short
from llmos_cli.data.pixels import Pixels
from llmos_cli.errors import UsageError
from llmos_cli.events import Emit, Note
from llmos_cli.models.load import load
from llmos_cli.operations.training import hidden, top
from llmos_cli.operations.training.precision import autocast, precision_of
from llmos_cli.operations.training.top import Cached
from llmos_cli.options.verbs import TrainOptions
from llmos_cli.tasks.base import Task
from llmos_cli.tasks.labels import names_of
from llmos_cli.tasks.text import positions

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Checkpoint, Workspace
    from llmos_cli.operations.training.start import Start

SHARING = (
    "A teacher must share the model's task, vocabulary and labels: train without REV, or from one that shares them."
)


def chosen(ws: Workspace, resolved: Resolved) -> tuple[Checkpoint | None, Resolved]:
    """The teacher, and the config that names it by its id: what REV means may be another checkpoint tomorrow."""
    rev = resolved.mapping["train"]["teacher"]
    options: TrainOptions = resolved.config.train
    if options.teacher is None:
        return None, resolved
    teacher = ws.checkpoint(rev)
    named = {**resolved.mapping, "train": {**resolved.mapping["train"], "teacher": teacher.id}}
    return teacher, replace(resolved, mapping=named)


def check_task(teacher: Checkpoint, task: Task) -> None:
    """Before its tokenizer and labels are taken for the data."""
    theirs = tasks.of_checkpoint(teacher.manifest, teacher.config_json())
    if theirs.name != task.name:
        raise UsageError(f"The teacher {short(teacher.id)} does {theirs.name}, the model {task.name}.", hint=SHARING)


def check(teacher: Checkpoint, begin: Start, model: nn.Module, options: TrainOptions) -> None:
    """That class n is the same class to both, and their inputs mean the same; UsageError says what differs."""
    config = teacher.config_json()
    differs = (
        _of_labels(names_of(config), names_of(begin.prepared.facts))
        or _of_processors(begin.task.load_processor(teacher.path), begin.prepared.processor)
        or _of_classes(_classes(config), _classes(model.config.to_dict()))  # type: ignore[union-attr,operator]
        or _of_lengths(config, begin.data.sequence_length, begin.prepared.facts)
    )
    if differs:
        raise UsageError(f"The teacher {short(teacher.id)} {differs}.", hint=SHARING)
    if options.teacher_top is not None:
        _check_cacheable(begin, options)


def _of_labels(theirs: Sequence[str], ours: Sequence[str]) -> str:
    if not ours or theirs == ours:
        return ""
    missing, extra = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    told = [f"lacks the label {_some(missing)}"] if missing else []
    told += [f"has the label {_some(extra)}, which the model lacks"] if extra else []
    return " and ".join(told) or "numbers the labels in another order than the model"


def _of_processors(theirs: Any, ours: Any) -> str:
    if isinstance(ours, Pixels):
        return "" if theirs == ours else "takes images of another size, colour or normalisation than the model"
    theirs, ours = theirs.get_vocab(), ours.get_vocab()
    if theirs == ours:
        return ""
    differing = len(set(theirs.items()) ^ set(ours.items()))
    return f"has another vocabulary than the model ({len(theirs):,} and {len(ours):,} tokens, {differing:,} not shared)"


def _of_classes(theirs: int, ours: int) -> str:
    return "" if theirs == ours else f"has other classes than the model ({theirs:,} and {ours:,} of them)"


def _of_lengths(config: Mapping[str, Any], length: int, facts: Mapping[str, Any]) -> str:
    limits = positions(config)
    if "sequence_length" not in facts or not limits or length <= min(limits):
        return ""
    return f"has {min(limits)} positions, and data.sequence_length is {length}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _classes(config: Mapping[str, Any]) -> int:
    if any(name.endswith("ForCausalLM") for name in config.get("architectures") or ()):
        return int(config["vocab_size"])
    return len(config.get("id2label") or {})


def _check_cacheable(begin: Start, options: TrainOptions) -> None:
    if getattr(begin.prepared.splits["train"], "augment", False):
        raise UsageError(
            "train.teacher_top cannot be used with data.augment: augmented samples are others in each epoch.",
            hint="Unset train.teacher_top, so that the teacher sees each sample as the model does, or data.augment.",
        )
    if options.hidden_weight:
        raise UsageError(
            "train.teacher_top keeps the teacher's logits alone, and train.hidden_weight asks for its hidden states.",
            hint="Unset one of the two.",
        )


def vocabulary(teacher: Checkpoint, begin: Start) -> Start:
    """A new model with as many logits as its teacher, which may have some beyond the tokenizer's."""
    classes = _classes(teacher.config_json())
    if begin.task.name != "causal-lm" or classes <= begin.prepared.facts["vocab_size"]:
        return begin
    return replace(begin, prepared=replace(begin.prepared, facts={**begin.prepared.facts, "vocab_size": classes}))


def teaching(
    ws: Workspace, teacher: Checkpoint, begin: Start, options: TrainOptions, *, emit: Emit
) -> nn.Module | Cached:
    """The teacher on its device; or, with `teacher_top`, what it says of the training split, without the model in memory."""
    read = partial(_loaded, teacher)
    if options.teacher_top is None:
        return read()
    key, split, on = _key(teacher, begin, options), begin.prepared.splits["train"], device.pick()
    if top.known(ws.cache, key):
        emit(Note(f"what {short(teacher.id)} says of {len(split):,} samples is in the cache: the teacher does not run"))
    return top.cached(
        ws.cache,
        key,
        split,
        read,
        classes=_classes(teacher.config_json()),
        k=options.teacher_top,
        temperature=options.temperature,
        autocast=partial(autocast, options, on),
        emit=emit,
    )


def _loaded(teacher: Checkpoint) -> nn.Module:
    return device.move(load(teacher.path), device.pick())


def _key(teacher: Checkpoint, begin: Start, options: TrainOptions) -> Any:
    """All that the top logits depend on: the temperature too, for the rest's weight at another one cannot be told from it."""
    fingerprint = begin.prepared.fingerprint
    return [
        "top/1",
        teacher.id,
        fingerprint["splits"]["train"],
        fingerprint.get("tokenizer"),
        [begin.data.sequence_length, begin.data.max_samples, len(begin.prepared.splits["train"])],
        [options.teacher_top, options.temperature, str(precision_of(options, device.pick()))],
    ]


def planned(ws: Workspace, teacher: Checkpoint, begin: Start, model: nn.Module, options: TrainOptions) -> str:
    """What a run would do with its teacher, in words; UsageError for what it would refuse."""
    check(teacher, begin, model, options)
    if options.hidden_weight:
        sample = device.move(begin.prepared.splits["train"].batch([0]), device.pick())
        pairs = hidden.matching(model, _loaded(teacher), sample, seed=0).pairs
        return f"computed in every step, hidden states of {len(pairs)} pairs of layers compared"
    if options.teacher_top is None:
        return "computed in every step"
    made = "in the cache" if top.known(ws.cache, _key(teacher, begin, options)) else "to be computed once"
    return f"top {options.teacher_top:,} and the rest, {made}"
