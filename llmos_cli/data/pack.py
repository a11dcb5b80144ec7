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
from numpy.typing import NDArray

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
        starts = [self.starts[row] for row in rows]
        return _shifted([self.tokens[start : start + self.length + 1] for start in starts], self.length, self.end)

    def bytes(self, rows: Sequence[int]) -> int:
        starts = [self.starts[row] + 1 for row in rows]
        return sum(int(self.byte_counts[start : start + self.length].sum()) for start in starts)


class Separate:
    """Texts each on its own, END before and after, in memory: to judge them one by one. `owner[s]` is the text of sample s."""

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, length: int) -> None:
        self.length, self.end = length, end_of_text(tokenizer)
        count = ByteCounter(tokenizer)
        self.owner: list[int] = []
        self.chunks: list[NDArray[np.int64]] = []
        self.sizes: list[int] = []
        for owner, (text, ids) in enumerate(zip(texts, encoded(texts, tokenizer), strict=True)):
            stream, sizes = np.array([self.end, *ids, self.end], np.int64), np.array([0, *count(text, ids), 0])
            for start in range(0, len(stream) - 1, length):
                self.owner.append(owner)
                self.chunks.append(stream[start : start + length + 1])
                self.sizes.append(int(sizes[start + 1 : start + length + 1].sum()))

    def __len__(self) -> int:
        return len(self.chunks)

    def batch(self, rows: Sequence[int], *, augment_seed: int | None = None) -> dict[str, torch.Tensor]:
        return _shifted([self.chunks[row] for row in rows], self.length, self.end)

    def bytes(self, rows: Sequence[int]) -> int:
        return sum(self.sizes[row] for row in rows)


def _shifted(chunks: Sequence[NDArray[Any]], length: int, end: int) -> dict[str, torch.Tensor]:
    """Chunks of at most `length` + 1 tokens as inputs and the tokens after them."""
    padded = torch.full((len(chunks), length + 1), -100)
    for row_L, chunk in zip(padded, chunks, strict=True):
        row_L[: len(chunk)] = torch.from_numpy(chunk.astype(np.int64))
    inputs = padded[:, :-1]
    return {"input_ids": inputs.masked_fill(inputs < 0, end), "labels": padded[:, 1:].contiguous()}


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
