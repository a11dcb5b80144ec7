"""token-classification: one tag for each word; judged by macro F1, and by entities where tags are BIO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from llmos_cli.data import encode
from llmos_cli.data.rows import Rows
from llmos_cli.data.sources import load
from llmos_cli.data.tokenize import existing, identity
from llmos_cli.errors import UsageError
from llmos_cli.options.data import DataOptions
from llmos_cli.options.model import ModelOptions
from llmos_cli.tasks import classification, scoring
from llmos_cli.tasks.base import Outcome, Prediction, Prepared, Split, Task, expect
from llmos_cli.tasks.labels import class_names, facts_of, names_of, numbers
from llmos_cli.tasks.text import check_length, length_of, text_facts, tokenizer_for


class TokenClassification(Task):
    name = "token-classification"
    architecture = "ForTokenClassification"
    metric = "macro_f1"
    lower_is_better = False
    shares = classification.SHARES | {"token_f1", "entity_f1"}
    columns = ("tokens", "tags")

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
            _Joined(loaded.train("tokens")),
            data,
            processor=processor,
            key=loaded.key("train"),
            cache=cache,
            classifies=True,
        )
        trained = chain.from_iterable(loaded.train("tags"))
        names = class_names(trained, processor, relabel=relabel, source=loaded.name)
        splits: dict[str, Split] = {}
        for name, rows in loaded.limited(data).items():
            splits[name] = encode.words(
                rows["tokens"],
                tokenizer,
                numbers(_tags(rows, name), names, split=name),
                length=data.sequence_length,
                key=[loaded.key(name), len(rows)],
                cache=cache,
            )
        facts = {**text_facts(tokenizer, data), **facts_of(names)}
        return Prepared(
            splits, facts, {**loaded.fingerprint, "tokenizer": identity(tokenizer)}, tokenizer, loaded.notes
        )

    def metrics(self, outcome: Outcome, facts: Mapping[str, Any]) -> dict[str, float]:
        """Beside what all classifiers report: micro F1 over the words that are something (`token_f1`), and over entities."""
        names = names_of(facts)
        metrics = classification.metrics(outcome)
        if "O" in names:
            metrics["token_f1"] = classification.Counts.of(outcome).micro_f1(names.index("O"))
        if classification.looks_like_bio(names):
            metrics["entity_f1"] = classification.entity_f1(outcome, names)
        return metrics

    def load_processor(self, directory: Path) -> Any:
        return existing(directory)

    def inputs(self, rows: Sequence[Any], facts: Mapping[str, Any], processor: Any) -> encode.Padded:
        expect(rows, _words, "a list of words")
        return encode.unlabelled_words(rows, processor, length=length_of(processor, facts))

    def predict(
        self, model: nn.Module, rows: Sequence[Any], facts: Mapping[str, Any], processor: Any, *, batch_size: int
    ) -> list[Prediction]:
        names, split = names_of(facts), self.inputs(rows, facts, processor)
        tags: list[list[str]] = [[] for _ in rows]
        confidences: list[list[float]] = [[] for _ in rows]
        for probabilities_NC, sample_N in scoring.probabilities(self, model, split, batch_size=batch_size):
            best_N, class_N = probabilities_NC.max(-1)
            for row, kind, best in zip(split.owner[sample_N.numpy()], class_N.tolist(), best_N.tolist(), strict=True):
                tags[row].append(names[kind])
                confidences[row].append(best)
        return [Prediction(tags=tuple(t), confidences=tuple(c)) for t, c in zip(tags, confidences, strict=True)]


def _words(row: Any) -> bool:
    return isinstance(row, list | tuple) and all(isinstance(word, str) for word in row)


class _Joined(Sequence[str]):
    """Rows of words as texts for the tokenizer's training: a line break between words, so that none grows a space."""

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return "\n".join(self.rows[index])


def _tags(rows: Rows, split: str) -> list[str]:
    """All tags of a split, one after the other; each row must have one for each word."""
    for row, (words, tags) in enumerate(zip(rows["tokens"], rows["tags"], strict=True)):
        if len(words) != len(tags):
            raise UsageError(
                f"row {row + 1} of the {split} split has {len(words)} words and {len(tags)} tags",
                hint="Each word needs exactly one tag.",
            )
    flat: Iterable[str] = chain.from_iterable(rows["tags"])
    return list(flat)


TASK = TokenClassification()
