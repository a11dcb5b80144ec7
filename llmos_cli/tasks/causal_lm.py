"""causal-lm: predict the next token of packed text; judged in bits per byte, which no choice of tokenizer can flatter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llmos_cli.data.pack import Packed, Separate, packed
from llmos_cli.data.sources import load
from llmos_cli.data.tokenize import end_of_text, existing, identity
from llmos_cli.options.data import DataOptions
from llmos_cli.options.model import ModelOptions
from llmos_cli.tasks.base import Outcome, Prediction, Prepared, Task, expect
from llmos_cli.tasks.scoring import evaluate
from llmos_cli.tasks.text import check_length, length_of, text_facts, tokenizer_for


class CausalLM(Task):
    name = "causal-lm"
    architecture = "ForCausalLM"
    metric = "bits_per_byte"
    lower_is_better = True
    shares = frozenset({"accuracy"})
    columns = ("text",)
    default_dtype = torch.bfloat16

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
        texts, key = loaded.train("text"), loaded.key("train")
        tokenizer = tokenizer_for(texts, data, processor=processor, key=key, cache=cache, classifies=False)
        splits = {}
        for name, rows in loaded.splits.items():
            stream = packed(rows["text"], tokenizer, key=loaded.key(name), cache=cache)
            limit = data.max_samples if name == "train" else data.max_eval_samples
            splits[name] = Packed(stream, length=data.sequence_length, end=end_of_text(tokenizer), limit=limit)
        facts = text_facts(tokenizer, data)
        fingerprint = {**loaded.fingerprint, "tokenizer": identity(tokenizer)}
        return Prepared(splits, facts, fingerprint, tokenizer, loaded.notes)

    def metrics(self, outcome: Outcome, facts: Mapping[str, Any]) -> dict[str, float]:
        """`loss` in nats per token, its exponential, bits per byte (the END after each document counted in the bits)."""
        loss = outcome.mean(outcome.nll_N)
        metrics = {
            "bits_per_byte": loss * outcome.positions() / math.log(2) / outcome.bytes,
            "perplexity": math.exp(min(loss, 700.0)),
            "loss": loss,
            "accuracy": outcome.mean(outcome.predicted_N == outcome.labels_N),
        }
        return metrics | {name: outcome.mean(column) for name, column in outcome.extra.items()}

    def load_processor(self, directory: Path) -> Any:
        return existing(directory)

    def inputs(self, rows: Sequence[Any], facts: Mapping[str, Any], processor: Any) -> Separate:
        expect(rows, lambda row: isinstance(row, str), "a text")
        return Separate(rows, processor, length=length_of(processor, facts))

    def predict(
        self, model: nn.Module, rows: Sequence[Any], facts: Mapping[str, Any], processor: Any, *, batch_size: int
    ) -> list[Prediction]:
        """How likely each text is: the sums of `nll` (nats) over the texts of a packed split are its loss, but for cold starts."""
        split = self.inputs(rows, facts, processor)
        if not rows:
            return []
        outcome = evaluate(self, model, split, batch_size=batch_size, stage="predict")
        owners = np.asarray(split.owner)[outcome.sample_N.numpy()]
        nll = np.bincount(owners, weights=outcome.nll_N.double().numpy(), minlength=len(rows))
        tokens = np.bincount(owners, minlength=len(rows))
        sizes = np.bincount(split.owner, weights=split.sizes, minlength=len(rows))
        return [
            Prediction(scores={"nll": float(n), "tokens": int(t), "bytes": int(b), "bits_per_byte": _bits(n, b)})
            for n, t, b in zip(nll, tokens, sizes, strict=True)
        ]


def _bits(nll: float, size: float) -> float:
    """Bits per byte; of an empty text none."""
    return float(nll / math.log(2) / size) if size else 0.0


TASK = CausalLM()
