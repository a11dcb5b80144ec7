from __future__ import annotations

import pytest

from llmos_cli.data import encode
from llmos_cli.data.tokenize import CLASS, bpe

WORDS = [["The", "quick", "brown", "fox"], ["jumps"], [], ["over", "the", "lazy", "dog", "\u200b", "again"]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return bpe(
        ["\n".join(row) for row in WORDS], vocab_size=270, key="w", cache=tmp_path_factory.mktemp("c"), classifies=True
    )


def test_texts_start_with_the_class_token_and_are_cut(tokenizer, tmp_path):
    split = encode.texts(["fox", "The quick brown fox again"], tokenizer, [1, 0], length=12, key="k", cache=tmp_path)
    batch = split.batch([1, 0])
    assert split.cut == 1
    assert batch["input_ids"].shape == (2, 12) and batch["labels"].tolist() == [0, 1]
    assert batch["input_ids"][:, 0].tolist() == [tokenizer.convert_tokens_to_ids(CLASS)] * 2
    assert batch["attention_mask"].sum(1).tolist() == [12, int(split.ends[1])]
    assert (batch["input_ids"][1][batch["attention_mask"][1] == 0] == tokenizer.pad_token_id).all()


@pytest.mark.parametrize("length", [8, 12, 64])
def test_every_word_is_judged_once_at_its_first_subword(tokenizer, tmp_path, length):
    flat = [word for row in WORDS for word in row]
    split = encode.words(WORDS, tokenizer, list(range(len(flat))), length=length, key=["k", length], cache=tmp_path)
    labels = split.batch(range(len(split)))["labels"]
    assert labels[labels >= 0].tolist() == list(range(len(flat)))
    owners = [int(split.owner[sample]) for sample, row in enumerate(labels) for label in row if label >= 0]
    assert owners == [row for row, words in enumerate(WORDS) for _ in words]


def test_unlabelled_rows_encode_like_labelled_ones(tokenizer, tmp_path):
    known = encode.words(WORDS, tokenizer, [0] * 11, length=16, key="same", cache=tmp_path)
    fresh = encode.unlabelled_words(WORDS, tokenizer, length=16)
    assert known.ids.tolist() == fresh.ids.tolist() and known.words.tolist() == fresh.words.tolist()


def test_augmented_texts_lose_some_tokens_and_never_the_first(tokenizer, tmp_path):
    text = "The quick brown fox jumps over the lazy dog " * 3
    split = encode.texts([text], tokenizer, [0], length=64, key="a", cache=tmp_path, augment=True)
    plain, thin, again = split.batch([0]), split.batch([0], augment_seed=1), split.batch([0], augment_seed=1)
    assert thin["input_ids"].tolist() == again["input_ids"].tolist()
    assert 40 < int(thin["attention_mask"].sum()) < int(plain["attention_mask"].sum()) == 64
    assert thin["input_ids"][0, 0] == plain["input_ids"][0, 0]
