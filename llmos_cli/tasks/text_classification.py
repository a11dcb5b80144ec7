"""text-classification: one class for each text; judged by accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from llmos_cli.data import encode
from llmos_cli.data.sources import load
from llmos_cli.data.tokenize import existing, identity
from llmos_cli.options.data import DataOptions
from llmos_cli.options.model import ModelOptions
from llmos_cli.tasks import classification
from llmos_cli.tasks.base import Outcome, Prediction, Prepared, Split, Task, expect
from llmos_cli.tasks.labels import class_names, facts_of, numbers
from llmos_cli.tasks.text import check_length, length_of, text_facts, tokenizer_for


class TextClassification(Task):
    name = "text-classification"
    architecture = "ForSequenceClassification"
    metric = "accuracy"
    lower_is_better = False
    shares = classification.SHARES
    columns = ("text", "label")

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
        check_length(data, model, processor)
        loaded = load(data, self.columns, cache=cache)
        tokenizer = tokenizer_for(
            loaded.train("text"), data, processor=processor, key=loaded.key("train"), cache=cache, classifies=True
        )
        names = class_names(loaded.train("label"), processor, relabel=relabel, source=loaded.name)
        splits: dict[str, Split] = {}
        notes = list(loaded.notes)
        for name, rows in loaded.limited(data).items():
            splits[name] = split = encode.texts(
                rows["text"],
                tokenizer,
                numbers(rows["label"], names, split=name),
                length=data.sequence_length,
                key=[loaded.key(name), len(rows)],
                cache=cache,
                augment=data.augment,
            )
            if split.cut:
                notes.append(
                    f"{split.cut} of {len(split)} {name} texts are longer than {data.sequence_length} tokens and were cut"
                )
        facts = {**text_facts(tokenizer, data), **facts_of(names)}
        return Prepared(
            splits, facts, {**loaded.fingerprint, "tokenizer": identity(tokenizer)}, tokenizer, tuple(notes)
        )

    def metrics(self, outcome: Outcome, facts: Mapping[str, Any]) -> dict[str, float]:
        return classification.metrics(outcome)

    def load_processor(self, directory: Path) -> Any:
        return existing(directory)

    def inputs(self, rows: Sequence[Any], facts: Mapping[str, Any], processor: Any) -> Split:
        expect(rows, lambda row: isinstance(row, str), "a text")
        return encode.unlabelled_texts(rows, processor, length=length_of(processor, facts))

    def predict(
        self, model: nn.Module, rows: Sequence[Any], facts: Mapping[str, Any], processor: Any, *, batch_size: int
    ) -> list[Prediction]:
        return classification.one_each(self, model, self.inputs(rows, facts, processor), facts, batch_size=batch_size)


TASK = TextClassification()
