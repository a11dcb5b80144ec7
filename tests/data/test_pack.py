"""Packed text: every token predicted once, every byte counted once, whatever the tokenizer."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmos_cli.data.pack import Packed, Separate, packed
from llmos_cli.data.tokenize import END, ByteCounter, backend_of, bpe, end_of_text, existing, identity
from llmos_cli.errors import Corrupt, NotFound, UsageError
from llmos_cli.options.data import DataOptions
from llmos_cli.options.data import Tokenizer as TokenizerOptions
from llmos_cli.tasks.text import tokenizer_for

TEXTS = ["def f(x):\n    return x\n", "naïve façade 🙂🙂 — ok\n", f"a text that says {END} itself", "", "tab\tend "]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return bpe(TEXTS * 5, vocab_size=300, key="test", cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def lossy():
    """A tokenizer that lowers and strips, and knows few words: its tokens cannot tell their bytes."""
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2, "text": 3, "##s": 4}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", sep_token="[SEP]")


def stream(texts, tokenizer, cache, length=8, **options):
    return Packed(
        packed(texts, tokenizer, key=texts, cache=cache), length=length, end=end_of_text(tokenizer), **options
    )


@pytest.mark.parametrize("kind", ["tokenizer", "lossy"])
@pytest.mark.parametrize("length", [1, 3, 8, 100])
def test_every_token_is_predicted_once_and_every_byte_counted_once(kind, length, request, tmp_path):
    tokenizer = request.getfixturevalue(kind)
    split = stream(TEXTS, tokenizer, tmp_path, length)
    batch = split.batch(range(len(split)))
    end, backend = end_of_text(tokenizer), backend_of(tokenizer)
    expected = [i for text in TEXTS for i in [*backend.encode(text, add_special_tokens=False).ids, end]]
    assert batch["labels"][batch["labels"] >= 0].tolist() == expected
    assert split.bytes(range(len(split))) == sum(len(text.encode()) for text in TEXTS)
    assert sum(split.bytes([row]) for row in range(len(split))) == split.bytes(range(len(split)))


def test_bytes_are_counted_where_ids_are_left_out():
    backend = Tokenizer(models.WordLevel({"a": 0, "bc": 70}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    counter = ByteCounter(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert counter("a bc", [0, 70]).sum() == 4


def test_a_tokenizer_that_does_not_load_is_told_in_a_sentence(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Corrupt, match="does not load: "):
        existing(tmp_path)


def test_inputs_are_the_tokens_before_the_labels(tokenizer, tmp_path):
    batch = stream(TEXTS, tokenizer, tmp_path).batch([0, 1])
    assert batch["input_ids"][0, 0] == end_of_text(tokenizer)
    assert torch.equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1])
    assert batch["input_ids"][1, 0] == batch["labels"][0, -1]


def test_text_survives_its_tokens(tokenizer):
    for text in TEXTS:
        assert tokenizer.decode(backend_of(tokenizer).encode(text).ids, clean_up_tokenization_spaces=False) == text
    assert end_of_text(tokenizer) not in backend_of(tokenizer).encode(TEXTS[2]).ids


def test_a_limit_is_spread_over_the_split(tokenizer, tmp_path):
    whole, some = stream(TEXTS, tokenizer, tmp_path), stream(TEXTS, tokenizer, tmp_path, limit=3)
    assert len(some) == 3 < len(whole)
    assert some.starts[0] == 0 and some.starts[-1] >= whole.starts[-1] // 2


def test_nothing_is_tokenised_twice(tokenizer, tmp_path):
    first = packed(TEXTS, tokenizer, key="same", cache=tmp_path)
    written = (first / "tokens.bin").stat().st_mtime_ns
    assert packed(TEXTS, tokenizer, key="same", cache=tmp_path) == first
    assert (first / "tokens.bin").stat().st_mtime_ns == written
    assert packed(TEXTS, tokenizer, key="other", cache=tmp_path) != first


def test_texts_judged_alone_count_as_the_packed_ones(tokenizer, tmp_path):
    split = Separate(TEXTS, tokenizer, length=8)
    labels = split.batch(range(len(split)))["labels"]
    joined = stream(TEXTS, tokenizer, tmp_path)
    assert split.bytes(range(len(split))) == joined.bytes(range(len(joined)))
    assert int((labels >= 0).sum()) == int((joined.batch(range(len(joined)))["labels"] >= 0).sum())


def test_byte_counts_of_a_broken_character_fall_on_its_first_token(tokenizer):
    ids = backend_of(tokenizer).encode("🙂é").ids
    assert int(ByteCounter(tokenizer)("🙂é", ids).sum()) == 6


def test_a_tokenizer_comes_back_from_its_directory(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert identity(existing(tmp_path)) == identity(tokenizer)
    with pytest.raises(NotFound, match="no tokenizer"):
        existing(tmp_path / "nowhere")


def test_a_tokenizers_directory_is_relative_to_the_workspace(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "words")
    data = DataOptions(tokenizer=TokenizerOptions(type="from", path="words"))
    found = tokenizer_for([], data, processor=None, key="", cache=tmp_path / ".llmos" / "cache", classifies=False)
    assert identity(found) == identity(tokenizer)


def test_a_tokenizer_never_brings_its_own_code(tokenizer, tmp_path, monkeypatch):
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, **own}))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # whatever transformers would ask
    with contextlib.suppress(NotFound, Corrupt):
        existing(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_without_an_end_is_refused(lossy):
    bare = PreTrainedTokenizerFast(tokenizer_object=lossy.backend_tokenizer)
    bare.bos_token = bare.eos_token = bare.sep_token = None
    with pytest.raises(UsageError, match="no end-of-text token"):
        end_of_text(bare)
