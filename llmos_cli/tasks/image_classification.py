"""image-classification: one class for each image; judged by accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llmos_cli.data import pixels
from llmos_cli.data.augment import augmented
from llmos_cli.data.pixels import Pixels
from llmos_cli.data.rows import Rows
from llmos_cli.data.sources import load
from llmos_cli.options.data import DataOptions
from llmos_cli.options.model import ModelOptions
from llmos_cli.tasks import classification
from llmos_cli.tasks.base import Batch, Outcome, Prediction, Prepared, Split, Task
from llmos_cli.tasks.labels import class_names, facts_of, numbers

LARGEST_SIDE = 64
"""Images become squares of their shorter side, at most this, unless `model.image_size` says otherwise."""


class Images:
    """A split of images held as bytes."""

    def __init__(self, images_NCHW: Any, labels: Sequence[int], scale: Pixels, *, augment: bool = False) -> None:
        self.images_NCHW, self.labels_N = images_NCHW, np.asarray(labels, np.int64)
        self.scale, self.augment = scale, augment

    def __len__(self) -> int:
        return len(self.labels_N)

    def batch(self, rows: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        """`pixel_values` [B, C, S, S], `labels` [B]; augmented where the split is and a seed is given."""
        chosen = list(rows)
        images_BCHW = self.scale.normalised(self.images_NCHW[chosen])
        if self.augment and augment_seed is not None:
            images_BCHW = augmented(images_BCHW, seed=augment_seed)
        return {"pixel_values": images_BCHW, "labels": torch.from_numpy(self.labels_N[chosen])}

    def bytes(self, rows: Sequence[int]) -> int:
        return 0


class ImageClassification(Task):
    name = "image-classification"
    architecture = "ForImageClassification"
    metric = "accuracy"
    lower_is_better = False
    shares = classification.SHARES
    columns = ("image", "label")

    def prepare(
        self,
        data: DataOptions,
        model: ModelOptions,
        *,
        seed: int,
        cache: Path,
        processor: Path | None = None,
        relabel: bool = False,
    ) -> Prepared:
        loaded = load(data, self.columns, cache=cache)
        limited = loaded.limited(data)
        names = class_names(loaded.train("label"), processor, relabel=relabel, source=loaded.name)
        scale = Pixels.load(processor) if processor is not None else _shape(limited["train"], model)
        images = {
            name: pixels.shaped(rows["image"], scale, key=[loaded.key(name), len(rows)], cache=cache)
            for name, rows in limited.items()
        }
        if processor is None:
            mean, std = pixels.statistics(images["train"])
            scale = replace(scale, mean=mean, std=std)
        splits = {
            name: Images(images[name], numbers(rows["label"], names, split=name), scale, augment=data.augment)
            for name, rows in limited.items()
        }
        facts = {"image_size": scale.size, "num_channels": scale.channels, **facts_of(names)}
        return Prepared(splits, facts, loaded.fingerprint, scale, loaded.notes)

    def metrics(self, outcome: Outcome, facts: Mapping[str, Any]) -> dict[str, float]:
        return classification.metrics(outcome)

    def load_processor(self, directory: Path) -> Pixels:
        return Pixels.load(directory)

    def inputs(self, rows: Sequence[Any], facts: Mapping[str, Any], processor: Any) -> Split:
        shape = (len(rows), processor.channels, processor.size, processor.size)
        images = np.asarray([processor.shaped(image) for image in rows], np.uint8).reshape(shape)
        return Images(images, [0] * len(rows), processor)

    def predict(
        self, model: nn.Module, rows: Sequence[Any], facts: Mapping[str, Any], processor: Any, *, batch_size: int
    ) -> list[Prediction]:
        return classification.one_each(self, model, self.inputs(rows, facts, processor), facts, batch_size=batch_size)


def _shape(train: Rows, model: ModelOptions) -> Pixels:
    """The shape of the first image, which stands for the others: squared, and grey only if it is."""
    first = pixels.opened(train["image"][0])
    size = model.width("image_size") or min(*first.shape[:2], LARGEST_SIDE)
    channels = model.width("num_channels") or (1 if first.ndim == 2 else 3)
    return Pixels(int(size), int(channels), (0.0,) * int(channels), (1.0,) * int(channels))


TASK = ImageClassification()
