"""Packing: documents end to end in one stream of tokens, cut into sequences of one length.

    END doc END doc END ... doc END        every position but the first is predicted from those before it

Sequence k holds tokens [kL, (k+1)L) and predicts tokens [kL+1, (k+1)L]: no padding but in the last one, and every token
of the split is predicted exactly once, in training and in evaluation. Attention may look across an END into the document
before (as in GPT-2 and nanoGPT: what it costs at these lengths is less than what masks cost in speed); the context is
cold at the start of each sequence. The END after a document is predicted too, and stands for no byte of text.

bits per byte = (negative log-likelihood of all tokens, END included) / ln 2 / (UTF-8 bytes of the text).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmos_cli.data import cache as store
from llmos_cli.data.tokenize import ByteCounter, encoded, end_of_text, identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Packed:
    """A split of sequences over a memory-mapped stream: `limit` keeps that many, evenly spaced."""

    def __init__(self, directory: Path, *, length: int, end: int, limit: int | None = None) -> None:
        stream = store.columns(directory)
        self.tokens, self.byte_counts = stream["tokens"], stream["bytes"]
        self.length, self.end = length, end
        sequences = -(-(len(self.tokens) - 1) // length)
        kept = sequences if limit is None else min(limit, sequences)
        self.starts = [i * sequences // kept * length for i in range(kept)]

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, rows: Sequence[int], *, augment_seed: int | None = None) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, [B, L]: `labels[b, i]` is the token after `input_ids[b, i]`."""
        chunk = torch.full((len(rows), self.length + 1), -100)
        for row_L, row in zip(chunk, rows, strict=True):
            tokens = self.tokens[self.starts[row] : self.starts[row] + self.length + 1]
            row_L[: len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        inputs = chunk[:, :-1]
        return {"input_ids": inputs.masked_fill(inputs < 0, self.end), "labels": chunk[:, 1:].contiguous()}

    def bytes(self, rows: Sequence[int]) -> int:
        starts = [self.starts[row] + 1 for row in rows]
        return sum(int(self.byte_counts[start : start + self.length].sum()) for start in starts)


def packed(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, key: Any, cache: Path) -> Path:
    """The stream of `texts`, tokenised once for each `key` (which must name them) and tokenizer."""

    dtypes = {"tokens": "<u2" if len(tokenizer) <= 2**16 else "<u4", "bytes": "<u4"}
    return store.entry(
        cache,
        "streams",
        ["stream/1", identity(tokenizer), key],
        lambda directory: store.write(directory, dtypes, _stream(texts, tokenizer)),
    )


def _stream(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, Any]]:
    end, count = end_of_text(tokenizer), ByteCounter(tokenizer)
    yield {"tokens": [end], "bytes": [0]}
    for text, ids in zip(texts, encoded(texts, tokenizer), strict=True):
        yield {"tokens": [*ids, end], "bytes": [*count(text, ids), 0]}
