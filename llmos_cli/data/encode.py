"""Encoding: texts or words as ids for classifiers, computed once, padded batch by batch.

Batches are padded on the right to a multiple of 16 positions: few different shapes, little wasted. A text that is
longer than the sequence length is cut; words that are, go on in a further sample, so that every word is judged once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmos_cli.data import cache as store
from llmos_cli.data.tokenize import backend_of, batched, encoded, identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MULTIPLE = 16
DROPPED = 0.1
"""Share of a text's tokens that augmentation leaves out, anew in each epoch: what a class hangs on must not be one word."""
UNSCORED = -100


class Padded:
    """Samples of ids of their own length: `ids` of sample s are `ids[ends[s-1]:ends[s]]`.

    `labels` is either one number a sample or, where `words` is given, one a word: `words[i]` is the number of the word
    that id i begins (its first subword, which is the one judged), -1 elsewhere. `owner[s]` is the row that sample s came
    from, `cut` how many texts lost their end.
    """

    def __init__(
        self, columns: Mapping[str, Any], labels: Any, *, length: int, pad: int, cut: int = 0, augment: bool = False
    ) -> None:
        self.ids, self.words = columns["ids"], columns.get("words")
        self.lengths = np.asarray(columns["lengths"], np.int64)
        self.ends = np.concatenate([[0], np.cumsum(self.lengths)])
        self.owner = np.asarray(columns["owner"], np.int64) if "owner" in columns else np.arange(len(self.lengths))
        self.labels = np.asarray(labels, np.int64)
        self.length, self.pad, self.cut, self.augment = length, pad, cut, augment

    def __len__(self) -> int:
        return len(self.ends) - 1

    def batch(self, rows: Sequence[int], *, augment_seed: int | None = None) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` [B, L], `labels` [B] (texts) or [B, L] (words); texts are thinned out where the
        split is augmented and a seed is given."""
        slices = [slice(self.ends[row], self.ends[row + 1]) for row in rows]
        pieces = [np.asarray(self.ids[piece], np.int64) for piece in slices]
        if self.augment and augment_seed is not None and self.words is None:
            pieces = _thinned(pieces, augment_seed)
        longest = max(map(len, pieces))
        width = min(-(-longest // MULTIPLE) * MULTIPLE, max(self.length, longest))
        ids, mask = np.full((len(slices), width), self.pad, np.int64), np.zeros((len(slices), width), np.int64)
        for place, piece in enumerate(pieces):
            ids[place, : len(piece)] = piece
            mask[place, : len(piece)] = 1
        labels = self.labels[list(rows)] if self.words is None else self._of_words(self.words, slices, width)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
        }

    def _of_words(self, words: Any, slices: Sequence[slice], width: int) -> Any:
        labels = np.full((len(slices), width), UNSCORED, np.int64)
        for place, piece in enumerate(slices):
            first = np.asarray(words[piece])
            labels[place, : len(first)] = np.where(first >= 0, self.labels[first], UNSCORED)
        return labels

    def bytes(self, rows: Sequence[int]) -> int:
        return 0


def _thinned(pieces: Sequence[NDArray[np.int64]], seed: int) -> list[NDArray[np.int64]]:
    """Texts without some of their tokens; the first, which may be the one that stands for the class, stays."""
    random = np.random.default_rng(seed)
    return [np.concatenate([ids[:1], ids[1:][random.random(len(ids) - 1) >= DROPPED]]) for ids in pieces]


Pieces = Iterator[dict[str, list[int]]]
"""One dict a sample: what it adds to each column."""
TEXT_COLUMNS = {"ids": "<u4", "lengths": "<u4", "cut": "<u1"}
WORD_COLUMNS = {"ids": "<u4", "words": "<i4", "lengths": "<u4", "owner": "<u4"}


def texts(
    rows: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    labels: Sequence[int],
    *,
    length: int,
    key: Any,
    cache: Path,
    augment: bool = False,
) -> Padded:
    """Each text as one sample of at most `length` ids (thinned out in training with `augment`); encoded once for each `key`, which must name the texts."""
    place = store.entry(
        cache,
        "encodings",
        ["texts/1", identity(tokenizer), length, key],
        lambda directory: store.write(directory, TEXT_COLUMNS, _texts(rows, tokenizer, length)),
    )
    columns = store.columns(place)
    cut = int(columns["cut"].sum())
    return Padded(columns, labels, length=length, pad=pad_id(tokenizer), cut=cut, augment=augment)


def words(
    rows: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerFast,
    labels: Sequence[int],
    *,
    length: int,
    key: Any,
    cache: Path,
) -> Padded:
    """Each list of words as one sample or several of at most `length` ids; `labels` of all words, one after the other."""
    place = store.entry(
        cache,
        "encodings",
        ["words/1", identity(tokenizer), length, key],
        lambda directory: store.write(directory, WORD_COLUMNS, _words(rows, tokenizer, length)),
    )
    return Padded(store.columns(place), labels, length=length, pad=pad_id(tokenizer))


def unlabelled_texts(rows: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, length: int) -> Padded:
    """Texts to predict on, in memory."""
    columns = store.gathered(TEXT_COLUMNS, _texts(rows, tokenizer, length))
    return Padded(columns, [0] * len(rows), length=length, pad=pad_id(tokenizer), cut=int(columns["cut"].sum()))


def unlabelled_words(rows: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerFast, *, length: int) -> Padded:
    """Lists of words to predict on, in memory."""
    columns = store.gathered(WORD_COLUMNS, _words(rows, tokenizer, length))
    return Padded(columns, [0] * sum(map(len, rows)), length=length, pad=pad_id(tokenizer))


def _texts(rows: Sequence[str], tokenizer: PreTrainedTokenizerFast, length: int) -> Pieces:
    prefix, suffix = _around(tokenizer)
    room = length - len(prefix) - len(suffix)
    for body in encoded(rows, tokenizer):
        ids = [*prefix, *body[:room], *suffix] or [pad_id(tokenizer)]
        yield {"ids": ids, "lengths": [len(ids)], "cut": [len(body) > room]}


def _words(rows: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerFast, length: int) -> Pieces:
    for owner, ids, first in _windows(rows, tokenizer, length):
        yield {"ids": ids, "words": first, "lengths": [len(ids)], "owner": [owner]}


def _windows(
    rows: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerFast, length: int
) -> Iterator[tuple[int, list[int], list[int]]]:
    """(row, ids, number of the word each id begins or -1), cut between words where a row is too long."""
    before, prefix, suffix = 0, *_around(tokenizer)
    room = length - len(prefix) - len(suffix)

    def finished(ids: list[int], first: list[int]) -> tuple[list[int], list[int]]:
        whole = [*prefix, *ids, *suffix]
        marks = [*[-1] * len(prefix), *first, *[-1] * len(suffix)]
        return (whole, marks) if whole else ([pad_id(tokenizer)], [-1])

    for row, pieces in enumerate(_pieces(rows, tokenizer)):
        ids: list[int] = []
        first: list[int] = []
        for word, piece in enumerate(pieces):
            kept = piece[:room]
            if len(ids) + len(kept) > room:
                yield row, *finished(ids, first)
                ids, first = [], []
            ids += kept
            first += [before + word] + [-1] * (len(kept) - 1)
        yield row, *finished(ids, first)
        before += len(pieces)


def _pieces(rows: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerFast) -> Iterator[list[list[int]]]:
    """The ids of each word of each row; a word that the tokenizer drops (a lone control character) is its unknown or end token."""
    backend = backend_of(tokenizer)
    nothing = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else pad_id(tokenizer)
    for batch in batched(rows):
        for row, encoding in zip(
            batch, backend.encode_batch(batch, is_pretokenized=True, add_special_tokens=False), strict=True
        ):
            pieces: list[list[int]] = [[] for _ in row]
            for token, word in zip(encoding.ids, encoding.word_ids, strict=True):
                if word is not None:
                    pieces[word].append(token)
            yield [piece or [nothing] for piece in pieces]


def _around(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """The special ids that a classifier's tokenizer puts before and after a text."""
    encoding = backend_of(tokenizer).encode("x")
    body = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    return encoding.ids[: body[0]], encoding.ids[body[-1] + 1 :]


def pad_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Any id will do where a tokenizer has none for padding: the attention mask hides it."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)
